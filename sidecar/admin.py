# SPDX-License-Identifier: Apache-2.0
"""The admin socket: status and health, for root and the sidecar's own user. Health is on the auth socket too."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import grpc
import grpc.aio

from firedoor.mtls import CallerUnknown, Front
from firedoor.sidecar.callers import Callers
from firedoor.sidecar.errors import SidecarError
from firedoor.sidecar.inspection import Admits
from firedoor.sidecar.seats import Seats
from firedoor.wire import admin_grpc, admin_pb2, agent_debug_pb2, health_grpc, health_pb2

Context = grpc.aio.ServicerContext[Any, Any]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
# How often a health watch looks for a change.
WATCH_SECONDS = 1.0


class Gate:
    """Lets root and our own user call, as often as they like."""

    def __init__(self) -> None:
        self._front: Front | None = None

    def serve_on(self, front: Front) -> None:
        """Say which front knows the callers."""
        self._front = front

    async def check(self, context: Context) -> None:
        """End the call unless the kernel says that it is root or our own user."""
        try:
            caller = self._front.caller(context.peer()) if self._front else None
        except CallerUnknown:
            caller = None
        if caller is None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "nobody knows who is calling")
        elif caller.uid not in (0, os.geteuid()) or not caller.alive():
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "only root and the sidecar's own user may call")

    @contextlib.asynccontextmanager
    async def stream(self, context: Context) -> AsyncIterator[None]:
        """Do the same for a stream."""
        await self.check(context)
        yield


class AnyProgram:
    """Lets any local program call, each caller with so many streams at once."""

    def __init__(self, callers: Callers, seats: Seats) -> None:
        self._callers, self._seats = callers, seats

    async def check(self, context: Context) -> None:
        """End the call unless it came through the front."""
        try:
            self._callers.connection(context.peer())
        except SidecarError as error:
            await context.abort(error.status, str(error))

    @contextlib.asynccontextmanager
    async def stream(self, context: Context) -> AsyncIterator[None]:
        """Do the same for a stream, and hold its place."""
        try:
            with self._seats.one_of(self._callers.connection(context.peer()).counted_as()):
                yield
        except SidecarError as error:
            await context.abort(error.status, str(error))


class Reporter(Protocol):
    """What the admin services ask of a running sidecar."""

    def status(self) -> admin_pb2.GetStatusResponse:
        """Say how things are."""

    def info(self) -> agent_debug_pb2.GetInfoResponse:
        """Say it in the words of SPIRE's agent."""


class SidecarAdmin(admin_grpc.SidecarAdminServicer):
    """Serves `firedoor sidecar status`."""

    def __init__(self, gate: Gate, reporter: Reporter) -> None:
        self._gate, self._reporter = gate, reporter

    async def GetStatus(self, request: admin_pb2.GetStatusRequest, context: Context) -> admin_pb2.GetStatusResponse:
        """Return the status."""
        await self._gate.check(context)
        return self._reporter.status()


class Health(health_grpc.HealthServicer):
    """Serves gRPC's health check: the whole server is one service, healthy when the sidecar is ready."""

    def __init__(self, gate: Admits, ready: Callable[[], bool]) -> None:
        self._gate, self._ready = gate, ready

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        """Return the health."""
        await self._gate.check(context)
        if request.service:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service; ask with an empty name")
        return self._response()

    async def List(self, request: health_pb2.HealthListRequest, context: Context) -> health_pb2.HealthListResponse:
        """Return the health of every service."""
        await self._gate.check(context)
        return health_pb2.HealthListResponse(statuses={"": self._response()})

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Stream the health, at once and at each change."""
        async with self._gate.stream(context):
            last = None
            while True:
                now = self._response()
                if request.service:
                    now = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
                if now != last:
                    yield now
                    last = now
                await asyncio.sleep(WATCH_SECONDS)

    def _response(self) -> health_pb2.HealthCheckResponse:
        return health_pb2.HealthCheckResponse(status=SERVING if self._ready() else NOT_SERVING)
