# SPDX-License-Identifier: Apache-2.0
"""Callers of a gRPC method that ask again as soon as they have an answer, and what they saw."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from bench.processes import Program


@dataclass(frozen=True, slots=True)
class Calls:
    """What one run came to. Times are seconds."""

    count: int
    seconds: float
    cpu: float
    waits: list[float]

    @property
    def p50(self) -> float:
        """The median wait."""
        return statistics.median(self.waits)

    @property
    def p99(self) -> float:
        """The wait that one of a hundred exceeds."""
        return statistics.quantiles(self.waits, n=100, method="inclusive")[98] if len(self.waits) > 1 else self.waits[0]


async def run(program: Program, call: Callable[[int], Awaitable[object]], *, callers: int, seconds: float) -> Calls:
    """Have `call(caller's number)` made by so many callers for so long; the processor time is the program's."""
    waits: list[float] = []
    cpu, started = program.cpu_seconds(), time.perf_counter()
    end = started + seconds

    async def one(number: int) -> None:
        while (before := time.perf_counter()) < end:
            await call(number)
            waits.append(time.perf_counter() - before)

    await asyncio.gather(*(one(number) for number in range(callers)))
    return Calls(len(waits), time.perf_counter() - started, program.cpu_seconds() - cpu, waits)
