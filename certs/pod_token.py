# SPDX-License-Identifier: Apache-2.0
"""Projected service-account tokens: what a pod shows to prove which pod it is, and how that is verified.

    node    {"cluster": "prod", "token": "<JWT>"}          SPIRE's k8s_psat, byte for byte, and k8s_pod

Two may vouch for a token: the cluster's own API server, asked by a TokenReview, or the keys that it publishes (its
JWKS), without asking. Either way the token is read here first: its size, its form, and that its algorithm is one of
those that are bound to one kind of key. What a review says must be what the token says; where the two differ, nobody
knows which pod is meant (SPIRE 1.15.2).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, final

from firedoor.certs import jose
from firedoor.certs.bundle import JwtKey
from firedoor.certs.errors import BundleError, EvidenceError, JwtSvidError, PodTokenError
from firedoor.certs.evidence import read_message, to_json
from firedoor.certs.jwks import MAX_BUNDLE_BYTES, MAX_KEYS, read_key
from firedoor.certs.jwt import check_signature, find_key, read_header, read_part, read_time, split_token
from firedoor.certs.keys import public_key_der

K8S_POD: Final = "k8s_pod"
K8S_PSAT: Final = "k8s_psat"
# Kubernetes' tokens have about 1.2 KiB.
MAX_POD_TOKEN_BYTES: Final = 8 * 1024
_MAX_EVIDENCE: Final = MAX_POD_TOKEN_BYTES + 1024
# Without asking the API server nobody learns that a pod is gone: a token that lives longer proves too little.
MAX_OFFLINE_SECONDS: Final = 3600 + 60
MAX_AUDIENCES: Final = 16

# One segment of a SPIFFE ID's path, as the cluster's name becomes one (SPIFFE-ID.md 2.2).
_CLUSTER: Final = re.compile(r"(?!\.{1,2}$)[a-zA-Z0-9._-]{1,63}")
_UID: Final = re.compile(r"[a-zA-Z0-9-]{1,63}")
# Names of objects are DNS subdomains, those of namespaces labels (RFC 1123).
_NAME: Final = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_NAMESPACE: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_TYPES: Final = ("JWT",)
_USER: Final = "system:serviceaccount:"
_EXTRA: Final = "authentication.kubernetes.io/"


def is_cluster_name(name: str) -> bool:
    """Say whether a cluster may be called so: one segment of an ID's path, up to 63 characters."""
    return _CLUSTER.fullmatch(name) is not None


def is_namespace(name: str) -> bool:
    """Say whether a namespace may be called so."""
    return _NAMESPACE.fullmatch(name) is not None


def is_object_name(name: str) -> bool:
    """Say whether a service account, pod or node may be called so."""
    return _NAME.fullmatch(name) is not None


@final
@dataclass(frozen=True, slots=True)
class PodEvidence:
    """What a node sends. Nothing is proved. The token is a secret until it is spent: it is in no `repr`."""

    cluster: str
    token: str = field(repr=False)

    @classmethod
    def read(cls, payload: bytes) -> PodEvidence:
        """Read a node's evidence. Raise EvidenceError."""
        fields = read_message(payload, "malformed_evidence", _MAX_EVIDENCE)
        cluster, token = fields.get("cluster"), fields.get("token")
        if not isinstance(cluster, str) or not is_cluster_name(cluster):
            raise EvidenceError("bad_cluster_name")
        if not isinstance(token, str) or not token or len(token) > MAX_POD_TOKEN_BYTES:
            raise EvidenceError("bad_pod_token")
        return cls(cluster, token)

    def message(self) -> bytes:
        """Return what the node sends."""
        return to_json({"cluster": self.cluster, "token": self.token})


@dataclass(frozen=True, slots=True)
class PodClaims:
    """Which pod a token names, and when the token ends. `node_name` is empty when it does not say."""

    issuer: str
    token_id: str
    # Unix seconds.
    issued_at: float
    expires_at: float
    namespace: str
    service_account: str
    pod_name: str
    pod_uid: str
    node_name: str

    def token_hash(self) -> bytes:
        """Return what stands for this one token wherever it is kept that it was used."""
        return hashlib.sha256(f"{self.issuer}\n{self.token_id}".encode()).digest()


