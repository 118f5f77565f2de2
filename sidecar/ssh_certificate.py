# SPDX-License-Identifier: Apache-2.0
"""The host's SSH certificate and key, for sshpop: the files of sshd.

As with node_certificate.py, what can be seen from here is said before the server is asked.
"""

from __future__ import annotations

import base64
import secrets
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from firedoor.certs import (
    SSHPOP,
    CertsError,
    SshChallenge,
    SshPrivateKey,
    check_ssh_certificate,
    write_ssh_evidence,
)
from firedoor.certs.evidence import NONCE_BYTES
from firedoor.sidecar.errors import AttestationRefused
from firedoor.sidecar.evidence import Shown
from firedoor.sidecar.node_files import read_file, unusable

_PUBLIC: Final = (serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


@dataclass(frozen=True, slots=True)
class SshPop:
    """Where the files are: `ssh_host_*_key-cert.pub` and `ssh_host_*_key`."""

    certificate: Path
    key: Path
    kind: ClassVar[str] = SSHPOP
    again: ClassVar[bool] = True

    @property
    def advice(self) -> str:
        """Say what to look at."""
        return f"look at {self.certificate} (sshpop.certificate), and at sshpop.cert_authorities of the broker"

    def show(self, now: float) -> Shown:
        """Read the files, anew each time: whoever renews them need not tell us. Raise NodeCertificateUnusable."""
        certificate = _certificate(self.certificate)
        key = _key(self.key)
        try:
            read = check_ssh_certificate(certificate)
        except CertsError as error:
            raise _unusable("certificate", self.certificate, f"cannot attest: {error}") from None
        if read.public_key().public_bytes(*_PUBLIC) != key.public_key().public_bytes(*_PUBLIC):
            raise _unusable("key", self.key, f"is not the key of the certificate in {self.certificate}")
        if read.valid_before <= now:
            until = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(read.valid_before))
            raise _unusable("certificate", self.certificate, f"expired at {until}; renew it")
        return Shown(write_ssh_evidence(certificate), lambda challenge: _answer(challenge, key))


_unusable = partial(unusable, SSHPOP)


def _answer(challenge: bytes, key: SshPrivateKey) -> bytes:
    """Sign a server's challenge. Raise AttestationRefused when it is none."""
    try:
        return SshChallenge.read(challenge).answer(key, secrets.token_bytes(NONCE_BYTES))
    except CertsError as error:
        raise AttestationRefused(f"the server's challenge cannot be answered: {error}") from error


def _certificate(file: Path) -> bytes:
    words = read_file(SSHPOP, "certificate", file).split()
    try:
        return base64.b64decode(words[1], validate=True)
    except (IndexError, ValueError):
        raise _unusable("certificate", file, "holds no SSH certificate, as in *-cert.pub files") from None


def _key(file: Path) -> SshPrivateKey:
    data = read_file(SSHPOP, "key", file, secret=True)
    # Old keys of RSA and ECDSA are in PEM of another form.
    load = serialization.load_ssh_private_key if b"OPENSSH PRIVATE KEY" in data else serialization.load_pem_private_key
    try:
        key = load(data, None)
    except TypeError:
        # What cryptography raises for a key that needs a password.
        raise _unusable("key", file, "is encrypted; sshpop needs the key unencrypted, readable by this user") from None
    except (ValueError, UnsupportedAlgorithm):
        raise _unusable("key", file, "holds no private key of SSH that can be used, or an encrypted one") from None
    if not isinstance(key, ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise _unusable("key", file, "is neither an Ed25519 nor an ECDSA nor an RSA key")
    return key
