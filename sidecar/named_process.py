# SPDX-License-Identifier: Apache-2.0
"""A process that another program names by its PID.

A number means whoever has it now. So the process is held by a handle of the kernel (pidfd_open(2)) from the moment on
that it is looked up, is asked before and after it is looked at whether it still lives, and is refused when it started
after the question came: then the number belonged to another one when it was asked for.
"""

import asyncio
import errno
import os
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from firedoor.sidecar import proc
from firedoor.sidecar.callers import Callers
from firedoor.sidecar.errors import CallerRefused, NotReady, ReferenceInvalid, WorkloadGone
from firedoor.sidecar.streams import Selectors

_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def question_time() -> float:
    """Return the time by the clock that processes' starts are told by: to be taken when a request comes."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class _Seen:
    """A process as it is now, for the attestor."""

    pid: int
    uid: int
    gid: int
    handle: int

    def alive(self) -> bool:
        return _alive(self.handle)


class NamedProcess:
    """The process; `ended` is set when it has ended. Made by `hold`."""

    # Its handle tells when it ends, and what it is now is asked at every change of ours.
    recheck_seconds: float | None = None

    def __init__(self, pid: int, handle: int, callers: Callers) -> None:
        self._pid, self._handle, self._callers = pid, handle, callers
        self.ended = asyncio.Event()

    def watch(self) -> None:
        """Have `ended` set when it ends."""
        asyncio.get_running_loop().add_reader(self._handle, self._on_end)

    def _on_end(self) -> None:
        # The handle stays readable.
        asyncio.get_running_loop().remove_reader(self._handle)
        self.ended.set()

    def check_alive(self) -> None:
        """Raise WorkloadGone when it has ended."""
        if not _alive(self._handle):
            raise _gone(self._pid)

    async def confirm(self) -> None:
        """Raise WorkloadGone when it has ended."""
        self.check_alive()

    async def attest(self) -> Selectors:
        """Return its selectors as they are now: it may have changed its user or program since. Raise SidecarError."""
        try:
            ids = proc.read_ids(self._pid)
            _check_tellable(ids)
            return await self._callers.attest_process(_Seen(self._pid, ids.uid, ids.gid, self._handle))
        except (proc.ProcError, CallerRefused) as error:
            self.check_alive()
            raise NotReady(f"process {self._pid} cannot be told for sure now: {error}") from error


@contextmanager
def hold(pid: int, asked_at: float, callers: Callers) -> Iterator[NamedProcess]:
    """Look a process up and hold it. Raise ReferenceInvalid, WorkloadGone or NotReady."""
    if pid <= 0:
        raise ReferenceInvalid("a PID is a positive number")
    handle = _open(pid)
    try:
        _check_start(pid, handle, asked_at)
        made = NamedProcess(pid, handle, callers)
        made.watch()
        yield made
    finally:
        asyncio.get_running_loop().remove_reader(handle)
        os.close(handle)


def _open(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in _OUT_OF_DESCRIPTORS:
            raise NotReady(f"process {pid} cannot be held: {error.strerror}") from error
        # Also the number of a thread, which is no process.
        raise _gone(pid) from error


def _check_start(pid: int, handle: int, asked_at: float) -> None:
    try:
        start = proc.read_start(pid)
    except proc.ProcError as error:
        raise _gone(pid) from error
    if start > asked_at or not _alive(handle):
        raise _gone(pid)


def _check_tellable(ids: proc.Ids) -> None:
    """Refuse a process of a user that our user namespace has no name for: all of those look like one."""
    uid, gid = proc.overflow_ids()
    if ids.uid == uid or ids.gid == gid:
        raise CallerRefused("its user has no name in the user namespace of this sidecar")


def _alive(handle: int) -> bool:
    waiting = select.poll()
    waiting.register(handle, select.POLLIN)
    return not waiting.poll(0)


def _gone(pid: int) -> WorkloadGone:
    return WorkloadGone(f"there is no process {pid}")
