# SPDX-License-Identifier: Apache-2.0
"""JWT-SVIDs: mint them, and validate what others present (JWT-SVID.md, RFC 7515, RFC 7518, RFC 7519).

Compact serialization alone; the algorithms are a closed list, each bound to one kind of key; the key comes from the
bundle of the token's own trust domain and from nowhere else. Size is checked before anything is read, form before any
key is used, the signature before times and audience: an answer about those is about what the authority said.

There is no leeway: a token holds from `nbf` until just before `exp`, by the clock that is handed in. `iat` refuses
nothing (RFC 7519 section 4.1.6 gives it no such power) but for revocations by time.

A general JWT library reads more than a JWT-SVID may be, and all of that would have to be shut again around it; what is
left of the rules is this module.

>>> from firedoor.certs import KeyType, TrustBundle, TrustDomain, generate_key, public_key_der
>>> td, key = TrustDomain.parse("example.org"), generate_key(KeyType.EC_P256)
>>> issuer = JwtIssuer.load(td, "key-1", public_key_der(key.public_key()), key, not_after=1_800_086_400)
>>> made = mint_jwt(td.with_path("/segment/a/x"), ["models"], issuer, at=1_800_000_000, token_id="1f")
>>> bundle = TrustBundle(td, jwt_keys=(issuer.public,))
>>> str(validate_jwt_svid(made.token, "models", {td: bundle}, at=1_800_000_299).id)
'spiffe://example.org/segment/a/x'
>>> validate_jwt_svid(made.token, "models", {td: bundle}, at=1_800_000_300)
Traceback (most recent call last):
...
firedoor.certs.errors.JwtSvidError: the token has expired
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Protocol, final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from firedoor.certs import jose
from firedoor.certs.bundle import JwtKey, TrustBundle
from firedoor.certs.errors import IssueError, JwtSvidError, SpiffeIdError
from firedoor.certs.ids import SpiffeId, TrustDomain
from firedoor.certs.keys import PrivateKey, public_key_der
from firedoor.certs.verify import Revocation

# SPIRE's default. A bearer token is good for whoever holds it, so it is short.
DEFAULT_JWT_SVID_TTL: Final = 300
# The longest ID, 4 KiB of audiences and an RSA-8192 signature fit in 12 KiB; servers take headers of about as much.
MAX_TOKEN_BYTES: Final = 16 * 1024
MAX_AUDIENCES: Final = 64
MAX_AUDIENCE_BYTES: Final = 4096

_HEADER_NAMES: Final = frozenset({"alg", "kid", "typ"})
_TYPES: Final = ("JWT", "JOSE")
# The end of the year 9999: what is beyond is no time that anybody meant.
_MAX_TIME: Final = 253_402_300_799


@final
@dataclass(frozen=True, slots=True)
class JwtSvid:
    """A JWT-SVID that we minted. The token is a secret of its holder: it is in no `repr`."""

    id: SpiffeId
    audience: tuple[str, ...]
    # Unix seconds.
    issued_at: int
    expires_at: int
    key_id: str
    # `jti`: what a revocation names.
    token_id: str
    token: str = field(repr=False)


@final
@dataclass(frozen=True, slots=True, init=False)
class ValidatedJwt:
    """Proof that a token was validated, made by `validate_jwt_svid` alone."""

    id: SpiffeId
    key_id: str
    # Unix seconds; `issued_at` 0 when the token does not say.
    issued_at: float
    expires_at: float
    # All claims, as the token has them.
    claims: Mapping[str, Any] = field(repr=False)

    def __init__(self) -> None:
        raise TypeError("ValidatedJwt is made by validate_jwt_svid()")


@final
@dataclass(frozen=True, slots=True)
class JwtIssuer:
    """An authority for JWT-SVIDs: its key, and how others know it. Made by `load`."""

    trust_domain: TrustDomain
    public: JwtKey
    algorithm: str
    key: PrivateKey = field(repr=False)

    @classmethod
    def load(cls, td: TrustDomain, key_id: str, public: bytes, key: PrivateKey, *, not_after: int) -> JwtIssuer:
        """Join a key with its public half (SubjectPublicKeyInfo). Raise IssueError when they do not belong together."""
        if public_key_der(key.public_key()) != public:
            raise IssueError("key_mismatch")
        return cls(td, JwtKey(key_id, public, not_after), jose.algorithm_of(key), key)

    @property
    def authority_id(self) -> str:
        """The key's ID, as tokens and bundles name it."""
        return self.public.key_id

    @property
    def not_after(self) -> int:
        """When the key ends; no token outlives it."""
        return self.public.expires_at


