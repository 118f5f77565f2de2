// SPDX-License-Identifier: Apache-2.0
//! SPIFFE IDs and trust domains (SPIFFE-ID.md section 2). The order of the checks is part of the contract: the vectors
//! in `tests/vectors/spiffe_ids` hold this parser and the Python one to the same code for every text.

use std::fmt;
use std::sync::Arc;

use crate::error::{Code, VerifyError};

const SCHEME: &str = "spiffe://";
/// SPIFFE-ID.md section 2.3.
const MAX_ID_BYTES: usize = 2048;
/// SPIFFE-ID.md section 2.1.
const MAX_TRUST_DOMAIN_BYTES: usize = 255;

/// The name of a trust domain, such as `prod.example`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    pub fn parse(name: &str) -> Result<Self, VerifyError> {
        check_trust_domain(name)?;
        Ok(Self(name.into()))
    }

    pub fn name(&self) -> &str {
        &self.0
    }
}

/// A SPIFFE ID, such as `spiffe://prod.example/segment/training/host/h1/svc/loader`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    text: Arc<str>,
    trust_domain: TrustDomain,
}

impl SpiffeId {
    pub fn parse(text: &str) -> Result<Self, VerifyError> {
        let (trust_domain, path) = split(text)?;
        check_trust_domain(trust_domain)?;
        for (segment, last) in segments(path) {
            check_segment(segment, last)?;
        }
        Ok(Self { text: text.into(), trust_domain: TrustDomain(trust_domain.into()) })
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The same text, shared.
    pub fn text(&self) -> Arc<str> {
        self.text.clone()
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The path with its leading slash; empty for the trust domain's own ID.
    pub fn path(&self) -> &str {
        &self.text[SCHEME.len() + self.trust_domain.0.len()..]
    }

    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.path().split('/').skip(1)
    }
}

/// Split a text into trust domain and path; neither is checked yet.
pub(crate) fn split(text: &str) -> Result<(&str, &str), VerifyError> {
    if text.is_empty() {
        return Err(Code::Empty.into());
    }
    if text.len() > MAX_ID_BYTES {
        return Err(Code::TooLong.into());
    }
    let Some(rest) = text.strip_prefix(SCHEME) else {
        return Err(VerifyError::with(Code::WrongScheme, text));
    };
    Ok(rest.split_at(rest.find('/').unwrap_or(rest.len())))
}

/// The segments of a path, each with whether it is the last.
pub(crate) fn segments(path: &str) -> impl Iterator<Item = (&str, bool)> {
    let mut parts = path.split('/').skip(1).peekable();
    std::iter::from_fn(move || parts.next().map(|segment| (segment, parts.peek().is_none())))
}

pub(crate) fn check_trust_domain(name: &str) -> Result<(), VerifyError> {
    if name.is_empty() {
        return Err(Code::MissingTrustDomain.into());
    }
    if name.len() > MAX_TRUST_DOMAIN_BYTES {
        return Err(Code::TrustDomainTooLong.into());
    }
    if !name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_')) {
        return Err(VerifyError::with(Code::BadTrustDomainChar, name));
    }
    Ok(())
}

pub(crate) fn check_segment(segment: &str, last: bool) -> Result<(), VerifyError> {
    match segment {
        "" if last => Err(Code::TrailingSlash.into()),
        "" => Err(Code::EmptySegment.into()),
        "." | ".." => Err(Code::DotSegment.into()),
        _ if segment.bytes().all(is_path_byte) => Ok(()),
        _ => Err(VerifyError::with(Code::BadPathChar, segment)),
    }
}

fn is_path_byte(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_')
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> &'static str {
        SpiffeId::parse(text).map_or_else(|error| error.code.as_str(), |_| "ok")
    }

    #[test]
    fn each_rule_has_its_code() {
        let cases = [
            ("spiffe://td", "ok"),
            ("spiffe://td/a/B.c-d_e", "ok"),
            ("spiffe://1.2.3.4/a", "ok"),
            ("", "empty"),
            ("http://td/a", "wrong_scheme"),
            ("SPIFFE://td/a", "wrong_scheme"),
            ("spiffe:/td", "wrong_scheme"),
            ("spiffe://", "missing_trust_domain"),
            ("spiffe:///a", "missing_trust_domain"),
            ("spiffe://Td/a", "bad_trust_domain_char"),
            ("spiffe://td:1/a", "bad_trust_domain_char"),
            ("spiffe://u@td/a", "bad_trust_domain_char"),
            ("spiffe://td?q", "bad_trust_domain_char"),
            ("spiffe://td/", "trailing_slash"),
            ("spiffe://td/a/", "trailing_slash"),
            ("spiffe://td//a", "empty_segment"),
            ("spiffe://td/a/./b", "dot_segment"),
            ("spiffe://td/..", "dot_segment"),
            ("spiffe://td/...", "ok"),
            ("spiffe://td/a%20", "bad_path_char"),
            ("spiffe://td/a b//", "bad_path_char"),
            ("spiffe://td/a?q", "bad_path_char"),
            ("spiffe://td/a#f", "bad_path_char"),
            ("spiffe://td/ä", "bad_path_char"),
        ];
        for (text, expected) in cases {
            assert_eq!(code(text), expected, "{text:?}");
        }
    }

    #[test]
    fn limits_count_bytes() {
        let name = "a".repeat(MAX_TRUST_DOMAIN_BYTES);
        assert_eq!(code(&format!("spiffe://{name}/a")), "ok");
        assert_eq!(code(&format!("spiffe://{name}a/a")), "trust_domain_too_long");
        let id = format!("spiffe://td/{}", "a".repeat(MAX_ID_BYTES - 12));
        assert_eq!((id.len(), code(&id)), (MAX_ID_BYTES, "ok"));
        assert_eq!(code(&format!("{id}a")), "too_long");
    }

    #[test]
    fn every_byte_of_the_alphabets() {
        for byte in 0..=127u8 {
            let c = byte as char;
            let lower = c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
            assert_eq!(TrustDomain::parse(&format!("a{c}a")).is_ok(), lower, "{c:?} in a trust domain");
            let any = lower || c.is_ascii_uppercase() || c == '/';
            assert_eq!(SpiffeId::parse(&format!("spiffe://td/a{c}a")).is_ok(), any, "{c:?} in a path");
        }
    }

    #[test]
    fn parts_come_back() {
        let id = SpiffeId::parse("spiffe://td/a/b").unwrap();
        assert_eq!((id.trust_domain().name(), id.path()), ("td", "/a/b"));
        assert_eq!(id.segments().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(SpiffeId::parse("spiffe://td").unwrap().path(), "");
    }
}
