# SPDX-License-Identifier: Apache-2.0
"""Who calls a gRPC server, and whether that one may: the part without a server.

Two proofs: the certificate of the program's own mTLS, verified again here against the bundle of the peer's own trust
domain (a TLS library has one pool of roots, in which any federated CA could make any name), at each call, so that an
SVID ends where it says; or a JWT-SVID, which the sidecar validates. A header never says who calls. Behind an inbound
listener of the sidecar the peer is known there: give it flows, or ask the peer for a JWT-SVID.
"""

import contextvars
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from firedoor.answers import Bundles, X509Context
from firedoor.certs import (
    CertsError,
    IdPattern,
    SpiffeId,
    SvidError,
    TrustDomain,
    VerifiedSvid,
    parse_x509_svid,
    verify_x509_svid,
)
from firedoor.errors import BadArgument, FiredoorError, NoIdentity, PeerRefused, PeerUnknown, RequestRefused

LEAF_PROPERTY = "x509_pem_cert"
MAX_LEAF_BYTES = 24 * 1024
KEPT = 256
# grpcio shows a peer's leaf alone. What stands between it and the root is taken from our own chains, this many of late.
INTERMEDIATES = 5
_SCHEME = "Bearer "

_peer: contextvars.ContextVar[SpiffeId | None] = contextvars.ContextVar("firedoor_peer", default=None)


class Latest(Protocol):
    """A source of either kind."""

    @property
    def latest(self) -> X509Context: ...  # noqa: D102


def peer() -> SpiffeId:
    """Return who calls, within a handler behind one of the interceptors. Raise PeerUnknown."""
    found = _peer.get()
    if found is None:
        raise PeerUnknown("no interceptor of firedoor stands before this handler")
    return found


def set_peer(found: SpiffeId | None) -> None:
    """Say who calls, for the handler that runs next in this thread or task."""
    _peer.set(found)


class Allowed:
    """The IDs that may call: patterns as in policy, `*` one segment, `**` at the end one or more."""

    def __init__(self, patterns: Sequence[str]) -> None:
        if isinstance(patterns, str) or not patterns:
            raise BadArgument("allow needs a list of SPIFFE IDs or patterns; none at all would refuse everybody")
        self._patterns = tuple(map(_pattern, patterns))

    def admit(self, spiffe_id: SpiffeId) -> SpiffeId:
        """Return the ID. Raise PeerRefused."""
        if not any(one.matches(spiffe_id) for one in self._patterns):
            raise PeerRefused("the peer's identity may not call this server")
        return spiffe_id


def _pattern(text: str) -> IdPattern:
    try:
        # `{td}` has no meaning here, and so no own trust domain: whoever writes it is told.
        return IdPattern.parse(text if text.startswith("spiffe://") else "", TrustDomain.parse("none.invalid"))
    except CertsError as error:
        raise BadArgument(f"allow: {error}") from error


class Certificates:
    """Verifies the certificates of mTLS connections, and remembers for a while which it has."""

    def __init__(self, source: Latest) -> None:
        self._source = source
        self._kept: dict[bytes, VerifiedSvid] = {}
        self._context: X509Context | None = None
        self._intermediates: dict[TrustDomain, tuple[bytes, ...]] = {}

    def identify(self, auth_context: Mapping[str, Iterable[bytes]]) -> SpiffeId:
        """Return the ID of the peer's certificate, from grpcio's auth context. Raise PeerUnknown."""
        pem = next(iter(auth_context.get(LEAF_PROPERTY, ())), b"")
        if not pem:
            raise PeerUnknown("the peer presented no certificate")
        context, now = self._source.latest, int(time.time())
        if context is not self._context:
            self._kept, self._context = {}, context
            self._learn(context)
        found = self._kept.get(pem)
        if found is None or now >= found.not_after:
            found = _verified(pem, context.bundles, self._intermediates, now)
            if len(self._kept) >= KEPT:
                self._kept = {}
            self._kept[pem] = found
        return found.id

    def _learn(self, context: X509Context) -> None:
        for svid in context.svids:
            domain = svid.id.trust_domain
            known = dict.fromkeys((*svid.chain[1:], *self._intermediates.get(domain, ())))
            self._intermediates[domain] = tuple(known)[:INTERMEDIATES]


def _verified(
    pem: bytes, bundles: Bundles, intermediates: Mapping[TrustDomain, tuple[bytes, ...]], now: int
) -> VerifiedSvid:
    if len(pem) > MAX_LEAF_BYTES:
        raise PeerUnknown("the peer's certificate is too long")
    try:
        leaf = x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)
        domain = parse_x509_svid([leaf]).id.trust_domain
        return verify_x509_svid([leaf, *intermediates.get(domain, ())], bundles, now)
    except SvidError as error:
        raise PeerUnknown(f"the peer's certificate does not verify: {error}") from error
    except ValueError as error:
        raise PeerUnknown("the peer's certificate cannot be read") from error


def bearer(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """Return the one token of a call. Raise PeerUnknown."""
    found = [value for key, value in metadata or () if key == "authorization"]
    if len(found) != 1 or not isinstance(found[0], str) or not found[0].startswith(_SCHEME):
        raise PeerUnknown("the call bears no JWT-SVID")
    return found[0].removeprefix(_SCHEME)


def of_token(error: FiredoorError) -> FiredoorError:
    """Return what a failed validation means for the peer: what the sidecar refuses is the peer's fault."""
    if isinstance(error, RequestRefused | NoIdentity):
        return PeerUnknown("the peer's JWT-SVID does not hold")
    return error
