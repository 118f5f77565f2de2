# SPDX-License-Identifier: Apache-2.0
"""When the demo says denied: only with the sidecar's own record of the refusal, for the reason that is expected."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from firedoor.cli.demo import cut, records, rows, users, view
from firedoor.cli.demo.policy import write_policy
from firedoor.cli.demo.processes import Child, Children
from firedoor.cli.demo.stage import Stage
from firedoor.cli.demo.world import SERVICES, World

DENIED = {"decision": "denied", "listener": "models", "direction": "inbound", "reason": "no_flow", "flow": ""}
ALLOWED = {"decision": "allowed", "listener": "models", "direction": "inbound", "reason": "allowed", "flow": "f"}


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """A stage whose records and program's log the test writes."""
    for module in (records, rows, cut):
        monkeypatch.setattr(module, "WAIT_SECONDS", 0.2)
    world = World(tmp_path, dict.fromkeys(SERVICES, os.geteuid()), separate=False)
    for segment in SERVICES:
        world.sidecar(segment).mkdir()
    tails = {segment: records.Tail(world.records(segment)) for segment in SERVICES}
    app = Child("models", None, tmp_path / "models.log")  # type: ignore[arg-type]
    return Stage(world, {"models": app}, {}, tails, ["key", "secret"])


def row(stage: Stage, expected: rows.Verdict, saw: str, *, record: object = None, reached: bool = False) -> rows.Row:
    """Make a row during which the sidecar writes `record`, the program sees a request or not, the client a status."""

    def ask(_: Stage) -> rows.Answer:
        if record is not None:
            with stage.world.records("registry").open("a") as file:
                file.write(json.dumps(record) + "\n")
        if reached:
            with (stage.world.folder / "models.log").open("a") as file:
                file.write(f"GET /{rows.APP_LOG['models']}\n")
        return rows.Answer(saw == "200", saw, "detail", 1.0)

    denial = rows.Denial("registry", "models", "403", ("no_flow",))
    return rows.Row("a", "b", "c", expected, ask, "models", denial)


@pytest.mark.parametrize(
    ("case", "expected", "saw", "record", "reached", "observed"),
    [
        ("denied and recorded", "denied", "403", DENIED, False, "denied"),
        ("the process is dead", "denied", "no answer", None, False, "failed"),
        ("recorded, but the client was told something else", "denied", "502", DENIED, False, "failed"),
        ("recorded, but the client was told nothing", "denied", "no answer", DENIED, False, "failed"),
        ("denied for another reason", "denied", "403", {**DENIED, "reason": "expired"}, False, "failed"),
        ("denied by another listener", "denied", "403", {**DENIED, "listener": "other"}, False, "failed"),
        ("denied, but the program saw it", "denied", "403", DENIED, True, "failed"),
        ("allowed", "allowed", "200", ALLOWED, True, "allowed"),
        ("answered by something else than the program", "allowed", "200", ALLOWED, False, "failed"),
        ("answered, and no flow was recorded", "allowed", "200", None, True, "failed"),
        ("allowed where it should not be", "denied", "200", ALLOWED, True, "allowed"),
        ("denied where it should not be", "allowed", "403", DENIED, False, "denied"),
    ],
)
def test_verdict(
    case: str, expected: rows.Verdict, saw: str, record: object, reached: bool, observed: str, stage: Stage
) -> None:
    tried = row(stage, expected, saw, record=record, reached=reached)
    result = rows.judge(tried, stage)
    assert result.observed == observed, case
    assert result.saw == saw
    assert view.agrees((tried, result)) == (expected == observed)


def test_an_older_record_proves_nothing(stage: Stage) -> None:
    stage.world.records("registry").write_text(json.dumps(DENIED) + "\n")
    assert rows.judge(row(stage, "denied", "403"), stage).observed == "failed"


class Watching:
    """Stands for the client program with the open stream."""

    def __init__(self, world: World, *, ends: bool, later: float = 0.1, again: str = "PERMISSION_DENIED") -> None:
        self.world, self.ends, self.later, self.again = world, ends, later, again
        self.there = world.policy / "flow-watch.yaml"

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        answer = {"ok": True, "saw": "OK", "detail": "SERVING", "ms": 1.0}
        if request["do"] == "watch_end":
            assert not self.there.exists()
            answer |= {"ok": self.ends, "saw": "INTERNAL", "detail": str(time.time() + self.later)}
        elif request.get("keep"):
            self.record({**ALLOWED, "listener": "llm"})
        elif not self.there.exists() and self.again != "OK":
            self.record({**DENIED, "listener": "llm", "reason": "action_not_named"})
            answer |= {"ok": False, "saw": self.again}
        return answer

    def record(self, record: dict[str, Any]) -> None:
        with self.world.records("mcp-tools").open("a") as file:
            file.write(json.dumps(record) + "\n")


@pytest.mark.parametrize(
    ("case", "more", "observed"),
    [
        ("cut", {"ends": True}, "cut"),
        ("nobody cuts it", {"ends": False}, "failed"),
        ("cut too late", {"ends": True, "later": 5.0}, "failed"),
        ("a new one is let through", {"ends": True, "again": "OK"}, "failed"),
        ("a new one fails in another way", {"ends": True, "again": "UNAVAILABLE"}, "failed"),
    ],
)
def test_a_stream_is_cut(case: str, more: dict[str, Any], observed: str, stage: Stage) -> None:
    write_policy(stage.world)
    stage.clients["mcp-tools"] = Watching(stage.world, **more)  # type: ignore[assignment]
    assert rows.judge(cut.row("inference:8001"), stage).observed == observed, case
    # The policy is what it was.
    assert "tools-watch-the-model" in (stage.world.policy / "flow-watch.yaml").read_text()
    assert sorted(path.suffix for path in stage.world.policy.iterdir()) == [".yaml"] * 6


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
