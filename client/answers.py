# SPDX-License-Identifier: Apache-2.0
"""What the sidecar answers, as values that do not change, and how each is read. Raises AnswerUnusable.

Nothing of a message is believed that can be looked at: a leaf must keep to the profile, be of the ID that the message
says, and have the key that came with it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from google.protobuf import json_format

from firedoor.certs import CertsError, SpiffeId, TrustBundle, TrustDomain, parse_x509_svid, split_der
from firedoor.errors import AnswerUnusable, BadArgument
from firedoor.wire import auth_pb2, workload_pb2

Bundles = Mapping[TrustDomain, TrustBundle]

_PEM = serialization.Encoding.PEM
_SPKI = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


@dataclass(frozen=True, slots=True)
class Identity:
    """One identity of this program. `expires_at` in Unix seconds, 0 while its SVID is being issued."""

    id: SpiffeId
    segment: str
    hint: str
    expires_at: int


@dataclass(frozen=True, slots=True)
class X509Svid:
    """A certificate chain (DER, leaf first) with its key (PKCS#8 DER), which is in no `repr`."""

    id: SpiffeId
    chain: tuple[bytes, ...]
    key: bytes = field(repr=False)
    hint: str
    # Unix seconds.
    not_after: int
    # Lower-case hex.
    serial: str

    @property
    def chain_pem(self) -> bytes:
        """The chain, as grpcio and others want it."""
        return b"".join(x509.load_der_x509_certificate(one).public_bytes(_PEM) for one in self.chain)

    @property
    def key_pem(self) -> bytes:
        """The key, not encrypted."""
        key = serialization.load_der_private_key(self.key, None)
        return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


@dataclass(frozen=True, slots=True)
class X509Context:
    """All X.509-SVIDs of this program, the first one first, and the bundles that it may trust."""

    svids: tuple[X509Svid, ...]
    bundles: Bundles

    @property
    def not_after(self) -> int:
        """When the first of them ends."""
        return self.svids[0].not_after


@dataclass(frozen=True, slots=True)
class JwtSvid:
    """A bearer token: a secret, in no `repr`. `expires_at` in Unix seconds."""

    id: SpiffeId
    token: str = field(repr=False)
    expires_at: int


@dataclass(frozen=True, slots=True)
class ValidJwt:
    """What a token that the sidecar validated says."""

    id: SpiffeId
    claims: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a flow allows it; true in a condition only if so. `reason` is a stable code such as `no_flow`."""

    allowed: bool
    flow: str
    reason: str

    def __bool__(self) -> bool:
        return self.allowed


def spiffe_id(value: SpiffeId | str) -> SpiffeId:
    """Return an ID that the program handed in. Raise BadArgument."""
    try:
        return value if isinstance(value, SpiffeId) else SpiffeId.parse(value)
    except CertsError as error:
        raise BadArgument(str(error)) from error


def identities(response: auth_pb2.WhoAmIResponse) -> tuple[Identity, ...]:
    """Read an answer to WhoAmI."""
    return tuple(Identity(_id(one.spiffe_id), one.segment, one.hint, one.expires_at) for one in response.identities)


def jwt_svid(response: auth_pb2.FetchJWTSVIDResponse) -> JwtSvid:
    """Read an answer to FetchJWTSVID."""
    return JwtSvid(_id(response.spiffe_id), response.token, response.expires_at)


def valid_jwt(response: workload_pb2.ValidateJWTSVIDResponse) -> ValidJwt:
    """Read an answer to ValidateJWTSVID."""
    claims = json_format.MessageToDict(response.claims)
    return ValidJwt(_id(response.spiffe_id), MappingProxyType(claims))


def decision(response: auth_pb2.CheckResponse) -> Decision:
    """Read an answer to Check."""
    return Decision(response.allowed, response.flow, response.reason)


def x509_context(response: workload_pb2.X509SVIDResponse) -> X509Context:
    """Read an answer of FetchX509SVID."""
    if not response.svids:
        raise AnswerUnusable("the answer has no SVID")
    try:
        svids = tuple(map(_x509_svid, response.svids))
        bundles = dict(_bundles(response.federated_bundles.items()))
        for svid, message in zip(svids, response.svids, strict=True):
            bundles[svid.id.trust_domain] = TrustBundle.from_der(svid.id.trust_domain, message.bundle)
    except CertsError as error:
        raise AnswerUnusable(str(error)) from error
    return X509Context(svids, MappingProxyType(bundles))


def _x509_svid(message: workload_pb2.X509SVID) -> X509Svid:
    try:
        found = parse_x509_svid(split_der(message.x509_svid))
        key = serialization.load_der_private_key(message.x509_svid_key, None)
        leaf = x509.load_der_x509_certificate(found.chain[0])
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise AnswerUnusable("a certificate or key of the answer cannot be read") from error
    if str(found.id) != message.spiffe_id:
        raise AnswerUnusable("a certificate of the answer has another ID than is said")
    if key.public_key().public_bytes(*_SPKI) != leaf.public_key().public_bytes(*_SPKI):
        raise AnswerUnusable("a certificate of the answer has another key than came with it")
    return X509Svid(found.id, found.chain, message.x509_svid_key, message.hint, found.not_after, found.serial)


def _bundles(found: Iterable[tuple[str, bytes]]) -> Iterable[tuple[TrustDomain, TrustBundle]]:
    for name, der in found:
        domain = SpiffeId.parse(name).trust_domain
        yield domain, TrustBundle.from_der(domain, der)


def _id(text: str) -> SpiffeId:
    try:
        return SpiffeId.parse(text)
    except CertsError as error:
        raise AnswerUnusable(str(error)) from error
