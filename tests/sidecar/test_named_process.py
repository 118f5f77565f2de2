# SPDX-License-Identifier: Apache-2.0
"""A process that is named by its PID is that process and no other, whoever has the number later."""

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from firedoor.certs import Selector
from firedoor.sidecar import proc
from firedoor.sidecar.attestor import UnixAttestor
from firedoor.sidecar.callers import Callers
from firedoor.sidecar.errors import NotReady, ReferenceInvalid, WorkloadGone
from firedoor.sidecar.named_process import hold, question_time
from tests.sidecar.conftest import Bench, entry
from tests.sidecar.programs import SLEEP, become_zombie, end, sleeper, talker, tell

OTHER = 61235
LAST_PID = Path("/proc/sys/kernel/ns_last_pid")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def callers(bench: Bench) -> Callers:
    bench.entitle(entry("/segment/a/x", f"unix:path:{SLEEP}"))
    return Callers(bench.holder, UnixAttestor())


async def test_what_it_is(callers: Callers) -> None:
    with sleeper() as process, hold(process.pid, question_time(), callers) as held:
        found = await held.attest()
    assert {Selector.parse(f"unix:path:{SLEEP}"), Selector.parse(f"unix:uid:{os.geteuid()}")} <= found


@pytest.mark.parametrize("pid", [0, -1])
async def test_what_is_no_number_of_a_process(callers: Callers, pid: int) -> None:
    with pytest.raises(ReferenceInvalid, match="positive"), hold(pid, question_time(), callers):
        pass


async def test_a_process_that_started_after_the_question_is_not_meant(callers: Callers) -> None:
    asked_at = question_time()
    # A start is told to a hundredth of a second.
    await asyncio.sleep(2 / os.sysconf("SC_CLK_TCK"))
    with sleeper() as process:
        with pytest.raises(WorkloadGone), hold(process.pid, asked_at, callers):
            pass
        with hold(process.pid, question_time(), callers) as held:
            assert await held.attest()


async def test_a_process_that_has_ended_and_is_not_waited_for_is_gone(callers: Callers) -> None:
    with sleeper() as process:
        become_zombie(process)
        with pytest.raises(WorkloadGone), hold(process.pid, question_time(), callers):
            pass


async def test_a_number_that_another_process_has_by_now(callers: Callers) -> None:
    if not os.access(LAST_PID, os.W_OK):
        pytest.skip("the kernel lets nobody here choose the next PID")
    with sleeper() as process, hold(process.pid, question_time(), callers) as held:
        assert await held.attest()
        end(process)
        with taking(process.pid):
            with pytest.raises(WorkloadGone):
                await held.attest()
            with pytest.raises(WorkloadGone):
                held.check_alive()
        await held.ended.wait()


class taking:  # noqa: N801  # reads as a statement
    """Start processes until one has this number."""

    def __init__(self, pid: int) -> None:
        self._pid, self._tries = pid, []

    def __enter__(self) -> None:
        for _ in range(200):
            LAST_PID.write_text(str(self._pid - 1))
            self._tries.append(subprocess.Popen([SLEEP, "600"]))
            if self._tries[-1].pid == self._pid:
                return
        pytest.skip("others took the number first")

    def __exit__(self, *_: object) -> None:
        for one in self._tries:
            end(one)


CHANGES_USER = f"""
input()
import os
os.setresgid({OTHER}, {OTHER}, {OTHER}); os.setresuid({OTHER}, {OTHER}, {OTHER})
print("changed", flush=True)
input()
"""


@as_root
async def test_what_it_is_now_counts(callers: Callers) -> None:
    with talker(CHANGES_USER) as process, hold(process.pid, question_time(), callers) as held:
        assert Selector.parse("unix:uid:0") in await held.attest()
        assert tell(process) == b"changed\n"
        found = await held.attest()
    assert Selector.parse(f"unix:uid:{OTHER}") in found
    assert Selector.parse("unix:uid:0") not in found


@as_root
async def test_a_user_that_has_no_name_here_is_nobody(callers: Callers) -> None:
    uid, _ = proc.overflow_ids()
    with (
        sleeper(user=uid) as process,
        hold(process.pid, question_time(), callers) as held,
        pytest.raises(NotReady, match="no name in the user namespace"),
    ):
        await held.attest()


@pytest.mark.parametrize(
    ("line", "start"),
    [
        (b"7 (a) S 1 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4711 2 3", 4711),
        (b"7 (a) 0 1 2) S 1 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4711 2 3", 4711),
        (b"7 (a\n) S 1) S 1 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4711 2 3", 4711),
        (b"7 (a) S 1", None),
        (b"", None),
        (b"7 (a) S 1 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 x 2 3", None),
    ],
)
def test_start(line: bytes, start: int | None) -> None:
    if start is None:
        with pytest.raises(proc.ProcError):
            proc.parse_start(line)
    else:
        assert proc.parse_start(line) == start
