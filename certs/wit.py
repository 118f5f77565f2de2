# SPDX-License-Identifier: Apache-2.0
"""WIT-SVIDs: mint them, and validate what others present (WIT-SVID.md, on WIMSE's workload identity token).

A WIT-SVID is no bearer token: `cnf.jwk` names the workload's own key, and who shows the token proves with each message
that it has that key. Whoever validates a token here has proved nothing about who showed it: check the proof with
`confirmation` next. Everything that a JWT-SVID and a WIT-SVID share is checked by the same functions.

>>> from firedoor.certs import JwtIssuer, KeyType, TrustBundle, TrustDomain, generate_key, public_key_der
>>> td, key, mine = TrustDomain.parse("example.org"), generate_key(KeyType.EC_P256), generate_key(KeyType.EC_P256)
>>> issuer = JwtIssuer.load(td, "key-1", public_key_der(key.public_key()), key, not_after=1_800_086_400)
>>> public = public_key_der(mine.public_key())
>>> made = mint_wit(td.with_path("/a"), public, "ES256", issuer, at=1_800_000_000, token_id="1")
>>> bundle = TrustBundle(td, wit_keys=(issuer.public,))
>>> validate_wit_svid(made.token, {td: bundle}, at=1_800_000_001).confirmation["crv"]
'P-256'
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_der_public_key

from firedoor.certs import jose, jwks
from firedoor.certs.bundle import TrustBundle
from firedoor.certs.errors import BundleError, IssueError, JwtSvidError, WitSvidError
from firedoor.certs.ids import SpiffeId, TrustDomain
from firedoor.certs.jwt import (
    JwtIssuer,
    KeyLimits,
    check_not_revoked,
    check_signature,
    encode_part,
    find_key,
    read_part,
    read_subject,
    read_time,
    split_token,
)
from firedoor.certs.verify import Revocation

# SPIRE's default. It is worth nothing without the key, so it may live as long as a certificate.
DEFAULT_WIT_SVID_TTL: Final = 3600
# Longer than any RSA-8192 key.
MAX_PUBLIC_KEY_BYTES: Final = 2048


@final
@dataclass(frozen=True, slots=True)
class WitSvid:
    """A WIT-SVID that we minted."""

    id: SpiffeId
    # Unix seconds.
    issued_at: int
    expires_at: int
    key_id: str
    token_id: str
    token: str = field(repr=False)


@final
@dataclass(frozen=True, slots=True, init=False)
class ValidatedWit:
    """Proof that a token was validated, made by `validate_wit_svid` alone. It says nothing about who showed it."""

    id: SpiffeId
    key_id: str
    # Unix seconds; `issued_at` 0 when the token does not say. It refuses nothing but by a revocation.
    issued_at: float
    expires_at: float
    # The workload's public key as a JWK, with `alg`.
    confirmation: Mapping[str, Any]
    claims: Mapping[str, Any] = field(repr=False)

    def __init__(self) -> None:
        raise TypeError("ValidatedWit is made by validate_wit_svid()")


def check_confirmation(public_key: bytes, algorithm: str) -> Mapping[str, object]:
    """Return a workload's key (SubjectPublicKeyInfo) as the JWK that a token names. Raise IssueError."""
    if algorithm not in jose.ALGORITHMS:
        raise IssueError("algorithm_mismatch")
    if len(public_key) > MAX_PUBLIC_KEY_BYTES:
        raise IssueError("unsupported_key")
    try:
        key = load_der_public_key(public_key)
    except (ValueError, UnsupportedAlgorithm):
        raise IssueError("unsupported_key") from None
    if not jose.fits(key, algorithm):
        raise IssueError("algorithm_mismatch")
    return {**jwks.parameters(key), "alg": algorithm}


