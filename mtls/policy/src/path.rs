// SPDX-License-Identifier: Apache-2.0
//! Path patterns: what an `http` action says about paths.
//!
//! Whole segments only. `*` is one segment that is not empty; `**` stands last and is one or more segments of which
//! the first is not empty, so `/models/**` matches neither `/models` nor `/models/`. Everything else is a literal in
//! its decoded form: a space is written as a space.

use crate::target::{CanonicalPath, holds_escape};

/// Longest pattern, in bytes.
pub const MAX_PATTERN: usize = 2048;

/// Why a path pattern is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathPatternError {
    #[error("the path pattern is longer than {MAX_PATTERN} bytes")]
    TooLong,
    #[error("a path pattern starts with \"/\"")]
    NotAbsolute,
    #[error("a path pattern holds no control character, backslash, \"?\" or \"#\"")]
    BadCharacter,
    #[error("a path pattern is written decoded: write the character that the \"%\" escape stands for")]
    Escape,
    #[error("a path pattern holds no \"//\": such requests are refused")]
    EmptySegment,
    #[error("a path pattern holds no \".\" or \"..\": such requests are refused")]
    DotSegment,
    #[error("a wildcard stands for whole segments: \"*\" for one, \"**\" for the rest")]
    PartialWildcard,
    #[error("\"**\" stands last")]
    RestNotLast,
}

impl PathPatternError {
    /// The stable code, the same as in tests/vectors/policy/path_patterns.json.
    pub fn code(self) -> &'static str {
        match self {
            Self::TooLong => "pattern_too_long",
            Self::NotAbsolute => "not_absolute",
            Self::BadCharacter => "bad_character",
            Self::Escape => "escape",
            Self::EmptySegment => "empty_segment",
            Self::DotSegment => "dot_segment",
            Self::PartialWildcard => "partial_wildcard",
            Self::RestNotLast => "rest_not_last",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Literal(Box<str>),
    One,
    Rest,
}

/// A parsed path pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern {
    steps: Box<[Step]>,
}

impl PathPattern {
    /// Parse a pattern such as `/models/**`.
    pub fn parse(text: &str) -> Result<Self, PathPatternError> {
        if text.len() > MAX_PATTERN {
            return Err(PathPatternError::TooLong);
        }
        let rest = text.strip_prefix('/').ok_or(PathPatternError::NotAbsolute)?;
        if text.chars().any(|c| c.is_control() || matches!(c, '\\' | '?' | '#')) {
            return Err(PathPatternError::BadCharacter);
        }
        if holds_escape(text.as_bytes()) {
            return Err(PathPatternError::Escape);
        }
        let parts: Vec<&str> = rest.split('/').collect();
        let last = parts.len() - 1;
        let steps = parts.iter().enumerate().map(|(at, part)| step(part, at == last));
        Ok(Self { steps: steps.collect::<Result<_, _>>()? })
    }

    /// Say whether the path matches.
    pub fn matches(&self, path: &CanonicalPath<'_>) -> bool {
        let segments = path.segments();
        for (at, step) in self.steps.iter().enumerate() {
            let Some(segment) = segments.get(at) else {
                return false;
            };
            let fits = match step {
                Step::Rest => return !segment.is_empty(),
                Step::One => !segment.is_empty(),
                Step::Literal(literal) => **literal == **segment,
            };
            if !fits {
                return false;
            }
        }
        segments.len() == self.steps.len()
    }
}

fn step(part: &str, last: bool) -> Result<Step, PathPatternError> {
    match part {
        "" if !last => Err(PathPatternError::EmptySegment),
        "*" => Ok(Step::One),
        "**" if last => Ok(Step::Rest),
        "**" => Err(PathPatternError::RestNotLast),
        _ if part.contains('*') => Err(PathPatternError::PartialWildcard),
        // The same rule as for targets, so that no pattern is written that cannot match.
        _ if matches!(part.split(';').next(), Some("." | "..")) => Err(PathPatternError::DotSegment),
        _ => Ok(Step::Literal(part.into())),
    }
}
