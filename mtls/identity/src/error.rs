// SPDX-License-Identifier: Apache-2.0
//! Why an identity is refused. The codes are shared with the Python side and pinned by `tests/vectors`.

use std::fmt;

macro_rules! codes {
    ($($name:ident $text:literal $sentence:literal,)*) => {
        /// A stable reason; `as_str` is what vectors, records and Python see.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code { $($name,)* }

        impl Code {
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$name => $text,)* }
            }

            fn sentence(self) -> &'static str {
                match self { $(Code::$name => $sentence,)* }
            }
        }
    };
}

codes! {
    // SPIFFE IDs, in the order in which they are checked.
    Empty "empty" "the SPIFFE ID is empty",
    TooLong "too_long" "the SPIFFE ID is longer than 2048 bytes",
    WrongScheme "wrong_scheme" "a SPIFFE ID starts with spiffe://",
    MissingTrustDomain "missing_trust_domain" "the trust domain is missing",
    TrustDomainTooLong "trust_domain_too_long" "the trust domain is longer than 255 bytes",
    BadTrustDomainChar "bad_trust_domain_char" "a trust domain has only the characters a-z 0-9 . - _",
    TrailingSlash "trailing_slash" "a SPIFFE ID does not end with a slash",
    EmptySegment "empty_segment" "the path has an empty segment",
    DotSegment "dot_segment" "the path has a segment that is . or ..",
    BadPathChar "bad_path_char" "a path has only the characters a-z A-Z 0-9 . - _",
    // ID patterns.
    MissingPath "missing_path" "an ID pattern has a path: a trust domain's own ID is in no segment",
    PartialWildcard "partial_wildcard" "a wildcard stands for a whole path segment: * or **",
    DoubleStarNotLast "double_star_not_last" "** stands last in a pattern",
    // X.509-SVIDs, in the order in which they are checked.
    ChainEmpty "chain_empty" "no certificate was presented",
    ChainTooLong "chain_too_long" "the chain has more than 7 certificates",
    MalformedCertificate "malformed_certificate" "a certificate cannot be read",
    UriSanMissing "uri_san_missing" "the certificate names no URI",
    UriSanMultiple "uri_san_multiple" "the certificate names more than one URI",
    TooManySans "too_many_sans" "the certificate has more than 32 alternative names",
    SpiffeIdInvalid "spiffe_id_invalid" "the certificate's URI is not a SPIFFE ID",
    SpiffeIdRootPath "spiffe_id_root_path" "the certificate names a trust domain, not a workload",
    SanNotCritical "san_not_critical" "the subject is empty and the alternative name is not critical",
    LeafIsCa "leaf_is_ca" "a CA certificate does not authenticate anyone",
    KeyUsageMissing "key_usage_missing" "the certificate has no key usage",
    KeyUsageNotCritical "key_usage_not_critical" "the key usage is not critical",
    DigitalSignatureMissing "digital_signature_missing" "the key usage lacks digitalSignature",
    KeyCertSignSet "key_cert_sign_set" "a leaf must not have keyCertSign",
    CrlSignSet "crl_sign_set" "a leaf must not have cRLSign",
    EkuIncomplete "eku_incomplete" "an extended key usage needs both clientAuth and serverAuth",
    UnsupportedKey "unsupported_key" "the key is not P-256, P-384, Ed25519 or RSA of 2048 to 8192 bits",
    UnknownTrustDomain "unknown_trust_domain" "there are no roots for this trust domain",
    AuthorityIdMismatch "authority_id_mismatch" "a CA of the chain names another trust domain, or a workload",
    NameConstraintsUnsupported "name_constraints_unsupported" "a CA of the chain has URI name constraints, which are not supported",
    ChainUntrusted "chain_untrusted" "the chain does not lead to a root of its trust domain",
    NotYetValid "not_yet_valid" "a certificate is not valid yet",
    Expired "expired" "a certificate has expired",
    RevokedSerial "revoked_serial" "the certificate's serial number is revoked",
    RevokedAuthority "revoked_authority" "the authority that signed is revoked",
    RevokedId "revoked_id" "certificates of this SPIFFE ID issued so early are revoked",
    IntermediateNotListed "intermediate_not_listed" "a CA of the chain is not among those that the broker lists",
    SegmentNotListed "segment_not_listed" "a CA of the chain is not listed for the segment of this SPIFFE ID",
    // Signing requests, in the order in which they are checked; `unsupported_key` is between the two.
    MalformedCsr "malformed_csr" "the certificate signing request cannot be read",
    InvalidCsrSignature "invalid_csr_signature" "the certificate signing request is not signed by the key that it names",
    // Handshakes.
    UnexpectedId "unexpected_id" "the peer proved another identity than the expected one",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A SPIFFE ID, pattern, SVID, chain or signing request breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyError {
    pub code: Code,
    detail: Option<String>,
}

/// What an error repeats of a text that a peer chose.
const MAX_QUOTED_CHARS: usize = 120;

impl VerifyError {
    /// Add what was seen. Texts from a peer are cut and escaped.
    pub fn with(code: Code, detail: impl AsRef<str>) -> Self {
        let shown: String = detail.as_ref().chars().take(MAX_QUOTED_CHARS).flat_map(char::escape_default).collect();
        Self { code, detail: Some(shown) }
    }
}

impl From<Code> for VerifyError {
    fn from(code: Code) -> Self {
        Self { code, detail: None }
    }
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code.sentence())?;
        match &self.detail {
            Some(detail) => write!(f, ": {detail}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for VerifyError {}

/// Material is refused at publish; the last good one stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MaterialError {
    #[error("the SVID of {id} is refused: {error}")]
    Svid { id: String, error: VerifyError },
    #[error("the SVID given for {id} names {found}")]
    WrongId { id: String, found: String },
    #[error("two SVIDs are given for {id}")]
    TwiceGiven { id: String },
    #[error("the private key of {id} cannot be read")]
    BadKey { id: String },
    #[error("the private key of {id} does not belong to its certificate")]
    KeyMismatch { id: String },
    #[error("the bundle of the own trust domain {0} has no certificate")]
    EmptyBundle(String),
    #[error("a certificate in the bundle of {0} cannot be used as a root")]
    BadRoot(String),
    #[error("the decision table is refused: {0}")]
    Table(String),
}

impl MaterialError {
    pub fn code(&self) -> &'static str {
        match self {
            Self::Svid { error, .. } => error.code.as_str(),
            Self::WrongId { .. } => "wrong_id",
            Self::TwiceGiven { .. } => "svid_twice",
            Self::BadKey { .. } => "bad_key",
            Self::KeyMismatch { .. } => "key_mismatch",
            Self::EmptyBundle(_) => "bundle_empty",
            Self::BadRoot(_) => "bad_root",
            Self::Table(_) => "bad_table",
        }
    }
}
