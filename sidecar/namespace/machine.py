# SPDX-License-Identifier: Apache-2.0
"""What `firedoor run` changes of the machine: a wire, a table, and a folder that says so. All of it goes again."""

import fcntl
import ipaddress
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from firedoor.sidecar.capture import nft
from firedoor.sidecar.capture.nft import Nft
from firedoor.sidecar.errors import CaptureFailed
from firedoor.sidecar.namespace import linux, plan
from firedoor.sidecar.namespace.settings import Run
from firedoor.sidecar.proc import ProcError, read_start

FOLDER = Path("/run/firedoor/run")
PORTS = Path("/run/firedoor/run-ports")
SECONDS = 30
GONE_SECONDS = 10.0
# TCP_LISTEN of the kernel's tcp_states.h.
LISTEN = "0A"


class Place:
    """The folder of one run, held by a lock while it lives."""

    def __init__(self, run: Run) -> None:
        """Take the lock. Raise CaptureFailed when another run of that name has it."""
        self._run = run
        self.folder = FOLDER / run.name
        self.sockets = self.folder / "sockets"
        self._state = self.folder / "state.json"
        self._lock_file = FOLDER / f"{run.name}.lock"
        self._ports: dict[Path, int] = {}
        try:
            FOLDER.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self._lock_file)
            self.folder.mkdir(exist_ok=True)
        except BlockingIOError:
            raise CaptureFailed(f"another `firedoor run` has the name {run.name}; give this one another") from None
        except OSError as error:
            raise CaptureFailed(f"{self.folder}: {error.strerror}") from error

    def take(self, ports: Iterable[int]) -> None:
        """Keep ports of this machine from other runs: the table that was written last would have them.

        Raise CaptureFailed when another run has one.
        """
        machine = Path("/proc/self/ns/net").stat().st_ino
        try:
            PORTS.mkdir(parents=True, exist_ok=True)
            for port in ports:
                path = PORTS / f"{port}-{machine}"
                self._ports[path] = _locked(path)
        except BlockingIOError:
            raise CaptureFailed(
                f"another `firedoor run` publishes port {port}: leave it out of `run.publish` of one of them"
            ) from None
        except OSError as error:
            raise CaptureFailed(f"{PORTS}: {error.strerror}") from error

    def write(self, pids: Iterable[int]) -> None:
        """Say whom to end should this process be killed."""
        state = {str(pid): read_start(pid) for pid in pids}
        new = self._state.with_suffix(".new")
        new.write_text(json.dumps(state))
        new.replace(self._state)

    def leftovers(self) -> list[str]:
        """End and remove what a run that was killed has left; return it. Raise CaptureFailed."""
        if not self._state.exists():
            if _has_interface(self._run):
                raise CaptureFailed(f"there is an interface {self._run.interface}, and none of ours: take another name")
            return ["rules"] if _remove_table(self._run) else []
        found = [f"process {pid}" for pid in self._end_processes()]
        found += ["rules"] * _remove_table(self._run) + ["an interface"] * _remove_interface(self._run)
        self._state.unlink()
        return found or ["a folder"]

    def _end_processes(self) -> list[int]:
        try:
            state: dict[str, float] = json.loads(self._state.read_text())
        except (OSError, ValueError):
            return []
        return [int(pid) for pid, started in state.items() if _end(int(pid), started)]

    def remove(self) -> None:
        """Remove all, and give the lock back."""
        _remove_interface(self._run)
        _remove_table(self._run)
        shutil.rmtree(self.folder, ignore_errors=True)
        for path, handle in [*self._ports.items(), (self._lock_file, self._lock)]:
            path.unlink(missing_ok=True)
            os.close(handle)


