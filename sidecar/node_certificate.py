# SPDX-License-Identifier: Apache-2.0
"""The node's certificate and key, for x509pop: files that somebody else makes and renews.

Everything that the server would refuse and that can be seen from here is said before it is asked, with the file.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from firedoor.certs import X509POP, CertsError, Challenge, PrivateKey, check_node_chain, write_evidence
from firedoor.certs.evidence import NONCE_BYTES
from firedoor.sidecar.errors import AttestationRefused
from firedoor.sidecar.evidence import Shown
from firedoor.sidecar.node_files import read_file, unusable

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
        return Challenge.read(challenge).answer(key, secrets.token_bytes(NONCE_BYTES))
    except CertsError as error:
        raise AttestationRefused(f"the server's challenge cannot be answered: {error}") from error


_unusable = partial(unusable, X509POP)


def _certificates(key: str, file: Path) -> list[x509.Certificate]:
    try:
        found = x509.load_pem_x509_certificates(read_file(X509POP, key, file))
        for certificate in found:
            certificate.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise _unusable(key, file, "holds no certificate in PEM, or one that cannot be read") from None
    return found


def _key(file: Path) -> PrivateKey:
    try:
        key = serialization.load_pem_private_key(read_file(X509POP, "key", file, secret=True), None)
    except TypeError:
        # What cryptography raises for a key that needs a password.
        raise _unusable("key", file, "is encrypted; x509pop needs the key unencrypted, readable by this user") from None
    except (ValueError, UnsupportedAlgorithm):
        raise _unusable("key", file, "holds no private key in PEM") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise _unusable("key", file, "is neither an ECDSA nor an RSA key: x509pop has no challenge for others")
    return key
