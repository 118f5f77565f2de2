// SPDX-License-Identifier: Apache-2.0
//! The time that certificates are judged by.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A clock that never goes back: the later of the wall clock and the last time seen plus the monotonic time since.
///
/// Without that, setting the wall clock back would bring expired certificates to life again.
#[derive(Debug)]
pub struct Clock(Mutex<Seen>);

#[derive(Debug)]
struct Seen {
    wall: Duration,
    at: Instant,
}

impl Clock {
    pub fn new() -> Self {
        Self(Mutex::new(Seen { wall: wall(), at: Instant::now() }))
    }

    /// Unix seconds.
    pub fn now(&self) -> i64 {
        self.since_1970().as_secs().try_into().unwrap_or(i64::MAX)
    }

    /// The same with all its digits, for records.
    pub fn since_1970(&self) -> Duration {
        self.read(wall(), Instant::now())
    }

    /// How long until a Unix time by this clock; zero when it has passed.
    pub fn until(&self, unix_seconds: i64) -> Duration {
        Duration::from_secs(u64::try_from(unix_seconds).unwrap_or(0)).saturating_sub(self.since_1970())
    }

    fn read(&self, wall: Duration, at: Instant) -> Duration {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = wall.max(seen.wall + at.saturating_duration_since(seen.at));
        *seen = Seen { wall: now, at: at.max(seen.at) };
        now
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the one clock")]
fn wall() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_back_is_not_followed() {
        let start = Instant::now();
        let clock = Clock(Mutex::new(Seen { wall: Duration::from_secs(1000), at: start }));
        let later = start + Duration::from_secs(5);
        assert_eq!(clock.read(Duration::from_secs(900), later).as_secs(), 1005);
        assert_eq!(clock.read(Duration::from_secs(2000), later).as_secs(), 2000);
        assert_eq!(clock.read(Duration::from_secs(1900), later + Duration::from_secs(1)).as_secs(), 2001);
    }
}
