// SPDX-License-Identifier: Apache-2.0
//! One query and what is said about it (RFC 1035, 4.1; EDNS: RFC 6891).
//!
//! ```text
//!   0   2     4     6     8    10    12
//!   | ID | flags | QD=1 | AN=0 | NS=0 | AR≤1 | name type class | OPT |
//!          QR=0, opcode 0, RD AD CD          |  the question   | no other record
//! ```
//!
//! Of EDNS options nothing is sent on: cookies, padding and client subnets are between two neighbours (RFC 7873, 7830,
//! 7871), and what is recorded of a query is then all that it says.

use crate::name::Name;

const HEADER: usize = 12;
/// A query is one name and an OPT record; the rest would be options.
pub const MAX_QUERY: usize = 4096;
/// What every UDP client takes, and the most that we say one of ours takes, octets.
pub const MIN_ANSWER: usize = 512;
pub const MAX_ANSWER: usize = 4096;

/// Flags, as one number of 16 bits.
const QR: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const TC: u16 = 0x0200;
const RD: u16 = 0x0100;
const RA: u16 = 0x0080;
const AD: u16 = 0x0020;
const CD: u16 = 0x0010;

const OPT: u16 = 41;
const IN: u16 = 1;
/// The DO bit of an OPT record's flags (RFC 3225).
const DNSSEC_OK: u16 = 0x8000;
/// Its name, type, size, extended code, version, flags and the length of its options.
const OPT_LEN: usize = 11;
/// Types that are no data but orders: transfers, keys and signatures of messages (RFC 6895, 3.1), with room for more.
const ORDERS: std::ops::RangeInclusive<u16> = 128..=254;

/// Response codes that we give ourselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rcode {
    FormErr = 1,
    ServFail = 2,
    NotImp = 4,
    Refused = 5,
    /// With an OPT record alone, whose first octet has the upper bits (RFC 6891, 6.1.3).
    BadVers = 16,
}

/// Why a message is no query of ours to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Too short to be answered, or an answer itself: two that answer each other would never end.
    Silent,
    /// This is said about it.
    Said(Vec<u8>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Edns {
    size: u16,
    dnssec_ok: bool,
}

/// A query that was read whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    id: u16,
    /// RD, AD and CD.
    flags: u16,
    name: Name,
    kind: u16,
    class: u16,
    edns: Option<Edns>,
}

impl Query {
    /// Read a message.
    ///
    /// # Errors
    /// It is not one question of opcode QUERY, with an OPT record at most.
    pub fn read(message: &[u8]) -> Result<Self, Fault> {
        let header = Header::read(message).filter(|header| header.flags & QR == 0).ok_or(Fault::Silent)?;
        if header.flags & OPCODE != 0 {
            return Err(header.fault(Rcode::NotImp));
        }
        let malformed = || header.fault(Rcode::FormErr);
        if message.len() > MAX_QUERY || header.counts[..3] != [1, 0, 0] || header.counts[3] > 1 {
            return Err(malformed());
        }
        let (name, rest) = Name::read(&message[HEADER..]).map_err(|_| malformed())?;
        let (kind, rest) = number(rest).ok_or_else(malformed)?;
        let (class, rest) = number(rest).ok_or_else(malformed)?;
        let opt = match (header.counts[3], rest) {
            (0, []) => None,
            (1, rest) => Some(Opt::read(rest).ok_or_else(malformed)?),
            _ => return Err(malformed()),
        };
        if opt.is_some_and(|opt| opt.version != 0) {
            return Err(header.fault(Rcode::BadVers));
        }
        let flags = header.flags & (RD | AD | CD);
        Ok(Query { id: header.id, flags, name, kind, class, edns: opt.map(|opt| opt.edns) })
    }

    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The type that is asked for, by number.
    #[must_use]
    pub fn kind(&self) -> u16 {
        self.kind
    }

    /// What is said to a query for something that no resolver is to be asked for: other classes, transfers, orders.
    #[must_use]
    pub fn unsupported(&self) -> Option<Rcode> {
        match self.kind {
            _ if self.class != IN => Some(Rcode::NotImp),
            0 | OPT => Some(Rcode::FormErr),
            kind if ORDERS.contains(&kind) => Some(Rcode::Refused),
            _ => None,
        }
    }

    /// How long an answer by UDP may be, octets.
    #[must_use]
    pub fn udp_limit(&self) -> usize {
        self.edns.map_or(MIN_ANSWER, |edns| usize::from(edns.size).clamp(MIN_ANSWER, MAX_ANSWER))
    }

