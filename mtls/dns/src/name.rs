// SPDX-License-Identifier: Apache-2.0
//! Domain names in wire form.

use std::fmt;

/// RFC 1035, 2.3.4: octets of a name with all its lengths, and of one label.
const MAX_NAME: usize = 255;
const MAX_LABEL: usize = 63;

/// Octets where a name should be are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is no whole, uncompressed name")]
pub struct NameError;

/// A name without compression, as it came. Names that differ in the case of ASCII letters are equal (RFC 4343).
#[derive(Clone, Eq)]
pub struct Name(Box<[u8]>);

impl Name {
    /// Read a name at the beginning of these octets; return it and what follows.
    ///
    /// A pointer is refused: in the one question of a message it has nothing to point to.
    ///
    /// # Errors
    /// There is none.
    pub fn read(octets: &[u8]) -> Result<(Self, &[u8]), NameError> {
        let mut at = 0;
        loop {
            let length = usize::from(*octets.get(at).ok_or(NameError)?);
            if length > MAX_LABEL {
                return Err(NameError);
            }
            at += 1 + length;
            if at > MAX_NAME {
                return Err(NameError);
            }
            if length == 0 {
                let (name, rest) = octets.split_at_checked(at).ok_or(NameError)?;
                return Ok((Name(name.into()), rest));
            }
        }
    }

    /// The wire form.
    #[must_use]
    pub fn octets(&self) -> &[u8] {
        &self.0
    }

    /// The labels but for the root's, first to last.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &*self.0;
        std::iter::from_fn(move || {
            let (length, after) = rest.split_first()?;
            let (label, next) = after.split_at_checked(usize::from(*length))?;
            rest = next;
            (!label.is_empty()).then_some(label)
        })
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        // No length is a letter: the highest is 63, and "A" is 65.
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

/// As zone files have it (RFC 1035, 5.1), in printable ASCII: what else a label holds is written as `\DDD`.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut empty = true;
        for label in self.labels() {
            if !empty {
                f.write_str(".")?;
            }
            empty = false;
            for octet in label {
                match octet {
                    b'.' | b'\\' => write!(f, "\\{}", char::from(*octet))?,
                    b'!'..=b'~' => write!(f, "{}", char::from(*octet))?,
                    _ => write!(f, "\\{octet:03}")?,
                }
            }
        }
        if empty { f.write_str(".") } else { Ok(()) }
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Name({self})")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn wire(text: &str) -> Vec<u8> {
        let mut octets = vec![];
        for label in text.split('.').filter(|label| !label.is_empty()) {
            octets.push(u8::try_from(label.len()).unwrap());
            octets.extend_from_slice(label.as_bytes());
        }
        octets.push(0);
        octets
    }

    pub(crate) fn name(text: &str) -> Name {
        Name::read(&wire(text)).unwrap().0
    }

    #[test]
    fn a_name_is_read_and_the_rest_is_left() {
        let (found, rest) = Name::read(b"\x01a\x03b.c\x00rest").unwrap();
        assert_eq!((found.to_string().as_str(), rest), (r"a.b\.c", &b"rest"[..]));
        assert_eq!(found.labels().collect::<Vec<_>>(), [&b"a"[..], b"b.c"]);
        assert_eq!(Name::read(b"\x00").unwrap().0.to_string(), ".");
    }

    #[test]
    fn what_a_terminal_or_a_log_would_act_on_is_escaped() {
        let (found, _) = Name::read(b"\x08a\"\\\n\x1b[\xc3\xa4\x00").unwrap();
        assert_eq!(found.to_string(), r#"a"\\\010\027[\195\164"#);
    }

    #[test]
    fn the_longest_name_and_one_more() {
        let label = [&[63u8][..], &[b'x'; 63]].concat();
        let longest = [&label[..], &label, &label, &[61], &[b'x'; 61], &[0]].concat();
        assert_eq!(longest.len(), 255);
        assert_eq!(Name::read(&longest).unwrap().0.octets(), longest);
        let longer = [&label[..], &label, &label, &[62], &[b'x'; 62], &[0]].concat();
        assert_eq!(Name::read(&longer), Err(NameError));
        assert_eq!(Name::read(&[&[1u8, b'x'].repeat(200)[..], &[0]].concat()), Err(NameError));
    }

    #[test]
    fn what_is_cut_or_compressed_is_none() {
        for octets in [&b""[..], b"\x01", b"\x01a", b"\x03ab\x00", b"\xc0\x0c", b"\x01a\xc0\x0c", b"\x40", b"\x80"] {
            assert_eq!(Name::read(octets), Err(NameError), "{octets:?}");
        }
    }

    #[test]
    fn case_makes_no_difference() {
        assert_eq!(name("S3.Example.ORG"), name("s3.example.org"));
        assert_ne!(name("s3.example.org"), name("s3-example.org"));
        assert_ne!(name("ab.c"), name("a.bc"));
    }
}
