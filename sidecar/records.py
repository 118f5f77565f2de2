# SPDX-License-Identifier: Apache-2.0
"""Keeps decision records: JSON lines in a file with rotation by size, or on stdout.

A write that fails (a full disk) is logged once and counted, and the records stay in memory until there is room or the
bound is reached. What is lost is counted: records + losses = decisions.
"""

import logging
import os
import sys
from collections import deque
from pathlib import Path
from typing import Protocol

log = logging.getLogger(__name__)

FILE_MODE = 0o640
# Records that wait for a file that cannot be written; beyond that the oldest are lost.
LARGEST_BACKLOG_BYTES = 8 * 1024 * 1024


class Output(Protocol):
    """Where lines end up."""

    def write(self, data: bytes) -> None:
        """Write whole lines. Raise OSError."""

    def close(self) -> None:
        """Let go of it."""


class Stdout:
    """Standard output, for whoever collects it."""

    def write(self, data: bytes) -> None:
        """Write whole lines."""
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    def close(self) -> None:
        """Do nothing: it is not ours."""


class RotatingFile:
    """A file that becomes `name.1` at a size, the older ones `name.2` and so on, up to `keep`."""

    def __init__(self, path: Path, rotate_bytes: int, keep: int) -> None:
        self._path, self._rotate_bytes, self._keep = path, rotate_bytes, keep
        self._handle = -1
        self._size = 0

    def write(self, data: bytes) -> None:
        """Write whole lines; a line is never in two files. Raise OSError."""
        if self._handle < 0:
            self._open()
        if self._size and self._size + len(data) > self._rotate_bytes:
            self._rotate()
        view = memoryview(data)
        start = self._size
        try:
            while view:
                written = os.write(self._handle, view)
                self._size += written
                view = view[written:]
        except OSError:
            # Half a line would make the next one unreadable.
            os.ftruncate(self._handle, start)
            self._size = start
            raise

    def close(self) -> None:
        """Close the file."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._handle = os.open(self._path, flags, FILE_MODE)
        self._size = os.fstat(self._handle).st_size
        self._end_line()

    def _end_line(self) -> None:
        """End the line that a killed process may have left half written."""
        if not self._size:
            return
        with self._path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                self._size += os.write(self._handle, b"\n")

    def _rotate(self) -> None:
        self.close()
        for number in range(self._keep - 1, 0, -1):
            older = self._numbered(number)
            if older.exists():
                older.replace(self._numbered(number + 1))
        self._path.replace(self._numbered(1))
        self._open()

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


class Sink:
    """Takes batches of records and gets them written."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._failing = False
        self.written = 0
        self.lost = 0

    def put(self, lines: bytes) -> None:
        """Write a batch of whole lines, after those that wait."""
        if lines:
            self._waiting.append(lines)
            self._bytes += len(lines)
        self.flush()

    def flush(self) -> None:
        """Try to write what waits."""
        try:
            while self._waiting:
                self._output.write(self._waiting[0])
                self.written += self._take()
        except OSError as error:
            if not self._failing:
                log.error("decision records cannot be written", extra={"reason": error.strerror or str(error)})
            self._failing = True
            while self._bytes > LARGEST_BACKLOG_BYTES:
                self.lost += self._take()
            return
        if self._failing:
            log.info("decision records are written again", extra={"lost": self.lost})
        self._failing = False

    def _take(self) -> int:
        lines = self._waiting.popleft()
        self._bytes -= len(lines)
        return lines.count(b"\n")

    def close(self) -> None:
        """Write what can be written and close."""
        self.flush()
        self._output.close()