    /// Write the query as it is sent on, with an ID that only we know.
    #[must_use]
    pub fn onward(&self, id: u16) -> Vec<u8> {
        self.write(id, self.flags)
    }

    /// Write an answer of our own.
    #[must_use]
    pub fn answer(&self, code: Rcode) -> Vec<u8> {
        self.write(self.id, self.said(code as u16))
    }

    /// Write an answer that says that there is a longer one by TCP.
    #[must_use]
    pub fn truncated(&self, code: u8) -> Vec<u8> {
        self.write(self.id, self.said(u16::from(code & 0xf)) | TC)
    }

    /// Say whether a message is the answer to this query as it was sent on with that ID.
    #[must_use]
    pub fn is_answered_by(&self, message: &[u8], id: u16) -> bool {
        let ours = || {
            let header = Header::read(message)?;
            let (name, rest) = Name::read(message.get(HEADER..)?).ok()?;
            let (kind, rest) = number(rest)?;
            let (class, _) = number(rest)?;
            let answers = header.id == id && header.flags & (QR | OPCODE) == QR && header.counts[0] == 1;
            Some(answers && name == self.name && kind == self.kind && class == self.class)
        };
        ours().unwrap_or(false)
    }

    /// Give an answer the ID that the client knows.
    pub fn give_back_id(&self, answer: &mut [u8]) {
        if let Some(id) = answer.first_chunk_mut() {
            *id = self.id.to_be_bytes();
        }
    }

    fn said(&self, code: u16) -> u16 {
        QR | RA | (self.flags & (RD | CD)) | code
    }

    fn write(&self, id: u16, flags: u16) -> Vec<u8> {
        let mut message = Vec::with_capacity(HEADER + self.name.octets().len() + 4 + OPT_LEN);
        for number in [id, flags, 1, 0, 0, u16::from(self.edns.is_some())] {
            message.extend_from_slice(&number.to_be_bytes());
        }
        message.extend_from_slice(self.name.octets());
        for number in [self.kind, self.class] {
            message.extend_from_slice(&number.to_be_bytes());
        }
        if let Some(edns) = self.edns {
            // Nobody who reads this sends more than fits, and what did not fit in one packet is lost in many a network.
            let size = usize::from(edns.size).clamp(MIN_ANSWER, MAX_ANSWER);
            write_opt(&mut message, u16::try_from(size).unwrap_or(u16::MAX), 0, edns.dnssec_ok);
        }
        message
    }
}

/// The response code of an answer, without what an OPT record adds.
#[must_use]
pub fn rcode(answer: &[u8]) -> u8 {
    answer.get(3).map_or(0, |flags| flags & 0xf)
}

fn write_opt(message: &mut Vec<u8>, size: u16, extended: u8, dnssec_ok: bool) {
    message.push(0);
    message.extend_from_slice(&OPT.to_be_bytes());
    message.extend_from_slice(&size.to_be_bytes());
    message.extend_from_slice(&[extended, 0]);
    message.extend_from_slice(&(if dnssec_ok { DNSSEC_OK } else { 0 }).to_be_bytes());
    message.extend_from_slice(&[0, 0]);
}

struct Header {
    id: u16,
    flags: u16,
    counts: [u16; 4],
}

impl Header {
    fn read(message: &[u8]) -> Option<Self> {
        let octets: &[u8; HEADER] = message.first_chunk()?;
        let at = |index: usize| u16::from_be_bytes([octets[index], octets[index + 1]]);
        Some(Header { id: at(0), flags: at(2), counts: [at(4), at(6), at(8), at(10)] })
    }

    /// A header alone: the question was not read. The opcode is given back.
    fn fault(&self, code: Rcode) -> Fault {
        let flags = QR | RA | (self.flags & (OPCODE | RD | CD)) | (code as u16 & 0xf);
        let extended = code as u16 >> 4;
        let mut message = Vec::with_capacity(HEADER + OPT_LEN);
        for number in [self.id, flags, 0, 0, 0, u16::from(extended != 0)] {
            message.extend_from_slice(&number.to_be_bytes());
        }
        if extended != 0 {
            write_opt(&mut message, MAX_ANSWER as u16, extended as u8, false);
        }
        Fault::Said(message)
    }
}

#[derive(Clone, Copy)]
struct Opt {
    version: u8,
    edns: Edns,
}

impl Opt {
    /// Read the one record, which ends the message.
    fn read(octets: &[u8]) -> Option<Self> {
        let (fixed, options) = octets.split_first_chunk::<OPT_LEN>()?;
        let at = |index: usize| u16::from_be_bytes([fixed[index], fixed[index + 1]]);
        let whole = fixed[0] == 0 && at(1) == OPT && usize::from(at(9)) == options.len();
        whole.then(|| Opt { version: fixed[6], edns: Edns { size: at(3), dnssec_ok: at(7) & DNSSEC_OK != 0 } })
    }
}

