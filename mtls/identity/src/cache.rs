// SPDX-License-Identifier: Apache-2.0
//! Verified paths, remembered. The key holds everything that the answer depends on but time and revocations, which are
//! asked again on every hit. That a peer holds the key is never cached: its signature is checked in each handshake.

use std::collections::HashMap;
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};

use crate::roots::RootsByDomain;
use crate::verify::{Direction, VerifiedChain};

/// How many paths are kept, at most. An entry is about 1 KiB.
const CAPACITY: usize = 8192;

pub(crate) type Key = [u8; 32];

/// A bounded cache that forgets what was not used for long: two halves, the older one dropped when the younger is full.
#[derive(Debug, Default)]
pub struct PathCache(Mutex<Halves>);

#[derive(Debug, Default)]
struct Halves {
    young: HashMap<Key, Arc<VerifiedChain>>,
    old: HashMap<Key, Arc<VerifiedChain>>,
}

impl PathCache {
    pub(crate) fn get(&self, key: &Key) -> Option<Arc<VerifiedChain>> {
        let mut halves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(chain) = halves.young.get(key) {
            return Some(chain.clone());
        }
        let chain = halves.old.remove(key)?;
        halves.put(*key, chain.clone());
        Some(chain)
    }

    pub(crate) fn put(&self, key: Key, chain: Arc<VerifiedChain>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).put(key, chain);
    }
}

impl Halves {
    fn put(&mut self, key: Key, chain: Arc<VerifiedChain>) {
        if self.young.len() >= CAPACITY / 2 {
            self.old = mem::take(&mut self.young);
        }
        self.young.insert(key, chain);
    }
}

pub(crate) fn key(chain: &[CertificateDer<'_>], roots: &RootsByDomain, direction: Direction) -> Key {
    let mut hasher = Sha256::new();
    hasher.update([direction as u8]);
    hasher.update(roots.digest());
    for certificate in chain {
        hasher.update((certificate.len() as u64).to_be_bytes());
        hasher.update(certificate);
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spiffe_id::SpiffeId;

    fn chain() -> Arc<VerifiedChain> {
        Arc::new(VerifiedChain {
            id: SpiffeId::parse("spiffe://td/a").unwrap(),
            serial: "1".into(),
            not_before: 0,
            not_after: 1,
            valid_from: 0,
            deadline: 1,
            chain_hash: [0; 32],
            authority_ids: Vec::new(),
            between: Vec::new(),
            anchor: [0; 32],
            anchor_expires: 1,
        })
    }

    fn number(of: usize) -> Key {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&of.to_be_bytes());
        key
    }

    #[test]
    fn forgets_what_is_not_used_and_stays_bounded() {
        let (cache, chain) = (PathCache::default(), chain());
        for of in 0..CAPACITY * 3 {
            cache.put(number(of), chain.clone());
            assert!(cache.get(&number(0)).is_some(), "in use at {of}");
        }
        let halves = cache.0.lock().unwrap();
        assert!(halves.young.len() + halves.old.len() <= CAPACITY);
        drop(halves);
        assert!(cache.get(&number(1)).is_none());
        assert!(cache.get(&number(CAPACITY * 3 - 1)).is_some());
    }

    #[test]
    fn the_key_holds_every_part() {
        let roots = RootsByDomain::default();
        let other = RootsByDomain::new(
            [("td", Vec::new())]
                .map(|(name, ders)| {
                    (crate::TrustDomain::parse(name).unwrap(), Arc::new(crate::Roots::parse(&ders).unwrap()))
                })
                .into(),
        );
        let chain = |parts: &[&[u8]]| parts.iter().map(|part| CertificateDer::from(part.to_vec())).collect::<Vec<_>>();
        let keys = [
            key(&chain(&[b"ab", b"c"]), &roots, Direction::PeerIsServer),
            key(&chain(&[b"a", b"bc"]), &roots, Direction::PeerIsServer),
            key(&chain(&[b"abc"]), &roots, Direction::PeerIsServer),
            key(&chain(&[b"ab", b"c"]), &roots, Direction::PeerIsClient),
            key(&chain(&[b"ab", b"c"]), &other, Direction::PeerIsServer),
        ];
        let different: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(different.len(), keys.len());
    }
}
