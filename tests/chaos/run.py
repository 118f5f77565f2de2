# SPDX-License-Identifier: Apache-2.0
"""Runs a plan, heals what is left, and asks who speaks in the end."""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.chaos.faults import KINDS, uses
from tests.chaos.observed import Ended, Generation
from tests.chaos.plan import Step
from tests.chaos.policy import MOVED
from tests.chaos.world import ASKING, HOLDERS, ChaosWorld

# A sidecar that has not come back by itself for so long is looked after: docs/rotation.md, whom an emergency cuts off.
ALONE = 20.0
# Until everybody who is entitled speaks.
ALIVE = 120.0


@dataclass(slots=True)
class Report:
    """What was done."""

    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    enrolled: list[str] = field(default_factory=list)
    alive_after: float = 0.0
    # Of everybody, when somebody did not speak who should, or the other way about.
    how: str = ""


class Runner:
    """One run. Faults overlap, but for those that touch the same thing: these wait for one another."""

    def __init__(self, world: ChaosWorld, plan: Sequence[Step]) -> None:
        self.world, self.plan, self.report = world, plan, Report()
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        for step in plan:
            for name in uses(step):
                self._locks[name] = threading.Lock()
        self._began = time.monotonic()

    def run(self) -> None:
        """Go through the plan."""
        self._began = time.monotonic()
        threads = [threading.Thread(target=self._one, args=(step,), daemon=True) for step in self.plan]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _since(self) -> float:
        return time.monotonic() - self._began

    def _one(self, step: Step) -> None:
        time.sleep(max(0.0, step.at - self._since()))
        with contextlib.ExitStack() as stack:
            for name in uses(step):
                stack.enter_context(self._locks[name])
            start = self._since()
            try:
                with KINDS[step.kind].fault(self.world, step.whom):
                    time.sleep(step.lasts)
            except Exception:  # noqa: BLE001  (told at the end, with everything else that was seen)
                self.report.failed.append(f"{step}\n{traceback.format_exc()}")
            self.report.done.append(f"{start:6.1f} to {self._since():6.1f} s  {step.kind} {step.whom}")

    def heal(self) -> None:
        """Have an operator look after the sidecars that were cut off."""
        least = self.world.in_force()
        for name in HOLDERS:
            end = time.monotonic() + ALONE
            while not self._well(name, least):
                if time.monotonic() > end or self.world.lives[name].program.process.poll() is not None:
                    self.report.enrolled.append(name)
                    self.world.end_life(name)
                    self.world.enrol_sidecar(name)
                    break
                time.sleep(0.2)

    def _well(self, name: str, least: Generation) -> bool:
        """Say whether it has heard of that generation. One that is cut off is connected too, again and again, until the
        broker has seen its certificate."""
        status = self.world.status(name)
        if status is None or not status.connected:
            return False
        return (status.generation.epoch, status.generation.number) >= least

    def end(self) -> None:
        """Ask who speaks, under both policies."""
        start = time.monotonic()
        self._expect({"inference": True, "good": False, "bad": False}, "")
        self.report.alive_after = time.monotonic() - start
        self.world.edit(MOVED, on=True)
        self._expect({"inference": True, "good": True, "bad": False}, " once its segment has moved")

    def _expect(self, entitled: Mapping[str, bool], when: str) -> None:
        end = time.monotonic() + ALIVE
        while True:
            spoke = {name: self.world.speaks(name) for name in ASKING}
            if spoke == entitled or time.monotonic() > end:
                break
            time.sleep(0.2)
        if spoke != entitled:
            self.report.how = self.world.how()
        self.world.journal.ended += [Ended(name + when, entitled[name], spoke[name]) for name in ASKING]
