// SPDX-License-Identifier: Apache-2.0
//! Request targets in the one form that flows are matched on.
//!
//! A proxy and the server behind it must read a path alike, or a request for one thing passes as a request for
//! another. So nothing is repaired here: a target that two programs could read differently is refused. What is left
//! is the origin form of RFC 9112 section 3.2.1, split at `/`, each segment percent-decoded exactly once. `%2F` is a
//! character inside its segment and never a separator; the query is cut off. The bytes that are forwarded stay as
//! they came.

use std::borrow::Cow;

/// Longest request target that is looked at, in bytes; common servers stop at 8 KiB.
pub const MAX_TARGET: usize = 8192;

/// Why a request target is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    #[error("the request target is longer than {MAX_TARGET} bytes")]
    TooLong,
    #[error("the request target is not a path that starts with \"/\"")]
    NotOriginForm,
    #[error("the request target holds a control, white-space or non-ASCII character, or a \"#\"")]
    BadCharacter,
    #[error("the path holds a backslash, which some servers take for a separator")]
    Backslash,
    #[error("the path holds \"//\", which some servers merge")]
    EmptySegment,
    #[error("the path holds a \".\" or \"..\" segment, which some servers resolve")]
    DotSegment,
    #[error("the path holds a \"%\" that is not followed by two hexadecimal digits")]
    BadEncoding,
    #[error("the path is percent-encoded twice")]
    DoubleEncoding,
    #[error("the path does not decode to UTF-8")]
    NotUtf8,
}

impl TargetError {
    /// The stable code, the same as in tests/vectors/policy/paths.json.
    pub fn code(self) -> &'static str {
        match self {
            Self::TooLong => "target_too_long",
            Self::NotOriginForm => "not_origin_form",
            Self::BadCharacter => "bad_character",
            Self::Backslash => "backslash",
            Self::EmptySegment => "empty_segment",
            Self::DotSegment => "dot_segment",
            Self::BadEncoding => "bad_encoding",
            Self::DoubleEncoding => "double_encoding",
            Self::NotUtf8 => "not_utf8",
        }
    }
}

/// The decoded segments of an unambiguous path. `/` has one segment, the empty one; only the last can be empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CanonicalPath<'a> {
    segments: Vec<Cow<'a, str>>,
}

impl CanonicalPath<'_> {
    /// The decoded segments; what follows the first `/` of the target is the first of them.
    pub fn segments(&self) -> &[Cow<'_, str>] {
        &self.segments
    }
}

/// Read a request target; refuse what is ambiguous.
pub fn canonical_path(target: &[u8]) -> Result<CanonicalPath<'_>, TargetError> {
    if target.len() > MAX_TARGET {
        return Err(TargetError::TooLong);
    }
    if target.first() != Some(&b'/') {
        return Err(TargetError::NotOriginForm);
    }
    // RFC 9110 section 4.2.4 keeps fragments out of request targets; some servers cut them off, others do not.
    if target.iter().any(|byte| !(0x21..=0x7e).contains(byte) || *byte == b'#') {
        return Err(TargetError::BadCharacter);
    }
    let text = std::str::from_utf8(target).map_err(|_| TargetError::BadCharacter)?;
    let path = text.split('?').next().unwrap_or_default();
    let mut parts = path[1..].split('/').peekable();
    let mut segments = Vec::with_capacity(8);
    while let Some(part) = parts.next() {
        if part.is_empty() && parts.peek().is_some() {
            return Err(TargetError::EmptySegment);
        }
        segments.push(segment(part)?);
    }
    Ok(CanonicalPath { segments })
}

fn segment(part: &str) -> Result<Cow<'_, str>, TargetError> {
    let decoded = if part.contains('%') { Cow::Owned(decode(part)?) } else { Cow::Borrowed(part) };
    if decoded.contains('\\') {
        return Err(TargetError::Backslash);
    }
    if decoded.chars().any(char::is_control) {
        return Err(TargetError::BadCharacter);
    }
    if holds_escape(decoded.as_bytes()) {
        return Err(TargetError::DoubleEncoding);
    }
    // A server that decodes %2F before it resolves dots would climb; one that strips ";parameters" first (Tomcat
    // does) would read "..;x" as "..".
    if decoded.split('/').any(|piece| matches!(piece.split(';').next(), Some("." | ".."))) {
        return Err(TargetError::DotSegment);
    }
    Ok(decoded)
}

fn decode(part: &str) -> Result<String, TargetError> {
    let bytes = part.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'%' {
            let (high, low) = (bytes.get(at + 1).and_then(hex), bytes.get(at + 2).and_then(hex));
            let (Some(high), Some(low)) = (high, low) else {
                return Err(TargetError::BadEncoding);
            };
            decoded.push(high << 4 | low);
            at += 3;
        } else {
            decoded.push(bytes[at]);
            at += 1;
        }
    }
    // Overlong forms such as %C0%AE are no UTF-8 and end here.
    String::from_utf8(decoded).map_err(|_| TargetError::NotUtf8)
}

/// Say whether `%` and two hexadecimal digits stand anywhere.
pub(crate) fn holds_escape(bytes: &[u8]) -> bool {
    bytes.windows(3).any(|three| three[0] == b'%' && hex(&three[1]).is_some() && hex(&three[2]).is_some())
}

fn hex(digit: &u8) -> Option<u8> {
    char::from(*digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_either_a_character_or_refused() {
        for byte in 0..=255u8 {
            let raw = [b'/', byte, b'x'];
            let escaped = format!("/%{byte:02X}x");
            let raw_allowed = (0x21..=0x7e).contains(&byte) && !b"#%\\/".contains(&byte);
            assert_eq!(canonical_path(&raw).is_ok(), raw_allowed, "raw {byte:#x}");
            let escaped_allowed = (0x20..=0x7e).contains(&byte) && byte != b'\\';
            assert_eq!(canonical_path(escaped.as_bytes()).is_ok(), escaped_allowed, "escaped {byte:#x}");
        }
    }
}
