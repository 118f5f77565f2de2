// SPDX-License-Identifier: Apache-2.0
//! The one function that decides about a chain: ours at publish, theirs in a handshake, in both directions.
//!
//! Roots are chosen by the leaf's own trust domain before anything is verified. That is safe because the signature check
//! then uses those roots alone.

use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::{CertificateDer, UnixTime};
use sha2::{Digest, Sha256};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};

use crate::cache::{self, PathCache};
use crate::certificate::Certificate;
use crate::error::{Code, VerifyError};
use crate::intermediates::KeyHash;
use crate::profile;
use crate::revocation::Revocations;
use crate::roots::{Roots, RootsByDomain};
use crate::spiffe_id::SpiffeId;
use crate::tls;

/// A leaf and at most six CAs, which is what webpki builds.
const MAX_CHAIN: usize = 7;
/// How long before its notBefore a certificate counts, in seconds: whoever issued it has a clock that is so much ahead of
/// ours. As much as a clock may be set back without a word (`certs/verify.py`). Nothing counts after its notAfter.
const EARLY: i64 = 300;

/// The part that the owner of the chain plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    PeerIsServer = 0,
    PeerIsClient = 1,
}

/// A chain that leads from a well-formed SVID to a root of its trust domain. It does not say who holds the key.
#[derive(Debug)]
pub struct VerifiedChain {
    pub(crate) id: SpiffeId,
    pub(crate) serial: Arc<str>,
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
    /// The path's own window: the latest notBefore and the earliest notAfter over leaf, CAs and root.
    pub(crate) valid_from: i64,
    pub(crate) deadline: i64,
    pub(crate) chain_hash: [u8; 32],
    pub(crate) authority_ids: Vec<String>,
    /// The keys of the CAs between leaf and root, the issuer's first.
    pub(crate) between: Vec<KeyHash>,
    pub(crate) anchor: [u8; 32],
    /// When the root itself expires, and its bundle drops it.
    pub(crate) anchor_expires: i64,
}

impl VerifiedChain {
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The earliest notAfter over the verified path, Unix seconds.
    pub fn deadline(&self) -> i64 {
        self.deadline
    }
}

