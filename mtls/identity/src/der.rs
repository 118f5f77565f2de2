// SPDX-License-Identifier: Apache-2.0
//! Just enough DER to read a signing request (X.690): tags of one byte, lengths of at most two, each in its one spelling.

pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const BOOLEAN: u8 = 0x01;
pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const OBJECT_IDENTIFIER: u8 = 0x06;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const SET: u8 = 0x31;

/// One element: its tag, its content, and all of it.
#[derive(Clone, Copy)]
pub(crate) struct Element<'a> {
    pub tag: u8,
    pub content: &'a [u8],
    pub whole: &'a [u8],
}

/// Reads elements that stand one after the other.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub fn new(der: &'a [u8]) -> Self {
        Self(der)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Take the next element; none at the end, and when it is not well-formed.
    pub fn element(&mut self) -> Option<Element<'a>> {
        let (tag, rest) = self.0.split_first()?;
        // 8.1.2.4: a tag that goes on.
        if tag & 0x1f == 0x1f {
            return None;
        }
        let (header, length) = match *rest {
            [length @ 0..=0x7f, ..] => (2, usize::from(length)),
            [0x81, length @ 0x80..=0xff, ..] => (3, usize::from(length)),
            [0x82, high @ 1..=0xff, low, ..] => (4, usize::from(u16::from_be_bytes([high, low]))),
            _ => return None,
        };
        let (whole, after) = self.0.split_at_checked(header + length)?;
        self.0 = after;
        Some(Element { tag: *tag, content: whole.get(header..)?, whole })
    }

    /// Take the next element if it has this tag.
    pub fn expect(&mut self, tag: u8) -> Option<Element<'a>> {
        self.element().filter(|element| element.tag == tag)
    }

    /// Take what is inside the next element if it has this tag.
    pub fn inside(&mut self, tag: u8) -> Option<Self> {
        self.expect(tag).map(|element| Self(element.content))
    }

    /// Take a BIT STRING of whole bytes.
    pub fn bits(&mut self) -> Option<&'a [u8]> {
        self.expect(BIT_STRING)?.content.strip_prefix(&[0])
    }

    /// Check that nothing is left.
    pub fn end(&self) -> Option<()> {
        self.is_empty().then_some(())
    }
}
