# SPDX-License-Identifier: Apache-2.0
"""The messages by which a host proves that it holds the key of its SSH certificate: SPIRE's sshpop, byte for byte.

    node    {"Certificate": "<as on the wire, base64>"}
    server  {"Nonce": "<32 bytes>"}
    node    {"Nonce": "<32 bytes>", "Signature": {"Format": "ssh-ed25519", "Blob": "...", "Rest": null}}

What is signed is SHA-256 over the server's nonce and the node's, as SSH signs: the node's own nonce keeps it from
signing what somebody else chose, a session of SSH for one. A challenge is asked once, on one stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from firedoor.certs.errors import EvidenceError, SshCertificateError
from firedoor.certs.evidence import (
    NONCE_BYTES,
    from_base64,
    read_field,
    read_message,
    read_nonce,
    signed_digest,
    to_base64,
    to_json,
)
from firedoor.certs.keys import MAX_RSA_BITS
from firedoor.certs.ssh_certificate import MAX_SSH_CERTIFICATE_BYTES, Fields, SshKey

SshPrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

# base64, and the JSON around it.
_MAX_EVIDENCE_BYTES: Final = 2 * MAX_SSH_CERTIFICATE_BYTES
_CURVE_HASHES: Final[dict[str, tuple[bytes, hashes.HashAlgorithm]]] = {
    "secp256r1": (b"ecdsa-sha2-nistp256", hashes.SHA256()),
    "secp384r1": (b"ecdsa-sha2-nistp384", hashes.SHA384()),
    "secp521r1": (b"ecdsa-sha2-nistp521", hashes.SHA512()),
}
_ED25519: Final = b"ssh-ed25519"
_RSA: Final = b"rsa-sha2-256"
# Stock agents sign with SHA-1 where the key is RSA. What is hashed is a digest that neither side chooses alone, so that
# collisions are of no use; a second preimage nobody finds.
_RSA_HASHES: Final[dict[bytes, hashes.HashAlgorithm]] = {
    _RSA: hashes.SHA256(),
    b"rsa-sha2-512": hashes.SHA512(),
    b"ssh-rsa": hashes.SHA1(),  # noqa: S303 - see above
}


def write_ssh_evidence(certificate: bytes) -> bytes:
    """Return what a host shows first."""
    return to_json({"Certificate": to_base64(certificate)})


def read_ssh_evidence(payload: bytes) -> bytes:
    """Return the certificate as on the wire. Raise EvidenceError."""
    found = read_message(payload, "malformed_evidence", _MAX_EVIDENCE_BYTES).get("Certificate")
    if not found:
        raise EvidenceError("no_certificate")
    try:
        return from_base64(found)
    except ValueError:
        raise EvidenceError("malformed_evidence", "the certificate is not in base64") from None


@final
@dataclass(frozen=True, slots=True)
class SshChallenge:
    """One question."""

    nonce: bytes

    @classmethod
    def of(cls, nonce: bytes) -> SshChallenge:
        """Make a challenge of a fresh nonce of 32 random bytes."""
        assert len(nonce) == NONCE_BYTES  # noqa: S101
        return cls(nonce)

    @classmethod
    def read(cls, message: bytes) -> SshChallenge:
        """Read a server's challenge. Raise EvidenceError."""
        code = "malformed_challenge"
        return cls(read_nonce(read_message(message, code).get("Nonce"), code))

    def message(self) -> bytes:
        """Return what the server sends."""
        return to_json({"Nonce": to_base64(self.nonce)})

    def answer(self, key: SshPrivateKey, nonce: bytes) -> bytes:
        """Return what the host answers, with a fresh nonce of its own."""
        name, blob = _sign(key, signed_digest(self.nonce, nonce))
        signature = {"Format": name.decode(), "Blob": to_base64(blob), "Rest": None}
        return to_json({"Nonce": to_base64(nonce), "Signature": signature})

    def check(self, answer: bytes, key: SshKey) -> None:
        """Check an answer by the key of the certificate. Raise EvidenceError or SshCertificateError."""
        code = "malformed_answer"
        fields = read_message(answer, code)
        digest = signed_digest(self.nonce, read_nonce(fields.get("Nonce"), code))
        signature = fields.get("Signature")
        if not isinstance(signature, dict) or not isinstance(signature.get("Format"), str) or signature.get("Rest"):
            raise EvidenceError(code, "it holds no signature")
        blob = read_field(signature.get("Blob"), "signature", MAX_RSA_BITS // 8)
        try:
            _verify(key, signature["Format"].encode(), blob, digest)
        except InvalidSignature:
            raise SshCertificateError("bad_signature") from None


def _sign(key: SshPrivateKey, digest: bytes) -> tuple[bytes, bytes]:
    """Return the format of a signature and its bytes (RFC 8709, RFC 5656 section 3.1.2, RFC 8332)."""
    match key:
        case ed25519.Ed25519PrivateKey():
            return _ED25519, key.sign(digest)
        case ec.EllipticCurvePrivateKey():
            name, algorithm = _CURVE_HASHES[key.curve.name]
            numbers = decode_dss_signature(key.sign(digest, ec.ECDSA(algorithm)))
            return name, b"".join(_mpint(number) for number in numbers)
        case _:
            return _RSA, key.sign(digest, padding.PKCS1v15(), _RSA_HASHES[_RSA])


def _verify(key: SshKey, name: bytes, blob: bytes, digest: bytes) -> None:
    """Check a signature. Raise InvalidSignature, or EvidenceError when it is of another kind."""
    match key:
        case ed25519.Ed25519PublicKey() if name == _ED25519:
            key.verify(blob, digest)
        case ec.EllipticCurvePublicKey() if name == _CURVE_HASHES[key.curve.name][0]:
            r, s = _numbers(blob)
            key.verify(encode_dss_signature(r, s), digest, ec.ECDSA(_CURVE_HASHES[key.curve.name][1]))
        case rsa.RSAPublicKey() if name in _RSA_HASHES:
            key.verify(blob, digest, padding.PKCS1v15(), _RSA_HASHES[name])
        case _:
            raise EvidenceError("malformed_answer", "its signature is of another kind than the key")


def _mpint(number: int) -> bytes:
    data = number.to_bytes(number.bit_length() // 8 + 1)
    return len(data).to_bytes(4) + data


def _numbers(blob: bytes) -> tuple[int, int]:
    """Read the two numbers of ECDSA, in their one form. Raise InvalidSignature."""
    fields = Fields(blob)
    try:
        r, s = (int.from_bytes(fields.string(), signed=True) for _ in range(2))
        fields.end()
    except ValueError:
        raise InvalidSignature from None
    if min(r, s) < 1 or _mpint(r) + _mpint(s) != blob:
        raise InvalidSignature
    return r, s
