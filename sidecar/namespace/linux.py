# SPDX-License-Identifier: Apache-2.0
"""The system calls of namespaces and privileges for which Python 3.11 has no function. All raise OSError."""

import ctypes
import os
import select
import signal

CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_SLAVE = 2, 4, 8, 16384, 1 << 19
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAPABILITY = "/proc/sys/kernel/cap_last_cap"

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def unshare(kinds: int) -> None:
    """Give this process (for PIDs: its next child) namespaces of its own."""
    _call("unshare", kinds)


def enter(handle: int, kind: int) -> None:
    """Enter a namespace."""
    _call("setns", handle, kind)


def new_network() -> int:
    """Make a network namespace and return a handle, which keeps it; this process stays where it is."""
    before = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        unshare(CLONE_NEWNET)
        try:
            return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            enter(before, CLONE_NEWNET)
    finally:
        os.close(before)


def own_proc() -> None:
    """Have a /proc of this PID namespace, that nobody else sees."""
    unshare(CLONE_NEWNS)
    _call("mount", b"none", b"/", None, _MS_REC | _MS_SLAVE, None)
    _call("mount", b"proc", b"/proc", b"proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, None)


def become(uid: int, gid: int, parent: int) -> None:
    """Become a user without groups, capabilities or a way to get any, who ends when the parent does.

    `parent` is the reading end of a pipe whose other end the parent alone holds.
    """
    with open(_LAST_CAPABILITY) as file:  # noqa: PTH123
        last = int(file.read())
    for number in range(last + 1):
        _call("prctl", _PR_CAPBSET_DROP, number, 0, 0, 0)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _call("capset", header, (ctypes.c_uint32 * 6)())
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # After the change of user, which takes it away (prctl(2)).
    _call("prctl", _PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    # It may have ended before that call. Its number says nothing in another PID namespace.
    if select.select([parent], [], [], 0)[0]:
        raise OSError("the parent has ended")
