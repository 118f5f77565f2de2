# SPDX-License-Identifier: Apache-2.0
"""What became of requests that run on while one thing after the other goes wrong, counted by the step they left in.

steps = Steps()
traffic.start("http", 100, steps.counted(request))
with steps.step("broker killed") as step:
    ...
    step.proved = "pid 17 ended by SIGKILL"
print(steps.table())
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

FEW = 5
TITLES = ("step", "seconds", "requests", "failed", "slowest", "proved")


@dataclass
class Step:
    """One thing that goes wrong, and the requests that left meanwhile."""

    name: str
    proved: str = ""
    seconds: float = 0.0
    requests: int = 0
    answered: int = 0
    slowest: float = 0.0
    slowest_of: str = ""
    # How each ended, in words, after how many seconds.
    failures: list[str] = field(default_factory=list)

    @property
    def row(self) -> tuple[str, ...]:
        """What the table says."""
        slowest = f"{self.slowest_of} {self.slowest * 1000:.0f} ms"
        return (self.name, f"{self.seconds:.1f}", str(self.requests), str(len(self.failures)), slowest, self.proved)


class Steps:
    """All steps. Requests are counted on the loads' thread, steps begin and end on the test's."""

    def __init__(self) -> None:
        self.all: list[Step] = [Step("start")]

    def counted(self, name: str, request: Callable[[int], Awaitable[object]]) -> Callable[[int], Awaitable[None]]:
        """Return a request that is counted."""

        async def one(number: int) -> None:
            step, start = self.all[-1], time.monotonic()
            step.requests += 1
            try:
                await request(number)
                step.answered += 1
            except BaseException as error:
                said = f"{name} after {time.monotonic() - start:.2f} s: {type(error).__name__}: {error}"
                step.failures.append(f"{time.strftime('%H:%M:%S')} {said}")
                raise
            finally:
                took = time.monotonic() - start
                if took > step.slowest:
                    step.slowest, step.slowest_of = took, name

        return one

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Begin a step; what leaves from now on is counted to it."""
        found, start = Step(name), time.monotonic()
        self.all.append(found)
        try:
            yield found
        finally:
            found.seconds = time.monotonic() - start

    @property
    def failures(self) -> dict[str, Counter[str]]:
        """How requests failed, by step."""
        return {one.name: Counter(one.failures) for one in self.all if one.failures}

    def table(self) -> str:
        """Return one line a step, and how the first requests failed."""
        failed = [f"{one.name}: {why}" for one in self.all for why in one.failures[:FEW]]
        return "\n".join((lines([TITLES, *(one.row for one in self.all if one.requests)]), *failed))


def lines(rows: Sequence[Sequence[str]]) -> str:
    """Align columns; numbers stand to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    last = len(widths) - 1

    def cell(column: int, text: str) -> str:
        if column == last:
            return text
        return text.ljust(widths[column]) if column == 0 else text.rjust(widths[column])

    return "\n".join("  ".join(cell(*one) for one in enumerate(row)).rstrip() for row in rows)
