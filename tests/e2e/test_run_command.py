# SPDX-License-Identifier: Apache-2.0
"""The command of `firedoor run`: who it is, what it can become, and what it shares with whoever started it."""

import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path

import pytest

from tests import netns
from tests.e2e.running import APP_UID, SIDECAR_UID, Machine, base_python, machine_with_broker
from tests.waiting import PATIENCE, until

MISSING = netns.missing()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

NET_ADMIN = 1 << 12
# VFS_CAP_REVISION_2, and VFS_CAP_FLAGS_EFFECTIVE (linux/capability.h).
REVISION_2, EFFECTIVE = 0x02000000, 1

TALKER = """\
import os, signal, sys
count = 0
def caught(*_):
    global count
    count += 1
    print("caught", count, flush=True)
signal.signal(signal.SIGINT, caught)
print("terminals", os.isatty(0), os.isatty(1), flush=True)
print("told", sys.stdin.readline(), flush=True)
sys.exit(4)
"""


@pytest.fixture(scope="module")
def shared() -> Iterator[Machine]:
    with machine_with_broker() as found:
        yield found


@pytest.fixture
def machine(shared: Machine) -> Iterator[Machine]:
    shared.restore()
    yield shared
    shared.end_runs()
    shared.nothing_is_left()


def said(machine: Machine, *command: str) -> str:
    """Run a command to its end, and return what it has printed."""
    process = machine.start(*command)
    found, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, machine.log
    return str(found)


def test_what_the_command_is(machine: Machine) -> None:
    script = "import os; print(open('/proc/self/status').read()); print('groups', os.getgroups(), 'pid', os.getpid())"
    found = said(machine, base_python(), "-c", script)
    assert re.search(rf"^Uid:\t{APP_UID}\t{APP_UID}\t{APP_UID}\t{APP_UID}$", found, re.M)
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert re.search(rf"^{name}:\t0{{16}}$", found, re.M)
    assert "NoNewPrivs:\t1" in found
    assert "groups [] pid 2" in found


def test_a_set_user_id_program_stays_the_commands_user(machine: Machine) -> None:
    program = copy_of(machine, "id")
    for owner in (0, SIDECAR_UID):
        os.chown(program, owner, owner)
        program.chmod(0o6755)
        assert said(machine, str(program), "-u").strip() == str(APP_UID)
        assert said(machine, str(program), "-g").strip() == str(APP_UID)


def test_capabilities_of_a_file_give_nothing(machine: Machine) -> None:
    program = copy_of(machine, "cat")
    give(program, REVISION_2)
    assert re.search(r"^CapEff:\t0{16}$", said(machine, str(program), "/proc/self/status"), re.M)
    # Programs that count on theirs are not started without them (capabilities(7)).
    give(program, REVISION_2 | EFFECTIVE)
    assert machine.start(str(program), "/proc/self/status").wait(PATIENCE) == 126


def copy_of(machine: Machine, name: str) -> Path:
    found = shutil.which(name)
    assert found
    return shutil.copy(found, machine.folder / name)


def give(program: Path, magic: int) -> None:
    """Give a file CAP_NET_ADMIN."""
    os.setxattr(program, "security.capability", struct.pack("<5I", magic, NET_ADMIN, 0, 0, 0))


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("sh", "-c", "exit 7"), 7),
        (("sh", "-c", "kill -9 $$"), 137),
        (("sh", "-c", "sleep 1000 & setsid sleep 1000 & exit 0"), 0),
        (("no-such-program",), 127),
        (("/etc/passwd",), 126),
    ],
    ids=["exits", "killed", "leaves programs running", "not found", "not executable"],
)
def test_its_exit_code_is_the_commands(machine: Machine, command: tuple[str, ...], code: int) -> None:
    process = machine.start(*command)
    assert process.wait(PATIENCE) == code, machine.log
    machine.nothing_is_left()


def test_signals_are_handed_on(machine: Machine) -> None:
    process = machine.start(
        "sh", "-c", "trap 'echo one' USR1; trap 'echo end; exit 5' TERM; echo up; while :; do sleep 0.1; done"
    )
    assert machine.line(process) == "up"
    process.send_signal(signal.SIGUSR1)
    assert machine.line(process) == "one"
    process.send_signal(signal.SIGTERM)
    assert machine.line(process) == "end"
    assert process.wait(PATIENCE) == 5


def test_a_pipe_leads_through_it(machine: Machine) -> None:
    process = machine.start("sh", "-c", "cat; echo aside >&2", stdin=subprocess.PIPE)
    found, _ = process.communicate("line\n" * 20_000, timeout=PATIENCE)
    assert found == "line\n" * 20_000
    assert "aside" in machine.log


def test_a_terminal_is_the_commands(machine: Machine) -> None:
    ours, its = pty.openpty()

    def own() -> None:
        os.setsid()
        ioctl(0, termios.TIOCSCTTY, 0)

    process = machine.start(base_python(), "-c", TALKER, stdin=its, stdout=its, preexec_fn=own)
    os.close(its)
    try:
        hear(ours, "terminals True True")
        os.write(ours, b"\x03")
        # Once, by the terminal: `run` hands on what others send.
        hear(ours, "caught 1")
        os.write(ours, b"over\n")
        assert "caught 2" not in hear(ours, "told over")
        assert process.wait(PATIENCE) == 4, machine.log
    finally:
        os.close(ours)


def hear(terminal: int, word: str) -> str:
    """Read until this was said."""
    found = ""

    def more() -> bool:
        nonlocal found
        found += os.read(terminal, 4096).decode()
        return word in found

    until(more, f"{word} on the terminal")
    return found


@pytest.mark.parametrize(
    ("uid", "sentence"), [(0, "it is root"), (SIDECAR_UID, "the sidecar's uid")], ids=["root", "sidecar"]
)
def test_a_user_that_could_go_round_is_refused(machine: Machine, uid: int, sentence: str) -> None:
    process = machine.start("true", uid=uid)
    assert process.wait(PATIENCE) == 2
    assert sentence in machine.log
    assert not machine.left()
