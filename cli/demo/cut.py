# SPDX-License-Identifier: Apache-2.0
"""The row in which a policy edit ends a stream that is open: its flow is taken out of the policy while it runs."""

import time

from firedoor.cli.demo.asks import by, told
from firedoor.cli.demo.policy import without_watch
from firedoor.cli.demo.records import WAIT_SECONDS
from firedoor.cli.demo.rows import Answer, Denial, Result, Row, place, recorded_flow
from firedoor.cli.demo.stage import Stage

# From the edit to the end of the stream. The broker looks at its files four times a second; a busy machine needs more.
CUT_SECONDS = 5.0
_USER, _LISTENER = "mcp-tools", "llm"
_ask_again = by(_USER, "watch", _LISTENER)


def row(destination: str) -> Row:
    """Return the row."""
    denial = Denial(_USER, _LISTENER, "PERMISSION_DENIED", ("action_not_named",))
    return Row(
        source=_USER,
        destination=destination,
        action="that stream, its flow withdrawn",
        expected="cut",
        ask=by(_USER, "watch", _LISTENER, keep="yes"),
        denial=denial,
        only_once=True,
        prove=_prove,
    )


def _prove(row: Row, stage: Stage, opened: Answer) -> Result:
    if not opened.ok:
        return Result("failed", f"the stream did not open: {opened.detail}", opened.ms, opened.saw)
    flow = recorded_flow(stage)
    with without_watch(stage.world):
        edited = time.time()
        ended = told(stage.clients[_USER].ask({"do": "watch_end"}))
        if not ended.ok:
            return Result("failed", f"nobody cut the stream of {flow}", None, ended.saw)
        after = float(ended.detail) - edited
        refused = _refused(row, stage)
    _wait_until_it_is_back(stage)
    if refused is None:
        return Result("failed", f"flow {flow} is gone, and a new stream was not refused", None, ended.saw)
    if after > CUT_SECONDS:
        return Result("failed", f"flow {flow}: cut only {after:.1f} s after the edit", None, ended.saw)
    return Result("cut", f"flow {flow} withdrawn; then {refused}", after * 1000, ended.saw)


def _refused(row: Row, stage: Stage) -> str | None:
    """Open another stream; return where and why it was refused."""
    assert row.denial is not None
    again = _ask_again(stage)
    record = stage.tails[row.denial.segment].wait_for(row.denial.fits)
    told_so = again.saw == row.denial.saw and record is not None and record["reason"] in row.denial.reasons
    return place(record) if told_so and record is not None else None


def _wait_until_it_is_back(stage: Stage) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not _ask_again(stage).ok and time.monotonic() < deadline:
        time.sleep(0.05)
