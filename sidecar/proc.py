# SPDX-License-Identifier: Apache-2.0
"""What `/proc/<pid>` says about a process (proc(5)): reading, apart from parsing.

The answers belong to whoever has the pid while they are read. Whoever asks holds the process by a handle of the kernel
and asks before and after whether it still lives (`Caller.alive`): then the pid cannot have meant anybody else.
"""

import hashlib
import os
import re
import stat
from collections import OrderedDict
from dataclasses import dataclass

# Larger than any interpreter or static binary seen; reading takes about 0.4 s a GiB.
LARGEST_EXECUTABLE = 1024 * 1024 * 1024
CHUNK = 1024 * 1024
# The kernel has one line a hierarchy, and in each a path of at most PATH_MAX.
LARGEST_CGROUP = 64 * 1024
CACHE_SIZE = 1024
DELETED = " (deleted)"

_IDS = re.compile(rb"^(Uid|Gid|Groups):([\t 0-9]*)$", re.M)


class ProcError(Exception):
    """A process that cannot be read: gone, of another namespace, or not ours to look at."""


@dataclass(frozen=True, slots=True)
class Ids:
    """Effective IDs and supplementary groups."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def parse_status(status: bytes) -> Ids:
    r"""Read `/proc/<pid>/status`. Raise ProcError.

    >>> parse_status(b"Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \n")
    Ids(uid=2, gid=6, groups=(9, 10))
    """
    # A process chooses its own name, and the kernel escapes newlines in it: no line of ours can be forged.
    found = {name: tuple(int(word) for word in value.split()) for name, value in _IDS.findall(status)}
    uids, gids = found.get(b"Uid", ()), found.get(b"Gid", ())
    if len(uids) != 4 or len(gids) != 4:
        raise ProcError("the process status cannot be read")
    # In each line: real, effective, saved, file system.
    return Ids(uids[1], gids[1], found.get(b"Groups", ()))


def parse_exe(link: str) -> str | None:
    """Return the path that `/proc/<pid>/exe` names, or None when that file is no longer there.

    >>> parse_exe("/usr/bin/app"), parse_exe("/usr/bin/app (deleted)"), parse_exe("memfd:x (deleted)")
    ('/usr/bin/app', None, None)
    """
    return None if link.endswith(DELETED) or not link.startswith("/") else link


def parse_start(stat_line: bytes) -> int:
    """Return when a process started, in clock ticks after the system did, from `/proc/<pid>/stat`. Raise ProcError.

    >>> parse_start(b"7 (a) b) S 1 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4711 2 3")
    4711
    """
    # A name may hold blanks and brackets; it ends at the last one (proc(5)).
    fields = stat_line.rpartition(b")")[2].split()
    try:
        return int(fields[19])
    except (IndexError, ValueError):
        raise ProcError("the start of the process cannot be read") from None


def read_start(pid: int) -> float:
    """Return when a process started, in seconds by CLOCK_BOOTTIME, rounded down to a tick. Raise ProcError."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            return parse_start(file.read(1 << 16)) / os.sysconf("SC_CLK_TCK")
    except OSError as error:
        raise ProcError(f"process {pid} cannot be read: {error.strerror}") from error


def read_cgroup(pid: int) -> bytes:
    """Return `/proc/<pid>/cgroup`, at most a byte more than pod_cgroup takes. Raise ProcError."""
    try:
        with open(f"/proc/{pid}/cgroup", "rb") as file:  # noqa: PTH123
            return file.read(LARGEST_CGROUP + 1)
    except OSError as error:
        raise ProcError(f"the cgroup of process {pid} cannot be read: {error.strerror}") from error


def overflow_ids() -> tuple[int, int]:
    """Return what the kernel shows for a user and a group that our user namespace has no name for."""
    return _overflow("uid"), _overflow("gid")


def _overflow(kind: str) -> int:
    try:
        with open(f"/proc/sys/kernel/overflow{kind}", "rb") as file:  # noqa: PTH123
            return int(file.read(32))
    except (OSError, ValueError):
        # The kernel's own default (highuid.h).
        return 65534


def read_ids(pid: int) -> Ids:
    """Return a process's IDs. Raise ProcError."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:  # noqa: PTH123
            return parse_status(file.read(1 << 16))
    except OSError as error:
        raise ProcError(f"process {pid} cannot be read: {error.strerror}") from error


def read_path(pid: int) -> str | None:
    """Return the path of a process's executable; None when it has none or we may not know."""
    try:
        return parse_exe(os.readlink(f"/proc/{pid}/exe"))  # noqa: PTH115
    except OSError:
        return None


class Hasher:
    """SHA-256 of executables, remembered while device, inode, size and both times of the file stay."""

    def __init__(self, largest: int = LARGEST_EXECUTABLE) -> None:
        self._largest = largest
        self._known: OrderedDict[tuple[int, ...], str] = OrderedDict()

    def sha256(self, pid: int) -> str | None:
        """Return the digest of what a process runs, in hex; None when it is too large or we may not read it."""
        try:
            # The link is followed by the kernel to the very file that runs, whatever is at that path now.
            handle = os.open(f"/proc/{pid}/exe", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return self._digest(handle)
        except OSError:
            return None
        finally:
            os.close(handle)

    def _digest(self, handle: int) -> str | None:
        before = self._key(handle)
        if before is None:
            return None
        if before in self._known:
            self._known.move_to_end(before)
            return self._known[before]
        digest, size = hashlib.sha256(), 0
        while chunk := os.read(handle, CHUNK):
            digest.update(chunk)
            size += len(chunk)
            if size > self._largest:
                return None
        if self._key(handle) != before:
            return None
        self._known[before] = digest.hexdigest()
        while len(self._known) > CACHE_SIZE:
            self._known.popitem(last=False)
        return self._known[before]

    def _key(self, handle: int) -> tuple[int, ...] | None:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_size > self._largest:
            return None
        return (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size)
