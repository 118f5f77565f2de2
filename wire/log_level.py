# SPDX-License-Identifier: Apache-2.0
"""How much a program of ours logs, in the words of SPIRE's Logger services."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from firedoor.wire import spire_types as types

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


class UnknownLevel(Exception):
    """The level is none. The sentence is SPIRE's."""


class LogLevel:
    """The level of the logger `firedoor`, from now until the process ends."""

    def __init__(self) -> None:
        self._logger = logging.getLogger("firedoor")
        self._launched = self._logger.getEffectiveLevel()
        self._launch_name = _NAMES.get(self._launched, types.LogLevel.INFO)
        # TRACE is shown as it was asked for, though we say no more than with DEBUG.
        self._name = self._launch_name

    def show(self) -> types.Logger:
        """Show the level now and the one at the start."""
        return types.Logger(current_level=self._name, launch_level=self._launch_name)

    def set(self, name: types.LogLevel.ValueType) -> types.Logger:
        """Log more, or less. Raise UnknownLevel."""
        level = _LEVELS.get(name)
        if level is None:
            unset = name == types.LogLevel.UNSPECIFIED
            raise UnknownLevel("newLevel value cannot be LogLevel_UNSPECIFIED" if unset else "unsupported log level")
        self._logger.setLevel(level)
        self._name = name
        return self.show()

    def reset(self) -> types.Logger:
        """Log as at the start."""
        self._logger.setLevel(self._launched)
        self._name = self._launch_name
        return self.show()
