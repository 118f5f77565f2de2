# SPDX-License-Identifier: Apache-2.0
"""The node's certificate and key, for x509pop: files that somebody else makes and renews.

Everything that the server would refuse and that can be seen from here is said before it is asked, with the file.
"""

from __future__ import annotations

import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from firedoor.certs import X509POP, CertsError, Challenge, PrivateKey, check_node_chain, write_evidence
from firedoor.sidecar.errors import AttestationRefused, NodeCertificateUnusable
from firedoor.sidecar.evidence import Shown

_NONCE_BYTES: Final = 32
_MAX_FILE: Final = 256 * 1024
_DER: Final = serialization.Encoding.DER
_PUBLIC: Final = (_DER, serialization.PublicFormat.SubjectPublicKeyInfo)


@dataclass(frozen=True, slots=True)
class X509Pop:
    """Where the files are, PEM. `certificate` holds the node's own first; intermediates may follow, or stand alone."""

    certificate: Path
    key: Path
    intermediates: Path | None = None
    kind: ClassVar[str] = X509POP
    again: ClassVar[bool] = True

    @property
    def advice(self) -> str:
        """Say what to look at."""
        return f"look at {self.certificate} (x509pop.certificate), and at x509pop.ca_bundles of the broker"

    def show(self, now: float) -> Shown:
        """Read the files, anew each time: whoever renews them need not tell us. Raise NodeCertificateUnusable."""
        chain = _certificates("certificate", self.certificate)
        if self.intermediates is not None:
            chain += _certificates("intermediates", self.intermediates)
        key = _key(self.key)
        if chain[0].public_key().public_bytes(*_PUBLIC) != key.public_key().public_bytes(*_PUBLIC):
            raise _unusable("key", self.key, f"is not the key of the certificate in {self.certificate}")
        ders = [certificate.public_bytes(_DER) for certificate in chain]
        try:
            check_node_chain(ders)
        except CertsError as error:
            raise _unusable("certificate", self.certificate, f"cannot attest: {error}") from None
        until = chain[0].not_valid_after_utc
        if until.timestamp() < now:
            raise _unusable("certificate", self.certificate, f"expired at {until:%Y-%m-%d %H:%M:%S} UTC; renew it")
        return Shown(write_evidence(ders), lambda challenge: _answer(challenge, key))


def _answer(challenge: bytes, key: PrivateKey) -> bytes:
    """Sign a server's challenge. Raise AttestationRefused when it is none for this key."""
    try:
        return Challenge.read(challenge).answer(key, secrets.token_bytes(_NONCE_BYTES))
    except CertsError as error:
        raise AttestationRefused(f"the server's challenge cannot be answered: {error}") from error


def _unusable(key: str, file: Path, what: str) -> NodeCertificateUnusable:
    return NodeCertificateUnusable(f"x509pop.{key}: {file} {what}")


def _certificates(key: str, file: Path) -> list[x509.Certificate]:
    try:
        found = x509.load_pem_x509_certificates(_read(key, file))
        for certificate in found:
            certificate.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise _unusable(key, file, "holds no certificate in PEM, or one that cannot be read") from None
    return found


def _key(file: Path) -> PrivateKey:
    try:
        key = serialization.load_pem_private_key(_read("key", file, secret=True), None)
    except TypeError:
        # What cryptography raises for a key that needs a password.
        raise _unusable("key", file, "is encrypted; x509pop needs the key unencrypted, readable by this user") from None
    except (ValueError, UnsupportedAlgorithm):
        raise _unusable("key", file, "holds no private key in PEM") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise _unusable("key", file, "is neither an ECDSA nor an RSA key: x509pop has no challenge for others")
    return key


def _read(key: str, file: Path, *, secret: bool = False) -> bytes:
    try:
        with file.open("rb") as opened:
            if secret:
                _check_private(file, os.fstat(opened.fileno()))
            data = opened.read(_MAX_FILE + 1)
    except OSError as error:
        raise _unusable(key, file, f"cannot be read: {error.strerror}") from error
    if len(data) > _MAX_FILE:
        raise _unusable(key, file, f"is longer than {_MAX_FILE // 1024} KiB")
    return data


def _check_private(file: Path, found: os.stat_result) -> None:
    """Whoever reads the key can be this node; whoever writes it can put another in its place."""
    if not stat.S_ISREG(found.st_mode):
        raise _unusable("key", file, "is not a file")
    if found.st_uid not in (0, os.geteuid()):
        raise _unusable("key", file, f"belongs to uid {found.st_uid}; it must belong to uid {os.geteuid()} or to root")
    # A group of its own may read it, as /etc/ssl/private has it.
    if found.st_mode & (stat.S_IRWXO | stat.S_IWGRP):
        raise _unusable("key", file, f"has mode {stat.S_IMODE(found.st_mode):04o}, open to others; chmod 0600 it")
