# SPDX-License-Identifier: Apache-2.0
"""The one gate in front of every method: who calls, may they, what went wrong, what the audit log keeps.

Handlers are made from the service's descriptor, so that no method can be registered past the gate; what the service
does not implement is refused behind it. Who calls is what the front knows about the connection: no header says it.
Requests are read here too, so that bytes which are no message end as InvalidArgument.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from firedoor.broker.agent import Agent
from firedoor.broker.errors import InvalidRequest, NotAuthorized, StorageError, Unauthenticated, Unsupported
from firedoor.broker.finished import finished
from firedoor.broker.roles import Role
from firedoor.broker.rpc.matrix import MATRIX, Who
from firedoor.broker.rpc.status import CANCELLED, INTERNAL, OK, RpcStatus, status_of
from firedoor.certs import CertsError, SpiffeId
from firedoor.mtls import Caller, CallerUnknown

if TYPE_CHECKING:
    from firedoor.broker.audit import Audit
    from firedoor.broker.metrics import Metrics

    _Context: TypeAlias = grpc.aio.ServicerContext[bytes, bytes]

_log = logging.getLogger("firedoor.broker.rpc")

# Asked every few seconds by whatever watches the broker; only refusals of these are kept.
_QUIET: Final = "/grpc.health.v1.Health/"
# How the methods begin that change nothing and issue nothing.
_READS: Final = ("Get", "List", "Count", "Watch")
# As whom somebody with a role is admitted: by the strongest that the method's row has.
_ROLES: Final = {
    Role.ADMIN: Who.ADMIN,
    Role.OPERATOR: Who.OPERATOR,
    Role.POLICY: Who.POLICY,
    Role.VIEWER: Who.VIEWER,
}
_BY_ROLE: Final = frozenset(_ROLES.values())
_ADMINISTRATORS: Final = _BY_ROLE | {Who.LOCAL}
# Metadata with which a ban or a deletion leaves certificates alone; SPIRE's requests have no field for it.
KEEP_SVIDS: Final = "firedoor-keep-svids"
# Metadata with the segments of the downstream entries that a call writes, separated by commas; the same holds there.
SEGMENTS: Final = "firedoor-downstream-segments"


class Standing(Protocol):
    """What the gate asks about a SPIFFE ID that calls."""

    def roles_of(self, spiffe_id: SpiffeId) -> frozenset[Role]:
        """Return the roles of this ID."""

    def is_downstream(self, spiffe_id: SpiffeId) -> bool:
        """Say whether an entry makes this ID a downstream authority's."""

    async def check_agent(self, spiffe_id: SpiffeId, caller: Caller) -> Agent:
        """Return the agent in good standing. Raise AgentError."""


@dataclass(slots=True)
class Call:
    """One admitted call, as services see it."""

    method: str
    caller: Caller
    # As whom the caller was admitted.
    who: Who
    # Set when `who` is AGENT.
    agent: Agent | None = None
    # What the audit log keeps beside the method and the caller. Never a token, a key or a selector's value.
    audit: dict[str, Any] = field(default_factory=dict)
    audited: bool = False
    # What leaves now is a question to the caller: how the call ends is not known yet.
    asking: bool = False
    # What was issued through the entry or agent that goes away is not revoked.
    keep_svids: bool = False
    # The segments that a downstream entry is to list; None: nothing is said of them.
    segments: str | None = None
    # Checks the caller again, for streams that stay open.
    again: Callable[[], Awaitable[None]] | None = None

    def the_agent(self) -> Agent:
        """Return the calling agent. Raise NotAuthorized when none calls."""
        if self.agent is None:
            raise NotAuthorized(f"authorization denied for method {self.method}")
        return self.agent


