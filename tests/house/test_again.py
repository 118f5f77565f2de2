# SPDX-License-Identifier: Apache-2.0
"""What CI tries once more: a wait that ran out, and never a wrong answer."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pytest_rerunfailures", reason="needs pytest-rerunfailures (make install)")
ROOT = Path(__file__).resolve().parents[2]

# Each goes wrong at its first try, and is fine at its second.
TRIES = """
import asyncio
import subprocess
from pathlib import Path

import pytest

from tests.waiting import NotInTime, async_until, until


def first(name: str) -> bool:
    try:
        Path(__file__).with_name(f"{name}.tried").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@pytest.fixture(scope="module")
def slow_start():
    if first("fixture"):
        raise NotInTime("not within 1 s: a start")
    return "started"


@pytest.fixture(scope="module")
def number():
    return 7


def test_late(number):
    until(lambda: not first("late"), "a second try", seconds=0 if first("once") else 60)
    assert number == 7


async def test_late_asynchronously(number):
    await async_until(lambda: asyncio.sleep(0, not first("async")), seconds=0 if first("async once") else 60)


async def test_late_by_a_limit():
    async with asyncio.timeout(0 if first("limit") else None):
        await asyncio.sleep(0)


def test_late_program():
    subprocess.run(["sleep", "5" if first("program") else "0"], timeout=0.1 if first("program once") else 60)


def test_late_fixture(slow_start):
    assert slow_start == "started"


def test_wrong(number):
    assert not first("wrong")


def test_wrong_about_a_wait():
    assert not first("about"), "TimeoutError: NotInTime: not within 1 s"


def test_wrong_after_a_wait():
    try:
        raise NotInTime("not within 1 s: an answer")
    except NotInTime:
        assert not first("after")


def test_wrong_by_another_error_after_a_wait():
    try:
        raise NotInTime("not within 1 s: an answer")
    except NotInTime:
        if first("another"):
            raise ValueError("a wrong answer")


def test_wrong_by_another_error_because_of_a_wait():
    try:
        raise TimeoutError
    except TimeoutError as late:
        if first("because"):
            raise PermissionError("refused wrongly") from late


def test_wrong_since_nothing_was_raised():
    with pytest.raises(ValueError):
        if not first("nothing"):
            raise ValueError


def test_of_the_module_is_one(number):
    assert number == 7
"""
NEVER = """
from tests.waiting import until


def test_never():
    until(lambda: False, "what never comes", seconds=0)
"""


LATE = """
import pytest

from tests.waiting import until

tried = set()


@pytest.mark.parametrize("number", range(5))
def test_late(number):
    until(lambda: number in tried or tried.add(number), "a second try", seconds=0)
"""
# Of a whole run: when more is late than this, it is not the machine.
MOST = 3
SEVERAL = ["-n", "2", "--dist", "loadfile"]


def run(folder: Path, *how: str, most: int = MOST) -> list[str]:
    """Run what is in a folder by CI's rule, with so many second tries, and return what pytest says, in lines."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    words += [
        *how,
        f"@{ROOT / '.ci/again.args'}",
        f"--max-suite-reruns={most}",
        f"--override-ini=pythonpath={ROOT}",
        str(folder),
    ]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False).stdout.splitlines()


def told(lines: list[str], word: str) -> set[str]:
    """Return the tests that the summary names with a word."""
    return {line.split("::")[1].split()[0] for line in lines if line.startswith(f"{word} ")}


@pytest.mark.parametrize("how", [[], SEVERAL], ids=["alone", "several at once"])
def test_a_wait_that_ran_out_is_tried_again_and_a_wrong_answer_never(tmp_path: Path, how: list[str]) -> None:
    (tmp_path / "test_tries.py").write_text(TRIES)
    (tmp_path / "test_never.py").write_text(NEVER)
    lines = run(tmp_path, *how, most=10)
    late = {"test_late", "test_late_asynchronously", "test_late_by_a_limit", "test_late_program", "test_late_fixture"}
    wrong = {
        "test_wrong",
        "test_wrong_about_a_wait",
        "test_wrong_after_a_wait",
        "test_wrong_by_another_error_after_a_wait",
        "test_wrong_by_another_error_because_of_a_wait",
        "test_wrong_since_nothing_was_raised",
    }
    assert told(lines, "RERUN") == {*late, "test_never"}, "\n".join(lines)
    assert told(lines, "FAILED") == {*wrong, "test_never"}, "\n".join(lines)
    assert "7 failed, 6 passed, 6 rerun" in lines[-1], "\n".join(lines)


@pytest.mark.parametrize("how", [[], SEVERAL], ids=["alone", "several at once"])
def test_much_that_is_late_is_wrong(tmp_path: Path, how: list[str]) -> None:
    (tmp_path / "test_some.py").write_text(LATE)
    (tmp_path / "test_more.py").write_text(LATE)
    assert f"--max-suite-reruns={MOST}" in (ROOT / ".ci/again.args").read_text().split()
    lines = run(tmp_path, *how)
    assert f"7 failed, {MOST} passed, {MOST} rerun" in lines[-1], "\n".join(lines)


def test_a_process_that_died_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "test_dies.py").write_text("import os\n\n\ndef test_dies():\n    os._exit(9)\n")
    lines = run(tmp_path, *SEVERAL)
    assert (told(lines, "FAILED"), told(lines, "RERUN")) == ({"test_dies"}, set()), "\n".join(lines)


def test_every_run_of_ci_has_the_rule() -> None:
    text = (ROOT / ".ci/test").read_text()
    assert text.count('.venv/bin/pytest -q "${again[@]}"') == text.count(".venv/bin/pytest") == 2
