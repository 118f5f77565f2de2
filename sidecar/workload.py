# SPDX-License-Identifier: Apache-2.0
"""The SPIFFE Workload API on the auth socket: who a local program is, by the kernel's word alone.

Every answer of a stream is the full state, and the first comes at once. A program with no identity, or one that loses
it, gets PermissionDenied and must forget what it had (SPIFFE Workload API, sections 4 and 5).
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from firedoor.certs import Selector, SpiffeId, SpiffeIdError
from firedoor.sidecar.attestor import UnixAttestor
from firedoor.sidecar.callers import Callers
from firedoor.sidecar.errors import HeaderMissing, NotEntitled, NotReady, RequestRefused, SidecarError
from firedoor.sidecar.holder import Holder
from firedoor.sidecar.identities import Identity
from firedoor.sidecar.tokens import Tokens, jwt_bundles, jwt_svids, validate
from firedoor.sidecar.view import Entry, View
from firedoor.wire import workload_grpc, workload_pb2

M = TypeVar("M", bound=Message)
T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]

HEADER = "workload.spiffe.io"
# An entry that was just made has its SVID within this time, or the server is away.
PENDING_SECONDS = 5.0


def check_header(metadata: Iterable[tuple[str, str | bytes]] | None) -> None:
    """Raise HeaderMissing unless the security header stands there once and is exactly `true` (SPIFFE endpoint, 6)."""
    if [value for key, value in metadata or () if key == HEADER] != ["true"]:
        raise HeaderMissing


def distinct_hints(entries: Sequence[Entry]) -> list[Entry]:
    """Leave out each entry whose hint an older one has: hints are unique in an answer."""
    seen: set[str] = set()
    kept = []
    for entry in entries:
        if entry.hint and entry.hint in seen:
            continue
        seen.add(entry.hint)
        kept.append(entry)
    return kept


def x509_svids(
    view: View,
    identities: Iterable[Identity],
    selectors: frozenset[Selector],
    now: float,
    not_admitted: frozenset[str] = frozenset(),
) -> workload_pb2.X509SVIDResponse:
    """Answer FetchX509SVID for a workload. Raise NotEntitled, or NotReady when no SVID has come yet."""
    entries = distinct_hints([one for one in entitled(view, selectors, now) if one.id not in not_admitted])
    if not entries:
        raise NotEntitled
    held = {one.entry.id: one for one in identities if one.live(now)}
    own = view.bundles[view.trust_domain].to_der()
    response = workload_pb2.X509SVIDResponse()
    for entry in entries:
        if entry.id in held:
            one = held[entry.id]
            response.svids.add(
                spiffe_id=str(entry.spiffe_id),
                x509_svid=b"".join(one.svid.chain),
                x509_svid_key=one.key.private,
                bundle=own,
                hint=entry.hint,
            )
    if not response.svids:
        raise NotReady("the identity is not issued yet")
    response.federated_bundles.update(_federated(view, entries))
    return response


def x509_bundles(view: View, selectors: frozenset[Selector], now: float) -> workload_pb2.X509BundlesResponse:
    """Answer FetchX509Bundles for a workload. Raise NotEntitled."""
    entries = entitled(view, selectors, now)
    bundles = {str(view.trust_domain.id): view.bundles[view.trust_domain].to_der()}
    return workload_pb2.X509BundlesResponse(bundles=bundles | _federated(view, entries))


def entitled(view: View, selectors: frozenset[Selector], now: float) -> Sequence[Entry]:
    """Return what a workload with these selectors is entitled to. Raise NotEntitled, or NotReady."""
    if not view.synced:
        raise NotReady("the sidecar has not heard from its server yet")
    entries = view.matching(selectors, now)
    if not entries:
        raise NotEntitled
    return entries


def _federated(view: View, entries: Sequence[Entry]) -> dict[str, bytes]:
    domains = {domain for entry in entries for domain in entry.federates_with} - {view.trust_domain}
    return {str(one.id): view.bundles[one].to_der() for one in sorted(domains) if one in view.bundles}


def _of(entries: Sequence[Entry], wanted: str) -> Sequence[Entry]:
    """Return the entries that give an ID. Raise NotEntitled, also when nobody has it."""
    try:
        spiffe_id = SpiffeId.parse(wanted)
    except SpiffeIdError as error:
        raise RequestRefused(f"the requested SPIFFE ID is none: {error}") from None
    found = [one for one in entries if one.spiffe_id == spiffe_id]
    if not found:
        raise NotEntitled
    return found


class WorkloadApi(workload_grpc.SpiffeWorkloadAPIServicer):
    """Serves X.509 and JWT; WIT answers Unimplemented, as the standard asks of a profile that is absent."""

    def __init__(self, holder: Holder, attestor: UnixAttestor, now: Callable[[], float], tokens: Tokens) -> None:
        self._holder, self._now, self._tokens = holder, now, tokens
        self.callers = Callers(holder, attestor)

    async def FetchX509SVID(
        self, request: workload_pb2.X509SVIDRequest, context: Context
    ) -> AsyncIterator[workload_pb2.X509SVIDResponse]:
        """Stream the caller's X.509-SVIDs."""
        async for response in self._stream(context, self._x509_svids):
            yield response

    async def FetchX509Bundles(
        self, request: workload_pb2.X509BundlesRequest, context: Context
    ) -> AsyncIterator[workload_pb2.X509BundlesResponse]:
        """Stream the X.509 bundles that the caller may trust."""
        async for response in self._stream(context, self._x509_bundles):
            yield response

    async def FetchJWTSVID(
        self, request: workload_pb2.JWTSVIDRequest, context: Context
    ) -> workload_pb2.JWTSVIDResponse:
        """Return JWT-SVIDs of the caller: of one identity, or of all."""

        async def answer(selectors: frozenset[Selector]) -> workload_pb2.JWTSVIDResponse:
            if not request.audience:
                raise RequestRefused("audience must be specified")
            entries = await self._first(selectors, self._entitled)
            entries = _of(entries, request.spiffe_id) if request.spiffe_id else distinct_hints(entries)
            return await jwt_svids(self._tokens, entries, request.audience, lambda: self._entitled(selectors))

        return await self._answer(context, answer)

    async def FetchJWTBundles(
        self, request: workload_pb2.JWTBundlesRequest, context: Context
    ) -> AsyncIterator[workload_pb2.JWTBundlesResponse]:
        """Stream the keys with which the caller may verify JWT-SVIDs."""
        async for response in self._stream(context, lambda s: jwt_bundles(self._holder.view, self._entitled(s))):
            yield response

    async def ValidateJWTSVID(
        self, request: workload_pb2.ValidateJWTSVIDRequest, context: Context
    ) -> workload_pb2.ValidateJWTSVIDResponse:
        """Validate a JWT-SVID that the caller was shown, by the bundles that it may trust."""

        async def answer(selectors: frozenset[Selector]) -> workload_pb2.ValidateJWTSVIDResponse:
            entries = await self._first(selectors, self._entitled)
            return validate(self._holder, entries, request, self._now())

        return await self._answer(context, answer)

    async def fetch_jwt(self, entry: Entry, audience: Sequence[str]) -> tuple[str, int]:
        """Return a token for an entry that the caller was found entitled to, and when it ends. Raise SidecarError."""
        token = await self._tokens.get(entry, audience)
        return token.text, token.expires_at

    async def FetchWITSVID(
        self, request: workload_pb2.WITSVIDRequest, context: Context
    ) -> AsyncIterator[workload_pb2.WITSVIDResponse]:
        """Answer Unimplemented."""
        raise await self._unimplemented(context, "WIT-SVID")
        yield

    async def FetchWITBundles(
        self, request: workload_pb2.WITBundlesRequest, context: Context
    ) -> AsyncIterator[workload_pb2.WITBundlesResponse]:
        """Answer Unimplemented."""
        raise await self._unimplemented(context, "WIT-SVID")
        yield

    async def _unimplemented(self, context: Context, profile: str) -> Exception:
        """End the call; `abort` raises, so that nothing is ever returned."""
        try:
            check_header(context.invocation_metadata())
        except HeaderMissing as error:
            await context.abort(error.status, str(error))
        return await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"this server does not serve the {profile} profile")

    def _x509_svids(self, selectors: frozenset[Selector]) -> workload_pb2.X509SVIDResponse:
        holder = self._holder
        return x509_svids(holder.view, holder.identities.values(), selectors, self._now(), holder.not_admitted())

    def _x509_bundles(self, selectors: frozenset[Selector]) -> workload_pb2.X509BundlesResponse:
        return x509_bundles(self._holder.view, selectors, self._now())

    def _entitled(self, selectors: frozenset[Selector]) -> Sequence[Entry]:
        return entitled(self._holder.view, selectors, self._now())

    async def _answer(self, context: Context, answer: Callable[[frozenset[Selector]], Awaitable[T]]) -> T:
        """Attest the caller and answer once."""
        try:
            return await answer(await self._attest(context))
        except SidecarError as error:
            await context.abort(error.status, str(error))
            raise

    async def _stream(self, context: Context, answer: Callable[[frozenset[Selector]], M]) -> AsyncIterator[M]:
        """Attest the caller once, then answer at once and at every change that changes the answer."""
        try:
            selectors = await self._attest(context)
            last: M | None = None
            async for _ in self._holder.changes():
                response = answer(selectors) if last is not None else await self._first(selectors, answer)
                if response != last:
                    yield response
                    last = response
        except SidecarError as error:
            await context.abort(error.status, str(error))

    async def _first(self, selectors: frozenset[Selector], answer: Callable[[frozenset[Selector]], T]) -> T:
        """Answer now, or wait a moment for an SVID that is being issued."""
        try:
            return answer(selectors)
        except NotReady as pending:
            try:
                async with asyncio.timeout(PENDING_SECONDS):
                    return await self._until_ready(selectors, answer)
            except TimeoutError:
                raise pending from None

    async def _until_ready(self, selectors: frozenset[Selector], answer: Callable[[frozenset[Selector]], T]) -> T:
        async for _ in self._holder.changes():
            try:
                return answer(selectors)
            except NotReady:
                continue
        raise NotReady("the sidecar is stopping")

    async def _attest(self, context: Context) -> frozenset[Selector]:
        check_header(context.invocation_metadata())
        return await self.callers.attest(context.peer())
