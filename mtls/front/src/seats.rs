// SPDX-License-Identifier: Apache-2.0
//! How many connections there may be at once, in all and from one address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// One address may take this part of all seats, and always one.
const SHARE: usize = 8;

/// The seats of a listener that anybody may connect to.
#[derive(Debug)]
pub(crate) struct Seats {
    most: usize,
    taken: Mutex<(usize, HashMap<IpAddr, usize>)>,
}

/// A taken seat; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Seat {
    seats: Arc<Seats>,
    address: IpAddr,
}

impl Seats {
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, taken: Mutex::default() })
    }

    /// Take a seat; none is left for an address that has its share, or for anybody when all are taken.
    pub fn take(self: &Arc<Self>, address: IpAddr) -> Option<Seat> {
        let address = network(address);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let theirs = taken.1.get(&address).copied().unwrap_or(0);
        if taken.0 >= self.most || theirs >= (self.most / SHARE).max(1) {
            return None;
        }
        taken.0 += 1;
        taken.1.insert(address, theirs + 1);
        Some(Seat { seats: self.clone(), address })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.0 -= 1;
        match taken.1.get(&self.address).copied() {
            Some(theirs) if theirs > 1 => _ = taken.1.insert(self.address, theirs - 1),
            _ => _ = taken.1.remove(&self.address),
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
        assert_eq!(*seats.taken.lock().unwrap(), (0, HashMap::new()));
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
}
