# SPDX-License-Identifier: Apache-2.0
"""Gets decision records written: JSON lines in a file with rotation by size, or on a stream such as stdout.

A thread of its own takes them from the core. While it cannot write (a full disk, a reader that stalls or is gone) it
takes no more: they wait in the core's ring, and what finds no room there is counted. Nothing else in the process waits.
At every moment decisions = written + waiting + lost.
"""

import logging
import os
import select
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

log = logging.getLogger(__name__)

FILE_MODE = 0o640
RECORDS_AT_ONCE = 1024
# After a batch, what comes next gathers for so long: under load one wake-up then takes hundreds of records, where one
# for each costs a third of what carrying the request does. The first after a quiet time is taken at once. At 100,000
# records a second 1,000 gather, a fiftieth of the core's ring.
GATHER_SECONDS = 0.01
# An output that failed is tried again this often.
RETRY_SECONDS = 1.0
# What is not taken for so long is worth a line in the log.
STALLED_SECONDS = 2.0
# As much as fits when a pipe polls writable (pipe(7), PIPE_BUF), so that no write ever blocks.
PIECE_BYTES = select.PIPE_BUF

# Waits until a descriptor can be written to. Raise OSError when that comes too late.
Writable = Callable[[int], None]


class Source(Protocol):
    """Where records come from: the core."""

    def record_fd(self) -> int:
        """Return a descriptor that is readable while records wait."""

    def drain_records(self, limit: int) -> bytes:
        """Return up to so many, a line each."""

    def stats(self) -> dict[str, int]:
        """Return counters, `records_lost` among them."""


class NotWrittenError(Exception):
    """An output took only the first `kept` bytes, which are whole lines."""

    def __init__(self, kept: int, cause: OSError) -> None:
        super().__init__(cause.strerror or str(cause))
        self.kept = kept


class Output(Protocol):
    """Where lines end up."""

    def write(self, lines: bytes, writable: Writable) -> None:
        """Write whole lines. Raise NotWrittenError."""

    def close(self) -> None:
        """Let go of it."""


def output_for(path: Path | None, rotate_bytes: int, keep: int) -> Output:
    """Return the output that a configuration names: no path is stdout; what is no regular file is a stream."""
    if path is None:
        return Stream(1)
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except OSError:
        regular = True
    return RotatingFile(path, rotate_bytes, keep) if regular else Stream(path)


class Stream:
    """A pipe, a socket or a terminal: stdout, whose reader somebody else starts, or a path such as a FIFO's."""

    def __init__(self, target: int | Path) -> None:
        # What we open ourselves, and open anew after an error.
        self._path = None if isinstance(target, int) else target
        self._handle = target if isinstance(target, int) else -1

    def write(self, lines: bytes, writable: Writable) -> None:
        """Write whole lines; a line that was cut by an error counts as not written. Raise NotWrittenError."""
        done = 0
        try:
            self._open()
            while done < len(lines):
                writable(self._handle)
                done += os.write(self._handle, lines[done : done + PIECE_BYTES])
        except OSError as error:
            self.close()
            raise NotWrittenError(lines.rfind(b"\n", 0, done) + 1, error) from error

    def close(self) -> None:
        """Close what we opened."""
        if self._path is not None and self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _open(self) -> None:
        if self._path is not None and self._handle < 0:
            # Without O_NONBLOCK a FIFO that nobody reads would hold us here.
            self._handle = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)


class RotatingFile:
    """A file that becomes `name.1` at a size, the older ones `name.2` and so on, up to `keep`."""

    def __init__(self, path: Path, rotate_bytes: int, keep: int) -> None:
        self._path, self._rotate_bytes, self._keep = path, rotate_bytes, keep
        self._handle = -1
        self._size = 0

    def write(self, lines: bytes, writable: Writable) -> None:
        """Write whole lines, all or none; a line is never in two files. Raise NotWrittenError."""
        try:
            self._write(lines)
        except OSError as error:
            raise NotWrittenError(0, error) from error

    def _write(self, lines: bytes) -> None:
        if self._handle < 0:
            self._open()
        if self._size and self._size + len(lines) > self._rotate_bytes:
            self._rotate()
        view = memoryview(lines)
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
    """The thread between a source and an output."""

    def __init__(self, source: Source, output: Output) -> None:
        self._source, self._output = source, output
        self._thread = threading.Thread(target=self._run, name="records", daemon=True)
        self._stopped = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        # When writing ends; None: not yet known.
        self._deadline: float | None = None
        self._failing = False
        # Taken from the source and not written yet.
        self._batch = b""
        # Whether the last batch took all that waited.
        self._gather = False
        self.written = 0

    @property
    def held(self) -> int:
        """How many records are taken and not written yet."""
        return self._batch.count(b"\n")

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Write what waits, for so long at most, and end."""
        if not self._thread.is_alive():
            return
        self._deadline = time.monotonic() + seconds
        os.eventfd_write(self._stopped, 1)
        self._thread.join(seconds + STALLED_SECONDS)
        if not self._thread.is_alive():
            os.close(self._stopped)
        left = self.held + self._source.stats()["records_waiting"]
        if left:
            log.error("decision records are lost: they could not be written before the end", extra={"count": left})

    def _run(self) -> None:
        while not self._is_over() and self._take():
            while self._batch and not self._is_over():
                self._write()
        self._output.close()

    def _take(self) -> bool:
        """Take a batch; say whether there is more to do."""
        if self._deadline is None:
            if self._gather:
                self._wait(-1, 0, GATHER_SECONDS)
            self._wait(self._source.record_fd(), select.POLLIN, None)
        self._batch = self._source.drain_records(RECORDS_AT_ONCE)
        self._gather = self.held < RECORDS_AT_ONCE
        return bool(self._batch) or self._deadline is None

    def _write(self) -> None:
        try:
            self._output.write(self._batch, self._writable)
        except NotWrittenError as error:
            self._wrote(error.kept)
            self._fail(str(error))
            self._wait(-1, 0, RETRY_SECONDS)
            return
        self._wrote(len(self._batch))
        if self._failing:
            self._failing = False
            log.info("decision records are written again", extra={"lost": self._source.stats()["records_lost"]})

    def _wrote(self, size: int) -> None:
        self.written += self._batch.count(b"\n", 0, size)
        self._batch = self._batch[size:]

    def _fail(self, reason: str) -> None:
        if not self._failing:
            log.error("decision records cannot be written", extra={"reason": reason})
        self._failing = True

    def _writable(self, fd: int) -> None:
        """Wait until an output takes something. Raise OSError when writing must end before."""
        while not self._wait(fd, select.POLLOUT, STALLED_SECONDS):
            if self._is_over():
                raise TimeoutError("nobody reads them")
            self._fail("nobody reads them")

    def _wait(self, fd: int, event: int, seconds: float | None) -> bool:
        """Wait for an event, and say whether it came; less long than asked once the end is known."""
        poll = select.poll()
        if fd >= 0:
            poll.register(fd, event)
        if self._deadline is None:
            poll.register(self._stopped, select.POLLIN)
        else:
            left = max(0.0, self._deadline - time.monotonic())
            seconds = left if seconds is None else min(left, seconds)
        found = poll.poll(None if seconds is None else seconds * 1000)
        # An error counts: the write says which.
        return any(one == fd for one, _ in found)

    def _is_over(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline
