# SPDX-License-Identifier: Apache-2.0
"""The JSON of a SPIFFE bundle (SPIFFE_Trust_Domain_and_Bundle.md section 4): a JWK set with two fields of its own.

What it is not sure of it refuses: a document that is not a bundle must never be taken for an empty one, which revokes
everything.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key

from firedoor.certs.errors import BundleError
from firedoor.certs.keys import is_supported, public_key_der
from firedoor.certs.strict_json import refuse_constant, unique_members

DER: Final = Encoding.DER
# A bundle holds some certificates of 1 KiB each; the caps leave room for large estates.
MAX_BUNDLE_BYTES: Final = 4 * 1024 * 1024
MAX_KEYS: Final = 1024
# `spiffe_sequence` wants 64 bits (section 4.1.1); the Workload API's refresh hint is an int64.
_MAX_SEQUENCE: Final = 2**64 - 1
_MAX_HINT: Final = 2**63 - 1

# P-521 for the ES512 of foreign JWT-SVIDs.
_CURVES: Final[dict[str, ec.EllipticCurve]] = {
    "P-256": ec.SECP256R1(),
    "P-384": ec.SECP384R1(),
    "P-521": ec.SECP521R1(),
}
_CURVE_NAMES: Final = {curve.name: name for name, curve in _CURVES.items()}
_KEY_TYPES: Final = ("EC", "RSA", "OKP")


@dataclass(frozen=True, slots=True)
class Document:
    """What a bundle document says: CA certificates, (kid, SubjectPublicKeyInfo, end) triples, the two numbers or 0."""

    x509: tuple[bytes, ...]
    jwt: tuple[tuple[str, bytes, int], ...]
    wit: tuple[tuple[str, bytes, int], ...]
    sequence: int
    refresh_hint: int


def parse(text: bytes) -> Document:
    """Read a bundle document. Raise BundleError."""
    if len(text) > MAX_BUNDLE_BYTES:
        raise BundleError("bundle_too_large")
    document = _load(text)
    keys = document.get("keys")
    if not isinstance(keys, list):
        raise BundleError("malformed_bundle", "keys is missing")
    if len(keys) > MAX_KEYS:
        raise BundleError("bundle_too_large")
    x509_svids: list[bytes] = []
    # By use. A kid stands once in the whole bundle (WIT-SVID.md 6.1 asks for it).
    tokens: dict[str, list[tuple[str, bytes, int]]] = {"jwt-svid": [], "wit-svid": []}
    key_ids: set[str] = set()
    for position, jwk in enumerate(keys):
        if not isinstance(jwk, dict):
            raise BundleError("malformed_bundle", f"keys[{position}] is not an object")
        # Section 4.2.1 and 4.2.2: an element whose kty or use is missing or unknown is ignored.
        if jwk.get("kty") not in _KEY_TYPES:
            continue
        if jwk.get("use") == "x509-svid":
            x509_svids += _x509(jwk, position)
        elif jwk.get("use") in ("jwt-svid", "wit-svid") and _verifies_jwts(jwk):
            key_id, spki = _jwt(jwk, position)
            if key_id in key_ids:
                raise BundleError("malformed_jwt_key", f"keys[{position}] repeats a kid")
            key_ids.add(key_id)
            tokens[jwk["use"]].append((key_id, spki, _end(jwk)))
    return Document(
        x509=tuple(x509_svids),
        jwt=tuple(tokens["jwt-svid"]),
        wit=tuple(tokens["wit-svid"]),
        sequence=_number(document, "spiffe_sequence", _MAX_SEQUENCE),
        refresh_hint=_number(document, "spiffe_refresh_hint", _MAX_HINT),
    )


def write(
    *,
    x509: Sequence[bytes] = (),
    jwt: Sequence[tuple[str, bytes, int]] = (),
    wit: Sequence[tuple[str, bytes, int]] = (),
    sequence: int = 0,
    refresh_hint: int = 0,
) -> bytes:
    """Write a bundle document; the numbers only when they are not 0."""
    keys = [_x509_jwk(der) for der in x509]
    keys += [_token_jwk("jwt-svid", *key) for key in jwt] + [_token_jwk("wit-svid", *key) for key in wit]
    document: dict[str, object] = {"keys": keys}
    if sequence:
        document["spiffe_sequence"] = sequence
    if refresh_hint:
        document["spiffe_refresh_hint"] = refresh_hint
    return json.dumps(document, separators=(",", ":")).encode("ascii")


def write_oidc(keys: Sequence[tuple[str, bytes]]) -> bytes:
    """Write a JWK set as relying parties of OIDC read it, of (kid, SubjectPublicKeyInfo) pairs."""
    found = [_oidc_jwk(key_id, load_der_public_key(spki)) for key_id, spki in keys]
    return json.dumps({"keys": found}, separators=(",", ":")).encode("ascii")


def _oidc_jwk(key_id: str, key: object) -> dict[str, object]:
    said = parameters(key)
    # RSA keys sign with RS256 here and at SPIRE.
    algorithm = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}.get(str(said.get("crv")), "RS256")
    return {"kid": key_id, "use": "sig", "alg": algorithm, **said}


def _load(text: bytes) -> dict[str, Any]:
    try:
        document = json.loads(text.decode("utf-8"), object_pairs_hook=unique_members, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        # ValueError covers bad UTF-8, bad JSON, a repeated name and an integer of thousands of digits.
        raise BundleError("malformed_bundle", "not JSON") from None
    if not isinstance(document, dict):
        raise BundleError("malformed_bundle", "not an object")
    return document


def _number(document: dict[str, Any], name: str, most: int) -> int:
    value = document.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise BundleError("malformed_bundle", f"{name} is not a number that counts")
    return value


def _x509(jwk: dict[str, Any], position: int) -> list[bytes]:
    """X509-SVID.md 6.2: no x5c or an empty one is ignored, and of several values all but the first."""
    chain = jwk.get("x5c")
    if chain is None or chain == []:
        return []
    if not isinstance(chain, list) or not isinstance(chain[0], str):
        raise BundleError("malformed_certificate", f"keys[{position}].x5c")
    try:
        return [base64.b64decode(chain[0], validate=True)]
    except (binascii.Error, ValueError):
        raise BundleError("malformed_certificate", f"keys[{position}].x5c") from None


def _jwt(jwk: dict[str, Any], position: int) -> tuple[str, bytes]:
    """JWT-SVID.md 6.1, and WIT-SVID.md likewise: the kid must be set."""
    key_id = jwk.get("kid")
    if not isinstance(key_id, str) or not key_id:
        raise BundleError("malformed_jwt_key", f"keys[{position}] has no kid")
    try:
        key = read_key(jwk)
    except BundleError:
        raise BundleError("malformed_jwt_key", f"keys[{position}]") from None
    return key_id, public_key_der(key)


def read_key(jwk: dict[str, Any]) -> ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
    """Return the public key that a JWK of kind EC or RSA holds. Raise BundleError."""
    try:
        return _public_key(jwk)
    except (binascii.Error, ValueError, TypeError, KeyError, UnsupportedAlgorithm):
        raise BundleError("malformed_jwt_key") from None


def _end(jwk: dict[str, Any]) -> int:
    """When a key ends: `exp`, as OpenID Federation has it. Nobody must say, so what is no time says nothing."""
    end = jwk.get("exp")
    return end if isinstance(end, int) and not isinstance(end, bool) and 0 < end <= _MAX_HINT else 0


def check_jwt_key(spki: bytes) -> None:
    """Check that a SubjectPublicKeyInfo is of a kind that verifies JWT-SVIDs and WIT-SVIDs. Raise BundleError."""
    try:
        key = load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm):
        raise BundleError("malformed_jwt_key") from None
    fits = isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVE_NAMES
    if not fits and not (isinstance(key, rsa.RSAPublicKey) and is_supported(key)):
        raise BundleError("malformed_jwt_key", "its kind verifies no JWT-SVID")


def _verifies_jwts(jwk: dict[str, Any]) -> bool:
    """JWT-SVID.md 2.1 allows RS, ES and PS algorithms: keys of other kinds cannot verify one and are ignored."""
    return jwk["kty"] == "RSA" or (jwk["kty"] == "EC" and jwk.get("crv") in [*_CURVES])


def _public_key(jwk: dict[str, Any]) -> ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
    """RFC 7518 section 6."""
    if jwk["kty"] == "EC":
        curve = _CURVES[jwk["crv"]]
        return ec.EllipticCurvePublicNumbers(_integer(jwk["x"]), _integer(jwk["y"]), curve).public_key()
    key = rsa.RSAPublicNumbers(e=_integer(jwk["e"]), n=_integer(jwk["n"])).public_key()
    if not is_supported(key):
        raise ValueError("size")
    return key


def _x509_jwk(der: bytes) -> dict[str, object]:
    # Sections 4.2.2 and 6.1 of X509-SVID.md: no kid, exactly one certificate, standard base64 (RFC 7517 section 4.7).
    key = x509.load_der_x509_certificate(der).public_key()
    return {"use": "x509-svid", **parameters(key), "x5c": [base64.b64encode(der).decode("ascii")]}


def _token_jwk(use: str, key_id: str, spki: bytes, end: int) -> dict[str, object]:
    jwk = {"use": use, "kid": key_id, **parameters(load_der_public_key(spki))}
    return {**jwk, "exp": end} if end else jwk


def parameters(key: object) -> dict[str, object]:
    """Return a public key as a JWK says it (RFC 7518 section 6). Raise BundleError for one that has no JWK form."""
    match key:
        case ec.EllipticCurvePublicKey() if key.curve.name in _CURVE_NAMES:
            numbers, size, name = key.public_numbers(), (key.curve.key_size + 7) // 8, _CURVE_NAMES[key.curve.name]
            return {"kty": "EC", "crv": name, "x": _encode(numbers.x, size), "y": _encode(numbers.y, size)}
        case rsa.RSAPublicKey():
            rsa_numbers = key.public_numbers()
            return {"kty": "RSA", "n": _encode(rsa_numbers.n), "e": _encode(rsa_numbers.e)}
        case ed25519.Ed25519PublicKey():
            raw = base64.urlsafe_b64encode(key.public_bytes_raw()).rstrip(b"=").decode("ascii")
            return {"kty": "OKP", "crv": "Ed25519", "x": raw}
        case _:
            raise BundleError("malformed_certificate", "its key has no JWK form")


def _encode(number: int, size: int | None = None) -> str:
    data = number.to_bytes(size or (number.bit_length() + 7) // 8)
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _decode(text: str) -> bytes:
    # The largest number is the modulus of RSA-8192.
    if not isinstance(text, str) or len(text) > 2048:
        raise ValueError("number")
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def _integer(text: str) -> int:
    return int.from_bytes(_decode(text))
