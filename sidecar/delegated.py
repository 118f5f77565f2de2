# SPDX-License-Identifier: Apache-2.0
"""SPIRE's Delegated Identity API on the admin socket: a delegate asks for the identities of other programs.

A delegate is a program with an entry of its own for one of the SPIFFE IDs in `authorized_delegates`; that is looked at
again for every message. It names a workload by selectors, which are taken as it says, or by a PID, which is attested
here. Identities that administrate a server, or sign below it, are given to nobody but their own workload.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, aclosing, contextmanager
from typing import Any, TypeVar

import grpc.aio
from google.protobuf.message import Message

from firedoor.certs import Selector, SelectorError, SpiffeId
from firedoor.sidecar.answers import Answers, jwt_bundles, x509_bundles
from firedoor.sidecar.callers import Callers, Connection
from firedoor.sidecar.demand import Subscription
from firedoor.sidecar.errors import DelegateRefused, NotEntitled, RequestRefused, SidecarError
from firedoor.sidecar.named_process import NamedProcess, hold, question_time
from firedoor.sidecar.streams import Answer, Selectors, Streams
from firedoor.wire import delegated_grpc, delegated_pb2, types

M = TypeVar("M", bound=Message)
Context = grpc.aio.ServicerContext[Any, Any]

_Request = delegated_pb2.SubscribeToX509SVIDsRequest | delegated_pb2.FetchJWTSVIDsRequest

# A pod has some dozens.
MOST_SELECTORS = 1000


class _Seen:
    """A workload that a delegate has attested itself."""

    ended = None

    def __init__(self, selectors: Selectors) -> None:
        self._selectors = selectors

    async def attest(self) -> Selectors:
        """Return the selectors that it has told."""
        return self._selectors

    def check_alive(self) -> None:
        """Trust the delegate that it lives."""


_Workload = NamedProcess | _Seen


class _Checked:
    """A workload, and the delegate that asks for it: both are attested for each answer."""

    def __init__(self, workload: _Workload, check: Callable[[], Awaitable[None]]) -> None:
        self._workload, self._check = workload, check
        self.ended = workload.ended

    async def attest(self) -> Selectors:
        """Return the workload's selectors. Raise SidecarError."""
        await self._check()
        return await self._workload.attest()


