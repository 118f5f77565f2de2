# SPDX-License-Identifier: Apache-2.0
"""What SPIRE's agent tells of itself: Debug and Logger for whoever runs it, reflection where a service is.

Health is in admin.py. On the admin socket a `Gate` decides who may ask, on the auth socket any local program may.
"""

from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import grpc
import grpc.aio
from cryptography import x509
from google.protobuf.descriptor import ServiceDescriptor

from firedoor.certs import CertsError, SpiffeId, parse_x509_svid
from firedoor.certs.names import show_name
from firedoor.sidecar.holder import Holder
from firedoor.wire import (
    agent_debug_grpc,
    agent_debug_pb2,
    agent_logger_grpc,
    agent_logger_pb2,
    reflection_alpha_grpc,
    reflection_alpha_pb2,
    reflection_grpc,
    reflection_pb2,
    types,
)
from firedoor.wire.log_level import LogLevel, UnknownLevel
from firedoor.wire.reflection import Reflection, reflections

Context = grpc.aio.ServicerContext[Any, Any]


class Admits(Protocol):
    """Who may call on a socket."""

    async def check(self, context: Context) -> None:
        """End the call unless this caller may."""

    def stream(self, context: Context) -> AbstractAsyncContextManager[None]:
        """Do the same for a stream, and count it while it is open."""


class Inspected(Protocol):
    """What Debug asks of a running sidecar."""

    def info(self) -> agent_debug_pb2.GetInfoResponse:
        """Say how things are in the words of SPIRE's agent."""


class AgentDebug(agent_debug_grpc.DebugServicer):
    """`spire.agent.debug.v1.Debug`."""

    def __init__(self, gate: Admits, reporter: Inspected) -> None:
        self._gate, self._reporter = gate, reporter

    async def GetInfo(
        self, request: agent_debug_pb2.GetInfoRequest, context: Context
    ) -> agent_debug_pb2.GetInfoResponse:
        """Show the agent SVID up to its root, and what is held in numbers."""
        await self._gate.check(context)
        return self._reporter.info()


def agent_chain(holder: Holder) -> list[agent_debug_pb2.GetInfoResponse.Cert]:
    """Return the agent SVID, what is above it, and its root; nothing before it has one."""
    agent, view = holder.agent, holder.view
    if agent is None:
        return []
    try:
        authority = parse_x509_svid(agent.chain).authority_id
    except CertsError:
        authority = ""
    roots = [root.der for root in view.bundles[view.trust_domain].x509_roots if root.authority_id == authority]
    return [_certificate(der) for der in (*agent.chain, *roots)]


def _certificate(der: bytes) -> agent_debug_pb2.GetInfoResponse.Cert:
    found = x509.load_der_x509_certificate(der)
    return agent_debug_pb2.GetInfoResponse.Cert(
        id=_id_of(found),
        expires_at=int(found.not_valid_after_utc.timestamp()),
        subject=show_name(found.subject),
    )


def _id_of(certificate: x509.Certificate) -> types.SPIFFEID | None:
    """Return the ID that a certificate is for; None when it is for none, as roots of other servers may be."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        spiffe_id = SpiffeId.parse(uri)
    except (x509.ExtensionNotFound, ValueError, CertsError):
        return None
    return types.SPIFFEID(trust_domain=spiffe_id.trust_domain.name, path=spiffe_id.path)


class AgentLogger(agent_logger_grpc.LoggerServicer):
    """`spire.api.agent.logger.v1.Logger`: how much the sidecar logs, until its next start."""

    def __init__(self, gate: Admits) -> None:
        self._gate, self._level = gate, LogLevel()

    async def GetLogger(self, request: agent_logger_pb2.GetLoggerRequest, context: Context) -> types.Logger:
        """Show the level now and the one at the start."""
        await self._gate.check(context)
        return self._level.show()

    async def SetLogLevel(self, request: agent_logger_pb2.SetLogLevelRequest, context: Context) -> types.Logger:
        """Log more, or less."""
        await self._gate.check(context)
        try:
            return self._level.set(request.new_level)
        except UnknownLevel as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise

    async def ResetLogLevel(self, request: agent_logger_pb2.ResetLogLevelRequest, context: Context) -> types.Logger:
        """Log as at the start."""
        await self._gate.check(context)
        return self._level.reset()


class _Reflected(reflection_grpc.ServerReflectionServicer, reflection_alpha_grpc.ServerReflectionServicer):
    """Either version of gRPC's reflection."""

    def __init__(self, gate: Admits, told: Reflection) -> None:
        self._gate, self._told = gate, told

    async def ServerReflectionInfo(self, requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        """Answer each question by itself."""
        async with self._gate.stream(context):
            async for request in requests:
                yield self._told.answer(request)


def add_reflection(server: grpc.aio.Server, gate: Admits, services: Iterable[ServiceDescriptor]) -> None:
    """Have a server tell of these services, and of itself."""
    told = reflections(services)
    for messages, add in (
        (reflection_pb2, reflection_grpc.add_ServerReflectionServicer_to_server),
        (reflection_alpha_pb2, reflection_alpha_grpc.add_ServerReflectionServicer_to_server),
    ):
        add(_Reflected(gate, told[messages.DESCRIPTOR.services_by_name["ServerReflection"]]), server)
