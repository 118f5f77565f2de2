# SPDX-License-Identifier: Apache-2.0
"""The key of a certificate's holder, in the form in which a certificate says it.

Most come out of a signing request as bytes and go into a certificate as the same bytes. An object of `cryptography` is
made only for who wants one.

>>> from firedoor.certs.keys import KeyType, generate_key
>>> key = SubjectKey.of(generate_key(KeyType.EC_P256).public_key())
>>> SubjectKey.parse(key.der) == key, len(key.identifier)
(True, 20)
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, cast, final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from firedoor.certs import der
from firedoor.certs.errors import IssueError
from firedoor.certs.keys import PublicKey, is_supported, public_key_der

# Keys of one length: how they begin, and how long they are. RFC 5480 section 2, points in full; RFC 8410 section 4.
_FIXED: Final = (
    (bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004"), 91),
    (bytes.fromhex("3076301006072a8648ce3d020106052b8104002203620004"), 120),
    (bytes.fromhex("302a300506032b6570032100"), 44),
)


@final
@dataclass(frozen=True, slots=True)
class SubjectKey:
    """A public key of a kind that certificates may hold. Made by `of` and `parse` alone."""

    # SubjectPublicKeyInfo.
    der: bytes

    @classmethod
    def of(cls, key: PublicKey | SubjectKey) -> SubjectKey:
        """Take a key. Raise IssueError for one of another kind."""
        if isinstance(key, cls):
            return key
        if not is_supported(key):
            raise IssueError("unsupported_key")
        return cls(public_key_der(key))

    @classmethod
    def parse(cls, der: bytes) -> SubjectKey:
        """Read a SubjectPublicKeyInfo. Raise IssueError for one of another kind.

        That a point lies on its curve is seen by whoever has checked a signature of it, as reading a request does.
        """
        if any(len(der) == length and der.startswith(begin) for begin, length in _FIXED):
            return cls(der)
        try:
            key = serialization.load_der_public_key(der)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise IssueError("unsupported_key") from None
        return cls.of(cast(PublicKey, key))

    @property
    def identifier(self) -> bytes:
        """The SHA-1 of its bits, as certificates name keys (RFC 5280 section 4.2.1.2)."""
        _, bits = der.elements(self.der)
        # The first byte says how many bits are unused, which is none.
        return hashlib.sha1(der.content(bits)[1:], usedforsecurity=False).digest()

    def public(self) -> PublicKey:
        """Return it as `cryptography` has it."""
        return cast(PublicKey, serialization.load_der_public_key(self.der))
