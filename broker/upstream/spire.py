# SPDX-License-Identifier: Apache-2.0
"""A spire-server above the broker, or another broker, as SPIRE's plug-in `spire`: its Workload API says who we are.

An agent of the server above stands beside the broker and gives it the identity of a downstream entry. With it the
broker asks for CAs, publishes its token keys, and every few seconds asks for the bundle, which its own then follows.
Others below that server are believed by sidecars as by everybody: it has no list of them to give. The broker itself
believes its own.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
from google.protobuf.message import DecodeError

from firedoor import mtls
from firedoor.broker.entry import server_id
from firedoor.broker.errors import AuthorityError
from firedoor.broker.upstream import Follow, Minted, TokenKind
from firedoor.certs import CertsError, JwtKey, PrivateKey, SpiffeId, TrustBundle, TrustDomain, make_csr, split_der
from firedoor.wire import bundle_grpc, bundle_pb2, svid_grpc, svid_pb2, types, workload_grpc, workload_pb2

_log = logging.getLogger("firedoor.broker.upstream")
_SECONDS: Final = 10.0
# SPIRE's plug-in asks as often.
POLL_SECONDS: Final = 5.0
_HEADER: Final = (("workload.spiffe.io", "true"),)


@dataclass(frozen=True, slots=True)
class UpstreamServer:
    """Where the server above is, and the Workload API that says who we are."""

    server: str
    workload_api: Path


class SpireUpstream:
    """See the module."""

    def __init__(self, server: str, workload_api: Path, trust_domain: TrustDomain) -> None:
        self._server, self._workload_api, self._trust_domain = server, workload_api, trust_domain
        self._core = mtls.Core()
        self._folder = tempfile.TemporaryDirectory(prefix="firedoor-upstream-")
        self._number = 0
        self._one_at_a_time = threading.Lock()
        self._next = 0.0
        # What the bundle of the server above had last.
        self._had: TrustBundle | None = None

    def close(self) -> None:
        """Close what is open."""
        self._core.stop()
        self._folder.cleanup()

    def mint(self, key: PrivateKey, ttl: int, _at: int) -> Minted:
        """Ask for a CA. Raise AuthorityError."""
        request = svid_pb2.NewDownstreamX509CARequest(csr=make_csr(key), preferred_ttl=ttl)
        with self._channel() as channel:
            answer = svid_grpc.SVIDStub(channel).NewDownstreamX509CA(request, timeout=_SECONDS)
        if not answer.ca_cert_chain:
            raise AuthorityError(f"the server upstream at {self._server} answered without a CA")
        return Minted(tuple(answer.ca_cert_chain), tuple(answer.x509_authorities))

    def publish(self, kind: TokenKind, key: JwtKey) -> None:
        """Have a key put into the bundle above. Raise AuthorityError."""
        with self._channel() as channel:
            stub = bundle_grpc.BundleStub(channel)
            if kind == "jwt":
                jwt = types.JWTKey(key_id=key.key_id, public_key=key.public_key, expires_at=key.expires_at)
                stub.PublishJWTAuthority(bundle_pb2.PublishJWTAuthorityRequest(jwt_authority=jwt), timeout=_SECONDS)
                return
            wit = types.WITKey(key_id=key.key_id, public_key=key.public_key, expires_at=key.expires_at)
            try:
                stub.PublishWITAuthority(bundle_pb2.PublishWITAuthorityRequest(wit_authority=wit), timeout=_SECONDS)
            except grpc.RpcError as error:
                # What a spire-server answers, up to 1.15 at least.
                if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                    raise
                _log.warning("the server upstream takes no keys for WIT-SVIDs: they are in our own bundle alone")

    def poll(self) -> Follow | None:
        """Ask for the bundle when it is time, and return what it changes in ours. Raise AuthorityError."""
        now = time.monotonic()
        if now < self._next:
            return None
        self._next = now + POLL_SECONDS
        with self._channel() as channel:
            answer = bundle_grpc.BundleStub(channel).GetBundle(bundle_pb2.GetBundleRequest(), timeout=_SECONDS)
        try:
            roots = TrustBundle.of(self._trust_domain, [one.asn1 for one in answer.x509_authorities])
            has = roots
            for one in answer.jwt_authorities:
                has = has.with_jwt_key(JwtKey(one.key_id, one.public_key, max(0, one.expires_at)))
            for other in answer.wit_authorities:
                has = has.with_wit_key(JwtKey(other.key_id, other.public_key, max(0, other.expires_at)))
            tainted = {one.asn1 for one in answer.x509_authorities if one.tainted}
            for root in roots.x509_roots:
                if root.der in tainted:
                    has = has.with_tainted(root.authority_id)
        except CertsError as error:
            raise AuthorityError(f"the bundle of the server upstream cannot be used: {error}") from None
        before, self._had = self._had, has
        return lambda bundle: follow(bundle, before, has)

    @contextlib.contextmanager
    def _channel(self) -> Iterator[grpc.Channel]:
        """Open a channel to the server above as who the Workload API says that we are. Raise AuthorityError."""
        self._one_at_a_time.acquire()
        self._number += 1
        connector = None
        try:
            spiffe_id = self._identify()
            connector = self._core.connector(
                path=str(Path(self._folder.name) / f"{self._number}.sock"),
                addresses=[self._server],
                expect=str(server_id(self._trust_domain)),
                as_id=str(spiffe_id),
            )
            with grpc.insecure_channel(f"unix:{connector.path}", options=_LOCAL) as channel:
                yield channel
        except grpc.RpcError as error:
            why = (connector.last_error() if connector is not None else "") or error.details() or error.code().name
            raise AuthorityError(f"the server upstream at {self._server} does not help: {why}") from None
        except mtls.MtlsError as error:
            raise AuthorityError(f"the identity for the server upstream cannot be used: {error}") from None
        finally:
            if connector is not None:
                connector.stop()
            self._one_at_a_time.release()

    def _identify(self) -> SpiffeId:
        """Fetch our identity and the roots above. Raise AuthorityError, or grpc.RpcError."""
        with grpc.insecure_channel(f"unix:{self._workload_api}", options=_LOCAL) as channel:
            stub = workload_grpc.SpiffeWorkloadAPIStub(channel)
            answers = stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), timeout=_SECONDS, metadata=_HEADER)
            svids = next(iter(answers)).svids
            answers.cancel()
        try:
            for svid in svids:
                spiffe_id = SpiffeId.parse(svid.spiffe_id)
                if spiffe_id.trust_domain == self._trust_domain:
                    self._publish(svid)
                    return spiffe_id
        except (CertsError, ValueError, DecodeError):
            raise AuthorityError(f"the Workload API at {self._workload_api} gave what is no SVID") from None
        raise AuthorityError(f"the Workload API at {self._workload_api} gave no SVID of {self._trust_domain}")

    def _publish(self, svid: workload_pb2.X509SVID) -> None:
        name = self._trust_domain.name
        held = mtls.Svid(id=svid.spiffe_id, chain=split_der(svid.x509_svid), key=svid.x509_svid_key)
        self._core.publish(mtls.Material(trust_domain=name, bundles={name: split_der(svid.bundle)}, svids=[held]))


_LOCAL: Final = (("grpc.use_local_subchannel_pool", 1), ("grpc.default_authority", "localhost"))


def follow(bundle: TrustBundle, before: TrustBundle | None, has: TrustBundle) -> TrustBundle:
    """Return our bundle as it is when the one above has changed. What never was above stays. Raise BundleError."""
    ours = {root.der for root in bundle.x509_roots}
    for root in has.x509_roots:
        if root.der not in ours:
            bundle = bundle.with_root(root.der)
        if root.tainted:
            bundle = bundle.with_tainted(root.authority_id)
    if before is not None:
        left = {root.authority_id for root in has.x509_roots}
        present = {root.authority_id for root in bundle.x509_roots}
        for root in before.x509_roots:
            if root.authority_id not in left and root.authority_id in present:
                bundle = bundle.with_tainted(root.authority_id).without(root.authority_id)
    known = _key_ids(bundle)
    for key in has.jwt_keys:
        if key.key_id not in known:
            bundle = bundle.with_jwt_key(key)
    for key in has.wit_keys:
        if key.key_id not in known:
            bundle = bundle.with_wit_key(key)
    if before is not None:
        bundle = bundle.without_keys(_key_ids(before) - _key_ids(has))
    return bundle


def _key_ids(bundle: TrustBundle) -> set[str]:
    return {key.key_id for key in (*bundle.jwt_keys, *bundle.wit_keys)}