class DelegatedIdentity(delegated_grpc.DelegatedIdentityServicer):
    """Serves delegates. `own` answers about delegates themselves, `others` about those that they ask for."""

    def __init__(
        self, own: Answers, others: Answers, callers: Callers, streams: Streams, delegates: Collection[SpiffeId]
    ) -> None:
        self._own, self._others, self.callers = own, others, callers
        self._streams, self._delegates = streams, delegates

    async def SubscribeToX509SVIDs(
        self, request: delegated_pb2.SubscribeToX509SVIDsRequest, context: Context
    ) -> AsyncIterator[delegated_pb2.SubscribeToX509SVIDsResponse]:
        """Stream a workload's X.509-SVIDs; none when it has none, or none any more."""
        asked_at = question_time()

        async def answer(selectors: Selectors, wanted: Subscription) -> delegated_pb2.SubscribeToX509SVIDsResponse:
            return self._x509(selectors, wanted)

        async with self._stream(context, lambda: self._workload(request, asked_at), answer) as responses:
            async for response in responses:
                yield response

    async def SubscribeToX509Bundles(
        self, request: delegated_pb2.SubscribeToX509BundlesRequest, context: Context
    ) -> AsyncIterator[delegated_pb2.SubscribeToX509BundlesResponse]:
        """Stream all X.509 bundles that this sidecar has."""

        async def answer(_: Selectors, __: Subscription) -> delegated_pb2.SubscribeToX509BundlesResponse:
            bundles = x509_bundles(self._own.holder.view.bundles.values())
            return delegated_pb2.SubscribeToX509BundlesResponse(ca_certificates=bundles)

        async with self._stream(context, _nobody, answer) as responses:
            async for response in responses:
                yield response

    async def FetchJWTSVIDs(
        self, request: delegated_pb2.FetchJWTSVIDsRequest, context: Context
    ) -> delegated_pb2.FetchJWTSVIDsResponse:
        """Return JWT-SVIDs of a workload."""
        asked_at = question_time()
        try:
            await self._check(self.callers.connection(context.peer()))
            with self._workload(request, asked_at) as workload:
                found = await self._others.tokens(await workload.attest(), "", request.audience, hints=False)
                workload.check_alive()
        except SidecarError as error:
            await context.abort(error.status, str(error))
            raise
        response = delegated_pb2.FetchJWTSVIDsResponse()
        for entry, token in found:
            response.svids.add(
                token=token.text,
                id=_id(entry.spiffe_id),
                expires_at=token.expires_at,
                issued_at=int(token.proof.issued_at),
                hint=entry.hint,
            )
        return response

    async def SubscribeToJWTBundles(
        self, request: delegated_pb2.SubscribeToJWTBundlesRequest, context: Context
    ) -> AsyncIterator[delegated_pb2.SubscribeToJWTBundlesResponse]:
        """Stream the keys for JWT-SVIDs of all bundles that this sidecar has."""

        async def answer(_: Selectors, __: Subscription) -> delegated_pb2.SubscribeToJWTBundlesResponse:
            bundles = jwt_bundles(self._own.holder.view.bundles.values())
            return delegated_pb2.SubscribeToJWTBundlesResponse(bundles=bundles)

        async with self._stream(context, _nobody, answer) as responses:
            async for response in responses:
                yield response

    def _x509(self, selectors: Selectors, wanted: Subscription) -> delegated_pb2.SubscribeToX509SVIDsResponse:
        response = delegated_pb2.SubscribeToX509SVIDsResponse()
        try:
            entries = self._others.admitted(selectors)
        except NotEntitled:
            wanted.want(())
            return response
        found = self._others.held(entries, wanted)
        for one in found:
            svid = types.X509SVID(
                cert_chain=one.svid.chain, id=_id(one.svid.id), expires_at=one.svid.not_after, hint=one.entry.hint
            )
            response.x509_svids.add(x509_svid=svid, x509_svid_key=one.key.private)
        response.federates_with.extend(str(one.trust_domain.id) for one in self._others.federated(entries))
        return self._others.whole(response, entries, found)

    async def _check(self, caller: Connection) -> None:
        """Raise DelegateRefused, or NotEntitled, unless the caller is a delegate now."""
        if not self._delegates:
            raise DelegateRefused("no delegate is configured: authorized_delegates names none")
        entries = self._own.admitted(await caller.attest())
        if not any(one.spiffe_id in self._delegates for one in entries):
            raise DelegateRefused("caller not configured as an authorized delegate")

    @contextmanager
    def _workload(self, request: _Request, asked_at: float) -> Iterator[_Workload]:
        """Hold whom a request names. Raise RequestRefused, ReferenceInvalid or WorkloadGone."""
        if bool(request.selectors) == bool(request.pid):
            raise RequestRefused("must provide either selectors or non-zero PID, but not both")
        if request.pid:
            with hold(request.pid, asked_at, self.callers) as process:
                yield process
        else:
            yield _Seen(_read(request.selectors))

    def _stream(
        self, context: Context, workload: Callable[[], AbstractContextManager[_Workload]], answer: Answer[M]
    ) -> aclosing[AsyncGenerator[M, None]]:
        """Answer at once and at every change, while the caller is a delegate and the workload lives."""

        async def run() -> AsyncGenerator[M, None]:
            try:
                caller = self.callers.connection(context.peer())
                await self._check(caller)
                with workload() as named:
                    subject = _Checked(named, lambda: self._check(caller))
                    async with aclosing(self._streams.run(caller.counted_as(), subject, answer)) as responses:
                        async for response in responses:
                            yield response
            except SidecarError as error:
                await context.abort(error.status, str(error))

        return aclosing(run())


@contextmanager
def _nobody() -> Iterator[_Workload]:
    yield _Seen(frozenset())


def _read(selectors: Sequence[types.Selector]) -> Selectors:
    if len(selectors) > MOST_SELECTORS:
        raise RequestRefused(f"a workload has at most {MOST_SELECTORS} selectors here")
    try:
        return frozenset(Selector.of(one.type, one.value) for one in selectors)
    except SelectorError as error:
        raise RequestRefused(f"could not parse provided selectors: {error}") from None


def _id(spiffe_id: SpiffeId) -> types.SPIFFEID:
    return types.SPIFFEID(trust_domain=spiffe_id.trust_domain.name, path=spiffe_id.path)
