# SPDX-License-Identifier: Apache-2.0
"""The processes of the demo: started with a log file each, waited for with a deadline, ended by pid."""

import json
import os
import select
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from firedoor.cli.demo.errors import DemoError

START_SECONDS = 60.0
STOP_SECONDS = 5.0
ANSWER_SECONDS = 30.0
POLL_SECONDS = 0.02


class Child:
    """One process with its log."""

    def __init__(self, name: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.name = name
        self.process = process
        self.log = log
        self._buffer = b""

    def wait_for(self, ready: Callable[[], bool]) -> None:
        """Wait until `ready`; raise DemoError when the process ends first or takes too long."""
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if self.process.poll() is not None:
                raise DemoError(f"{self.name} ended with {self.process.returncode}: {self.last_words()} ({self.log})")
            if time.monotonic() > deadline:
                raise DemoError(
                    f"{self.name} is not ready after {START_SECONDS:.0f} s: {self.last_words()} ({self.log})"
                )
            time.sleep(POLL_SECONDS)

    def last_words(self) -> str:
        """Return the last line of the log."""
        text = self.log.read_text(errors="replace").strip() if self.log.exists() else ""
        return text.rpartition("\n")[2] or "it said nothing"

    def logged(self, text: str) -> int:
        """Count the log's lines that hold `text`."""
        return (
            sum(text in line for line in self.log.read_text(errors="replace").splitlines()) if self.log.exists() else 0
        )

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send one line and read one, as the client program does."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Read one JSON line, with a deadline."""
        assert self.process.stdout is not None
        descriptor, deadline = self.process.stdout.fileno(), time.monotonic() + ANSWER_SECONDS
        while b"\n" not in self._buffer:
            if not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise DemoError(f"{self.name} does not answer ({self.log})")
            data = os.read(descriptor, 65536)
            if not data:
                raise DemoError(f"{self.name} has ended: {self.last_words()} ({self.log})")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Children:
    """All processes of a run; leaving the block ends them, the last one first."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._all: list[Child] = []

    def __enter__(self) -> Self:
        """Make the folder of the logs."""
        self._logs.mkdir(exist_ok=True)
        return self

    def start(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        uid: int | None,
        home: Path,
        env: dict[str, str] | None = None,
        talks: bool = False,
    ) -> Child:
        """Start a process as `uid`; one that `talks` has pipes, the others write all to their log.

        Its own process group, so that Ctrl-C reaches us alone and we end it in order.
        """
        log = self._logs / f"{name}.log"
        user: dict[str, Any] = (
            {} if uid is None or os.geteuid() != 0 else {"user": uid, "group": uid, "extra_groups": []}
        )
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(home), "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1"}
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE if talks else sink,
                stderr=sink,
                cwd=home,
                env=environment | (env or {}),
                process_group=0,
                **user,
            )
        self._all.append(Child(name, process, log))
        return self._all[-1]

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all: the clients and programs at once, then the rest in reverse order."""
        for child in reversed(self._all):
            if child.process.poll() is None:
                child.process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for child in self._all:
            try:
                child.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
            for pipe in (child.process.stdin, child.process.stdout):
                if pipe is not None:
                    pipe.close()
