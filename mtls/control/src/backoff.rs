// SPDX-License-Identifier: Apache-2.0
//! Waiting between attempts: longer each time, and never in step with other sidecars.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(30);

/// The wait before the next attempt.
#[derive(Debug)]
pub(crate) struct Backoff(Duration);

impl Backoff {
    pub(crate) fn new() -> Self {
        Self(FIRST)
    }

    /// Start again with short waits.
    pub(crate) fn succeeded(&mut self) {
        self.0 = FIRST;
    }

    /// The same after a stream that worked was ended by the server: all sidecars lost theirs, and come back over so long.
    pub(crate) fn lost(&mut self, spread: Duration) -> Duration {
        self.failed() + spread.min(LONGEST).mul_f64(random())
    }

    /// How long to wait now: half of the present wait and a random part of the other half.
    pub(crate) fn failed(&mut self) -> Duration {
        let half = self.0 / 2;
        self.0 = (self.0 * 2).min(LONGEST);
        half + half.mul_f64(random())
    }
}

/// From 0 to 1.
fn random() -> f64 {
    let mut random = [0; 4];
    // Without randomness the middle is as good as any.
    match aws_lc_rs::rand::fill(&mut random) {
        Ok(()) => f64::from(u32::from_ne_bytes(random)) / f64::from(u32::MAX),
        Err(_) => 0.5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_lost_the_server_together_come_back_over_the_spread() {
        let mut backoff = Backoff::new();
        let mut waits = Vec::new();
        for _ in 0..200 {
            backoff.succeeded();
            waits.push(backoff.lost(Duration::from_secs(10)));
        }
        assert!(waits.iter().all(|wait| FIRST / 2 <= *wait && *wait <= FIRST + Duration::from_secs(10)));
        // Each half of it is empty once in 2^200.
        assert!(waits.iter().any(|wait| *wait < Duration::from_secs(5)));
        assert!(waits.iter().any(|wait| *wait > Duration::from_secs(5)));
        backoff.succeeded();
        assert!(backoff.lost(Duration::ZERO) <= FIRST);
        assert!(backoff.lost(Duration::MAX) <= LONGEST * 2);
    }

    #[test]
    fn waits_double_to_the_longest_and_start_again() {
        let mut backoff = Backoff::new();
        for expected in [200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000] {
            let (wait, whole) = (backoff.failed(), Duration::from_millis(expected));
            assert!(whole / 2 <= wait && wait <= whole, "{wait:?} of {whole:?}");
        }
        backoff.succeeded();
        assert!(backoff.failed() <= FIRST);
    }
}
