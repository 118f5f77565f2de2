# SPDX-License-Identifier: Apache-2.0
"""Just enough DER to put a certificate of our own together (X.690). What others sent is read by `cryptography`.

>>> [one.hex() for one in elements(element(SEQUENCE, integer(1), integer(300)))]
['020101', '0202012c']
>>> moment(1_800_000_000)[2:], moment(2_600_000_000)[2:]
(b'270115080000Z', b'20520522141320Z')
"""

from __future__ import annotations

import datetime as dt
from functools import lru_cache
from typing import Final

INTEGER: Final = 0x02
BIT_STRING: Final = 0x03
OCTET_STRING: Final = 0x04
SEQUENCE: Final = 0x30
_UTC_TIME: Final = 0x17
_GENERALIZED_TIME: Final = 0x18
_LONG: Final = 0x80


def element(tag: int, *contents: bytes) -> bytes:
    """Return an element: tag, length, and its contents one after the other."""
    content = b"".join(contents)
    length = len(content)
    if length < _LONG:
        return bytes((tag, length)) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8)
    return bytes((tag, _LONG | len(octets))) + octets + content


def elements(der: bytes) -> list[bytes]:
    """Split an element into those that it consists of. Only for DER that we know to be well-formed."""
    start, end = _content(der, 0)
    found = []
    while start < end:
        _, after = _content(der, start)
        found.append(der[start:after])
        start = after
    return found


def content(element: bytes) -> bytes:
    """Return what is inside an element. Only for DER that we know to be well-formed."""
    start, end = _content(element, 0)
    return element[start:end]


def _content(der: bytes, at: int) -> tuple[int, int]:
    """Return where the content of the element at an offset begins and ends."""
    length = der[at + 1]
    if length < _LONG:
        return at + 2, at + 2 + length
    start = at + 2 + (length & ~_LONG)
    return start, start + int.from_bytes(der[at + 2 : start])


def integer(value: int) -> bytes:
    """Return a positive INTEGER."""
    return element(INTEGER, value.to_bytes(value.bit_length() // 8 + 1))


@lru_cache(maxsize=64)
def moment(seconds: int) -> bytes:
    """Return a Time of Unix seconds: UTCTime until 2049, as RFC 5280 section 4.1.2.5 has it."""
    at = dt.datetime.fromtimestamp(seconds, dt.UTC)
    if 1950 <= at.year < 2050:
        return element(_UTC_TIME, at.strftime("%y%m%d%H%M%SZ").encode())
    return element(_GENERALIZED_TIME, f"{at.year:04}{at:%m%d%H%M%S}Z".encode())
