# SPDX-License-Identifier: Apache-2.0
"""What a local process is: parsing, reading, and the races that must not give anybody another's identity."""

import asyncio
import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firedoor.certs import Selector
from firedoor.sidecar import proc
from firedoor.sidecar.attestor import Names, UnixAttestor, decidable_by_uid, rule_of, selectors_of
from firedoor.sidecar.errors import CallerRefused

USERS, GROUPS = {0: "root", 7: "seven"}, {0: "root", 5: "five", 44: "video"}
NAMES = Names(
    USERS.get,
    GROUPS.get,
    {name: uid for uid, name in USERS.items()}.get,
    {name: gid for gid, name in GROUPS.items()}.get,
)


def selectors(*texts: str) -> frozenset[Selector]:
    return frozenset(Selector.parse(one) for one in texts)


def test_status_of_this_process() -> None:
    found = proc.read_ids(os.getpid())
    assert (found.uid, found.gid) == (os.geteuid(), os.getegid())
    assert sorted(found.groups) == sorted(os.getgroups())


STATUS = b"Name:\tx\nState:\tS\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \nNStgid:\t1\n"


def test_effective_ids_count() -> None:
    assert proc.parse_status(STATUS) == proc.Ids(2, 6, (9, 10))


@pytest.mark.parametrize(
    "status",
    [
        b"",
        STATUS.replace(b"Uid", b"Xid"),
        STATUS.replace(b"1\t2\t3\t4", b"1\t2"),
        STATUS.replace(b"Gid:\t5", b"Gid:\tx"),
    ],
    ids=["empty", "no_uid", "short", "no_number"],
)
def test_status_that_cannot_be_read(status: bytes) -> None:
    with pytest.raises(proc.ProcError):
        proc.parse_status(status)


@given(st.binary(max_size=200))
def test_status_of_anything(data: bytes) -> None:
    with contextlib.suppress(proc.ProcError):
        proc.parse_status(data)


RENAMED = """
import ctypes, sys
ctypes.CDLL(None).prctl(15, b"x\\nUid:\\t0\\t0\\t0")  # PR_SET_NAME
print("up", flush=True)
sys.stdin.read()
"""


