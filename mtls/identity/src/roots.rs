// SPDX-License-Identifier: Apache-2.0
//! Trust bundles, one trust domain each. There is no merged pool: who signs for one trust domain signs for no other.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustls_pki_types::{CertificateDer, TrustAnchor};
use sha2::{Digest, Sha256};

use crate::certificate::Certificate;
use crate::error::{Code, VerifyError};
use crate::profile;
use crate::spiffe_id::TrustDomain;

/// The roots of one trust domain.
#[derive(Debug)]
pub struct Roots {
    pub(crate) anchors: Vec<TrustAnchor<'static>>,
    facts: Vec<Certificate>,
    hashes: Vec<[u8; 32]>,
}

impl Roots {
    /// Read a bundle's certificates (DER). A bundle may be empty; then it verifies nothing.
    pub fn parse(certificates: &[Vec<u8>]) -> Result<Self, VerifyError> {
        let mut roots = Self { anchors: Vec::new(), facts: Vec::new(), hashes: Vec::new() };
        for der in certificates {
            let facts = Certificate::parse(der)?;
            if !profile::may_sign(&facts) {
                return Err(VerifyError::with(Code::MalformedCertificate, "a root is not a CA that may sign"));
            }
            let der = CertificateDer::from(der.as_slice());
            let anchor = webpki::anchor_from_trusted_cert(&der).map_err(|_| Code::MalformedCertificate)?;
            roots.anchors.push(anchor.to_owned());
            roots.facts.push(facts);
            roots.hashes.push(Sha256::digest(&der).into());
        }
        Ok(roots)
    }

    pub fn is_empty(&self) -> bool {
        self.anchors.is_empty()
    }

    pub(crate) fn holds(&self, hash: &[u8; 32]) -> bool {
        self.hashes.contains(hash)
    }

    /// The facts and the hash of an anchor of this very set.
    pub(crate) fn facts_of(&self, anchor: &TrustAnchor<'_>) -> Option<(&Certificate, [u8; 32])> {
        let at = self.anchors.iter().position(|ours| std::ptr::addr_eq(ours, anchor))?;
        Some((&self.facts[at], self.hashes[at]))
    }

    pub(crate) fn any_uri_constraints(&self) -> bool {
        self.facts.iter().any(|facts| facts.uri_constraints)
    }
}

/// The roots of several trust domains, each for itself, and a digest over all of them.
#[derive(Clone, Debug, Default)]
pub struct RootsByDomain {
    domains: BTreeMap<TrustDomain, Arc<Roots>>,
    digest: [u8; 32],
}

impl RootsByDomain {
    pub fn new(domains: BTreeMap<TrustDomain, Arc<Roots>>) -> Self {
        let mut hasher = Sha256::new();
        for (domain, roots) in &domains {
            hasher.update((domain.name().len() as u64).to_be_bytes());
            hasher.update(domain.name());
            hasher.update((roots.hashes.len() as u64).to_be_bytes());
            roots.hashes.iter().for_each(|hash| hasher.update(hash));
        }
        Self { domains, digest: hasher.finalize().into() }
    }

    /// The roots for a peer of this trust domain; none when there is no bundle or an empty one.
    pub fn get(&self, domain: &TrustDomain) -> Option<&Arc<Roots>> {
        self.domains.get(domain).filter(|roots| !roots.is_empty())
    }

    /// What is left when only some trust domains may be asked for.
    pub fn restrict<'a>(&self, domains: impl IntoIterator<Item = &'a TrustDomain>) -> Self {
        let kept = domains.into_iter().filter_map(|domain| Some((domain.clone(), self.domains.get(domain)?.clone())));
        Self::new(kept.collect())
    }

    pub fn domains(&self) -> impl Iterator<Item = &TrustDomain> {
        self.domains.keys()
    }

    pub(crate) fn digest(&self) -> &[u8; 32] {
        &self.digest
    }
}
