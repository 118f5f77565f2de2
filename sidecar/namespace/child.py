# SPDX-License-Identifier: Apache-2.0
"""What a forked child does between `fork` and `exec`."""

import errno
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from firedoor.sidecar.namespace import linux

# As shells say it.
NOT_RUN, NOT_FOUND = 126, 127
HIGHEST_DESCRIPTOR = 1 << 16


@dataclass(frozen=True, slots=True)
class Who:
    """As whom, and where: handles of a network namespace, and of a pipe that ends with the parent."""

    uid: int
    gid: int
    network: int
    parent: int

    def enter(self) -> None:
        """Enter the network namespace; what is done after it is done there."""
        linux.enter(self.network, linux.CLONE_NEWNET)

    def become(self) -> None:
        """Become this user for good, and end with the parent."""
        linux.become(self.uid, self.gid, self.parent)


def run_program(words: Sequence[str], environment: dict[str, str]) -> NoReturn:
    """Become the program, with signals and descriptors as a shell would hand them over."""
    code = NOT_RUN
    try:
        # Python ignores broken pipes and files that are too large.
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.closerange(3, HIGHEST_DESCRIPTOR)
        os.execve(_path(words[0], environment), list(words), environment)  # noqa: S606 - it is what was asked for
    except FileNotFoundError as error:
        code = NOT_FOUND
        failed(words[0], error)
    except OSError as error:
        failed(words[0], error)
    finally:
        os._exit(code)


def _path(name: str, environment: dict[str, str]) -> str:
    """Look a program up as shells do. Raise FileNotFoundError, whatever folders of PATH are closed to this user."""
    if "/" in name:
        return name
    found = shutil.which(name, path=environment.get("PATH", os.defpath))
    if found is None:
        raise FileNotFoundError(errno.ENOENT, "no such program in PATH")
    return found


def failed(what: str, error: OSError) -> None:
    """Say so, from a child that is about to end."""
    sys.stderr.write(f"firedoor run: {what}: {error.strerror or error}\n")
    sys.stderr.flush()


def start(words: Sequence[str], who: Who, environment: dict[str, str], stdout: int) -> int:
    """Fork a program of its own process group, that reads nothing and writes to `stdout`; return its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        # A terminal's Ctrl-C is for the command.
        os.setpgid(0, 0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(stdout, 1)
        who.enter()
        who.become()
        run_program(words, environment)
    except OSError as error:
        failed("the sidecar is not started", error)
    finally:
        os._exit(NOT_RUN)
