// SPDX-License-Identifier: Apache-2.0
//! Certificate signing requests (RFC 2986).
//!
//! Of an agent's request only the key counts, and that the sender holds it. Names and extensions in it have no effect:
//! what a certificate says comes from the entry (CVE-2021-27098 is what happens otherwise). An administrator who mints
//! an SVID names it in the request, so the names are read too.

use rustls_pki_types::SignatureVerificationAlgorithm;
use webpki::aws_lc_rs as algorithms;

use crate::der::{self, Reader};
use crate::error::{Code, VerifyError};

/// An RSA-8192 request takes 2.2 KiB, with some names in it 4.
const MAX_CSR_BYTES: usize = 16 * 1024;

/// NIST SP 800-57: 2048 bits is the least that is still fit. Above 8192 one check costs the sender nothing and us
/// milliseconds (the CPU DoS of SPIRE 1.14.2).
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
/// The largest exponent that aws-lc takes; large ones make verifying as slow as signing.
const MAX_RSA_EXPONENT: u64 = (1 << 33) - 1;

/// What requests may be signed with; an algorithm that is too weak or unknown proves nothing. A key that none of them
/// takes is of no supported kind.
static ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[
    algorithms::ECDSA_P256_SHA256,
    algorithms::ECDSA_P256_SHA384,
    algorithms::ECDSA_P256_SHA512,
    algorithms::ECDSA_P384_SHA256,
    algorithms::ECDSA_P384_SHA384,
    algorithms::ECDSA_P384_SHA512,
    algorithms::ED25519,
    algorithms::RSA_PKCS1_2048_8192_SHA256,
    algorithms::RSA_PKCS1_2048_8192_SHA384,
    algorithms::RSA_PKCS1_2048_8192_SHA512,
    algorithms::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    algorithms::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
    algorithms::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
];

/// 1.2.840.113549.1.9.14, RFC 2985 section 5.4.2.
const EXTENSION_REQUEST: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x09\x0e";
/// 2.5.29.17, RFC 5280 section 4.2.1.6, and the tags of its names that we read, and of those that we know.
const SUBJECT_ALT_NAME: &[u8] = b"\x55\x1d\x11";
const URI: u8 = 0x86;
const DNS_NAME: u8 = 0x82;
const OTHER_NAMES: &[u8] = &[0xa0, 0x81, 0xa3, 0xa4, 0xa5, 0x87, 0x88];

/// What counts in a request whose self-signature holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Csr<'a> {
    /// The subjectPublicKeyInfo, of a kind that certificates may hold. DER.
    pub key: &'a [u8],
    /// What it asks for. Only minting listens to that.
    pub uris: Vec<&'a str>,
    pub dns_names: Vec<&'a str>,
}

impl<'a> Csr<'a> {
    /// Read a request after checking that the holder of its key signed it.
    ///
    /// Sizes and kinds of keys are checked before any signature is. The codes are `malformed_csr`, `unsupported_key`
    /// and `invalid_csr_signature`.
    pub fn read(der: &'a [u8]) -> Result<Self, VerifyError> {
        if der.len() > MAX_CSR_BYTES {
            return Err(VerifyError::with(Code::MalformedCsr, "more than 16 KiB"));
        }
        let request = Request::read(der).ok_or(Code::MalformedCsr)?;
        let key = Key::read(request.key).ok_or(Code::MalformedCsr)?;
        if !key.supported() {
            return Err(Code::UnsupportedKey.into());
        }
        if !request.signed_by(&key) {
            return Err(Code::InvalidCsrSignature.into());
        }
        let unreadable = || VerifyError::with(Code::MalformedCsr, "its extensions cannot be read");
        let (uris, dns_names) = names(request.attributes).ok_or_else(unreadable)?;
        Ok(Self { key: request.key, uris, dns_names })
    }
}

/// CertificationRequest, RFC 2986 section 4. The subject is signed for and not looked at.
struct Request<'a> {
    signed: &'a [u8],
    key: &'a [u8],
    attributes: &'a [u8],
    algorithm: &'a [u8],
    signature: &'a [u8],
}

impl<'a> Request<'a> {
    fn read(der: &'a [u8]) -> Option<Self> {
        let mut all = Reader::new(der);
        let mut request = all.inside(der::SEQUENCE)?;
        all.end()?;
        let info = request.expect(der::SEQUENCE)?;
        let algorithm = request.expect(der::SEQUENCE)?.content;
        let signature = request.bits()?;
        request.end()?;
        let mut fields = Reader::new(info.content);
        fields.expect(der::INTEGER).filter(|version| version.content == [0])?;
        fields.expect(der::SEQUENCE)?;
        let key = fields.expect(der::SEQUENCE)?.whole;
        let attributes = fields.expect(0xa0)?.content;
        fields.end()?;
        Some(Self { signed: info.whole, key, attributes, algorithm, signature })
    }

