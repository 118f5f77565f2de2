# SPDX-License-Identifier: Apache-2.0
"""Other programs that run while a test looks at them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.waiting import until

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


@contextmanager
def another_node() -> Iterator[tuple[str, int]]:
    """Make a network namespace with a wire to it; yield our address on the wire, and a process that lives there."""
    if not shutil.which("ip") or not shutil.which("nsenter"):
        pytest.skip("needs the programs ip (iproute2) and nsenter (util-linux)")
    with subprocess.Popen(["unshare", "-n", SLEEP, "600"]) as there:
        end_here, end_there, inside = f"fd{there.pid}a", f"fd{there.pid}b", ("nsenter", "-t", str(there.pid), "-n")
        try:
            _until_apart(there.pid)
            for words in (
                ("ip", "link", "add", end_here, "type", "veth", "peer", "name", end_there, "netns", str(there.pid)),
                ("ip", "addr", "add", "198.51.100.1/30", "dev", end_here),
                ("ip", "link", "set", end_here, "up"),
                (*inside, "ip", "addr", "add", "198.51.100.2/30", "dev", end_there),
                (*inside, "ip", "link", "set", end_there, "up"),
            ):
                done = subprocess.run(words, capture_output=True, text=True, check=False)
                if done.returncode:
                    pytest.skip(f"no wire can be made here: {done.stderr.strip()}")
            yield "198.51.100.1", there.pid
        finally:
            subprocess.run(["ip", "link", "del", end_here], capture_output=True, check=False)
            there.kill()


def _until_apart(pid: int) -> None:
    """Wait until a process has a network namespace of its own."""
    own = Path("/proc/self/ns/net").readlink()
    until(lambda: Path(f"/proc/{pid}/ns/net").readlink() != own, "a network namespace of its own")
