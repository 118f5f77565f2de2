# SPDX-License-Identifier: Apache-2.0
"""gRPC's health check, on the admin socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Final

from firedoor.broker.errors import NotFound
from firedoor.wire import health_pb2

if TYPE_CHECKING:
    from firedoor.broker.rpc.gate import Call

_Response = health_pb2.HealthCheckResponse
_SECONDS: Final = 1.0


class HealthService:
    """`grpc.health.v1.Health`. The broker is one service, the one with the empty name."""

    def __init__(self, missing: Callable[[], list[str]]) -> None:
        self._missing = missing

    async def Check(self, request: health_pb2.HealthCheckRequest, _: Call) -> _Response:
        """Say whether the broker serves."""
        if request.service:
            raise NotFound("unknown service")
        return _Response(status=self._status())

    async def List(self, _request: health_pb2.HealthListRequest, _: Call) -> health_pb2.HealthListResponse:
        """Say of every service whether it serves."""
        return health_pb2.HealthListResponse(statuses={"": _Response(status=self._status())})

    async def Watch(self, request: health_pb2.HealthCheckRequest, _: Call) -> AsyncIterator[_Response]:
        """Say whether the broker serves, at once and whenever that changes."""
        told = None
        while True:
            status = _Response.SERVICE_UNKNOWN if request.service else self._status()
            if status != told:
                yield _Response(status=status)
                told = status
            await asyncio.sleep(_SECONDS)

    def _status(self) -> _Response.ServingStatus.ValueType:
        return _Response.NOT_SERVING if self._missing() else _Response.SERVING
