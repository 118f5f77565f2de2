# SPDX-License-Identifier: Apache-2.0
"""What a program may ask about itself on the auth socket: who am I, a JWT-SVID, may this peer do this to me.

`AuthApi` answers; gRPC (`AuthService`, here) and HTTP (`auth_http`) bring it the connection's name and the request. An
answer is about identities of the caller alone. `Check` asks the engine that the data path asks, on the same table:
what no flow allows is denied, in audit mode too.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import grpc.aio
from google.protobuf.message import Message

from firedoor.certs import SpiffeId, SpiffeIdError
from firedoor.mtls import Engine, MtlsError
from firedoor.sidecar.answers import Answers, distinct_hints
from firedoor.sidecar.callers import Callers
from firedoor.sidecar.errors import NotYours, RequestRefused, SidecarError
from firedoor.sidecar.listeners import Inbound
from firedoor.sidecar.view import Entry
from firedoor.sidecar.workload import check_header
from firedoor.wire import auth_grpc, auth_pb2

M = TypeVar("M", bound=Message)
Context = grpc.aio.ServicerContext[Any, Any]

PROTOCOLS = ("tcp", "http", "grpc")
HIGHEST_PORT = 65535


class AuthApi:
    """Answers the three questions. Everything raises SidecarError."""

    def __init__(self, callers: Callers, answers: Answers, inbound: Sequence[Inbound]) -> None:
        self._callers, self._answers, self._inbound = callers, answers, inbound
        self._holder = answers.holder
        self._engine = _EngineOfTable()

    async def who_am_i(self, peer: str) -> auth_pb2.WhoAmIResponse:
        """Say which identities the caller has; `expires_at` is 0 while an SVID is being issued."""
        response = auth_pb2.WhoAmIResponse()
        now = self._answers.now()
        for entry in await self._entries(peer):
            held = self._holder.identities.get(entry.id)
            response.identities.add(
                spiffe_id=str(entry.spiffe_id),
                segment=self._engine.on(self._holder.view.table).segment_of(str(entry.spiffe_id)) or "",
                hint=entry.hint,
                expires_at=held.svid.not_after if held and held.live(now) else 0,
            )
        return response

    async def fetch_jwt_svid(self, peer: str, request: auth_pb2.FetchJWTSVIDRequest) -> auth_pb2.FetchJWTSVIDResponse:
        """Return a JWT-SVID of one of the caller's identities."""
        entry = await self._own(peer, request.spiffe_id)
        if not request.audience or not all(request.audience):
            raise RequestRefused("a JWT-SVID needs an audience: who it is for")
        token = await self._answers.token(entry, request.audience)
        return auth_pb2.FetchJWTSVIDResponse(
            spiffe_id=str(entry.spiffe_id), token=token.text, expires_at=token.expires_at
        )

    async def check(self, peer: str, request: auth_pb2.CheckRequest) -> auth_pb2.CheckResponse:
        """Decide whether `request.peer` may do this to one of the caller's identities."""
        entry = await self._own(peer, request.self)
        source = _spiffe_id("peer", request.peer)
        port, protocol = self._where(request, entry.spiffe_id)
        try:
            decision = self._engine.on(self._holder.view.table).decide(
                source=str(source),
                destination=str(entry.spiffe_id),
                port=port,
                protocol=protocol,
                authority=request.authority,
                method=request.method,
                path=request.path,
                grpc_service=request.grpc_service,
                grpc_method=request.grpc_method,
                time=int(self._answers.now()),
            )
        except MtlsError as error:
            raise RequestRefused(str(error)) from error
        return auth_pb2.CheckResponse(allowed=decision.allowed, flow=decision.flow or "", reason=decision.reason)

    async def _entries(self, peer: str) -> Sequence[Entry]:
        """Return the caller's entries, in the order of the Workload API. Raise NotEntitled."""
        return distinct_hints(self._answers.admitted(await self._callers.attest(peer)))

    async def _own(self, peer: str, wanted: str) -> Entry:
        """Return the entry of one of the caller's own identities, the first when none is named. Raise NotYours."""
        entries = await self._entries(peer)
        if not wanted:
            return entries[0]
        spiffe_id = _spiffe_id("identity", wanted)
        for entry in entries:
            if entry.spiffe_id == spiffe_id:
                return entry
        raise NotYours

    def _where(self, request: auth_pb2.CheckRequest, own: SpiffeId) -> tuple[int, Any]:
        """Return service port and protocol: as given, and what is left out from the one inbound listener that fits."""
        if request.service_port > HIGHEST_PORT:
            raise RequestRefused(f"service_port {request.service_port} is no port")
        if request.protocol and request.protocol not in PROTOCOLS:
            raise RequestRefused("protocol must be tcp, http or grpc")
        if request.service_port and request.protocol:
            return request.service_port, request.protocol
        found = {
            (one.service_port, one.protocol)
            for one in self._inbound
            if one.identity == own
            and request.service_port in (0, one.service_port)
            and request.protocol in ("", one.protocol)
        }
        if len(found) != 1:
            raise RequestRefused(
                f"give service_port and protocol: {len(found)} inbound listeners of this identity fit what was given"
            )
        return found.pop()


class _EngineOfTable:
    """Makes an engine once for each table."""

    def __init__(self) -> None:
        self._table: bytes | None = None
        self._made = Engine(b"")

    def on(self, table: bytes) -> Engine:
        """Return the engine of a table."""
        if table is not self._table:
            self._made, self._table = Engine(table), table
        return self._made


def _spiffe_id(what: str, text: str) -> SpiffeId:
    try:
        return SpiffeId.parse(text)
    except SpiffeIdError as error:
        raise RequestRefused(f"{what} is no SPIFFE ID: {error}") from error


class AuthService(auth_grpc.AuthServicer):
    """The API by gRPC; each call carries the security header, as on the Workload API."""

    def __init__(self, api: AuthApi) -> None:
        self._api = api

    async def WhoAmI(self, request: auth_pb2.WhoAmIRequest, context: Context) -> auth_pb2.WhoAmIResponse:
        """Answer WhoAmI."""
        return await self._told(context, self._api.who_am_i)

    async def FetchJWTSVID(
        self, request: auth_pb2.FetchJWTSVIDRequest, context: Context
    ) -> auth_pb2.FetchJWTSVIDResponse:
        """Answer FetchJWTSVID."""
        return await self._told(context, lambda peer: self._api.fetch_jwt_svid(peer, request))

    async def Check(self, request: auth_pb2.CheckRequest, context: Context) -> auth_pb2.CheckResponse:
        """Answer Check."""
        return await self._told(context, lambda peer: self._api.check(peer, request))

    async def _told(self, context: Context, answer: Callable[[str], Awaitable[M]]) -> M:
        try:
            check_header(context.invocation_metadata())
            return await answer(context.peer())
        except SidecarError as error:
            await context.abort(error.status, str(error))
            raise
