# SPDX-License-Identifier: Apache-2.0
"""A CA of SSH hosts in memory: certificates that are right unless a test says what is to be wrong.

ca = SshCa()
host = ca.host("gpu-1.example.org")
host.certificate, host.key       # as on the wire; a key of `cryptography`
ca.line                          # as in a *.pub file
"""

from __future__ import annotations

import base64
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from tests.node_pki import DAY, NOW

HOST, USER = 2, 1
_HASHES: dict[bytes, Any] = {
    b"ssh-rsa": hashes.SHA1(),
    b"rsa-sha2-256": hashes.SHA256(),
    b"rsa-sha2-512": hashes.SHA512(),
    b"ecdsa-sha2-nistp256": hashes.SHA256(),
    b"ecdsa-sha2-nistp384": hashes.SHA384(),
    b"ecdsa-sha2-nistp521": hashes.SHA512(),
}


def string(data: bytes) -> bytes:
    return len(data).to_bytes(4) + data


def mpint(number: int) -> bytes:
    return string(number.to_bytes(number.bit_length() // 8 + 1))


def public_blob(key: Any) -> bytes:
    """Return a public key as on the wire."""
    return base64.b64decode(public_line(key).split()[1])


def public_line(key: Any) -> bytes:
    public = key if not hasattr(key, "public_key") else key.public_key()
    line: bytes = public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return line


@dataclass
class SshHost:
    """A certificate with its key."""

    certificate: bytes
    key: Any

    @property
    def line(self) -> bytes:
        kind = self.certificate[4 : 4 + int.from_bytes(self.certificate[:4])]
        return kind + b" " + base64.b64encode(self.certificate) + b" host\n"

    def write(self, folder: Path, form: str = "OpenSSH") -> tuple[Path, Path]:
        """Write the files as sshd has them, and return where."""
        certificate, key = folder / "host-cert.pub", folder / "host"
        certificate.write_bytes(self.line)
        key.touch(mode=0o600)
        key.write_bytes(ssh_key_pem(self.key, form=form))
        return certificate, key


def ssh_key_pem(key: Any, password: bytes = b"", form: str = "OpenSSH") -> bytes:
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    made: bytes = key.private_bytes(serialization.Encoding.PEM, getattr(serialization.PrivateFormat, form), hidden)
    return made


class SshCa:
    """One CA, `at` a moment."""

    def __init__(self, at: int = NOW, key: Any = None) -> None:
        self.at = at
        self.key = key or ed25519.Ed25519PrivateKey.generate()

    @property
    def line(self) -> bytes:
        return public_line(self.key) + b" hosts\n"

    def host(self, *principals: str | bytes, **wrong: Any) -> SshHost:
        """Make a certificate: `key`, `public`, `type`, `days`, `critical`, `algorithm`, `signer`, `forever`."""
        key = wrong.get("key") or ed25519.Ed25519PrivateKey.generate()
        public = wrong.get("public") or public_blob(key)
        kind = public[4 : 4 + int.from_bytes(public[:4])]
        start, end = (self.at + days * DAY for days in wrong.get("days", (-1, 30)))
        named = [each.encode() if isinstance(each, str) else each for each in principals or ("gpu-1.example.org",)]
        body = b"".join(
            (
                string(wrong.get("kind", kind + b"-cert-v01@openssh.com")),
                string(secrets.token_bytes(32)),
                public[4 + len(kind) :],
                (7).to_bytes(8),
                wrong.get("type", HOST).to_bytes(4),
                string(b"key-id"),
                string(b"".join(map(string, named if wrong.get("named", True) else []))),
                start.to_bytes(8),
                (2**64 - 1 if wrong.get("forever") else end).to_bytes(8),
                string(b"".join(string(name) + string(value) for name, value in wrong.get("critical", ()))),
                string(b""),
                string(b""),
                string(wrong.get("ca_blob") or public_blob(self.key)),
            )
        )
        return SshHost(body + string(_signed(wrong.get("signer") or self.key, body, wrong.get("algorithm"))), key)


def _signed(key: Any, body: bytes, algorithm: bytes | None) -> bytes:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return string(algorithm or b"ssh-ed25519") + string(key.sign(body))
    if isinstance(key, rsa.RSAPrivateKey):
        name = algorithm or b"rsa-sha2-256"
        return string(name) + string(key.sign(body, padding.PKCS1v15(), _HASHES[name]))
    name = algorithm or public_line(key).split()[0]
    r, s = decode_dss_signature(key.sign(body, ec.ECDSA(_HASHES[name])))
    return string(name) + string(mpint(r) + mpint(s))


def rsa_blob(bits: int, exponent: int = 65537) -> bytes:
    """Return an RSA key that nobody holds, as on the wire."""
    modulus = secrets.randbits(bits) | (1 << (bits - 1)) | 1
    return string(b"ssh-rsa") + mpint(exponent) + mpint(modulus)
