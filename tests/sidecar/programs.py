# SPDX-License-Identifier: Apache-2.0
"""Other programs that run while a test looks at them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SLEEP = str(Path(shutil.which("sleep") or "/bin/sleep").resolve())


@contextmanager
def sleeper(**identity: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program that does nothing, as another user where told so; it is gone afterwards."""
    process = subprocess.Popen([SLEEP, "600"], **{"cwd": "/", **identity})  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def end(process: subprocess.Popen[bytes]) -> None:
    """End a program and let its number be used again."""
    process.kill()
    process.wait()


def become_zombie(process: subprocess.Popen[bytes]) -> None:
    """End a program and leave its number to it."""
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def descriptors() -> int:
    """Return how many files this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@contextmanager
def talker(script: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Python script that waits for lines; it is gone afterwards."""
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def tell(process: subprocess.Popen[bytes]) -> bytes:
    """Send a line, and return the line that comes back."""
    assert process.stdin
    assert process.stdout
    process.stdin.write(b"\n")
    process.stdin.flush()
    return process.stdout.readline()
