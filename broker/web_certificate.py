# SPDX-License-Identifier: Apache-2.0
"""A certificate of the web and its key, PEM files that somebody else makes and renews (profile https_web).

They are looked at every second. Files that do not go together, as in the middle of a renewal, change nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from firedoor.broker.errors import ConfigError
from firedoor.broker.files import OPEN_TO_OTHERS, stamp

_MAX_FILE: Final = 256 * 1024
_DER: Final = serialization.Encoding.DER
_PUBLIC: Final = (_DER, serialization.PublicFormat.SubjectPublicKeyInfo)
_PRIVATE: Final = (_DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


@dataclass(frozen=True, slots=True)
class WebCertificate:
    """DER, the server's own certificate first; the key is PKCS#8."""

    chain: tuple[bytes, ...]
    key: bytes

    def __repr__(self) -> str:
        return f"WebCertificate({len(self.chain)} certificates)"


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Where they are. `group` is the group of configuration keys that names them, for messages."""

    group: str
    certificate: Path
    key: Path

    def read(self) -> WebCertificate:
        """Read both. Raise ConfigError."""
        chain = self._chain()
        try:
            key = serialization.load_pem_private_key(self._bytes("key", self.key, secret=True), None)
        except TypeError:
            # What cryptography raises for a key that needs a password.
            raise self._wrong("key", self.key, "is encrypted; it is needed unencrypted") from None
        except (ValueError, UnsupportedAlgorithm):
            raise self._wrong("key", self.key, "holds no private key in PEM") from None
        if key.public_key().public_bytes(*_PUBLIC) != chain[0].public_key().public_bytes(*_PUBLIC):
            raise self._wrong("key", self.key, f"is not the key of the first certificate in {self.certificate}")
        return WebCertificate(tuple(one.public_bytes(_DER) for one in chain), key.private_bytes(*_PRIVATE))

    def stamp(self) -> tuple[object, ...]:
        """Return what differs when a file was edited or replaced; cheap to ask for every second."""
        return stamp(self.certificate), stamp(self.key)

    def _chain(self) -> list[x509.Certificate]:
        try:
            found = x509.load_pem_x509_certificates(self._bytes("certificate", self.certificate))
            found[0].public_key()
        except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
            raise self._wrong(
                "certificate", self.certificate, "holds no certificate in PEM, or one that cannot be read"
            ) from None
        return found

    def _bytes(self, key: str, path: Path, *, secret: bool = False) -> bytes:
        try:
            with path.open("rb") as file:
                if secret and os.fstat(file.fileno()).st_mode & OPEN_TO_OTHERS:
                    raise self._wrong(key, path, "is open to others; chmod 0600 it")
                data = file.read(_MAX_FILE + 1)
        except OSError as error:
            raise self._wrong(key, path, f"cannot be read: {error.strerror}") from error
        if len(data) > _MAX_FILE:
            raise self._wrong(key, path, f"is longer than {_MAX_FILE // 1024} KiB")
        return data

    def _wrong(self, key: str, path: Path, what: str) -> ConfigError:
        return ConfigError(f"{self.group}.{key}: {path} {what}")
