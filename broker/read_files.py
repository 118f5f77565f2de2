# SPDX-License-Identifier: Apache-2.0
"""Files that are read again when they change. Files that are wrong change nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, Generic, TypeVar

from firedoor.broker.errors import ConfigError
from firedoor.broker.files import stamp

T = TypeVar("T")
# One byte more than the readers take, so that they say so.
MAX_FILE: Final = 4 * 1024 * 1024 + 1


class ReadFiles(Generic[T]):
    """What a function makes of some files. It raises ConfigError, here when the files are first read too."""

    def __init__(self, paths: Sequence[Path], read: Callable[[Sequence[Path]], T], what: str, log: logging.Logger):
        self._paths, self._read, self._what, self._log = paths, read, what, log
        self._seen = _seen(paths)
        self.value = read(paths)

    async def poll(self) -> None:
        """Read the files again if one changed. Cheap to ask for every second."""
        seen = await asyncio.to_thread(_seen, self._paths)
        if seen != self._seen:
            self._seen = seen
            await self.reread()

    async def reread(self) -> None:
        """Read the files now."""
        try:
            self.value = await asyncio.to_thread(self._read, self._paths)
        except ConfigError as error:
            self._log.error("the %s stay as they were: %s", self._what, error)
        else:
            self._log.info("the %s were read again", self._what)


def _seen(paths: Iterable[Path]) -> tuple[object, ...]:
    """Return what differs when a file was edited or replaced."""
    return tuple(stamp(path) for path in paths)


def read_capped(setting: str, path: Path) -> bytes:
    """Read a file that a setting names, up to MAX_FILE. Raise ConfigError."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE)
    except OSError as error:
        raise ConfigError(f"{setting}: {path} cannot be read: {error.strerror}") from error
