# SPDX-License-Identifier: Apache-2.0
"""Twenty random faults, and nothing that must always hold ever fails to.

pytest tests/chaos --chaos-seed 7 --chaos-minutes 10 -s
"""

from __future__ import annotations

import pytest

from tests.chaos.conftest import Chosen
from tests.chaos.faults import possible
from tests.chaos.invariants import check
from tests.chaos.plan import make_plan
from tests.chaos.run import Runner
from tests.chaos.world import ChaosWorld

# Of each of three programs, a second.
RATE = 10


@pytest.mark.timeout(0)
def test_what_must_hold_holds(world: ChaosWorld, chosen: Chosen) -> None:
    plan = make_plan(chosen.seed, chosen.seconds, chosen.faults, possible())
    runner = Runner(world, plan)
    world.begin()
    world.load(RATE)
    runner.run()
    runner.heal()
    runner.end()
    world.traffic.stop()
    world.stop_watching()
    world.settle()
    journal = world.collect()
    report = runner.report
    said = "\n".join((chosen.command, *report.done, *world.notes, f"enrolled anew: {report.enrolled}", str(journal)))
    print(said, f"alive after {report.alive_after:.1f} s", sep="\n")
    found = check(journal)
    planned = "\n".join(map(str, plan))
    assert not found, "\n".join(("", *map(str, found), "", "the plan was:", planned, "", said, report.how))
    assert not report.failed, "\n".join(("", *report.failed, "", "the plan was:", planned, "", said))
    assert len(report.done) == chosen.faults
    assert journal.signed
    assert journal.accepted
