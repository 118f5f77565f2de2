// SPDX-License-Identifier: Apache-2.0
//! How many connections there may be at once, in all and from one address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// One address may take this part of all seats, and always one.
const SHARE: usize = 8;

/// The seats of a listener that anybody may connect to.
#[derive(Debug)]
pub(crate) struct Seats {
    all: Arc<Semaphore>,
    each: usize,
    addresses: Mutex<HashMap<IpAddr, Arc<Semaphore>>>,
}

/// A taken seat; dropping it gives it back. The permits go before the address, which is forgotten with its last one.
#[derive(Debug)]
pub(crate) struct Seat {
    _one_of_all: OwnedSemaphorePermit,
    _one_of_theirs: OwnedSemaphorePermit,
    _address: Address,
}

/// An address that has seats or waits for some.
#[derive(Debug)]
struct Address {
    seats: Arc<Seats>,
    address: IpAddr,
    theirs: Arc<Semaphore>,
}

impl Seats {
    pub fn new(most: usize) -> Arc<Self> {
        let most = most.min(Semaphore::MAX_PERMITS);
        let (all, each) = (Arc::new(Semaphore::new(most)), (most / SHARE).max(1));
        Arc::new(Self { all, each, addresses: Mutex::default() })
    }

    /// Take a seat; none is left for an address that has its share, or for anybody when all are taken.
    pub fn take(self: &Arc<Self>, address: IpAddr) -> Option<Seat> {
        let address = self.enter(address);
        let one_of_theirs = address.theirs.clone().try_acquire_owned().ok()?;
        let one_of_all = self.all.clone().try_acquire_owned().ok()?;
        Some(Seat { _one_of_all: one_of_all, _one_of_theirs: one_of_theirs, _address: address })
    }

    /// Wait for a seat: first among those of this address, then among all, each in the order in which they came.
    pub async fn wait(self: &Arc<Self>, address: IpAddr, longest: Duration) -> Option<Seat> {
        let address = self.enter(address);
        let both = async {
            let one_of_theirs = address.theirs.clone().acquire_owned().await.ok()?;
            Some((one_of_theirs, self.all.clone().acquire_owned().await.ok()?))
        };
        let (one_of_theirs, one_of_all) = timeout(longest, both).await.ok()??;
        Some(Seat { _one_of_all: one_of_all, _one_of_theirs: one_of_theirs, _address: address })
    }

    fn enter(self: &Arc<Self>, address: IpAddr) -> Address {
        let address = network(address);
        let new = || Arc::new(Semaphore::new(self.each));
        let theirs = self.lock().entry(address).or_insert_with(new).clone();
        Address { seats: self.clone(), address, theirs }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Arc<Semaphore>>> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Address {
    fn drop(&mut self) {
        let mut addresses = self.seats.lock();
        // The table's and ours: nobody else of this address is here, and nobody comes while we hold the lock.
        if Arc::strong_count(&self.theirs) == 2 {
            addresses.remove(&self.address);
        }
    }
}

/// Whoever has one IPv6 address has 2^64 of them (RFC 6177).
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(six) => Ipv6Addr::from_bits(six.to_bits() & !u128::from(u64::MAX)).into(),
        four => four,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn seats_are_shared_and_given_back() {
        let seats = Seats::new(16);
        let (mine, yours) = (address("192.0.2.1"), address("192.0.2.2"));
        let first: Vec<_> = (0..2).map(|_| seats.take(mine).unwrap()).collect();
        assert!(seats.take(mine).is_none());
        assert!(seats.take(address("::ffff:192.0.2.1")).is_none());
        let other = seats.take(yours).unwrap();
        drop(first);
        drop(other);
        assert_eq!((seats.all.available_permits(), seats.lock().len()), (16, 0));
        assert!(seats.take(mine).is_some());
    }

    #[test]
    fn all_seats_can_be_taken() {
        let seats = Seats::new(3);
        let held: Vec<_> = (1..=3).map(|n| seats.take(address(&format!("192.0.2.{n}"))).unwrap()).collect();
        assert!(seats.take(address("192.0.2.4")).is_none());
        drop(held);
        assert!(seats.take(address("192.0.2.4")).is_some());
    }

    #[test]
    fn an_ipv6_network_is_one_address() {
        let seats = Seats::new(8);
        let held = seats.take(address("2001:db8::1"));
        assert!(held.is_some());
        assert!(seats.take(address("2001:db8::ffff:1")).is_none());
        assert!(seats.take(address("2001:db8:0:1::1")).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_comes_next_or_is_told_after_a_while() {
        const SECOND: Duration = Duration::from_secs(1);
        let seats = Seats::new(8);
        let (mine, yours) = (address("192.0.2.1"), address("192.0.2.2"));
        let held = seats.take(mine).unwrap();
        assert!(seats.wait(mine, SECOND).await.is_none());
        // Those who wait at their own address keep nobody else from a seat.
        let (first, other) = tokio::join!(seats.wait(mine, SECOND), async {
            let other = seats.wait(yours, SECOND).await;
            drop(held);
            other
        });
        assert!(first.is_some() && other.is_some());
        drop((first, other));
        assert_eq!((seats.all.available_permits(), seats.lock().len()), (8, 0));
    }
}
