# SPDX-License-Identifier: Apache-2.0
"""gRPC's health check, on the admin socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Final

from firedoor.broker.condition import PARTS, Condition
from firedoor.broker.errors import NotFound
from firedoor.wire import health_pb2

if TYPE_CHECKING:
    from firedoor.broker.rpc.gate import Call

_Response = health_pb2.HealthCheckResponse
_SECONDS: Final = 1.0
# The broker, and its parts.
_NAMES: Final = ("", *PARTS)


class HealthService:
    """`grpc.health.v1.Health`. The empty name is the broker; `database` and `key-manager` may be away."""

    def __init__(self, condition: Callable[[], Condition]) -> None:
        self._condition = condition

    async def Check(self, request: health_pb2.HealthCheckRequest, _: Call) -> _Response:
        """Say whether the broker serves, or a part of it is there."""
        if request.service not in _NAMES:
            raise NotFound("unknown service")
        return _Response(status=self._status(request.service))

    async def List(self, _request: health_pb2.HealthListRequest, _: Call) -> health_pb2.HealthListResponse:
        """Say of the broker and of every part whether it serves."""
        return health_pb2.HealthListResponse(statuses={name: _Response(status=self._status(name)) for name in _NAMES})

    async def Watch(self, request: health_pb2.HealthCheckRequest, _: Call) -> AsyncIterator[_Response]:
        """Say whether the broker serves, or a part is there, at once and whenever that changes."""
        told = None
        while True:
            status = self._status(request.service)
            if status != told:
                yield _Response(status=status)
                told = status
            await asyncio.sleep(_SECONDS)

    def _status(self, name: str) -> _Response.ServingStatus.ValueType:
        if name not in _NAMES:
            return _Response.SERVICE_UNKNOWN
        condition = self._condition()
        serves = name not in condition.degraded if name else condition.ready
        return _Response.SERVING if serves else _Response.NOT_SERVING
