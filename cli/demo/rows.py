# SPDX-License-Identifier: Apache-2.0
"""A row of the table: who asks whom for what, what should come of it, and how that is proved.

A row is `allowed` when the client got its answer, the program's own log grew, and a sidecar has recorded the flow. It
is `denied` when the client was told so in the way that the row expects, the program's log did not grow, *and* the
sidecar that should refuse has recorded the refusal with the reason that the row expects: a dead process denies too, and
proves nothing. What is neither is `failed`. A row may prove something else by a judge of its own: a stream is `cut`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from firedoor.cli.demo.records import POLL_SECONDS, WAIT_SECONDS, Record
from firedoor.cli.demo.stage import Stage

Verdict = Literal["allowed", "denied", "cut", "skipped", "failed"]

# What stands in each program's log for every request that has reached it.
APP_LOG = {"models": " HTTP/1.1", "tools": " HTTP/1.1", "llm": "call /"}


@dataclass(frozen=True)
class Answer:
    """What the client saw: a status of HTTP or gRPC, or how the connection ended."""

    ok: bool
    saw: str
    detail: str
    ms: float


@dataclass(frozen=True)
class Denial:
    """Where a refusal must be recorded: whose sidecar, which listener, with which of these reasons.

    `saw` is what the client must have been told.
    """

    segment: str
    listener: str
    saw: str
    reasons: tuple[str, ...]

    def fits(self, record: Record) -> bool:
        """Say whether a record is that refusal."""
        return bool(record["decision"] == "denied" and record["listener"] == self.listener)


@dataclass(frozen=True)
class Result:
    """What came of a row."""

    observed: Verdict
    why: str
    ms: float | None
    saw: str = ""


@dataclass(frozen=True)
class Row:
    """One line of the table. `denial` is None where the client itself is told the reason (the auth socket)."""

    source: str
    destination: str
    action: str
    expected: Verdict
    ask: Callable[[Stage], Answer]
    app: str | None = None
    denial: Denial | None = None
    needs_users: bool = False
    # It changes what the others meet: shown once, also while the demo stays up.
    only_once: bool = False
    # How long to wait before the row can be tried.
    wait: Callable[[], float] = field(default=lambda: 0.0)
    # Proves something else than an answer or a refusal.
    prove: Callable[["Row", Stage, Answer], Result] | None = None


def judge(row: Row, stage: Stage) -> Result:
    """Do what the row says and prove what came of it."""
    if row.needs_users and not stage.world.separate:
        return Result("skipped", "not shown: needs root", None)
    for tail in stage.tails.values():
        tail.mark()
    before = app_count(row, stage)
    answer = row.ask(stage)
    if row.prove is not None:
        return row.prove(row, stage, answer)
    if answer.ok:
        return _allowed(row, stage, answer, before)
    if row.denial is None:
        refused = answer.saw == "PERMISSION_DENIED"
        return _result("denied" if refused else "failed", answer, answer.detail)
    return _denied(row, row.denial, stage, answer, before)


def _result(verdict: Verdict, answer: Answer, why: str) -> Result:
    return Result(verdict, why, answer.ms, answer.saw)


def _allowed(row: Row, stage: Stage, answer: Answer, before: int) -> Result:
    if row.app is None:
        return _result("allowed", answer, answer.detail)
    if not _grows(row, stage, before):
        return _result("failed", answer, f"answered, but {row.app} saw no request")
    flow = recorded_flow(stage)
    if flow is None:
        return _result("failed", answer, "answered, but no sidecar recorded a flow")
    return _result("allowed", answer, f"flow {flow}")


def _denied(row: Row, where: Denial, stage: Stage, answer: Answer, before: int) -> Result:
    record = stage.tails[where.segment].wait_for(where.fits)
    if record is None:
        found = next((r for tail in stage.tails.values() for r in tail.since_mark() if r["decision"] == "denied"), None)
        if found is None:
            return _result("failed", answer, f"no sidecar denied it: {answer.detail}")
        return _result("denied" if row.expected == "allowed" else "failed", answer, place(found))
    if app_count(row, stage) != before:
        return _result("failed", answer, f"denied, but {row.app} saw a request")
    if row.expected == "denied" and record["reason"] not in where.reasons:
        return _result("failed", answer, f"denied for another reason: {place(record)}")
    if row.expected == "denied" and answer.saw != where.saw:
        return _result("failed", answer, f"denied, but the client was not told {where.saw}: {place(record)}")
    return _result("denied", answer, place(record))


def place(record: Record) -> str:
    """Say why and where a request was refused."""
    return f"{record['reason']} ({record['direction']} {record['listener']})"


def recorded_flow(stage: Stage) -> str | None:
    """Return the flow that the records of this row name; wait for it, as the sidecar writes them when it can."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        records = [r for tail in stage.tails.values() for r in tail.since_mark()]
        found = next((str(r["flow"]) for r in records if r.get("flow")), None)
        if found is not None or time.monotonic() > deadline:
            return found
        time.sleep(POLL_SECONDS)


def app_count(row: Row, stage: Stage) -> int:
    """Count the requests that the row's program has seen."""
    return stage.apps[row.app].logged(APP_LOG[row.app]) if row.app else 0


def _grows(row: Row, stage: Stage, before: int) -> bool:
    deadline = time.monotonic() + WAIT_SECONDS
    while app_count(row, stage) <= before:
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True
