// SPDX-License-Identifier: Apache-2.0
//! Which CAs below the roots of our own trust domain may sign, and for which segments.
//!
//! A CA is known by its key. Constraints inside the certificate would be better known and worse enforced: webpki refuses
//! everything below a URI name constraint, and so does pyca. So the broker sends the whole list, and who is not on it
//! may sign nothing. Without a list (before a server that has none) SPIFFE's own rules are all there is.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use crate::error::{Code, VerifyError};
use crate::spiffe_id::{SpiffeId, TrustDomain};
use crate::verify::VerifiedChain;

/// SHA-256 over a subjectPublicKeyInfo.
pub type KeyHash = [u8; 32];

/// Answers which segment an ID is in.
pub type SegmentOf = Arc<dyn Fn(&SpiffeId) -> Option<String> + Send + Sync>;

/// What stands in place of a segment's name for a CA of the broker's own: it may sign for every ID.
const EVERY_ID: &str = "*";

/// For which segments each CA may sign, or [`EVERY_ID`]; what is not listed may sign for none.
pub type Listed = HashMap<KeyHash, BTreeSet<String>>;

/// The whole list of one trust domain.
#[derive(Clone)]
pub struct Intermediates {
    trust_domain: TrustDomain,
    listed: Listed,
    segment_of: SegmentOf,
}

impl Intermediates {
    pub fn new(trust_domain: TrustDomain, listed: Listed, segment_of: SegmentOf) -> Self {
        Self { trust_domain, listed, segment_of }
    }

    /// Every CA from the leaf up must be listed for the segment of its ID, to the root or to one of the broker's own.
    pub(crate) fn check(&self, chain: &VerifiedChain) -> Result<(), VerifyError> {
        if chain.id.trust_domain() != &self.trust_domain {
            return Ok(());
        }
        let mut limits = Vec::new();
        for key in &chain.between {
            let segments = self.listed.get(key).ok_or(Code::IntermediateNotListed)?;
            if segments.contains(EVERY_ID) {
                // What stands above it is the business of the authority upstream.
                break;
            }
            limits.push(segments);
        }
        if limits.is_empty() {
            return Ok(());
        }
        match (self.segment_of)(&chain.id) {
            Some(segment) if limits.iter().all(|segments| segments.contains(&segment)) => Ok(()),
            Some(segment) => Err(VerifyError::with(Code::SegmentNotListed, segment)),
            None => Err(VerifyError::with(Code::SegmentNotListed, "it is in none")),
        }
    }
}

impl fmt::Debug for Intermediates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Intermediates({}, {} listed)", self.trust_domain, self.listed.len())
    }
}
