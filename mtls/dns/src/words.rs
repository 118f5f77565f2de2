// SPDX-License-Identifier: Apache-2.0
//! What types and response codes are called, for records.

use std::borrow::Cow;

/// The name of a type, `TYPE` and its number where there is none here (RFC 3597, 5).
#[must_use]
pub fn type_text(number: u16) -> Cow<'static, str> {
    Cow::Borrowed(match number {
        1 => "A",
        2 => "NS",
        5 => "CNAME",
        6 => "SOA",
        12 => "PTR",
        13 => "HINFO",
        15 => "MX",
        16 => "TXT",
        28 => "AAAA",
        33 => "SRV",
        35 => "NAPTR",
        39 => "DNAME",
        43 => "DS",
        44 => "SSHFP",
        46 => "RRSIG",
        47 => "NSEC",
        48 => "DNSKEY",
        52 => "TLSA",
        64 => "SVCB",
        65 => "HTTPS",
        252 => "AXFR",
        255 => "ANY",
        257 => "CAA",
        _ => return Cow::Owned(format!("TYPE{number}")),
    })
}

/// The name of a response code of four bits.
#[must_use]
pub fn rcode_text(number: u8) -> Cow<'static, str> {
    Cow::Borrowed(match number {
        0 => "NOERROR",
        1 => "FORMERR",
        2 => "SERVFAIL",
        3 => "NXDOMAIN",
        4 => "NOTIMP",
        5 => "REFUSED",
        _ => return Cow::Owned(format!("RCODE{number}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_name_has_a_number() {
        assert_eq!((type_text(28), type_text(65280)), ("AAAA".into(), "TYPE65280".into()));
        assert_eq!((rcode_text(3), rcode_text(9)), ("NXDOMAIN".into(), "RCODE9".into()));
    }
}
