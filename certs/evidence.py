# SPDX-License-Identifier: Apache-2.0
"""What the messages of node attestors have in common: one JSON object, bytes in base64, a nonce of each side.

The forms are Go's, and nothing else is taken: a message that two readers could read in two ways is refused.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any, Final

from firedoor.certs.errors import EvidenceError
from firedoor.certs.jose import read_object

NONCE_BYTES: Final = 32
# A signature of RSA-8192 takes 1.4 KiB.
MAX_MESSAGE_BYTES: Final = 4 * 1024


def to_json(value: object) -> bytes:
    """Write an object."""
    return json.dumps(value, separators=(",", ":")).encode()


def to_base64(data: bytes) -> str:
    """Write bytes."""
    return base64.b64encode(data).decode()


def from_base64(text: object) -> bytes:
    """Read base64 in its one canonical form, as Go writes it. Raise ValueError."""
    if not isinstance(text, str):
        raise ValueError("not text")
    data = base64.b64decode(text, validate=True)
    if to_base64(data) != text:
        raise ValueError("not canonical")
    return data


def read_message(message: bytes, code: str, most: int = MAX_MESSAGE_BYTES) -> dict[str, Any]:
    """Read evidence, a challenge or an answer, of at most so many bytes. Raise EvidenceError with this code."""
    if len(message) > most:
        raise EvidenceError(code, f"it is longer than {most // 1024} KiB")
    try:
        return read_object(message)
    except ValueError:
        raise EvidenceError(code) from None


def read_nonce(text: object, code: str) -> bytes:
    """Read a nonce. Raise EvidenceError."""
    try:
        nonce = from_base64(text)
    except ValueError:
        raise EvidenceError(code, "its nonce is not in base64") from None
    if len(nonce) != NONCE_BYTES:
        raise EvidenceError("wrong_nonce")
    return nonce


def read_field(text: object, name: str, most: int) -> bytes:
    """Read a part of an answer, of at most so many bytes. Raise EvidenceError."""
    try:
        value = from_base64(text)
    except ValueError:
        raise EvidenceError("malformed_answer", f"its {name} is not in base64") from None
    if len(value) > most:
        raise EvidenceError("malformed_answer", f"its {name} is longer than a signature's")
    return value


def signed_digest(challenge: bytes, answer: bytes) -> bytes:
    """Return what is signed: SHA-256 over the server's nonce and the node's."""
    return hashlib.sha256(challenge + answer).digest()
