// SPDX-License-Identifier: Apache-2.0
//! How many streams one client may reset, over all its connections to a listener.
//!
//! A reset stream has cost us a request and its sender nothing (CVE-2023-44487). HTTP/2's own limits are a
//! connection's; who opens many connections has as many of those.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::connection::Who;

/// So many seconds' worth may come at once.
const BURST: u32 = 10;
/// Clients that are remembered before those with a full allowance are forgotten.
const REMEMBERED: usize = 1024;

/// The allowances of a listener's clients.
#[derive(Debug)]
pub(crate) struct Resets {
    each_second: u32,
    spent: Mutex<HashMap<Who, Spent>>,
}

#[derive(Debug, Clone, Copy)]
struct Spent {
    count: f64,
    at: Instant,
}

impl Resets {
    pub fn new(each_second: u32) -> Arc<Self> {
        Arc::new(Resets { each_second, spent: Mutex::default() })
    }

    /// The allowance of one client.
    pub fn of(self: &Arc<Self>, who: Who) -> Budget {
        Budget { resets: self.clone(), who }
    }

    fn left(&self, spent: Option<&Spent>, now: Instant) -> f64 {
        let all = f64::from(self.each_second) * f64::from(BURST);
        all - spent.map_or(0.0, |spent| self.fallen(spent, now))
    }

    /// What has been spent and not yet grown again.
    fn fallen(&self, spent: &Spent, now: Instant) -> f64 {
        let grown: Duration = now.saturating_duration_since(spent.at);
        (spent.count - grown.as_secs_f64() * f64::from(self.each_second)).max(0.0)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Who, Spent>> {
        self.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One client's allowance.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    resets: Arc<Resets>,
    who: Who,
}

impl Budget {
    /// Spend one reset; false when there was none left.
    pub fn spend(&self) -> bool {
        let (resets, now) = (&self.resets, Instant::now());
        let mut all = resets.lock();
        if all.len() >= REMEMBERED {
            all.retain(|_, spent| resets.fallen(spent, now) > 0.0);
        }
        let count = all.get(&self.who).map_or(0.0, |spent| resets.fallen(spent, now));
        let left = resets.left(all.get(&self.who), now) >= 1.0;
        if left {
            all.insert(self.who.clone(), Spent { count: count + 1.0, at: now });
        }
        left
    }

    /// Say whether there is any left.
    pub fn is_left(&self) -> bool {
        self.resets.left(self.resets.lock().get(&self.who), Instant::now()) >= 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_allowance_grows_again_and_is_one_clients_own() {
        let resets = Resets::new(2);
        let (one, other) = (resets.of(Who::User(1)), resets.of(Who::User(2)));
        for _ in 0..20 {
            assert!(one.spend());
        }
        assert!(!one.spend() && !one.is_left());
        assert!(other.is_left() && other.spend());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(one.spend() && one.spend() && !one.spend());
        tokio::time::advance(Duration::from_secs(1000)).await;
        for _ in 0..20 {
            assert!(one.spend());
        }
        assert!(!one.spend());
    }
}
