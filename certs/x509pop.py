# SPDX-License-Identifier: Apache-2.0
"""The messages by which a node proves that it holds a certificate's key: SPIRE's x509pop, byte for byte.

    node    {"certificates": ["<DER, base64>", ...]}                                    leaf first, no root
    server  {"rsa_signature": {"nonce": "<32 bytes>"}, "ecdsa_signature": null}         or the other way round
    node    {"rsa_signature": {"nonce": "<32 bytes>", "signature": "..."}, ...}         or {"nonce", "r", "s"}

What is signed is SHA-256 over the server's nonce and the node's, by RSA-PSS or ECDSA; the node's own nonce keeps it
from signing what somebody else chose. A challenge belongs to one stream and is asked once: the server forgets it after
the first answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature, encode_dss_signature

from firedoor.certs.errors import EvidenceError, NodeCertificateError
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
from firedoor.certs.keys import MAX_RSA_BITS, PrivateKey
from firedoor.certs.node_certificate import MAX_INTERMEDIATES, NodeKey

# Five certificates of RSA-8192 take 16 KiB.
MAX_EVIDENCE_BYTES: Final = 64 * 1024

_Kind = Literal["rsa_signature", "ecdsa_signature"]
_KINDS: Final[tuple[_Kind, _Kind]] = ("rsa_signature", "ecdsa_signature")
_HASH: Final = Prehashed(hashes.SHA256())


def write_evidence(chain: Sequence[bytes]) -> bytes:
    """Return what a node shows first: its certificate and the intermediates above it."""
    return to_json({"certificates": [to_base64(der) for der in chain]})


def read_evidence(payload: bytes) -> tuple[bytes, ...]:
    """Return the certificates, DER. Raise EvidenceError."""
    found = read_message(payload, "malformed_evidence", MAX_EVIDENCE_BYTES).get("certificates")
    if not found:
        raise EvidenceError("no_certificate")
    if not isinstance(found, list):
        raise EvidenceError("malformed_evidence", "certificates is not a list")
    if len(found) > 1 + MAX_INTERMEDIATES:
        raise EvidenceError("too_many_certificates")
    try:
        return tuple(from_base64(each) for each in found)
    except ValueError:
        raise EvidenceError("malformed_evidence", "a certificate is not in base64") from None


@final
@dataclass(frozen=True, slots=True)
class Challenge:
    """One question, for one kind of key."""

    kind: _Kind
    nonce: bytes

    @classmethod
    def to(cls, key: NodeKey, nonce: bytes) -> Challenge:
        """Make the challenge for a key, with a fresh nonce of 32 random bytes."""
        assert len(nonce) == NONCE_BYTES  # noqa: S101
        return cls(_kind(key), nonce)

    @classmethod
    def read(cls, message: bytes) -> Challenge:
        """Read a server's challenge. Raise EvidenceError."""
        kind, fields = _only(message, "malformed_challenge")
        return cls(kind, read_nonce(fields.get("nonce"), "malformed_challenge"))

    def message(self) -> bytes:
        """Return what the server sends."""
        nonce = {"nonce": to_base64(self.nonce)}
        return to_json({kind: nonce if kind == self.kind else None for kind in _KINDS})

    def answer(self, key: PrivateKey, nonce: bytes) -> bytes:
        """Return what the node answers, with a fresh nonce of its own. Raise EvidenceError for another kind of key."""
        if self.kind != _kind(key.public_key()):
            raise EvidenceError("wrong_kind")
        digest, fields = self._digest(nonce), {"nonce": nonce}
        if isinstance(key, rsa.RSAPrivateKey):
            fields["signature"] = key.sign(digest, _pss(padding.PSS.DIGEST_LENGTH), _HASH)
        else:
            r, s = decode_dss_signature(key.sign(digest, ec.ECDSA(_HASH)))
            fields |= {"r": _big_endian(r), "s": _big_endian(s)}
        written = {name: to_base64(value) for name, value in fields.items()}
        return to_json({kind: written if kind == self.kind else None for kind in _KINDS})

    def check(self, answer: bytes, key: NodeKey) -> None:
        """Check an answer by the key that the challenge was made for. Raise EvidenceError or NodeCertificateError."""
        kind, fields = _only(answer, "malformed_answer")
        if kind != self.kind or kind != _kind(key):
            raise EvidenceError("malformed_answer", "it is for another kind of key")
        digest = self._digest(read_nonce(fields.get("nonce"), "malformed_answer"))
        try:
            if isinstance(key, rsa.RSAPublicKey):
                signature = read_field(fields.get("signature"), "signature", MAX_RSA_BITS // 8)
                # Go signs with the longest salt that fits.
                key.verify(signature, digest, _pss(padding.PSS.AUTO), _HASH)
            else:
                size = (key.curve.key_size + 7) // 8
                r, s = (int.from_bytes(read_field(fields.get(name), name, size)) for name in ("r", "s"))
                key.verify(encode_dss_signature(r, s), digest, ec.ECDSA(_HASH))
        except InvalidSignature:
            raise NodeCertificateError("bad_signature") from None

    def _digest(self, nonce: bytes) -> bytes:
        return signed_digest(self.nonce, nonce)


def _kind(key: object) -> _Kind:
    return "rsa_signature" if isinstance(key, rsa.RSAPublicKey) else "ecdsa_signature"


def _pss(salt: Any) -> padding.PSS:
    return padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=salt)


def _big_endian(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8)


def _only(message: bytes, code: str) -> tuple[_Kind, dict[str, Any]]:
    """Return the one member of a challenge or an answer that is not null."""
    members = read_message(message, code)
    given = [(kind, members[kind]) for kind in _KINDS if members.get(kind) is not None]
    if len(given) != 1 or not isinstance(given[0][1], dict):
        raise EvidenceError(code, "it holds not exactly one of rsa_signature and ecdsa_signature")
    return given[0]