    fn signed_by(&self, key: &Key<'_>) -> bool {
        let fits = |one: &&&dyn SignatureVerificationAlgorithm| {
            one.public_key_alg_id().as_ref() == key.algorithm && one.signature_alg_id().as_ref() == self.algorithm
        };
        let found = ALGORITHMS.iter().find(fits);
        found.is_some_and(|one| one.verify_signature(key.bits, self.signed, self.signature).is_ok())
    }
}

/// SubjectPublicKeyInfo, RFC 5280 section 4.1.
struct Key<'a> {
    algorithm: &'a [u8],
    bits: &'a [u8],
}

impl<'a> Key<'a> {
    fn read(der: &'a [u8]) -> Option<Self> {
        let mut fields = Reader::new(der).inside(der::SEQUENCE)?;
        let (algorithm, bits) = (fields.expect(der::SEQUENCE)?.content, fields.bits()?);
        fields.end()?;
        Some(Self { algorithm, bits })
    }

    /// Say whether certificates may hold it. Points stand in full: not every verifier reads compressed ones.
    fn supported(&self) -> bool {
        let is =
            |algorithm: &dyn SignatureVerificationAlgorithm| algorithm.public_key_alg_id().as_ref() == self.algorithm;
        let point = |length: usize| self.bits.len() == length && self.bits.first() == Some(&4);
        (is(algorithms::ECDSA_P256_SHA256) && point(65))
            || (is(algorithms::ECDSA_P384_SHA384) && point(97))
            || (is(algorithms::ED25519) && self.bits.len() == 32)
            || (is(algorithms::RSA_PKCS1_2048_8192_SHA256) && self.rsa_supported().is_some_and(|fits| fits))
    }

    fn rsa_supported(&self) -> Option<bool> {
        let mut all = Reader::new(self.bits);
        let mut numbers = all.inside(der::SEQUENCE)?;
        let (modulus, exponent) = (positive(&mut numbers)?, positive(&mut numbers)?);
        numbers.end().and(all.end())?;
        let bits = modulus.len() * 8 - modulus.first()?.leading_zeros() as usize;
        let exponent = exponent.iter().try_fold(0u64, |sum, byte| sum.checked_mul(256)?.checked_add((*byte).into()))?;
        Some(RSA_BITS.contains(&bits) && exponent <= MAX_RSA_EXPONENT)
    }
}

/// Take a positive INTEGER, without the zero that keeps it so.
fn positive<'a>(numbers: &mut Reader<'a>) -> Option<&'a [u8]> {
    match numbers.expect(der::INTEGER)?.content {
        [0, number @ ..] if number.first().is_some_and(|first| *first >= 0x80) => Some(number),
        number @ [1..0x80, ..] => Some(number),
        _ => None,
    }
}

type Names<'a> = (Vec<&'a str>, Vec<&'a str>);

/// Read the URIs and DNS names that the attributes ask for; none when they cannot be read.
fn names(attributes: &[u8]) -> Option<Names<'_>> {
    let mut attributes = Reader::new(attributes);
    let mut found = None;
    while !attributes.is_empty() {
        let mut attribute = attributes.inside(der::SEQUENCE)?;
        let kind = attribute.expect(der::OBJECT_IDENTIFIER)?.content;
        let mut values = attribute.inside(der::SET)?;
        attribute.end()?;
        if kind == EXTENSION_REQUEST {
            let extensions = values.inside(der::SEQUENCE)?;
            values.end()?;
            if found.replace(subject_alt_names(extensions)?).is_some() {
                return None;
            }
        }
    }
    Some(found.unwrap_or_default())
}

fn subject_alt_names(mut extensions: Reader<'_>) -> Option<Names<'_>> {
    let (mut names, mut seen) = (Names::default(), Vec::new());
    while !extensions.is_empty() {
        let mut extension = extensions.inside(der::SEQUENCE)?;
        let kind = extension.expect(der::OBJECT_IDENTIFIER)?.content;
        let mut value = extension.element()?;
        if value.tag == der::BOOLEAN {
            value = extension.element()?;
        }
        extension.end()?;
        if value.tag != der::OCTET_STRING || seen.contains(&kind) {
            return None;
        }
        seen.push(kind);
        if kind == SUBJECT_ALT_NAME {
            names = general_names(value.content)?;
        }
    }
    Some(names)
}

fn general_names(value: &[u8]) -> Option<Names<'_>> {
    let mut all = Reader::new(value);
    let mut general = all.inside(der::SEQUENCE)?;
    all.end()?;
    let (mut uris, mut dns_names) = Names::default();
    while !general.is_empty() {
        let name = general.element()?;
        match name.tag {
            URI => uris.push(ia5(name.content)?),
            DNS_NAME => dns_names.push(ia5(name.content)?),
            tag if OTHER_NAMES.contains(&tag) => {}
            _ => return None,
        }
    }
    Some((uris, dns_names))
}

fn ia5(text: &[u8]) -> Option<&str> {
    std::str::from_utf8(text).ok().filter(|text| text.is_ascii())
}