@final
@dataclass(frozen=True, slots=True, init=False)
class PodToken:
    """A token that could be read. Nothing is proved."""

    claims: PodClaims
    audiences: tuple[str, ...]
    text: str = field(repr=False)
    _algorithm: str
    _key_id: str
    _signed: bytes = field(repr=False)
    _signature: bytes = field(repr=False)

    def __init__(self) -> None:
        raise TypeError("PodToken is made by PodToken.read()")

    @classmethod
    def read(cls, text: str) -> PodToken:
        """Read a token. Raise JwtSvidError or PodTokenError."""
        signed, header, body, signature = split_token(text)
        algorithm, key_id = read_header(header, _TYPES)
        claims = read_part(body, "malformed_claims")
        made = object.__new__(cls)
        values = {
            "claims": _read_claims(claims),
            "audiences": _read_audiences(claims),
            "text": text,
            "_algorithm": algorithm,
            "_key_id": key_id,
            "_signed": signed,
            "_signature": signature,
        }
        for name, value in values.items():
            object.__setattr__(made, name, value)
        return made


@final
@dataclass(frozen=True, slots=True, init=False)
class VerifiedPod:
    """Proof that a cluster vouches for a token, made by `verify_pod_token` and `check_review` alone."""

    claims: PodClaims

    def __init__(self) -> None:
        raise TypeError("VerifiedPod is made by the functions that verify")


@final
@dataclass(frozen=True, slots=True)
class ClusterKeys:
    """The keys that a cluster signs its tokens with, as its API server shows them at /openid/v1/jwks."""

    keys: tuple[JwtKey, ...]

    @classmethod
    def read(cls, text: bytes) -> ClusterKeys:
        """Read a JWK set (RFC 7517). Raise BundleError: a key that cannot be read is an error, none is too."""
        if len(text) > MAX_BUNDLE_BYTES:
            raise BundleError("bundle_too_large")
        try:
            keys = jose.read_object(text).get("keys")
        except ValueError:
            raise BundleError("malformed_bundle", "not JSON") from None
        if not isinstance(keys, list) or not keys:
            raise BundleError("malformed_bundle", "it holds no keys")
        if len(keys) > MAX_KEYS:
            raise BundleError("bundle_too_large")
        found = tuple(_key(jwk) for jwk in keys)
        if len({key.key_id for key in found}) != len(found):
            raise BundleError("malformed_jwt_key", "a kid stands there twice")
        return cls(found)


def verify_pod_token(token: PodToken, keys: ClusterKeys, issuer: str, audience: str, now: float) -> VerifiedPod:
    """Verify a token by its cluster's keys, without asking the cluster. Raise JwtSvidError or PodTokenError."""
    if token.claims.issuer != issuer:
        raise PodTokenError("other_issuer")
    try:
        key = find_key(keys.keys, token._key_id, now)  # noqa: SLF001 - both are this module's
    except JwtSvidError:
        raise PodTokenError("key_unknown") from None
    check_signature(token._signed, token._signature, token._algorithm, key)  # noqa: SLF001
    if token.claims.expires_at - token.claims.issued_at > MAX_OFFLINE_SECONDS:
        raise PodTokenError("lives_too_long")
    if audience not in token.audiences:
        raise JwtSvidError("wrong_audience")
    return _verified(token, now)


def check_review(token: PodToken, status: Mapping[str, Any], audience: str, now: float) -> VerifiedPod:
    """Check the status of a TokenReview of this token. Raise JwtSvidError or PodTokenError.

    `status.error` is not passed on: it may hold parts of the token.
    """
    if status.get("authenticated") is not True:
        raise _not_authenticated(token, audience, now)
    audiences, user = status.get("audiences"), status.get("user")
    # A server that knows no audiences returns none, and would authenticate a token for somebody else.
    if not isinstance(audiences, list) or audience not in audiences or audience not in token.audiences:
        raise JwtSvidError("wrong_audience")
    extra = user.get("extra") if isinstance(user, dict) else None
    claims = token.claims
    said = {
        "username": user.get("username") if isinstance(user, dict) else None,
        "pod-name": _only(extra, "pod-name"),
        "pod-uid": _only(extra, "pod-uid"),
    }
    if said["pod-name"] is None or said["pod-uid"] is None:
        raise PodTokenError("not_of_a_pod")
    account = f"{_USER}{claims.namespace}:{claims.service_account}"
    if said != {"username": account, "pod-name": claims.pod_name, "pod-uid": claims.pod_uid}:
        raise PodTokenError("review_differs")
    return _verified(token, now)


