// SPDX-License-Identifier: Apache-2.0
//! ID patterns: a SPIFFE ID in which whole path segments may be wildcards. `*` is exactly one segment, `**` one or more
//! and stands last. The trust domain is always written out. No wildcard stands for `spire` as the first segment: agents
//! and servers are meant only where they are named.

use std::fmt;
use std::sync::Arc;

use crate::error::{Code, VerifyError};
use crate::spiffe_id::{self, SpiffeId, TrustDomain};

/// SPIRE's own namespace in every trust domain.
const RESERVED: &str = "spire";

/// A pattern over SPIFFE IDs.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IdPattern {
    text: Arc<str>,
    trust_domain: TrustDomain,
    segments: Arc<[Segment]>,
}

/// One path segment of a pattern.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Segment {
    Literal(Box<str>),
    One,
    Rest,
}

impl IdPattern {
    pub fn parse(text: &str) -> Result<Self, VerifyError> {
        let (trust_domain, path) = spiffe_id::split(text)?;
        let trust_domain = TrustDomain::parse(trust_domain)?;
        if path.is_empty() {
            return Err(Code::MissingPath.into());
        }
        let segments = spiffe_id::segments(path).map(|(s, last)| segment(s, last)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { text: text.into(), trust_domain, segments: segments.into() })
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    pub fn matches(&self, id: &SpiffeId) -> bool {
        if self.trust_domain != *id.trust_domain() || self.is_reserved() != (id.segments().next() == Some(RESERVED)) {
            return false;
        }
        let mut parts = id.segments();
        for segment in self.segments.iter() {
            let Some(part) = parts.next() else { return false };
            match segment {
                Segment::Literal(literal) if **literal != *part => return false,
                Segment::Literal(_) | Segment::One => {}
                Segment::Rest => return true,
            }
        }
        parts.next().is_none()
    }

    /// Whether some ID matches both patterns.
    pub fn overlaps(&self, other: &IdPattern) -> bool {
        self.trust_domain == other.trust_domain
            && self.is_reserved() == other.is_reserved()
            && overlap(&self.segments, &other.segments)
    }

    /// Whether it names IDs at or below `/spire`; all others match none there.
    fn is_reserved(&self) -> bool {
        matches!(self.segments.first(), Some(Segment::Literal(first)) if **first == *RESERVED)
    }
}

fn overlap(left: &[Segment], right: &[Segment]) -> bool {
    match (left, right) {
        ([], []) => true,
        ([], _) | (_, []) => false,
        ([Segment::Rest, ..], _) | (_, [Segment::Rest, ..]) => true,
        ([Segment::Literal(a), ..], [Segment::Literal(b), ..]) if a != b => false,
        ([_, left @ ..], [_, right @ ..]) => overlap(left, right),
    }
}

fn segment(text: &str, last: bool) -> Result<Segment, VerifyError> {
    match text {
        "*" => Ok(Segment::One),
        "**" if last => Ok(Segment::Rest),
        "**" => Err(Code::DoubleStarNotLast.into()),
        _ if text.contains('*') => Err(VerifyError::with(Code::PartialWildcard, text)),
        _ => spiffe_id::check_segment(text, last).map(|()| Segment::Literal(text.into())),
    }
}

impl fmt::Display for IdPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for IdPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> IdPattern {
        IdPattern::parse(text).unwrap()
    }

    #[test]
    fn wildcards_are_whole_segments() {
        let cases = [
            ("spiffe://td/a", "spiffe://td/a", true),
            ("spiffe://td/a", "spiffe://td/a/b", false),
            ("spiffe://td/*", "spiffe://td/a", true),
            ("spiffe://td/*", "spiffe://td", false),
            ("spiffe://td/*", "spiffe://td/a/b", false),
            ("spiffe://td/a/**", "spiffe://td/a", false),
            ("spiffe://td/a/**", "spiffe://td/a/b", true),
            ("spiffe://td/a/**", "spiffe://td/a/b/c", true),
            ("spiffe://td/a/**", "spiffe://td/ab/c", false),
            ("spiffe://td/a/*/c", "spiffe://td/a/b/c", true),
            ("spiffe://td/a/*/c", "spiffe://td/a/b/d", false),
            ("spiffe://td/**", "spiffe://other/a", false),
            ("spiffe://td/**", "spiffe://td", false),
            ("spiffe://td/**", "spiffe://td/spire/server", false),
            ("spiffe://td/*/server", "spiffe://td/spire/server", false),
            ("spiffe://td/spire/*", "spiffe://td/spire/server", true),
        ];
        for (text, id, expected) in cases {
            assert_eq!(pattern(text).matches(&SpiffeId::parse(id).unwrap()), expected, "{text} on {id}");
        }
    }

    #[test]
    fn bad_patterns_have_codes() {
        let cases = [
            ("spiffe://*/a", "bad_trust_domain_char"),
            ("spiffe://td/a*", "partial_wildcard"),
            ("spiffe://td/***", "partial_wildcard"),
            ("spiffe://td/**/a", "double_star_not_last"),
            ("spiffe://td/a/", "trailing_slash"),
            ("/a", "wrong_scheme"),
            ("spiffe://td", "missing_path"),
        ];
        for (text, expected) in cases {
            assert_eq!(IdPattern::parse(text).unwrap_err().code.as_str(), expected, "{text}");
        }
    }

    #[test]
    fn overlap_goes_both_ways() {
        let cases = [
            ("spiffe://td/a/*", "spiffe://td/*/b", true),
            ("spiffe://td/a/**", "spiffe://td/a/b/c", true),
            ("spiffe://td/a/**", "spiffe://td/a", false),
            ("spiffe://td/a", "spiffe://td/b", false),
            ("spiffe://td/a/*", "spiffe://td/a/*/*", false),
            ("spiffe://td/a", "spiffe://tx/a", false),
        ];
        for (left, right, expected) in cases {
            assert_eq!(pattern(left).overlaps(&pattern(right)), expected, "{left} {right}");
            assert_eq!(pattern(right).overlaps(&pattern(left)), expected, "{right} {left}");
        }
    }
}