fn number(octets: &[u8]) -> Option<(u16, &[u8])> {
    let (number, rest) = octets.split_first_chunk()?;
    Some((u16::from_be_bytes(*number), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::tests::wire;

    /// A query for one name: ID 7, RD.
    fn query(text: &str, kind: u16, more: &[u8]) -> Vec<u8> {
        let count = u8::from(!more.is_empty());
        let name = wire(text);
        [&[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, count][..], &name, &kind.to_be_bytes(), &[0, 1], more].concat()
    }

    const EDNS: [u8; 11] = [0, 0, 41, 0x10, 0, 0, 0, 0x80, 0, 0, 0];

    fn read(text: &str) -> Query {
        Query::read(&query(text, 1, &EDNS)).unwrap()
    }

    #[test]
    fn what_is_sent_on_is_what_was_read() {
        let asked = query("S3.example.org", 28, &EDNS);
        let onward = Query::read(&asked).unwrap().onward(0x1234);
        assert_eq!(onward[..2], [0x12, 0x34]);
        assert_eq!(onward[2..], asked[2..]);
    }

    #[test]
    fn options_are_not_sent_on() {
        let mut opt = EDNS.to_vec();
        opt[10] = 8;
        opt.extend_from_slice(&[0, 10, 0, 4, 1, 2, 3, 4]);
        let onward = Query::read(&query("a", 1, &opt)).unwrap().onward(7);
        assert_eq!(onward, query("a", 1, &EDNS));
    }

    #[test]
    fn sizes_are_kept_within_what_we_read() {
        for (said, limit) in [(0u16, 512), (512, 512), (1232, 1232), (4096, 4096), (65535, 4096)] {
            let mut opt = EDNS;
            opt[3..5].copy_from_slice(&said.to_be_bytes());
            assert_eq!(Query::read(&query("a", 1, &opt)).unwrap().udp_limit(), limit);
        }
        assert_eq!(Query::read(&query("a", 1, &[])).unwrap().udp_limit(), 512);
    }

    #[test]
    fn an_answer_has_the_id_and_the_question() {
        let asked = read("s3.example.org");
        let mut good = asked.onward(9);
        good[2] |= 0x80;
        assert!(asked.is_answered_by(&good, 9));
        assert!(!asked.is_answered_by(&good, 8), "another ID");
        assert!(!asked.is_answered_by(&asked.onward(9), 9), "a query");
        assert!(!read("s4.example.org").is_answered_by(&good, 9), "another name");
        let shouted = Query::read(&query("S3.EXAMPLE.org", 1, &[])).unwrap();
        assert!(shouted.is_answered_by(&good, 9));
        let other = Query::read(&query("s3.example.org", 28, &[])).unwrap();
        assert!(!other.is_answered_by(&good, 9), "another type");
        for length in 0..12 + wire("s3.example.org").len() + 4 {
            assert!(!asked.is_answered_by(&good[..length], 9), "{length}");
        }
        asked.give_back_id(&mut good);
        assert_eq!(good[..2], [0, 7]);
    }

    #[test]
    fn our_own_answers() {
        let asked = read("a");
        for (message, flags) in [(asked.answer(Rcode::Refused), [0x81, 0x85]), (asked.truncated(3), [0x83, 0x83])] {
            assert_eq!((&message[..2], &message[2..4]), (&[0, 7][..], &flags[..]));
            assert_eq!(message[4..], query("a", 1, &EDNS)[4..], "the question, and that we know EDNS");
            assert_eq!(Query::read(&message), Err(Fault::Silent), "nobody answers an answer");
        }
        assert_eq!(rcode(&asked.answer(Rcode::ServFail)), 2);
    }

    #[test]
    fn orders_and_other_classes_are_not_asked() {
        for (kind, code) in [(252, Rcode::Refused), (250, Rcode::Refused), (41, Rcode::FormErr), (0, Rcode::FormErr)] {
            assert_eq!(Query::read(&query("a", kind, &[])).unwrap().unsupported(), Some(code), "{kind}");
        }
        for kind in [1, 28, 33, 65, 255, 257, 65280] {
            assert_eq!(Query::read(&query("a", kind, &[])).unwrap().unsupported(), None, "{kind}");
        }
        let mut chaos = query("version.bind", 16, &[]);
        *chaos.last_mut().unwrap() = 3;
        assert_eq!(Query::read(&chaos).unwrap().unsupported(), Some(Rcode::NotImp));
    }
}
