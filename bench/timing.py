# SPDX-License-Identifier: Apache-2.0
"""Timing a call: the median of several runs, so that one interruption does not count."""

import statistics
import time
from collections.abc import Callable

RUNS = 9
RUN_SECONDS = 0.15


def per_call(call: Callable[[], object]) -> float:
    """Return the seconds that one call takes."""
    call()
    count = 1
    while (took := _run(call, count)) < RUN_SECONDS / 2:
        count = max(count * 2, int(count * RUN_SECONDS / max(took, 1e-6)))
    return statistics.median(_run(call, count) for _ in range(RUNS)) / count


def _run(call: Callable[[], object], count: int) -> float:
    started = time.perf_counter()
    for _ in range(count):
        call()
    return time.perf_counter() - started
