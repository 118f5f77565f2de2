# SPDX-License-Identifier: Apache-2.0
"""A node's SSH host certificate (OpenSSH PROTOCOL.certkeys): what it must not break, and which CAs vouch for it.

As for X.509 (node_certificate.py), every cap comes before any signature is checked, and only one is. Who holds the key
is another question; see sshpop.py.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import SSHCertificate, SSHCertificateType

from firedoor.certs.errors import BundleError, EvidenceError, SshCertificateError
from firedoor.certs.node_certificate import is_known_key

SSHPOP: Final = "sshpop"
# With keys and a signature of RSA-8192, and 256 principals of 48 characters each.
MAX_SSH_CERTIFICATE_BYTES: Final = 16 * 1024
# OpenSSH's own cap (SSHKEY_CERT_MAX_PRINCIPALS).
MAX_PRINCIPALS: Final = 256
MAX_SSH_AUTHORITIES: Final = 1024
_MAX_AUTHORITIES_BYTES: Final = 4 * 1024 * 1024
# What `cryptography` raises for bytes that are no certificate; NotImplementedError is for a compressed point.
_UNREADABLE: Final = (ValueError, UnsupportedAlgorithm, NotImplementedError)
# The kinds of certificates, and how many strings their keys take. No FIDO keys: a host has no finger.
_KEY_STRINGS: Final = {
    b"ssh-ed25519-cert-v01@openssh.com": 1,
    b"ecdsa-sha2-nistp256-cert-v01@openssh.com": 2,
    b"ecdsa-sha2-nistp384-cert-v01@openssh.com": 2,
    b"ecdsa-sha2-nistp521-cert-v01@openssh.com": 2,
    b"ssh-rsa-cert-v01@openssh.com": 2,
}
_AUTHORITY_KINDS: Final = tuple(kind.removesuffix(b"-cert-v01@openssh.com") for kind in _KEY_STRINGS)
# No SHA-1: who finds a collision could have a CA sign one certificate and show another.
_SIGNATURES: Final = frozenset({*_AUTHORITY_KINDS, b"rsa-sha2-256", b"rsa-sha2-512"} - {b"ssh-rsa"})
# "valid before" of a certificate that does not end.
_FOREVER: Final = 2**64 - 1
_OPENSSH: Final = (serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)

SshKey = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey


@final
@dataclass(frozen=True, slots=True, init=False)
class SshNode:
    """A host whose certificate a CA vouches for, made by `verify_ssh_certificate` alone. Anybody may show it."""

    key: SshKey
    # SHA-256 of the certificate in base64url: how SPIRE names it.
    fingerprint: str
    # The first principal, without the canonical domain.
    hostname: str
    # In Unix seconds; 0 when it does not end.
    not_after: int

    def __init__(self) -> None:
        raise TypeError("SshNode is made by verify_ssh_certificate()")


def read_ssh_authorities(text: bytes) -> frozenset[bytes]:
    """Read the public keys of CAs, one a line as in `*.pub` files. Raise BundleError."""
    if len(text) > _MAX_AUTHORITIES_BYTES:
        raise BundleError("bundle_too_large")
    lines = enumerate(text.splitlines(), 1)
    found = frozenset(_authority(line, number) for number, line in lines if line.strip() and not _comment(line))
    if len(found) > MAX_SSH_AUTHORITIES:
        raise BundleError("bundle_too_large")
    return found


def _comment(line: bytes) -> bool:
    return line.lstrip().startswith(b"#")


def _authority(line: bytes, number: int) -> bytes:
    if line.split()[0] not in _AUTHORITY_KINDS:
        raise BundleError("malformed_ssh_key", f"line {number}")
    try:
        key = serialization.load_ssh_public_key(line.strip())
    except _UNREADABLE:
        raise BundleError("malformed_ssh_key", f"line {number}") from None
    if not is_known_key(key):
        raise BundleError("unsupported_ssh_key", f"line {number}")
    return key.public_bytes(*_OPENSSH)


def verify_ssh_certificate(certificate: bytes, authorities: Collection[bytes], at: int, domain: str = "") -> SshNode:
    """Verify a host certificate. With a canonical domain, the host's name must end with it, and is what is before it.

    Raise EvidenceError when it cannot be read, or SshCertificateError.
    """
    read = check_ssh_certificate(certificate)
    hostname = _hostname(read.valid_principals[0], domain)
    # Whoever made up a CA's key costs nothing but this look.
    if read.signature_key().public_bytes(*_OPENSSH) not in authorities:
        raise SshCertificateError("ca_unknown")
    if at < read.valid_after:
        raise SshCertificateError("not_yet_valid")
    if at >= read.valid_before:
        raise SshCertificateError("expired")
    try:
        read.verify_cert_signature()
    except InvalidSignature:
        raise SshCertificateError("bad_ca_signature") from None
    except _UNREADABLE:
        raise EvidenceError("malformed_certificate") from None
    made = object.__new__(SshNode)
    fingerprint = base64.urlsafe_b64encode(hashlib.sha256(certificate).digest()).rstrip(b"=").decode()
    not_after = 0 if read.valid_before == _FOREVER else read.valid_before
    values = {"key": read.public_key(), "fingerprint": fingerprint, "hostname": hostname, "not_after": not_after}
    for name, value in values.items():
        object.__setattr__(made, name, value)
    return made


def check_ssh_certificate(certificate: bytes) -> SSHCertificate:
    """Check what needs neither time nor CAs. Raise as `verify_ssh_certificate` does."""
    read = _read(certificate)
    if not is_known_key(read.public_key()):
        raise SshCertificateError("unsupported_key", "that of the host")
    if not is_known_key(_signer(read)):
        raise SshCertificateError("unsupported_key", "that of the CA")
    if read.type is not SSHCertificateType.HOST:
        raise SshCertificateError("not_a_host")
    if not read.valid_principals:
        # To OpenSSH such a certificate is good for every host.
        raise SshCertificateError("no_principal")
    if len(read.valid_principals) > MAX_PRINCIPALS:
        raise SshCertificateError("too_many_principals")
    if read.critical_options:
        # PROTOCOL.certkeys knows none for hosts.
        raise SshCertificateError("critical_option")
    return read


def _read(certificate: bytes) -> SSHCertificate:
    if len(certificate) > MAX_SSH_CERTIFICATE_BYTES:
        raise EvidenceError("malformed_certificate")
    try:
        kind, signature = _kinds(certificate)
    except ValueError:
        raise EvidenceError("malformed_certificate") from None
    if kind not in _KEY_STRINGS:
        raise SshCertificateError("unsupported_key", "that of the host")
    if signature not in _SIGNATURES:
        raise SshCertificateError("weak_signature")
    try:
        read = serialization.load_ssh_public_identity(kind + b" " + base64.b64encode(certificate))
    except _UNREADABLE:
        raise EvidenceError("malformed_certificate") from None
    assert isinstance(read, SSHCertificate)  # noqa: S101 - its kind says so
    return read


def _signer(read: SSHCertificate) -> object:
    try:
        return read.signature_key()
    except _UNREADABLE:
        raise EvidenceError("malformed_certificate") from None


def _kinds(certificate: bytes) -> tuple[bytes, bytes]:
    """Return the kind of a certificate, and with what it is signed. Raise ValueError.

    The second is what `cryptography` does not tell. Nothing else is taken from here.
    """
    fields = Fields(certificate)
    kind = fields.string()
    for _ in range(1 + _KEY_STRINGS.get(kind, 0)):
        fields.string()
    if kind not in _KEY_STRINGS:
        return kind, b""
    # Serial and type; key ID, principals; validity; critical options, extensions, reserved, the CA's key.
    fields.skip(12)
    for _ in range(2):
        fields.string()
    fields.skip(16)
    for _ in range(4):
        fields.string()
    return kind, Fields(fields.string()).string()


class Fields:
    """Reads SSH's wire format (RFC 4251 section 5). Every method raises ValueError where it ends too early."""

    def __init__(self, data: bytes) -> None:
        self._rest = data

    def skip(self, count: int) -> bytes:
        """Take so many bytes."""
        if count > len(self._rest):
            raise ValueError("it ends too early")
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken

    def string(self) -> bytes:
        """Take a string."""
        return self.skip(int.from_bytes(self.skip(4)))

    def end(self) -> None:
        """Say that nothing may follow."""
        if self._rest:
            raise ValueError("something follows")


def _hostname(principal: bytes, domain: str) -> str:
    try:
        name = principal.decode("ascii")
    except UnicodeDecodeError:
        raise SshCertificateError("bad_principal") from None
    if domain and not name.endswith(f".{domain}"):
        raise SshCertificateError("wrong_domain")
    return name.removesuffix(f".{domain}") if domain else name
