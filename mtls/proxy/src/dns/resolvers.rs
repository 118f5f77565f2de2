// SPDX-License-Identifier: Apache-2.0
//! Which resolvers are asked, in which order and for how long.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// The resolvers of one configuration.
#[derive(Debug, Default)]
pub(crate) struct Resolvers {
    addresses: Vec<SocketAddr>,
    timeout: Duration,
    pub attempts: u32,
    /// With which one the next query begins: one that does not answer loses the first place to the one after it.
    first: AtomicUsize,
}

impl Resolvers {
    pub fn new(addresses: &[SocketAddr], timeout: Duration, attempts: u32) -> Self {
        Resolvers { addresses: addresses.to_vec(), timeout, attempts, first: AtomicUsize::new(0) }
    }

    /// How long each one is waited for: a round over all takes the timeout, so that a program that reads the same
    /// resolv.conf, and waits as it says, has the second resolver's answer before it gives the first one up.
    pub fn share(&self) -> Duration {
        self.timeout / u32::try_from(self.addresses.len().max(1)).unwrap_or(u32::MAX)
    }

    /// All of them with their places, in the order in which they are asked now.
    pub fn in_turn(&self) -> impl Iterator<Item = (usize, SocketAddr)> {
        let (first, count) = (self.first.load(Ordering::Relaxed), self.addresses.len());
        (0..count).map(move |n| (first + n) % count).map(|place| (place, self.addresses[place]))
    }

    /// Note that one has not answered.
    pub fn silent(&self, place: usize) {
        let next = (place + 1) % self.addresses.len().max(1);
        // Somebody else may have moved on already.
        _ = self.first.compare_exchange(place, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolvers(count: u16) -> Resolvers {
        let addresses: Vec<_> = (0..count).map(|n| SocketAddr::from(([192, 0, 2, 1], 53 + n))).collect();
        Resolvers::new(&addresses, Duration::from_secs(6), 2)
    }

    #[test]
    fn the_one_that_is_silent_loses_the_first_place() {
        let three = resolvers(3);
        let order = || three.in_turn().map(|(place, _)| place).collect::<Vec<_>>();
        assert_eq!(order(), [0, 1, 2]);
        three.silent(0);
        three.silent(0);
        assert_eq!(order(), [1, 2, 0], "two queries that saw the same move on once");
        three.silent(0);
        assert_eq!(order(), [1, 2, 0], "it has no place to lose");
        three.silent(1);
        three.silent(2);
        assert_eq!(order(), [0, 1, 2]);
    }

    #[test]
    fn a_round_takes_the_timeout() {
        assert_eq!([resolvers(1).share(), resolvers(3).share()], [Duration::from_secs(6), Duration::from_secs(2)]);
        assert_eq!(Resolvers::default().in_turn().count(), 0);
        Resolvers::default().silent(0);
    }
}
