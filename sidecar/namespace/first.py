# SPDX-License-Identifier: Apache-2.0
"""The first process of the command's PID namespace: starts the command, hands signals on, and ends with it.

When it ends, the kernel ends whatever else is in the namespace: nothing that the command started is left behind. It
runs as the command's user, and has no more than the command has.
"""

import os
import signal
from collections.abc import Sequence
from typing import NoReturn

from firedoor.sidecar.namespace import linux
from firedoor.sidecar.namespace.child import Who, failed, run_program

# What is handed on to the command.
HANDED_ON = frozenset(
    {
        signal.SIGTERM,
        signal.SIGINT,
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGWINCH,
        signal.SIGCONT,
    }
)
SIGNALS = HANDED_ON | {signal.SIGCHLD}
# As shells say it.
BY_SIGNAL, NOT_RUN = 128, 126
LOOK_AGAIN_SECONDS = 1.0


def start(command: Sequence[str], who: Who, environment: dict[str, str]) -> int:
    """Fork it and run the command as somebody; return its pid. The caller has blocked `SIGNALS` and has one thread."""
    before = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        linux.unshare(linux.CLONE_NEWPID)
        try:
            pid = os.fork()
            if pid == 0:
                _first(command, who, environment)
        finally:
            linux.enter(before, linux.CLONE_NEWPID)
    finally:
        os.close(before)
    return pid


def _first(command: Sequence[str], who: Who, environment: dict[str, str]) -> NoReturn:
    code = NOT_RUN
    try:
        who.enter()
        linux.own_proc()
        who.become()
        child = os.fork()
        if child == 0:
            run_program(command, environment)
        code = _wait(child)
    except OSError as error:
        failed("the command is not started", error)
    finally:
        os._exit(code)


def _wait(child: int) -> int:
    """Hand signals on until the child has ended; return its exit code, 128 and the signal if one ended it."""
    while True:
        ended = reap()
        if child in ended:
            return exit_code(ended[child])
        found = signal.sigtimedwait(SIGNALS, LOOK_AGAIN_SECONDS)
        if found is not None and is_to_hand_on(found):
            os.kill(child, found.si_signo)


def is_to_hand_on(found: signal.struct_siginfo) -> bool:
    """Say whether a signal was sent by somebody; what a terminal sends (SI_KERNEL), the command has from it too."""
    return found.si_signo in HANDED_ON and found.si_code <= 0


def reap() -> dict[int, int]:
    """Return who has ended, with their wait statuses."""
    found: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        found[pid] = status


def exit_code(status: int) -> int:
    """Return a wait status as shells say it."""
    code = os.waitstatus_to_exitcode(status)
    return BY_SIGNAL - code if code < 0 else code
