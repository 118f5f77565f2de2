# SPDX-License-Identifier: Apache-2.0
"""The part of JOSE that JWT-SVIDs need: strict base64url and JSON, and nine signature algorithms (RFC 7518 section 3).

Every algorithm is bound to one kind of key, so that a token can never choose how a key is used.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key

from firedoor.certs.keys import PrivateKey, is_supported
from firedoor.certs.strict_json import refuse_constant, unique_members

# RSA-8192 in base64url.
MAX_SIGNATURE_CHARS: Final = 1366
# What nests deeper does not fit into a protobuf Struct, whose readers stop at 100 messages within each other.
_MAX_DEPTH: Final = 16
# A float goes up to about 1e308; a longer integer could be compared with a time but never be passed on.
_MAX_DIGITS: Final = 300


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A signature algorithm: its kind, its hash, and for ECDSA the one curve that it is for."""

    kind: Literal["RS", "ES", "PS"]
    hash: hashes.HashAlgorithm
    curve: str = ""


_SHA256, _SHA384, _SHA512 = hashes.SHA256(), hashes.SHA384(), hashes.SHA512()
ALGORITHMS: Final[Mapping[str, Algorithm]] = MappingProxyType(
    {
        "RS256": Algorithm("RS", _SHA256),
        "RS384": Algorithm("RS", _SHA384),
        "RS512": Algorithm("RS", _SHA512),
        "ES256": Algorithm("ES", _SHA256, "secp256r1"),
        "ES384": Algorithm("ES", _SHA384, "secp384r1"),
        "ES512": Algorithm("ES", _SHA512, "secp521r1"),
        "PS256": Algorithm("PS", _SHA256),
        "PS384": Algorithm("PS", _SHA384),
        "PS512": Algorithm("PS", _SHA512),
    }
)


def algorithm_of(key: PrivateKey) -> str:
    """Return the algorithm that a key of ours signs with."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return next(name for name, each in ALGORITHMS.items() if each.curve == key.curve.name)
    return "RS256"


def encode(data: bytes) -> str:
    """Write base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def decode(text: str) -> bytes:
    """Read base64url without padding, in its one canonical form. Raise ValueError."""
    # `altchars` alone would let the other alphabet's two characters pass.
    if "+" in text or "/" in text or "=" in text:
        raise ValueError("alphabet")
    data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    # The bits that no byte needs are zero, or one token would have several spellings.
    if encode(data) != text:
        raise ValueError("not canonical")
    return data


def read_object(data: bytes) -> dict[str, Any]:
    """Read a JSON object that no two readers could understand differently. Raise ValueError."""
    try:
        found = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=unique_members,
            parse_constant=refuse_constant,
            parse_int=_integer,
            parse_float=_float,
        )
        _check(found, 0)
    except RecursionError:
        raise ValueError("too deep") from None
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return found


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError("number")
    return int(text)


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("number")
    return number


def _check(value: object, depth: int) -> None:
    """Refuse what nests too deep, and text that cannot be written again: half a surrogate pair."""
    if depth > _MAX_DEPTH:
        raise ValueError("too deep")
    match value:
        case str():
            value.encode()
        case list():
            for each in value:
                _check(each, depth + 1)
        case dict():
            for name, each in value.items():
                name.encode()
                _check(each, depth + 1)


def sign(key: PrivateKey, algorithm: str, data: bytes) -> bytes:
    """Sign with an algorithm that `algorithm_of` gave for the key."""
    chosen = ALGORITHMS[algorithm]
    if isinstance(key, ec.EllipticCurvePrivateKey):
        size = (key.curve.key_size + 7) // 8
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(chosen.hash)))
        return r.to_bytes(size) + s.to_bytes(size)
    return key.sign(data, _padding(chosen), chosen.hash)


def fits(key: object, algorithm: str) -> bool:
    """Say whether a public key is of the one kind that an algorithm is for."""
    chosen = ALGORITHMS.get(algorithm)
    if chosen is None:
        return False
    if chosen.kind == "ES":
        return isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == chosen.curve
    return isinstance(key, rsa.RSAPublicKey) and is_supported(key)


def verify(public_key: bytes, algorithm: str, data: bytes, signature: bytes) -> None:
    """Check a signature by a SubjectPublicKeyInfo. Raise InvalidSignature.

    Raise ValueError or UnsupportedAlgorithm when the key is none for that algorithm, before it is used.
    """
    chosen, key = ALGORITHMS[algorithm], load_der_public_key(public_key)
    if not fits(key, algorithm):
        raise ValueError("another kind of key")
    if isinstance(key, ec.EllipticCurvePublicKey):
        size = (key.curve.key_size + 7) // 8
        if len(signature) != 2 * size:
            raise InvalidSignature
        r, s = int.from_bytes(signature[:size]), int.from_bytes(signature[size:])
        key.verify(encode_dss_signature(r, s), data, ec.ECDSA(chosen.hash))
        return
    assert isinstance(key, rsa.RSAPublicKey)  # noqa: S101 - what fits says so
    key.verify(signature, data, _padding(chosen), chosen.hash)


def _padding(algorithm: Algorithm) -> padding.AsymmetricPadding:
    if algorithm.kind == "RS":
        return padding.PKCS1v15()
    # RFC 7518 section 3.5: the salt is as long as the hash.
    return padding.PSS(padding.MGF1(algorithm.hash), salt_length=algorithm.hash.digest_size)
