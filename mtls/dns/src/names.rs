// SPDX-License-Identifier: Apache-2.0
//! Patterns of names, as they are configured: whole labels, `*` is exactly one, `**` is one or more and stands first.

use crate::name::Name;

/// RFC 1035, 2.3.4, less the lengths of the first label and of the root.
const MAX_TEXT: usize = 253;
const MAX_LABEL: usize = 63;
const MAX_PATTERNS: usize = 1024;

/// Why a text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("must be a name such as s3.example.org, *.example.org or **.cluster.local")]
    Shape,
    #[error("must be 1 to {MAX_TEXT} characters long, each label 1 to {MAX_LABEL}")]
    Length,
    #[error("`**` is one label or more and stands first")]
    Rest,
    #[error("`*` is a whole label")]
    Partial,
    #[error("has more than {MAX_PATTERNS} names")]
    TooMany,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    One,
    Is(Box<[u8]>),
}

/// One pattern. Its labels stand last to first, as names are owned.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    steps: Box<[Step]>,
    /// Whether one label or more stand before those.
    rest: bool,
}

impl Pattern {
    fn parse(text: &str) -> Result<Self, PatternError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() || text.len() > MAX_TEXT {
            return Err(PatternError::Length);
        }
        let (rest, after) = match text.strip_prefix("**") {
            Some("") => (true, None),
            Some(after) => (true, Some(after.strip_prefix('.').ok_or(PatternError::Partial)?)),
            None => (false, Some(text)),
        };
        let labels = after.into_iter().flat_map(|after| after.rsplit('.'));
        Ok(Pattern { steps: labels.map(step).collect::<Result<_, _>>()?, rest })
    }

    fn matches(&self, name: &[&[u8]]) -> bool {
        let counts = if self.rest { name.len() > self.steps.len() } else { name.len() == self.steps.len() };
        counts
            && self.steps.iter().zip(name.iter().rev()).all(|(step, label)| match step {
                Step::One => true,
                Step::Is(wanted) => wanted.eq_ignore_ascii_case(label),
            })
    }
}

fn step(label: &str) -> Result<Step, PatternError> {
    match label {
        "*" => Ok(Step::One),
        "**" => Err(PatternError::Rest),
        _ if label.contains('*') => Err(PatternError::Partial),
        _ if label.is_empty() || label.len() > MAX_LABEL => Err(PatternError::Length),
        // What people name hosts and services; anything else in a label is more likely a slip.
        _ if label.bytes().all(|octet| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_')) => {
            Ok(Step::Is(label.as_bytes().into()))
        }
        _ => Err(PatternError::Shape),
    }
}

/// Say whether a text is a pattern.
///
/// # Errors
/// Why it is none.
pub fn check_pattern(text: &str) -> Result<(), PatternError> {
    Pattern::parse(text).map(|_| ())
}

/// The names that may be asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names(Vec<Pattern>);

impl Names {
    /// Read patterns; without any, no name is in.
    ///
    /// # Errors
    /// One of them is none, or they are too many.
    pub fn parse<T: AsRef<str>>(patterns: &[T]) -> Result<Self, PatternError> {
        if patterns.len() > MAX_PATTERNS {
            return Err(PatternError::TooMany);
        }
        patterns.iter().map(|text| Pattern::parse(text.as_ref())).collect::<Result<_, _>>().map(Names)
    }

    /// Say whether a name matches one of the patterns. The root matches none.
    #[must_use]
    pub fn contain(&self, name: &Name) -> bool {
        let labels: Vec<&[u8]> = name.labels().collect();
        self.0.iter().any(|pattern| pattern.matches(&labels))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::tests::name;

    #[test]
    fn many_patterns_are_one_list() {
        let names = Names::parse(&["s3.example.org", "**.cluster.local"]).unwrap();
        assert!(names.contain(&name("S3.example.org")) && names.contain(&name("a.b.svc.cluster.local")));
        assert!(!names.contain(&name("x.s3.example.org")) && !Names::default().contain(&name("a")));
        assert_eq!(Names::parse(&vec!["a"; MAX_PATTERNS + 1]), Err(PatternError::TooMany));
    }

    #[test]
    fn a_dot_inside_a_label_ends_none() {
        let (dotted, _) = Name::read(b"\x0es3.example.org\x00").unwrap();
        assert!(!Names::parse(&["s3.example.org"]).unwrap().contain(&dotted));
        assert!(Names::parse(&["*"]).unwrap().contain(&dotted));
    }
}