def mint_wit(
    spiffe_id: SpiffeId,
    public_key: bytes,
    algorithm: str,
    issuer: JwtIssuer,
    *,
    at: int,
    token_id: str,
    ttl: int = DEFAULT_WIT_SVID_TTL,
) -> WitSvid:
    """Sign a token: sub, exp (not past the key's end), iat, jti and cnf.jwk. Raise IssueError."""
    if spiffe_id.trust_domain != issuer.trust_domain:
        raise IssueError("foreign_trust_domain")
    if not spiffe_id.path:
        raise IssueError("spiffe_id_root_path")
    if ttl <= 0:
        raise IssueError("bad_ttl")
    if issuer.not_after <= at:
        raise IssueError("authority_expired")
    confirmation = check_confirmation(public_key, algorithm)
    expires_at = min(at + ttl, issuer.not_after)
    header = {"alg": issuer.algorithm, "kid": issuer.authority_id, "typ": "wit+jwt"}
    claims = {
        "sub": str(spiffe_id),
        "exp": expires_at,
        "iat": at,
        "jti": token_id,
        "cnf": {"jwk": confirmation},
    }
    signed = f"{encode_part(header)}.{encode_part(claims)}"
    token = f"{signed}.{jose.encode(jose.sign(issuer.key, issuer.algorithm, signed.encode('ascii')))}"
    return WitSvid(spiffe_id, at, expires_at, issuer.authority_id, token_id, token)


def validate_wit_svid(
    token: str,
    bundles: Mapping[TrustDomain, TrustBundle],
    at: float,
    *,
    revocations: Iterable[Revocation] = (),
    limits: KeyLimits | None = None,
) -> ValidatedWit:
    """Validate a token at a time in Unix seconds; revocations name what they name of a JWT-SVID. Raise WitSvidError."""
    try:
        made = _validate(token, bundles, at)
        check_not_revoked(made, revocations)
        if limits is not None:
            limits.check(made)
        return made
    except JwtSvidError as error:
        raise WitSvidError(error.code, error.detail) from None


def _validate(token: str, bundles: Mapping[TrustDomain, TrustBundle], at: float) -> ValidatedWit:
    signed, header, body, signature = split_token(token)
    algorithm, key_id = _read_header(header)
    claims = read_part(body, "malformed_claims")
    subject = read_subject(claims)
    if "aud" in claims:
        raise WitSvidError("audience_present")
    expires_at, not_before = read_time(claims, "exp", required=True), read_time(claims, "nbf")
    confirmation = _confirmation(claims)
    bundle = bundles.get(subject.trust_domain)
    check_signature(signed, signature, algorithm, find_key(bundle.wit_keys if bundle else (), key_id, at))
    if at < not_before:
        raise WitSvidError("not_yet_valid")
    if at >= expires_at:
        raise WitSvidError("expired")
    made = object.__new__(ValidatedWit)
    values = {
        "id": subject,
        "key_id": key_id,
        "issued_at": read_time(claims, "iat"),
        "expires_at": expires_at,
        "confirmation": MappingProxyType(confirmation),
        "claims": MappingProxyType(claims),
    }
    for name, value in values.items():
        object.__setattr__(made, name, value)
    return made


def _read_header(part: bytes) -> tuple[str, str]:
    """Return alg and kid. Headers that nobody must understand are ignored (WIT-SVID.md 2)."""
    header = read_part(part, "malformed_header")
    if "crit" in header:
        raise WitSvidError("header_not_allowed")
    algorithm, key_id = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or algorithm not in jose.ALGORITHMS:
        raise WitSvidError("algorithm_not_allowed")
    if header.get("typ") != "wit+jwt":
        raise WitSvidError("type_not_allowed")
    if not isinstance(key_id, str) or not key_id:
        raise WitSvidError("key_id_missing")
    return algorithm, key_id


def _confirmation(claims: Mapping[str, Any]) -> dict[str, Any]:
    """Return cnf.jwk: a public key that says its algorithm and fits it, and nothing private."""
    cnf = claims.get("cnf")
    jwk = cnf.get("jwk") if isinstance(cnf, dict) else None
    if not isinstance(jwk, dict):
        raise WitSvidError("confirmation_missing")
    try:
        key = jwks.read_key(jwk)
    except BundleError:
        raise WitSvidError("confirmation_not_allowed") from None
    if not isinstance(jwk.get("alg"), str) or not jose.fits(key, jwk["alg"]) or "d" in jwk:
        raise WitSvidError("confirmation_not_allowed")
    return jwk