def test_a_process_cannot_name_itself_another_user() -> None:
    with subprocess.Popen([sys.executable, "-c", RENAMED], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin
        assert child.stdout
        assert child.stdout.readline() == b"up\n"
        assert b"x\\nUid" in Path(f"/proc/{child.pid}/status").read_bytes()
        assert proc.read_ids(child.pid) == proc.read_ids(os.getpid())
        child.stdin.close()


def test_selectors() -> None:
    found = selectors_of(proc.Ids(7, 5, (44, 99)), "/bin/app", "ab", NAMES)
    assert found == selectors(
        "unix:uid:7",
        "unix:user:seven",
        "unix:gid:5",
        "unix:group:five",
        "unix:supplementary_gid:44",
        "unix:supplementary_gid:99",
        "unix:supplementary_group:video",
        "unix:path:/bin/app",
        "unix:sha256:ab",
    )


def test_no_account_no_name() -> None:
    assert selectors_of(proc.Ids(8, 8, ()), None, None, NAMES) == selectors("unix:uid:8", "unix:gid:8")


def test_path_that_no_selector_can_hold_is_left_out() -> None:
    assert selectors_of(proc.Ids(8, 8, ()), "/a\nb", None, NAMES) == selectors("unix:uid:8", "unix:gid:8")


def test_hash_of_this_process() -> None:
    expected = hashlib.sha256(Path("/proc/self/exe").read_bytes()).hexdigest()
    assert proc.Hasher().sha256(os.getpid()) == expected


def test_too_large_to_hash() -> None:
    assert proc.Hasher(largest=1000).sha256(os.getpid()) is None


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A process that runs a copy of `sleep`."""
    copy = tmp_path / "sleeper"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", copy)
    with subprocess.Popen([copy, "60"]) as child:
        yield child, copy
        child.kill()


def test_a_replaced_file_is_not_what_runs(sleeper: tuple[subprocess.Popen[bytes], Path]) -> None:
    child, copy = sleeper
    running = hashlib.sha256(copy.read_bytes()).hexdigest()
    assert proc.read_path(child.pid) == str(copy)
    assert proc.Hasher().sha256(child.pid) == running
    copy.unlink()
    copy.write_bytes(b"another")
    assert proc.read_path(child.pid) is None
    assert proc.Hasher().sha256(child.pid) == running


def test_hashes_are_remembered_per_file(sleeper: tuple[subprocess.Popen[bytes], Path], tmp_path: Path) -> None:
    child, copy = sleeper
    hasher = proc.Hasher()
    first = hasher.sha256(child.pid)
    assert hasher.sha256(child.pid) == first
    assert len(hasher._known) == 1
    copy.chmod(0o700)  # Another ctime: it is read again.
    assert hasher.sha256(child.pid) == first
    assert len(hasher._known) == 2


@dataclass
class FakeHandle:
    """What the kernel says about a connection; `lives` answers in turn."""

    pid: int | None
    uid: int | None
    gid: int | None
    lives: list[bool]

    def alive(self) -> bool:
        return self.lives.pop(0) if len(self.lives) > 1 else self.lives[0]


def me(**changed: object) -> FakeHandle:
    return FakeHandle(**{"pid": os.getpid(), "uid": os.geteuid(), "gid": os.getegid(), "lives": [True], **changed})  # type: ignore[arg-type]


async def test_attests_this_process() -> None:
    found = await UnixAttestor().attest(me(), {"path", "sha256"})
    assert Selector.parse(f"unix:uid:{os.geteuid()}") in found
    assert {one.key for one in found} >= {"uid", "gid", "path", "sha256"}


async def test_costly_keys_only_when_asked_for() -> None:
    assert {"path", "sha256"}.isdisjoint(one.key for one in await UnixAttestor().attest(me(), {"uid"}))


@pytest.mark.parametrize(
    "handle",
    [
        me(pid=None),
        me(pid=0),
        me(uid=None),
        me(lives=[False]),
        me(lives=[True, False]),
        me(pid=2**22 + 1),
        me(uid=os.geteuid() + 1),
        me(gid=os.getegid() + 1),
    ],
    ids=[
        "no_pid",
        "other_namespace",
        "no_uid",
        "ended",
        "ended_meanwhile",
        "no_such_process",
        "was_other_user",
        "group",
    ],
)
async def test_refused(handle: FakeHandle) -> None:
    with pytest.raises(CallerRefused):
        await UnixAttestor().attest(handle, {"uid"})


def test_hashing_leaves_the_loop_free(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = 0

    class Slow(proc.Hasher):
        def sha256(self, pid: int) -> str | None:
            while ticks < 3:
                pass
            return None

    async def scenario() -> None:
        nonlocal ticks
        attesting = asyncio.ensure_future(UnixAttestor(hasher=Slow()).attest(me(), {"sha256"}))
        while ticks < 3:
            await asyncio.sleep(0)
            ticks += 1
        await attesting

    asyncio.run(scenario())


RULES: dict[str, tuple[tuple[str, ...], dict[str, object] | None]] = {
    "uid": (("unix:uid:7",), {"uid": 7}),
    "user": (("unix:user:seven",), {"uid": 7}),
    "both_the_same": (("unix:user:seven", "unix:uid:7"), {"uid": 7}),
    "both_different": (("unix:user:seven", "unix:uid:0"), None),
    "unknown_user": (("unix:user:nobody-here",), None),
    "group": (("unix:group:five", "unix:gid:5"), {"gid": 5}),
    "groups": (("unix:supplementary_gid:44", "unix:supplementary_group:five"), {"groups": [5, 44]}),
    "path": (("unix:path:/bin/a", "unix:sha256:ab"), {"path": "/bin/a", "sha256": "ab"}),
    "two_paths": (("unix:path:/bin/a", "unix:path:/bin/b"), None),
    "other_type": (("unix:uid:7", "docker:label:x"), None),
    "unknown_key": (("unix:uid:7", "unix:inode:1"), None),
    "leading_zero": (("unix:uid:07",), None),
    "too_large": (("unix:uid:4294967295",), None),
    "not_a_number": (("unix:uid:x",), None),
    "huge_number": (("unix:uid:" + "9" * 4000,), None),
    "nothing": ((), None),
}


@pytest.mark.parametrize("case", RULES)
def test_rules_for_the_core(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, expected = RULES[case]
    made: list[dict[str, object]] = []

    def rule(**fields: object) -> object:
        made.append({key: value for key, value in fields.items() if value not in (None, [])})
        return object()

    monkeypatch.setattr("firedoor.sidecar.attestor.ClientRule", rule)
    found = rule_of(selectors(*texts), NAMES)
    assert (found is not None) == (expected is not None)
    if expected is not None:
        wanted = {("supplementary_gids" if key == "groups" else key): value for key, value in expected.items()}
        assert made == [wanted]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (("unix:uid:1",), True),
        (("unix:user:x", "unix:uid:1"), True),
        (("unix:uid:1", "unix:gid:1"), False),
        (("unix:path:/x",), False),
        (("docker:uid:1",), False),
    ],
)
def test_decidable_by_uid(texts: tuple[str, ...], expected: bool) -> None:
    assert decidable_by_uid(selectors(*texts)) is expected