def _not_authenticated(token: PodToken, audience: str, now: float) -> PodTokenError | JwtSvidError:
    """Say why the API server refuses a token, as far as the token itself tells."""
    if audience not in token.audiences:
        return JwtSvidError("wrong_audience")
    return JwtSvidError("expired") if now >= token.claims.expires_at else PodTokenError("not_authenticated")


def _verified(token: PodToken, now: float) -> VerifiedPod:
    """Hold the token's end against our own clock: API servers allow a minute more."""
    if now >= token.claims.expires_at:
        raise JwtSvidError("expired")
    made = object.__new__(VerifiedPod)
    object.__setattr__(made, "claims", token.claims)
    return made


def _read_claims(claims: Mapping[str, Any]) -> PodClaims:
    bound = claims.get("kubernetes.io")
    if not isinstance(bound, dict) or not isinstance(bound.get("pod"), dict):
        raise PodTokenError("not_of_a_pod")
    issuer, token_id, node = claims.get("iss"), claims.get("jti"), bound.get("node")
    if not isinstance(token_id, str) or not 0 < len(token_id) <= 255:
        raise PodTokenError("token_id_missing")
    account, pod = bound.get("serviceaccount"), bound["pod"]
    found = PodClaims(
        issuer=issuer if isinstance(issuer, str) else "",
        token_id=token_id,
        issued_at=read_time(claims, "iat"),
        expires_at=read_time(claims, "exp", required=True),
        namespace=_text(bound.get("namespace"), _NAMESPACE),
        service_account=_text(account.get("name") if isinstance(account, dict) else None, _NAME),
        pod_name=_text(pod.get("name"), _NAME),
        pod_uid=_text(pod.get("uid"), _UID),
        node_name=_text(node.get("name"), _NAME) if isinstance(node, dict) else "",
    )
    if claims.get("sub") != f"{_USER}{found.namespace}:{found.service_account}":
        raise PodTokenError("other_subject")
    return found


def _read_audiences(claims: Mapping[str, Any]) -> tuple[str, ...]:
    """RFC 7519 section 4.1.3: a string or an array of strings."""
    found = claims.get("aud")
    names: Sequence[object] = [found] if isinstance(found, str) else found if isinstance(found, list) else []
    if not names or len(names) > MAX_AUDIENCES:
        raise JwtSvidError("audience_missing")
    audiences = tuple(name for name in names if isinstance(name, str))
    if len(audiences) != len(names):
        raise JwtSvidError("malformed_claim", "aud")
    return audiences


def _text(value: object, form: re.Pattern[str]) -> str:
    if not isinstance(value, str) or not form.fullmatch(value):
        raise PodTokenError("malformed_pod_claim")
    return value


def _only(extra: object, name: str) -> str | None:
    """Return the one value of what a review says beside the user's name."""
    values = extra.get(_EXTRA + name) if isinstance(extra, dict) else None
    return values[0] if isinstance(values, list) and len(values) == 1 and isinstance(values[0], str) else None


def _key(jwk: object) -> JwtKey:
    key_id = jwk.get("kid") if isinstance(jwk, dict) else None
    if not isinstance(jwk, dict) or not isinstance(key_id, str) or not key_id:
        raise BundleError("malformed_jwt_key", "a key has no kid")
    if jwk.get("use", "sig") != "sig" or jwk.get("kty") not in ("RSA", "EC"):
        raise BundleError("malformed_jwt_key", "a key is none for signatures of kind RSA or EC")
    return JwtKey(key_id, public_key_der(read_key(jwk)))
