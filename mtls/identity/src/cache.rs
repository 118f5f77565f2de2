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

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        let halves = self.0.lock().unwrap();
        halves.young.len() + halves.old.len()
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
