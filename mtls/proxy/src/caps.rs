// SPDX-License-Identifier: Apache-2.0
//! How many connections a listener serves at once, in all and for one identity.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counts connections by key, up to a limit for each and one for all. One key cannot take what belongs to the others.
#[derive(Debug)]
pub(crate) struct Caps<K: Eq + Hash> {
    counts: Mutex<Counts<K>>,
    all: usize,
    each: usize,
}

#[derive(Debug)]
struct Counts<K> {
    total: usize,
    by_key: HashMap<K, usize>,
}

impl<K: Eq + Hash + Clone> Caps<K> {
    pub fn new(all: usize, each: usize) -> Arc<Self> {
        Arc::new(Caps { counts: Mutex::new(Counts { total: 0, by_key: HashMap::new() }), all, each })
    }

    /// Take a place among all; None when there is none.
    pub fn enter(self: &Arc<Self>) -> Option<Place<K>> {
        let mut counts = self.lock();
        if counts.total >= self.all {
            return None;
        }
        counts.total += 1;
        Some(Place { caps: self.clone(), key: None })
    }

    fn lock(&self) -> MutexGuard<'_, Counts<K>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place; given back when dropped.
#[derive(Debug)]
pub(crate) struct Place<K: Eq + Hash + Clone> {
    caps: Arc<Caps<K>>,
    key: Option<K>,
}

impl<K: Eq + Hash + Clone> Place<K> {
    /// Count this connection for `key`, once its identity is known; false when that one has too many.
    pub fn claim(&mut self, key: K) -> bool {
        let mut counts = self.caps.lock();
        let count = counts.by_key.get(&key).copied().unwrap_or(0);
        if count >= self.caps.each {
            return false;
        }
        counts.by_key.insert(key.clone(), count + 1);
        drop(counts);
        self.key = Some(key);
        true
    }
}

impl<K: Eq + Hash + Clone> Drop for Place<K> {
    fn drop(&mut self) {
        let mut counts = self.caps.lock();
        counts.total -= 1;
        let Some(key) = self.key.take() else { return };
        if let Some(count) = counts.by_key.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                counts.by_key.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_come_back() {
        let caps = Caps::new(3, 2);
        let (mut a, mut b, mut c) = (caps.enter().unwrap(), caps.enter().unwrap(), caps.enter().unwrap());
        assert!(caps.enter().is_none(), "three in all");
        assert!(a.claim("x") && b.claim("x"));
        assert!(!c.claim("x"), "two each");
        assert!(c.claim("y"));
        drop(a);
        let mut again = caps.enter().unwrap();
        assert!(again.claim("x"));
        drop((b, c, again));
        assert_eq!(caps.lock().total, 0);
        assert!(caps.lock().by_key.is_empty());
    }

    #[test]
    fn a_refused_claim_leaves_no_trace() {
        let caps = Caps::<&str>::new(1, 0);
        assert!(!caps.enter().unwrap().claim("x"));
        assert!(caps.lock().by_key.is_empty());
        assert_eq!(caps.lock().total, 0);
    }
}
