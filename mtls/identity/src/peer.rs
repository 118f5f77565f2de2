// SPDX-License-Identifier: Apache-2.0
//! The proof that somebody is who they say.

use std::sync::Arc;

use crate::error::{Code, VerifyError};
use crate::material::Identity;
use crate::spiffe_id::SpiffeId;
use crate::verify::VerifiedChain;

/// A peer that proved a SPIFFE ID in a handshake of ours. Nothing outside this crate can make one.
#[derive(Clone, Debug)]
pub struct VerifiedPeer(Arc<VerifiedChain>);

impl VerifiedPeer {
    pub(crate) fn new(chain: Arc<VerifiedChain>) -> Self {
        Self(chain)
    }

    pub fn id(&self) -> &SpiffeId {
        &self.0.id
    }

    /// The leaf's serial number in lower-case hex, without leading zeros.
    pub fn serial(&self) -> &str {
        &self.0.serial
    }

    /// The same, for who keeps it.
    pub fn shared_serial(&self) -> Arc<str> {
        self.0.serial.clone()
    }

    /// The leaf's notBefore, Unix seconds.
    pub fn not_before(&self) -> i64 {
        self.0.not_before
    }

    /// The leaf's notAfter, Unix seconds.
    pub fn not_after(&self) -> i64 {
        self.0.not_after
    }

    /// The earliest notAfter over the verified path: when the connection must end.
    pub fn deadline(&self) -> i64 {
        self.0.deadline
    }

    /// SHA-256 over the certificates as sent, leaf first.
    pub fn chain_hash(&self) -> &[u8; 32] {
        &self.0.chain_hash
    }

    /// The key IDs of the CAs on the verified path, the issuer's first, the root's last.
    pub fn authority_ids(&self) -> &[String] {
        &self.0.authority_ids
    }

    /// Check that a newer generation would still let this peer in: its root is still trusted by this identity, nothing
    /// of it is revoked and no certificate of its path has expired.
    pub fn recheck(&self, identity: &Identity, now: i64) -> Result<(), VerifyError> {
        self.check_root(identity, |trusted| trusted)?;
        if now > self.0.deadline {
            return Err(Code::Expired.into());
        }
        identity.revocations().check(&self.0)
    }

    /// The same for a stream that may outlive its certificates: expiry does not count, and neither does the absence of
    /// a root that has expired itself, because bundles drop those. What is revoked, or dropped before its time, does.
    pub fn recheck_outliving(&self, identity: &Identity, now: i64) -> Result<(), VerifyError> {
        self.check_root(identity, |trusted| trusted || now > self.0.anchor_expires)?;
        identity.revocations().check(&self.0)
    }

    /// Whether the root that this peer hangs on will be revoked soon: no request should begin on its connection that a
    /// new handshake could carry.
    pub fn is_tainted(&self, identity: &Identity) -> bool {
        identity.is_tainted(&self.0.anchor)
    }

    fn check_root(&self, identity: &Identity, enough: impl FnOnce(bool) -> bool) -> Result<(), VerifyError> {
        let roots = identity.roots().get(self.id().trust_domain()).ok_or(Code::UnknownTrustDomain)?;
        match enough(roots.holds(&self.0.anchor)) {
            true => Ok(()),
            false => Err(Code::ChainUntrusted.into()),
        }
    }
}
