# SPDX-License-Identifier: Apache-2.0
"""Names in certificates: the common name (RFC 5280 section 4.1.2.4), read from DER, and how people are shown one.

`cryptography` reads all attributes together, and warns of what a peer wrote in any of them.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from firedoor.certs.certificate import elements

_SEQUENCE: Final = 0x30
_SET: Final = 0x31
# The object identifier 2.5.4.3, as an element.
_COMMON_NAME: Final = (0x06, b"\x55\x04\x03")
# X.680 section 8.4. T.61 is read as everybody does, as Latin-1.
_ENCODINGS: Final = MappingProxyType(
    {0x0C: "utf-8", 0x13: "ascii", 0x16: "ascii", 0x12: "ascii", 0x14: "latin-1", 0x1E: "utf-16-be", 0x1C: "utf-32-be"}
)


# What Go calls these, and RFC 4514 section 3 only by number.
_SHOWN: Final = MappingProxyType({NameOID.SERIAL_NUMBER: "SERIALNUMBER", NameOID.POSTAL_CODE: "POSTALCODE"})


def show_name(name: x509.Name) -> str:
    """Return a name as RFC 4514 writes it, with the words that SPIRE's programs use."""
    return name.rfc4514_string(_SHOWN)


def common_name(subject: bytes) -> str:
    """Return the last common name of a DER name, which is the most specific one; empty when there is none.

    Raise ValueError, and nothing else, when the name cannot be read.
    """
    found = ""
    for rdns in _inside(_SEQUENCE, subject):
        for attribute in _inside(_SET, rdns):
            for pair in _inside(_SEQUENCE, attribute):
                found = _value(pair) or found
    return found


def _inside(tag: int, der: bytes) -> list[bytes]:
    """Return the contents of the elements, which are all of one kind."""
    found = list(elements(der))
    if any(each != tag for each, _ in found):
        raise ValueError("no name")
    return [content for _, content in found]


def _value(pair: bytes) -> str:
    """Return an attribute's text if it is a common name, else nothing."""
    kind, *values = elements(pair)
    if kind != _COMMON_NAME:
        return ""
    if len(values) != 1 or values[0][0] not in _ENCODINGS:
        raise ValueError("the common name is no text")
    tag, content = values[0]
    return content.decode(_ENCODINGS[tag])
