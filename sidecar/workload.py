# SPDX-License-Identifier: Apache-2.0
"""The SPIFFE Workload API on the auth socket: who a local program is, by the kernel's word alone.

Every answer of a stream is the full state, and the first comes at once. A program with no identity, or one that loses
it, gets PermissionDenied and must forget what it had (SPIFFE Workload API, sections 4 and 5).
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc.aio
from google.protobuf.message import Message

from firedoor.sidecar import seats
from firedoor.sidecar.answers import Answers, jwt_bundles, named, wit_bundles, x509_bundles
from firedoor.sidecar.attestor import WorkloadAttestor
from firedoor.sidecar.callers import Callers
from firedoor.sidecar.demand import Subscription
from firedoor.sidecar.errors import HeaderMissing, SidecarError
from firedoor.sidecar.holder import Holder
from firedoor.sidecar.streams import Answer, Selectors, Streams
from firedoor.sidecar.tokens import Tokens, validate
from firedoor.sidecar.wits import Wits, WitStream
from firedoor.wire import workload_grpc, workload_pb2

M = TypeVar("M", bound=Message)
T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]

HEADER = "workload.spiffe.io"


def check_header(metadata: Iterable[tuple[str, str | bytes]] | None, header: str = HEADER) -> None:
    """Raise HeaderMissing unless the security header stands there once and is exactly `true` (SPIFFE endpoint, 6)."""
    if [value for key, value in metadata or () if key == header] != ["true"]:
        raise HeaderMissing


@dataclass(frozen=True, slots=True)
class VerifierRules:
    """What programs that verify others are told: SPIRE's options of these names."""

    allow_unauthenticated_verifiers: bool = False
    allowed_foreign_jwt_claims: frozenset[str] = frozenset()


class WorkloadApi(workload_grpc.SpiffeWorkloadAPIServicer):
    """Serves X.509 and JWT, and WIT where our server issues that: else it is Unimplemented, as the standard asks."""

    def __init__(
        self,
        holder: Holder,
        attestor: WorkloadAttestor,
        now: Callable[[], float],
        tokens: Tokens,
        wits: Wits,
        streams: Streams | None = None,
        rules: VerifierRules | None = None,
    ) -> None:
        self._holder, self._now, self._wits = holder, now, wits
        self.streams = Streams(holder) if streams is None else streams
        # Health and reflection need no identity, so they take no place of those that have one.
        self.inspecting = seats.inspecting()
        self._rules = rules or VerifierRules()
        self.answers = Answers(holder, now, tokens, anybody_verifies=self._rules.allow_unauthenticated_verifiers)
        self.callers = Callers(holder, attestor)

    async def FetchX509SVID(
        self, request: workload_pb2.X509SVIDRequest, context: Context
    ) -> AsyncIterator[workload_pb2.X509SVIDResponse]:
        """Stream the caller's X.509-SVIDs."""

        async def answer(selectors: Selectors, wanted: Subscription) -> workload_pb2.X509SVIDResponse:
            return self.answers.x509(selectors, wanted, workload_pb2.X509SVIDResponse())

        async with self._stream(context, answer) as responses:
            async for response in responses:
                yield response

    async def FetchX509Bundles(
        self, request: workload_pb2.X509BundlesRequest, context: Context
    ) -> AsyncIterator[workload_pb2.X509BundlesResponse]:
        """Stream the X.509 bundles that the caller may trust."""

        async def answer(selectors: Selectors, _: Subscription) -> workload_pb2.X509BundlesResponse:
            bundles = x509_bundles(self.answers.bundles(selectors))
            return workload_pb2.X509BundlesResponse(bundles=bundles, crl=self._holder.crls)

        async with self._stream(context, answer) as responses:
            async for response in responses:
                yield response

    async def FetchJWTSVID(
        self, request: workload_pb2.JWTSVIDRequest, context: Context
    ) -> workload_pb2.JWTSVIDResponse:
        """Return JWT-SVIDs of the caller: of one identity, or of all."""

        async def answer(selectors: Selectors) -> workload_pb2.JWTSVIDResponse:
            response = workload_pb2.JWTSVIDResponse()
            for entry, token in await self.answers.tokens(selectors, request.spiffe_id, request.audience):
                response.svids.add(spiffe_id=str(entry.spiffe_id), svid=token.text, hint=entry.hint)
            return response

        return await self._answer(context, answer)

    async def FetchJWTBundles(
        self, request: workload_pb2.JWTBundlesRequest, context: Context
    ) -> AsyncIterator[workload_pb2.JWTBundlesResponse]:
        """Stream the keys with which the caller may verify JWT-SVIDs."""

        async def answer(selectors: Selectors, _: Subscription) -> workload_pb2.JWTBundlesResponse:
            return workload_pb2.JWTBundlesResponse(bundles=jwt_bundles(self.answers.bundles(selectors)))

        async with self._stream(context, answer) as responses:
            async for response in responses:
                yield response

    async def ValidateJWTSVID(
        self, request: workload_pb2.ValidateJWTSVIDRequest, context: Context
    ) -> workload_pb2.ValidateJWTSVIDResponse:
        """Validate a JWT-SVID that the caller was shown, by the bundles that it may trust."""

        async def answer(selectors: Selectors) -> workload_pb2.ValidateJWTSVIDResponse:
            trusted = await self.answers.bundles_soon(selectors)
            return validate(self._holder, trusted, request, self._now(), self._rules.allowed_foreign_jwt_claims)

        return await self._answer(context, answer)

    async def FetchWITSVID(
        self, request: workload_pb2.WITSVIDRequest, context: Context
    ) -> AsyncIterator[workload_pb2.WITSVIDResponse]:
        """Stream WIT-SVIDs of the caller, with the key of each: of one identity, or of all."""
        stream = WitStream(self._wits)

        async def answer(selectors: Selectors, _: Subscription) -> workload_pb2.WITSVIDResponse:
            self._wits.check_served()
            entries = named(self.answers.entries(selectors), request.spiffe_id)
            return await stream.answer(entries, lambda: self.answers.entries(selectors))

        async with self._stream(context, answer, stream.due) as responses:
            async for response in responses:
                yield response

    async def FetchWITBundles(
        self, request: workload_pb2.WITBundlesRequest, context: Context
    ) -> AsyncIterator[workload_pb2.WITBundlesResponse]:
        """Stream the keys with which the caller may verify WIT-SVIDs."""

        async def answer(selectors: Selectors, _: Subscription) -> workload_pb2.WITBundlesResponse:
            self._wits.check_served()
            return workload_pb2.WITBundlesResponse(bundles=wit_bundles(self.answers.bundles(selectors)))

        async with self._stream(context, answer) as responses:
            async for response in responses:
                yield response

    async def _answer(self, context: Context, answer: Callable[[Selectors], Awaitable[T]]) -> T:
        """Attest the caller and answer once."""
        try:
            check_header(context.invocation_metadata())
            return await answer(await self.callers.attest(context.peer()))
        except SidecarError as error:
            await context.abort(error.status, str(error))
            raise

    def _stream(
        self, context: Context, answer: Answer[M], due: Callable[[], float | None] = lambda: None
    ) -> aclosing[AsyncGenerator[M, None]]:
        """Attest the caller once, then answer at once and at every change that changes the answer."""

        async def run() -> AsyncGenerator[M, None]:
            try:
                check_header(context.invocation_metadata())
                caller = self.callers.connection(context.peer())
                async with aclosing(self.streams.run(caller.counted_as(), caller, answer, due)) as responses:
                    async for response in responses:
                        yield response
            except SidecarError as error:
                await context.abort(error.status, str(error))

        return aclosing(run())
