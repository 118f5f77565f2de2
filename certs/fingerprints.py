# SPDX-License-Identifier: Apache-2.0
"""Fingerprints: the SHA-256 of a DER encoding, written as lower-case hex.

>>> str(Fingerprint.of(b""))[:16]
'e3b0c44298fc1c14'
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final, final

from firedoor.certs.errors import FingerprintError

_HEX: Final = re.compile(r"[0-9a-f]{64}")


@final
@dataclass(frozen=True, order=True, slots=True, init=False)
class Fingerprint:
    """The SHA-256 of something."""

    digest: bytes

    def __init__(self) -> None:
        raise TypeError("Fingerprint is made by Fingerprint.of() or Fingerprint.parse()")

    @classmethod
    def of(cls, data: bytes) -> Fingerprint:
        """Hash the data."""
        return cls._made(hashlib.sha256(data).digest())

    @classmethod
    def parse(cls, text: str) -> Fingerprint:
        """Read 64 lower-case hexadecimal digits. Raise FingerprintError."""
        if not _HEX.fullmatch(text):
            raise FingerprintError("bad_fingerprint")
        return cls._made(bytes.fromhex(text))

    @classmethod
    def _made(cls, digest: bytes) -> Fingerprint:
        made = object.__new__(cls)
        object.__setattr__(made, "digest", digest)
        return made

    def __str__(self) -> str:
        return self.digest.hex()
