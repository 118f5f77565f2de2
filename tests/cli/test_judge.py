# SPDX-License-Identifier: Apache-2.0
"""When the demo says denied: only with the sidecar's own record of the refusal, for the reason that is expected."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from firedoor.cli.demo import records, rows, users, view
from firedoor.cli.demo.processes import Child, Children
from firedoor.cli.demo.stage import Stage
from firedoor.cli.demo.world import SERVICES, World

DENIED = {"decision": "denied", "listener": "models", "direction": "inbound", "reason": "no_flow", "flow": ""}
ALLOWED = {"decision": "allowed", "listener": "models", "direction": "inbound", "reason": "allowed", "flow": "f"}


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """A stage whose records and program's log the test writes."""
    for module in (records, rows):
        monkeypatch.setattr(module, "WAIT_SECONDS", 0.2)
    world = World(tmp_path, dict.fromkeys(SERVICES, os.geteuid()), separate=False)
    for segment in SERVICES:
        world.sidecar(segment).mkdir()
    tails = {segment: records.Tail(world.records(segment)) for segment in SERVICES}
    app = Child("models", None, tmp_path / "models.log")  # type: ignore[arg-type]
    return Stage(world, {"models": app}, {}, tails)


def row(stage: Stage, expected: rows.Verdict, *, ok: bool, record: object = None, reached: bool = False) -> rows.Row:
    """Make a row during which the sidecar writes `record` and the program sees a request, or not."""

    def ask(_: Stage) -> rows.Answer:
        if record is not None:
            with stage.world.records("registry").open("a") as file:
                file.write(json.dumps(record) + "\n")
        if reached:
            with (stage.world.folder / "models.log").open("a") as file:
                file.write(rows.APP_LOG["models"] + "\n")
        return rows.Answer(ok, "detail", 1.0)

    denial = rows.Denial("registry", "models", ("no_flow",))
    return rows.Row("a", "b", "c", expected, ask, "models", denial)


@pytest.mark.parametrize(
    ("case", "expected", "ok", "record", "reached", "observed"),
    [
        ("denied and recorded", "denied", False, DENIED, False, "denied"),
        ("the process is dead", "denied", False, None, False, "failed"),
        ("denied for another reason", "denied", False, {**DENIED, "reason": "expired"}, False, "failed"),
        ("denied by another listener", "denied", False, {**DENIED, "listener": "other"}, False, "failed"),
        ("denied, but the program saw it", "denied", False, DENIED, True, "failed"),
        ("allowed", "allowed", True, ALLOWED, True, "allowed"),
        ("answered by something else than the program", "allowed", True, ALLOWED, False, "failed"),
        ("allowed where it should not be", "denied", True, ALLOWED, True, "allowed"),
        ("denied where it should not be", "allowed", False, DENIED, False, "denied"),
    ],
)
def test_verdict(
    case: str, expected: rows.Verdict, ok: bool, record: object, reached: bool, observed: str, stage: Stage
) -> None:
    tried = row(stage, expected, ok=ok, record=record, reached=reached)
    result = rows.judge(tried, stage)
    assert result.observed == observed, case
    assert view.agrees((tried, result)) == (expected == observed)


def test_an_older_record_proves_nothing(stage: Stage) -> None:
    stage.world.records("registry").write_text(json.dumps(DENIED) + "\n")
    assert rows.judge(row(stage, "denied", ok=False), stage).observed == "failed"


def test_children_are_ended_whatever_happens(tmp_path: Path) -> None:
    started: list[Child] = []

    def run(then: Callable[[], None]) -> None:
        with Children(tmp_path / "logs") as children:
            started.append(children.start("sleeper", ["/bin/sleep", "60"], uid=None, home=tmp_path))
            then()

    def fail() -> None:
        raise KeyboardInterrupt

    run(lambda: None)
    with pytest.raises(KeyboardInterrupt):
        run(fail)
    assert [child.process.returncode for child in started] == [-signal.SIGTERM, -signal.SIGTERM]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts programs as other users")
def test_a_folder_that_other_users_cannot_enter_is_named(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    said = users.obstacle(users.FIRST_UID, closed)
    assert said is not None
    assert "other users cannot enter" in said