def _locked(path: Path) -> int:
    """Return a handle that holds the lock. Raise BlockingIOError when somebody else has it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever had it may have removed the file meanwhile: a lock on that keeps nobody out.
            if path.exists() and path.stat().st_ino == os.fstat(handle).st_ino:
                return handle
        except OSError:
            os.close(handle)
            raise
        os.close(handle)


def _end(pid: int, started: float) -> bool:
    """Kill a process if it is the one that was meant, and wait until it is gone."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if read_start(pid) != started:
            return False
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        end = time.monotonic() + GONE_SECONDS
        while time.monotonic() < end and Path(f"/proc/{pid}").exists():
            time.sleep(0.05)
    except (OSError, ProcError):
        return False
    finally:
        os.close(handle)
    return True


def check_forwarding(run: Run) -> None:
    """Turn forwarding on where the configuration lets us. Raise CaptureFailed when it is off and stays so."""
    for network in run.networks:
        name = plan.FORWARDING[network.version]
        path = Path("/proc/sys") / name
        try:
            if path.read_text().strip() != "0":
                continue
            if run.set_forwarding:
                path.write_text("1")
                continue
        except OSError as error:
            raise CaptureFailed(f"{path}: {error.strerror}") from error
        raise CaptureFailed(
            f"this machine forwards no IPv{network.version}, and the sidecar would reach nobody: "
            f"`sysctl -w {name.replace('/', '.')}=1`, or `run.forwarding: set`"
        )


def check_free(ports: Sequence[int]) -> None:
    """Raise CaptureFailed when a program of this machine, such as sshd, listens at a port that is to lead elsewhere."""
    taken: set[int] = set()
    for name in ("tcp", "tcp6"):
        with suppress(FileNotFoundError):
            taken.update(listening(Path(f"/proc/self/net/{name}").read_text()))
    if both := sorted(taken.intersection(ports)):
        raise CaptureFailed(
            f"this machine has a program at port {both[0]}, which would not be reached any more: "
            "end it, or leave the port out of `run.publish`"
        )


def listening(table: str) -> Iterator[int]:
    """Yield the ports at which others reach somebody, from `/proc/net/tcp` or `tcp6` (proc(5))."""
    for line in table.splitlines()[1:]:
        _, local, _, state, *_ = line.split()
        address, _, port = local.partition(":")
        # Each word of the address is printed as a number of this machine's.
        words = (int(address[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(address), 8))
        found = ipaddress.ip_address(b"".join(words))
        if isinstance(found, ipaddress.IPv6Address):
            found = found.ipv4_mapped or found
        if state == LISTEN and not found.is_loopback:
            yield int(port, 16)


def connect(run: Run, network: int) -> None:
    """Lay the wire between the machine and a network namespace. Raise CaptureFailed."""
    for words in plan.wire(run, f"/proc/{os.getpid()}/fd/{network}"):
        _ip(words, None)
    for words in plan.inside(run):
        _ip(words, lambda: linux.enter(network, linux.CLONE_NEWNET))


def publish(run: Run, ports: Sequence[int]) -> None:
    """Write the machine's table. Raise CaptureFailed."""
    Nft().run(plan.outside(run, ports))


def _remove_table(run: Run) -> bool:
    table = Nft()
    there = table.has(plan.FAMILY, plan.table(run))
    if there:
        table.run(plan.removing(run))
    return there


def _has_interface(run: Run) -> bool:
    return Path("/proc/net/dev").read_text().find(f" {run.interface}:") >= 0


def _remove_interface(run: Run) -> bool:
    # It goes by itself when the last process of the namespace is gone, a moment later.
    there = _has_interface(run)
    if there:
        with suppress(CaptureFailed):
            _ip(["link", "delete", run.interface], None)
    return there


def _ip(words: Sequence[str], enter: Callable[[], None] | None) -> None:
    try:
        done = subprocess.run(  # noqa: S603 - words of numbers, addresses and a checked name
            [nft.tool("ip", "iproute2"), *words],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env={"PATH": nft.PATH, "LC_ALL": "C"},
            # This process has one thread.
            preexec_fn=enter,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise CaptureFailed(f"ip {' '.join(words)}: {error}") from error
    if done.returncode:
        raise CaptureFailed(f"ip {' '.join(words)}: {done.stderr.strip()}")
