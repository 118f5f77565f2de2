// SPDX-License-Identifier: Apache-2.0
//! What the rules need to know of one certificate, read once. Reading decides nothing but whether it can be read.

use aws_lc_rs::digest;
use sha2::{Digest, Sha256};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, GeneralSubtree, ParsedExtension};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519,
    OID_X509_EXT_SUBJECT_KEY_IDENTIFIER,
};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::error::{Code, VerifyError};

/// SVIDs are 1 KiB; more is somebody who wants us to work.
const MAX_CERTIFICATE_BYTES: usize = 16 * 1024;

/// The smallest and largest RSA modulus, in bits. Larger keys make one verification cost milliseconds.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// The facts of one certificate.
#[derive(Debug)]
pub(crate) struct Certificate {
    /// Lower-case hex without leading zeros.
    pub serial: String,
    pub not_before: i64,
    pub not_after: i64,
    pub subject_empty: bool,
    pub uris: Vec<String>,
    pub names: usize,
    pub names_critical: bool,
    pub is_ca: bool,
    /// How many CAs may follow below this one.
    pub path_length: Option<u32>,
    pub key_usage: Option<KeyUsage>,
    pub extended: Option<Extended>,
    pub key_supported: bool,
    /// The subject key ID as written, and the SHA-1 of the key itself, lower-case hex: one may be missing or chosen.
    pub key_ids: Vec<String>,
    /// SHA-256 over the subjectPublicKeyInfo.
    pub key_hash: [u8; 32],
    pub uri_constraints: bool,
}

#[derive(Debug)]
pub(crate) struct KeyUsage {
    pub critical: bool,
    pub digital_signature: bool,
    pub key_cert_sign: bool,
    pub crl_sign: bool,
}

#[derive(Debug)]
pub(crate) struct Extended {
    pub client_auth: bool,
    pub server_auth: bool,
}

impl Certificate {
    pub fn parse(der: &[u8]) -> Result<Self, VerifyError> {
        if der.len() > MAX_CERTIFICATE_BYTES {
            return Err(VerifyError::with(Code::MalformedCertificate, "more than 16 KiB"));
        }
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| Code::MalformedCertificate)?;
        if !rest.is_empty() {
            return Err(VerifyError::with(Code::MalformedCertificate, "bytes after the certificate"));
        }
        if !is_positive(certificate.raw_serial()) {
            return Err(VerifyError::with(Code::MalformedCertificate, "its serial number is not positive"));
        }
        check_extensions(&certificate)?;
        Self::read(&certificate).ok_or_else(|| Code::MalformedCertificate.into())
    }

    fn read(certificate: &X509Certificate<'_>) -> Option<Self> {
        let names = certificate.subject_alternative_name().ok()?;
        let basic = certificate.basic_constraints().ok()?;
        let general: &[GeneralName<'_>] = names.as_ref().map_or(&[], |names| &names.value.general_names);
        Some(Self {
            serial: hex_number(certificate.raw_serial()),
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            subject_empty: certificate.subject().iter().next().is_none(),
            uris: general.iter().filter_map(uri).collect(),
            names: general.len(),
            names_critical: names.as_ref().is_some_and(|names| names.critical),
            is_ca: basic.as_ref().is_some_and(|basic| basic.value.ca),
            path_length: basic.as_ref().and_then(|basic| basic.value.path_len_constraint),
            key_usage: certificate.key_usage().ok()?.map(|usage| KeyUsage {
                critical: usage.critical,
                digital_signature: usage.value.digital_signature(),
                key_cert_sign: usage.value.key_cert_sign(),
                crl_sign: usage.value.crl_sign(),
            }),
            extended: certificate.extended_key_usage().ok()?.map(|extended| Extended {
                client_auth: extended.value.client_auth,
                server_auth: extended.value.server_auth,
            }),
            key_supported: key_supported(certificate.public_key()),
            key_ids: key_ids(certificate),
            key_hash: Sha256::digest(certificate.public_key().raw).into(),
            uri_constraints: uri_constraints(certificate)?,
        })
    }
}

/// RFC 5280 section 4.1.2.2. Revocations name serial numbers, so each has one spelling.
fn is_positive(serial: &[u8]) -> bool {
    serial.first().is_some_and(|first| *first < 0x80) && serial.iter().any(|byte| *byte != 0)
}

/// Refuse what appears twice and what claims to be a known extension but cannot be read as one.
fn check_extensions(certificate: &X509Certificate<'_>) -> Result<(), VerifyError> {
    if certificate.extensions_map().is_err() {
        return Err(VerifyError::with(Code::MalformedCertificate, "an extension appears twice"));
    }
    let unreadable = |parsed: &ParsedExtension<'_>| matches!(parsed, ParsedExtension::ParseError { .. });
    if certificate.extensions().iter().any(|extension| unreadable(extension.parsed_extension())) {
        return Err(VerifyError::with(Code::MalformedCertificate, "an extension cannot be read"));
    }
    Ok(())
}

fn uri(name: &GeneralName<'_>) -> Option<String> {
    /// The context tag of uniformResourceIdentifier, RFC 5280 section 4.2.1.6.
    const URI_TAG: u32 = 6;
    match name {
        GeneralName::URI(text) => Some((*text).to_owned()),
        GeneralName::Invalid(tag, bytes) if tag.0 == URI_TAG => Some(String::from_utf8_lossy(bytes).into_owned()),
        _ => None,
    }
}

fn uri_constraints(certificate: &X509Certificate<'_>) -> Option<bool> {
    let Some(constraints) = certificate.name_constraints().ok()? else { return Some(false) };
    let has_uri = |subtrees: &Option<Vec<GeneralSubtree<'_>>>| {
        subtrees.iter().flatten().any(|subtree| uri(&subtree.base).is_some())
    };
    Some(has_uri(&constraints.value.permitted_subtrees) || has_uri(&constraints.value.excluded_subtrees))
}

fn key_supported(key: &SubjectPublicKeyInfo<'_>) -> bool {
    let algorithm = &key.algorithm.algorithm;
    if *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
        return curve.is_some_and(|curve| curve == OID_EC_P256 || curve == OID_NIST_EC_P384);
    }
    if *algorithm == OID_PKCS1_RSAENCRYPTION {
        return matches!(key.parsed(), Ok(PublicKey::RSA(rsa)) if RSA_BITS.contains(&bits(rsa.modulus)));
    }
    *algorithm == OID_SIG_ED25519
}

/// The exact length of a big-endian number.
fn bits(number: &[u8]) -> usize {
    let start = number.iter().position(|byte| *byte != 0).unwrap_or(number.len());
    let zeros = number.get(start).map_or(0, |first| first.leading_zeros() as usize);
    (number.len() - start) * 8 - zeros
}

fn key_ids(certificate: &X509Certificate<'_>) -> Vec<String> {
    let key = &certificate.public_key().subject_public_key.data;
    let computed = hex(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, key).as_ref());
    let written = match certificate.get_extension_unique(&OID_X509_EXT_SUBJECT_KEY_IDENTIFIER) {
        Ok(Some(extension)) => match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(hex(id.0)),
            _ => None,
        },
        _ => None,
    };
    match written {
        Some(written) if written != computed => vec![written, computed],
        _ => vec![computed],
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Write a number as Python's `format(number, "x")` does.
pub(crate) fn hex_number(bytes: &[u8]) -> String {
    match hex(bytes).trim_start_matches('0') {
        "" => "0".to_owned(),
        digits => digits.to_owned(),
    }
}
