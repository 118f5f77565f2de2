# SPDX-License-Identifier: Apache-2.0
"""SPIRE's Logger service: how much the broker logs, until the next start."""

from __future__ import annotations

from typing import TYPE_CHECKING

from firedoor.broker.errors import InvalidRequest
from firedoor.wire import logger_pb2, types
from firedoor.wire.log_level import LogLevel, UnknownLevel

if TYPE_CHECKING:
    from firedoor.broker.rpc.gate import Call


class LoggerService:
    """`spire.api.server.logger.v1.Logger`, for the logger that `log.set_up` has set."""

    def __init__(self) -> None:
        self._level = LogLevel()

    async def GetLogger(self, _request: logger_pb2.GetLoggerRequest, _: Call) -> types.Logger:
        """Show the level now and the one at the start."""
        return self._level.show()

    async def SetLogLevel(self, request: logger_pb2.SetLogLevelRequest, call: Call) -> types.Logger:
        """Log more, or less."""
        try:
            shown = self._level.set(request.new_level)
        except UnknownLevel as error:
            raise InvalidRequest(str(error)) from None
        call.audit["new_level"] = types.LogLevel.Name(request.new_level)
        return shown

    async def ResetLogLevel(self, _request: logger_pb2.ResetLogLevelRequest, _: Call) -> types.Logger:
        """Log as at the start."""
        return self._level.reset()
