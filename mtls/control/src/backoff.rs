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
