# SPDX-License-Identifier: Apache-2.0
"""SPIRE's Logger service: how much the broker logs, until the next start."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from firedoor.broker.errors import InvalidRequest
from firedoor.wire import logger_pb2, types

if TYPE_CHECKING:
    from firedoor.broker.rpc.gate import Call

# What has no level of its own here goes to the nearest that says as much.
_LEVELS: Final[Mapping[types.LogLevel.ValueType, int]] = MappingProxyType(
    {
        types.LogLevel.PANIC: logging.CRITICAL,
        types.LogLevel.FATAL: logging.CRITICAL,
        types.LogLevel.ERROR: logging.ERROR,
        types.LogLevel.WARN: logging.WARNING,
        types.LogLevel.INFO: logging.INFO,
        types.LogLevel.DEBUG: logging.DEBUG,
        types.LogLevel.TRACE: logging.DEBUG,
    }
)
_NAMES: Final[Mapping[int, types.LogLevel.ValueType]] = MappingProxyType(
    {
        logging.CRITICAL: types.LogLevel.FATAL,
        logging.ERROR: types.LogLevel.ERROR,
        logging.WARNING: types.LogLevel.WARN,
        logging.INFO: types.LogLevel.INFO,
        logging.DEBUG: types.LogLevel.DEBUG,
    }
)


class LoggerService:
    """`spire.api.server.logger.v1.Logger`, for the logger that `log.set_up` has set."""

    def __init__(self) -> None:
        self._logger = logging.getLogger("firedoor")
        self._launched = self._logger.getEffectiveLevel()
        self._launch_name = _NAMES.get(self._launched, types.LogLevel.INFO)
        # TRACE is shown as it was asked for, though we say no more than with DEBUG.
        self._name = self._launch_name

    async def GetLogger(self, _request: logger_pb2.GetLoggerRequest, _: Call) -> types.Logger:
        """Show the level now and the one at the start."""
        return types.Logger(current_level=self._name, launch_level=self._launch_name)

    async def SetLogLevel(self, request: logger_pb2.SetLogLevelRequest, call: Call) -> types.Logger:
        """Log more, or less."""
        level = _LEVELS.get(request.new_level)
        if level is None:
            unset = request.new_level == types.LogLevel.UNSPECIFIED
            raise InvalidRequest("newLevel value cannot be LogLevel_UNSPECIFIED" if unset else "unsupported log level")
        call.audit["new_level"] = types.LogLevel.Name(request.new_level)
        self._logger.setLevel(level)
        self._name = request.new_level
        return types.Logger(current_level=self._name, launch_level=self._launch_name)

    async def ResetLogLevel(self, _request: logger_pb2.ResetLogLevelRequest, _: Call) -> types.Logger:
        """Log as at the start."""
        self._logger.setLevel(self._launched)
        self._name = self._launch_name
        return types.Logger(current_level=self._name, launch_level=self._launch_name)
