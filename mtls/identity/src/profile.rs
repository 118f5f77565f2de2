// SPDX-License-Identifier: Apache-2.0
//! The X.509-SVID profile of a leaf as one table (X509-SVID.md), in the order in which it is checked.
//!
//! These rules are ours: webpki ignores key usage and knows no SPIFFE ID.

use crate::certificate::{Certificate, KeyUsage};
use crate::error::{Code, VerifyError};
use crate::spiffe_id::SpiffeId;

/// More alternative names than this is somebody who wants us to work.
const MAX_NAMES: usize = 32;

struct Rule {
    code: Code,
    broken: fn(&Certificate) -> bool,
}

fn usage(leaf: &Certificate, broken: fn(&KeyUsage) -> bool) -> bool {
    leaf.key_usage.as_ref().is_some_and(broken)
}

/// Before the ID is read: X509-SVID.md section 2, exactly one URI SAN.
const NAMES: [Rule; 3] = [
    Rule { code: Code::UriSanMissing, broken: |leaf| leaf.uris.is_empty() },
    Rule { code: Code::UriSanMultiple, broken: |leaf| leaf.uris.len() > 1 },
    Rule { code: Code::TooManySans, broken: |leaf| leaf.names > MAX_NAMES },
];

/// After it.
const LEAF: [Rule; 9] = [
    // RFC 5280 section 4.2.1.6.
    Rule { code: Code::SanNotCritical, broken: |leaf| leaf.subject_empty && !leaf.names_critical },
    // X509-SVID.md section 4.1.
    Rule { code: Code::LeafIsCa, broken: |leaf| leaf.is_ca },
    // Section 4.3.
    Rule { code: Code::KeyUsageMissing, broken: |leaf| leaf.key_usage.is_none() },
    Rule { code: Code::KeyUsageNotCritical, broken: |leaf| usage(leaf, |usage| !usage.critical) },
    Rule { code: Code::DigitalSignatureMissing, broken: |leaf| usage(leaf, |usage| !usage.digital_signature) },
    Rule { code: Code::KeyCertSignSet, broken: |leaf| usage(leaf, |usage| usage.key_cert_sign) },
    Rule { code: Code::CrlSignSet, broken: |leaf| usage(leaf, |usage| usage.crl_sign) },
    // Section 4.4.
    Rule {
        code: Code::EkuIncomplete,
        broken: |leaf| leaf.extended.as_ref().is_some_and(|extended| !extended.client_auth || !extended.server_auth),
    },
    Rule { code: Code::UnsupportedKey, broken: |leaf| !leaf.key_supported },
];

/// Check a leaf against the profile and return the SPIFFE ID that it claims.
pub(crate) fn check_leaf(leaf: &Certificate) -> Result<SpiffeId, VerifyError> {
    check(leaf, &NAMES)?;
    let text = leaf.uris.first().map_or("", String::as_str);
    let id = SpiffeId::parse(text)
        .map_err(|error| VerifyError::with(Code::SpiffeIdInvalid, format!("{}: {text}", error.code)))?;
    if id.path().is_empty() {
        return Err(VerifyError::with(Code::SpiffeIdRootPath, text));
    }
    check(leaf, &LEAF)?;
    Ok(id)
}

fn check(leaf: &Certificate, rules: &[Rule]) -> Result<(), VerifyError> {
    match rules.iter().find(|rule| (rule.broken)(leaf)) {
        Some(rule) => Err(rule.code.into()),
        None => Ok(()),
    }
}

/// Check the CAs that a peer sent: they speak for the leaf's trust domain alone (X509-SVID.md section 3.1).
pub(crate) fn check_authorities(id: &SpiffeId, authorities: &[Certificate]) -> Result<(), VerifyError> {
    let own = format!("spiffe://{}", id.trust_domain());
    if let Some(uri) = authorities.iter().flat_map(|ca| &ca.uris).find(|uri| **uri != own) {
        return Err(VerifyError::with(Code::AuthorityIdMismatch, uri));
    }
    // RFC 5280 constrains URIs by host; webpki and pyca refuse everything below such a CA, so say it by name.
    if authorities.iter().any(|ca| ca.uri_constraints) {
        return Err(Code::NameConstraintsUnsupported.into());
    }
    Ok(())
}

/// Whether a CA's key usage lets it sign certificates; webpki does not look. Roots made with OpenSSL's defaults have no
/// key usage at all, which allows everything (RFC 5280 section 6.1.4, n).
pub(crate) fn may_sign(authority: &Certificate) -> bool {
    authority.is_ca && authority.key_usage.as_ref().is_none_or(|usage| usage.key_cert_sign)
}