def check_audience(audience: Sequence[str]) -> tuple[str, ...]:
    """Return the audience without repetitions. Raise IssueError when there is none, or too much of it."""
    if not audience:
        raise IssueError("audience_missing")
    found = tuple(dict.fromkeys(audience))
    try:
        length = sum(len(each.encode()) for each in found)
    except UnicodeEncodeError:
        raise IssueError("audience_too_long") from None
    if len(found) > MAX_AUDIENCES or length > MAX_AUDIENCE_BYTES or not all(found):
        raise IssueError("audience_too_long")
    return found


def mint_jwt(
    spiffe_id: SpiffeId,
    audience: Sequence[str],
    issuer: JwtIssuer,
    *,
    at: int,
    token_id: str,
    ttl: int = DEFAULT_JWT_SVID_TTL,
    iss: str = "",
) -> JwtSvid:
    """Sign a token: sub, aud as a list, iat, exp (not past the key's end), jti, and iss when given. Raise IssueError.

    `iss` is for relying parties of OIDC, who look the keys up there. Whoever goes by the trust bundle does not need it.
    """
    if spiffe_id.trust_domain != issuer.trust_domain:
        raise IssueError("foreign_trust_domain")
    if not spiffe_id.path:
        raise IssueError("spiffe_id_root_path")
    if ttl <= 0:
        raise IssueError("bad_ttl")
    if issuer.not_after <= at:
        raise IssueError("authority_expired")
    names = check_audience(audience)
    expires_at = min(at + ttl, issuer.not_after)
    header = {"alg": issuer.algorithm, "kid": issuer.authority_id, "typ": "JWT"}
    claims = {"sub": str(spiffe_id), "aud": list(names), "exp": expires_at, "iat": at, "jti": token_id}
    claims |= {"iss": iss} if iss else {}
    signed = f"{encode_part(header)}.{encode_part(claims)}"
    # What escapes of control characters make of it is known only now.
    if len(signed) > MAX_TOKEN_BYTES - jose.MAX_SIGNATURE_CHARS:
        raise IssueError("audience_too_long")
    token = f"{signed}.{jose.encode(jose.sign(issuer.key, issuer.algorithm, signed.encode('ascii')))}"
    return JwtSvid(spiffe_id, names, at, expires_at, issuer.authority_id, token_id, token)


def encode_part(value: Mapping[str, object]) -> str:
    """Write header or claims."""
    return jose.encode(json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode())


def validate_jwt_svid(
    token: str,
    audience: str,
    bundles: Mapping[TrustDomain, TrustBundle],
    at: float,
    *,
    revocations: Iterable[Revocation] = (),
    limits: KeyLimits | None = None,
) -> ValidatedJwt:
    """Validate a token for one audience at a time in Unix seconds. Raise JwtSvidError.

    Of a revocation, `serial` names a `jti` and `authority_id` a `kid`; a pattern counts by `iat`.
    """
    signed, header, body, signature = split_token(token)
    algorithm, key_id = read_header(header, _TYPES)
    claims = read_part(body, "malformed_claims")
    subject = read_subject(claims)
    names = _audience(claims)
    made = object.__new__(ValidatedJwt)
    values = {
        "id": subject,
        "key_id": key_id,
        "expires_at": read_time(claims, "exp", required=True),
        "issued_at": read_time(claims, "iat"),
        "claims": MappingProxyType(claims),
    }
    for name, value in values.items():
        object.__setattr__(made, name, value)
    not_before = read_time(claims, "nbf")
    if not isinstance(claims.get("jti", ""), str):
        raise JwtSvidError("malformed_claim", "jti")
    bundle = bundles.get(subject.trust_domain)
    check_signature(signed, signature, algorithm, find_key(bundle.jwt_keys if bundle else (), key_id, at))
    if at < not_before:
        raise JwtSvidError("not_yet_valid")
    if at >= made.expires_at:
        raise JwtSvidError("expired")
    if audience not in names:
        raise JwtSvidError("wrong_audience")
    check_not_revoked(made, revocations)
    if limits is not None:
        limits.check(made)
    return made


def split_token(token: str) -> tuple[bytes, bytes, bytes, bytes]:
    """Return what is signed, and the three parts decoded. Raise JwtSvidError."""
    if len(token) > MAX_TOKEN_BYTES:
        raise JwtSvidError("token_too_long")
    parts = token.split(".", 3)
    if len(parts) != 3 or not token.isascii():
        raise JwtSvidError("malformed_token")
    try:
        header, body, signature = map(jose.decode, parts)
    except ValueError:
        raise JwtSvidError("malformed_token") from None
    return token.rpartition(".")[0].encode("ascii"), header, body, signature