/// Verify a chain (leaf first) at a time, in the order of the codes in `error.rs`. What begins within five minutes counts.
pub fn verify_chain(
    chain: &[CertificateDer<'_>],
    roots: &RootsByDomain,
    revocations: &Revocations,
    direction: Direction,
    cache: Option<&PathCache>,
    now: i64,
) -> Result<Arc<VerifiedChain>, VerifyError> {
    check_length(chain)?;
    let key = cache::key(chain, roots, direction);
    let remembered = cache.and_then(|cache| cache.get(&key));
    // What counts before it begins is looked at each time: until then another path may be the one that is found.
    if let Some(found) = remembered.filter(|found| found.valid_from <= now && now <= found.deadline) {
        revocations.check(&found)?;
        return Ok(found);
    }
    let verified = Arc::new(verify_path(chain, roots, direction, now)?);
    if let Some(cache) = cache.filter(|_| verified.valid_from <= now) {
        cache.put(key, verified.clone());
    }
    revocations.check(&verified)?;
    Ok(verified)
}

fn check_length(chain: &[CertificateDer<'_>]) -> Result<(), VerifyError> {
    match chain.len() {
        0 => Err(Code::ChainEmpty.into()),
        1..=MAX_CHAIN => Ok(()),
        _ => Err(Code::ChainTooLong.into()),
    }
}

fn verify_path(
    chain: &[CertificateDer<'_>],
    roots: &RootsByDomain,
    direction: Direction,
    now: i64,
) -> Result<VerifiedChain, VerifyError> {
    let facts = chain.iter().map(|der| Certificate::parse(der)).collect::<Result<Vec<_>, _>>()?;
    let (leaf, authorities) = facts.split_first().ok_or(Code::ChainEmpty)?;
    let id = profile::check_leaf(leaf)?;
    let roots = roots
        .get(id.trust_domain())
        .ok_or_else(|| VerifyError::with(Code::UnknownTrustDomain, id.trust_domain().name()))?;
    profile::check_authorities(&id, authorities)?;
    let certificate = EndEntityCert::try_from(&chain[0]).map_err(|error| webpki_error(&error, roots))?;
    let usage = match direction {
        Direction::PeerIsServer => KeyUsage::server_auth(),
        Direction::PeerIsClient => KeyUsage::client_auth(),
    };
    let begun = judged_at(&facts, now);
    let accept = |path: &VerifiedPath<'_>| accept_path(path, roots, now, begun);
    let path = certificate
        .verify_for_usage(
            tls::ALGORITHMS.all,
            &roots.anchors,
            &chain[1..],
            unix_time(begun),
            usage,
            None,
            Some(&accept),
        )
        .map_err(|error| webpki_error(&error, roots))?;
    summarize(id, leaf, chain, &path, roots).ok_or_else(|| Code::ChainUntrusted.into())
}

/// When all of a chain has begun that begins soon; it must not have ended then. Now, for most.
fn judged_at(chain: &[Certificate], now: i64) -> i64 {
    let soon = |start: &i64| *start <= now.saturating_add(EARLY);
    chain.iter().map(|certificate| certificate.not_before).filter(soon).fold(now, i64::max)
}

fn unix_time(seconds: i64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

/// Refuse a path that webpki allows: CAs that may not sign, more CAs than the root wants below it, and a root outside its
/// own validity.
fn accept_path(path: &VerifiedPath<'_>, roots: &Roots, now: i64, begun: i64) -> Result<(), webpki::Error> {
    let may_sign = |ca: &webpki::Cert<'_>| Certificate::parse(&ca.der()).is_ok_and(|facts| profile::may_sign(&facts));
    if !path.intermediate_certificates().all(may_sign) {
        return Err(webpki::Error::EndEntityUsedAsCa);
    }
    let (root, _) = roots.facts_of(path.anchor()).ok_or(webpki::Error::UnknownIssuer)?;
    let below = path.intermediate_certificates().count();
    if root.path_length.is_some_and(|longest| below > longest as usize) {
        return Err(webpki::Error::PathLenConstraintViolated);
    }
    if now.saturating_add(EARLY) < root.not_before {
        return Err(webpki::Error::CertNotValidYet { time: unix_time(now), not_before: unix_time(root.not_before) });
    }
    if begun > root.not_after {
        return Err(webpki::Error::CertExpired { time: unix_time(begun), not_after: unix_time(root.not_after) });
    }
    Ok(())
}

fn summarize(
    id: SpiffeId,
    leaf: &Certificate,
    chain: &[CertificateDer<'_>],
    path: &VerifiedPath<'_>,
    roots: &Roots,
) -> Option<VerifiedChain> {
    let (root, anchor) = roots.facts_of(path.anchor())?;
    let between =
        path.intermediate_certificates().map(|ca| Certificate::parse(&ca.der()).ok()).collect::<Option<Vec<_>>>()?;
    let authorities = || between.iter().chain([root]);
    Some(VerifiedChain {
        id,
        serial: leaf.serial.as_str().into(),
        not_before: leaf.not_before,
        not_after: leaf.not_after,
        valid_from: authorities().map(|ca| ca.not_before).fold(leaf.not_before, i64::max),
        deadline: authorities().map(|ca| ca.not_after).fold(leaf.not_after, i64::min),
        chain_hash: chain_hash(chain),
        between: between.iter().map(|ca| ca.key_hash).collect(),
        authority_ids: authorities().flat_map(|ca| ca.key_ids.iter().cloned()).collect(),
        anchor,
        anchor_expires: root.not_after,
    })
}

/// SHA-256 over the certificates as sent, leaf first.
fn chain_hash(chain: &[CertificateDer<'_>]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    chain.iter().for_each(|certificate| hasher.update(certificate));
    hasher.finalize().into()
}

fn webpki_error(error: &webpki::Error, roots: &Roots) -> VerifyError {
    match error {
        webpki::Error::CertExpired { .. } => Code::Expired.into(),
        webpki::Error::CertNotValidYet { .. } => Code::NotYetValid.into(),
        webpki::Error::NameConstraintViolation if roots.any_uri_constraints() => {
            Code::NameConstraintsUnsupported.into()
        }
        webpki::Error::BadDer | webpki::Error::TrailingData(_) => Code::MalformedCertificate.into(),
        other => VerifyError::with(Code::ChainUntrusted, format!("{other:?}")),
    }
}