class Gate:
    """Admits calls of one server. `local` is a property of the server, never of a call."""

    def __init__(self, *, local: bool, standing: Standing, audit: Audit, metrics: Metrics) -> None:
        self._local = local
        self._standing = standing
        self._audit = audit
        self._metrics = metrics
        self._resolve: Callable[[str], Caller] | None = None

    def attach(self, resolve: Callable[[str], Caller]) -> None:
        """Give the gate the front's `caller`. Until then every call is refused."""
        self._resolve = resolve

    def handler(self, service: ServiceDescriptor, implementation: object) -> grpc.GenericRpcHandler:
        """Return a service's handlers, each behind the gate."""
        made = {method.name: self._method(method, implementation) for method in service.methods}
        return grpc.method_handlers_generic_handler(service.full_name, made)

    def _method(self, method: MethodDescriptor, implementation: object) -> grpc.RpcMethodHandler[bytes, bytes]:
        path = f"/{method.containing_service.full_name}/{method.name}"
        guarded = _Guarded(self, path, GetMessageClass(method.input_type), getattr(implementation, method.name, None))
        # Messages stay bytes for grpcio: the gate reads and writes them.
        if method.client_streaming:
            return grpc.stream_stream_rpc_method_handler(guarded.stream)
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(guarded.answers)
        return grpc.unary_unary_rpc_method_handler(guarded.unary)

    async def admit(self, path: str, context: _Context) -> Call:
        """Return the call if this caller may make it. Raise AgentError or Unauthenticated."""
        caller = self._caller(context.peer())
        row = MATRIX.get(path, frozenset())
        if self._local and caller.uid not in (0, os.geteuid()):
            raise NotAuthorized("the admin socket answers root and the broker's own user alone")
        if Who.ANYONE in row:
            return Call(path, caller, Who.ANYONE)
        if self._local:
            if Who.LOCAL in row:
                return Call(path, caller, Who.LOCAL)
            raise NotAuthorized(f"authorization denied for method {path}")
        return await self._admit_identity(path, caller, row)

    async def _admit_identity(self, path: str, caller: Caller, row: frozenset[Who]) -> Call:
        spiffe_id = _identity(caller)
        if spiffe_id is not None:
            # Agents call most, and what they call is no role's.
            roles = self._standing.roles_of(spiffe_id) if row & _BY_ROLE else frozenset()
            for role, who in _ROLES.items():
                if who in row and role in roles:
                    return Call(path, caller, who)
            if Who.DOWNSTREAM in row and self._standing.is_downstream(spiffe_id):
                return Call(path, caller, Who.DOWNSTREAM)
            if Who.AGENT in row:
                call = Call(path, caller, Who.AGENT, await self._standing.check_agent(spiffe_id, caller))

                async def again() -> None:
                    call.agent = await self._standing.check_agent(spiffe_id, caller)

                call.again = again
                return call
        raise NotAuthorized(f"authorization denied for method {path}")

    def _caller(self, peer: str) -> Caller:
        if self._resolve is None:
            raise Unauthenticated("the broker is starting")
        try:
            return self._resolve(peer)
        except CallerUnknown:
            self._metrics.unknown_callers.inc()
            raise Unauthenticated("the connection is not one of the front's") from None

    def finish(self, path: str, call: Call | None, peer: Caller | None, status: RpcStatus) -> RpcStatus:
        """Keep the call in the audit log if it matters, and return the status that it ends with."""
        refused = status.code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED)
        if not refused and (call is None or not self._matters(path, call)):
            return status
        try:
            self._audit.call(path, call.caller if call else peer, status, _fields(call))
        except StorageError as error:
            _log.error("%s", error)
            if status is OK and not path.rpartition("/")[2].startswith(_READS):
                # What cannot be audited is not handed out; reading goes on, and so does refusing.
                return status_of(error)
        return status

    def _matters(self, path: str, call: Call) -> bool:
        if call.audited or path.startswith(_QUIET):
            return False
        return call.who in _ADMINISTRATORS or bool(call.audit)

    def before_answer(self, call: Call) -> None:
        """Keep a stream's call in the audit log before its first answer leaves. Raise StorageError."""
        if call.audit and not call.audited and not call.asking:
            self._audit.call(call.method, call.caller, OK, _fields(call))
            call.audited = True

    def count(self, path: str, started: float, status: RpcStatus) -> None:
        """Count the call."""
        self._metrics.calls.labels(path, status.code.name).inc()
        self._metrics.call_seconds.labels(path).observe(time.perf_counter() - started)

    def who(self, context: _Context) -> Caller | None:
        """Return the caller for a record of a refusal, None when nobody knows."""
        try:
            return self._caller(context.peer())
        except Unauthenticated:
            return None


class _Guarded:
    """One method behind the gate, in the three shapes that our services have."""

    def __init__(self, gate: Gate, path: str, request: type[Message], implementation: Any) -> None:
        self._gate, self._path, self._request = gate, path, request
        self._implementation = implementation or self._unsupported

    def _unsupported(self, *_: object) -> Any:
        raise Unsupported(f"this broker does not serve {self._path}")

    def _read(self, data: bytes) -> Message:
        try:
            return self._request.FromString(data)
        except DecodeError:
            raise InvalidRequest(f"the request is not a {self._request.DESCRIPTOR.name} message") from None

    async def unary(self, data: bytes, context: _Context) -> bytes:
        async def run(call: Call) -> bytes:
            # What was begun is finished, and audited, though the caller may have gone away.
            answer: Message = await finished(self._implementation(self._read(data), call))
            return answer.SerializeToString()

        return await self._run(context, run)

    async def answers(self, data: bytes, context: _Context) -> None:
        async def run(call: Call) -> bytes:
            async for answer in self._implementation(self._read(data), call):
                await context.write(answer.SerializeToString())
            return b""

        await self._run(context, run)

    async def stream(self, requests: AsyncIterator[bytes], context: _Context) -> None:
        async def read() -> AsyncIterator[Message]:
            async for data in requests:
                yield self._read(data)

        async def run(call: Call) -> bytes:
            # Closed at once when the caller goes away: what it holds is not held until somebody collects it.
            async with contextlib.aclosing(self._implementation(read(), call)) as answers:
                async for answer in answers:
                    self._gate.before_answer(call)
                    await context.write(answer.SerializeToString())
            return b""

        await self._run(context, run)

    async def _run(self, context: _Context, run: Callable[[Call], Awaitable[bytes]]) -> bytes:
        started, call, answer = time.perf_counter(), None, b""
        try:
            call = await self._gate.admit(self._path, context)
            said = tuple(context.invocation_metadata() or ())
            call.keep_svids = (KEEP_SVIDS, "true") in said
            call.segments = next((str(value) for name, value in said if name == SEGMENTS), None)
            answer = await run(call)
            status = OK
        except asyncio.CancelledError:
            self._gate.finish(self._path, call, None, CANCELLED)
            raise
        except Exception as error:  # noqa: BLE001 - the status decides what the caller may know
            status = status_of(error)
            if status is INTERNAL:
                _log.exception("%s failed", self._path)
        status = self._gate.finish(self._path, call, None if call else self._gate.who(context), status)
        self._gate.count(self._path, started, status)
        if status is not OK:
            await context.abort(status.code, status.message, status.trailing)
        return answer


def _fields(call: Call | None) -> dict[str, Any]:
    """Return what the audit log keeps of a call: with the role by which an administrator was admitted."""
    if call is None:
        return {}
    return {"caller_role": call.who.value, **call.audit} if call.who in _ADMINISTRATORS else call.audit


def _identity(caller: Caller) -> SpiffeId | None:
    if caller.spiffe_id is None:
        return None
    try:
        return SpiffeId.parse(caller.spiffe_id)
    except CertsError:
        return None
