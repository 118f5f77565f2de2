# SPDX-License-Identifier: Apache-2.0
"""Programs that are measured: started, waited for, and asked what processor time and memory they took."""

import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 60.0


class Failed(Exception):
    """A program did not do what the measurement needs; the sentence says what it said itself."""


class Late(Failed):
    """Not within the time that it was given."""


def until(condition: Callable[[], T], what: str, seconds: float = PATIENCE, pause: float = 0.02) -> T:
    """Wait until a condition holds and return its value. Raise Late."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            raise Late(f"not within {seconds:.0f} s: {what}")
        time.sleep(pause)
    return found


def environment() -> dict[str, str]:
    """Return ours, in which Python keeps what it compiles, as where firedoor is installed."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


class Program:
    """One process. What it logs goes to a file; `ready` reads its stdout."""

    def __init__(self, log: Path, command: Sequence[str]) -> None:
        self.log = log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, bufsize=0, env=environment()
            )

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def ready(self, word: str = "ready") -> str:
        """Wait for the line on stdout that has this word. Raise Failed."""
        output = self._process.stdout
        assert output
        end, text = time.monotonic() + PATIENCE, b""
        while (left := end - time.monotonic()) > 0:
            if not select.select([output], [], [], left)[0] or not (data := os.read(output.fileno(), 65536)):
                break
            text += data
            for line in text.decode(errors="replace").splitlines():
                if word in line:
                    return line
        raise Failed(f"{self.log.name}: it never said {word!r}: {self.tail()}")

    def check(self) -> bool:
        """Return False while it runs. Raise Failed if it has ended."""
        if self._process.poll() is not None:
            raise Failed(f"{self.log.name}: it ended with code {self._process.returncode}: {self.tail()}")
        return False

    def tail(self) -> str:
        """Return the end of what it logged."""
        return self.log.read_text(errors="replace")[-2000:]

    def cpu_seconds(self) -> float:
        """Return the processor time that it took so far, user and system."""
        return cpu_seconds(self.pid)

    def resident_bytes(self) -> int:
        """Return its resident memory."""
        return resident_bytes(self.pid)

    def stop(self) -> None:
        """Ask it to end; after ten seconds make it."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process's threads from the scheduler, in nanoseconds exact.

    Threads that ended meanwhile are missing; the programs that are measured keep theirs.
    """
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found.group(1)) * 1024 if found else 0
