# SPDX-License-Identifier: Apache-2.0
"""Who reads a sidecar's decision records: a pipe of the smallest size, whose reader may stop for a while."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from pathlib import Path
from typing import Any

# pipe(7): the least; what a stopped reader leaves unread must fill it soon.
PIPE_BYTES = 4096
_PIECE = 65536


class RecordReader:
    """Reads the records of one life of a sidecar. `resume` and `pause` as often as needed."""

    def __init__(self, fifo: Path) -> None:
        self.fifo = fifo
        os.mkfifo(fifo)
        # For reading and writing: a FIFO that has nobody at its other end yet can be opened, and never ends.
        self._handle = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
        fcntl.fcntl(self._handle, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._reading = threading.Event()
        self._reading.set()
        self._over = threading.Event()
        self.lines: list[bytes] = []
        self._half = b""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def pause(self) -> None:
        """Read nothing more."""
        self._reading.clear()

    def resume(self) -> None:
        """Read on."""
        self._reading.set()

    def _run(self) -> None:
        while not self._over.wait(0.005):
            if self._reading.is_set():
                self._read()
        self._read()
        os.close(self._handle)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._handle, _PIECE)
            except BlockingIOError:
                return
            *whole, self._half = (self._half + data).split(b"\n")
            self.lines += whole

    def close(self) -> None:
        """Read what is left, once nobody writes any more. A half line of a killed process counts for nothing."""
        self.resume()
        self._over.set()
        self._thread.join(30)

    def records(self, start: int = 0) -> list[dict[str, Any]]:
        """Return what was read, from a record on."""
        return [json.loads(line) for line in self.lines[start:]]