def read_header(part: bytes, types: Collection[str]) -> tuple[str, str]:
    """Return alg and kid; `types`: what typ may be, where there is one.

    JWT-SVID.md 2.1 to 2.3; `crit`, `jwk`, `x5u` and all others have no place. Raise JwtSvidError.
    """
    header = read_part(part, "malformed_header")
    if not header.keys() <= _HEADER_NAMES:
        raise JwtSvidError("header_not_allowed")
    algorithm, key_id = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or algorithm not in jose.ALGORITHMS:
        raise JwtSvidError("algorithm_not_allowed")
    if "typ" in header and header["typ"] not in types:
        raise JwtSvidError("type_not_allowed")
    if not isinstance(key_id, str) or not key_id:
        raise JwtSvidError("key_id_missing")
    return algorithm, key_id


def read_part(part: bytes, code: str) -> dict[str, Any]:
    """Read header or claims. Raise JwtSvidError with that code."""
    try:
        return jose.read_object(part)
    except ValueError:
        raise JwtSvidError(code) from None


def read_subject(claims: Mapping[str, Any]) -> SpiffeId:
    """Return the workload that a token is about. Raise JwtSvidError."""
    if "sub" not in claims:
        raise JwtSvidError("subject_missing")
    if not isinstance(claims["sub"], str):
        raise JwtSvidError("spiffe_id_invalid")
    try:
        subject = SpiffeId.parse(claims["sub"])
    except SpiffeIdError as error:
        raise JwtSvidError("spiffe_id_invalid", error.code) from None
    if not subject.path:
        raise JwtSvidError("spiffe_id_root_path")
    return subject


def _audience(claims: Mapping[str, Any]) -> list[str]:
    """RFC 7519 section 4.1.3: a string or an array of strings."""
    found = claims.get("aud")
    if found is None or found in ([], ""):
        raise JwtSvidError("audience_missing")
    names = [found] if isinstance(found, str) else found
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise JwtSvidError("malformed_claim", "aud")
    return names


def read_time(claims: Mapping[str, Any], name: str, *, required: bool = False) -> float:
    """Return a time, 0 when it is absent (RFC 7519 section 2: it may have a fraction). Raise JwtSvidError."""
    if name not in claims:
        if required:
            raise JwtSvidError("expiry_missing")
        return 0
    found = claims[name]
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found <= _MAX_TIME:
        raise JwtSvidError("malformed_claim", name)
    return found


def find_key(keys: Sequence[JwtKey], key_id: str, at: float) -> JwtKey:
    """Return the key of a bundle that a token names. Raise JwtSvidError."""
    if not keys:
        raise JwtSvidError("unknown_trust_domain")
    for key in keys:
        if key.key_id == key_id:
            if key.expires_at and at >= key.expires_at:
                raise JwtSvidError("key_expired")
            return key
    raise JwtSvidError("key_unknown")


def check_signature(signed: bytes, signature: bytes, algorithm: str, key: JwtKey) -> None:
    """Check a token's signature by the one key that it names. Raise JwtSvidError."""
    try:
        jose.verify(key.public_key, algorithm, signed, signature)
    except (ValueError, UnsupportedAlgorithm):
        raise JwtSvidError("algorithm_mismatch") from None
    except InvalidSignature:
        raise JwtSvidError("bad_signature") from None


class Revocable(Protocol):
    """What a revocation can name of a validated token, JWT- or WIT-SVID."""

    @property
    def id(self) -> SpiffeId: ...  # noqa: D102
    @property
    def key_id(self) -> str: ...  # noqa: D102
    @property
    def issued_at(self) -> float: ...  # noqa: D102
    @property
    def claims(self) -> Mapping[str, Any]: ...  # noqa: D102


@final
@dataclass(frozen=True)
class KeyLimits:
    """For which segments keys of one trust domain's bundle may sign tokens, by their IDs; the others for all."""

    trust_domain: TrustDomain
    segments: Mapping[str, frozenset[str]]
    # Which segment an ID is in, None for none.
    segment_of: Callable[[SpiffeId], str | None]

    def check(self, token: Revocable) -> None:
        """Check that a key that is limited may vouch for a validated token's ID. Raise JwtSvidError."""
        if token.id.trust_domain != self.trust_domain or token.key_id not in self.segments:
            return
        if self.segment_of(token.id) not in self.segments[token.key_id]:
            raise JwtSvidError("segment_not_listed")


def check_not_revoked(token: Revocable, revocations: Iterable[Revocation]) -> None:
    """Check revocations that came after a token was validated. Raise JwtSvidError."""
    for revoked in revocations:
        if revoked.serial and revoked.serial == token.claims.get("jti"):
            raise JwtSvidError("revoked_token", revoked.reason)
        if revoked.authority_id and revoked.authority_id == token.key_id:
            raise JwtSvidError("revoked_authority", revoked.reason)
        if revoked.pattern and revoked.pattern.matches(token.id) and token.issued_at < revoked.issued_before:
            raise JwtSvidError("revoked_id", revoked.reason)
