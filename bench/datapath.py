# SPDX-License-Identifier: Apache-2.0
"""(a) client → outbound → mTLS → inbound → server: two sidecars against two Envoys, taking turns.

Processor time is that of the two proxies alone, user and system, as the scheduler counts it.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import memory, wrk
from bench.options import Options
from bench.pairs import Pair, missing, running
from bench.processes import Failed
from bench.progress import say
from bench.table import Table
from bench.world import Sidecar

GOAL = "the ratio of processor time, ours to Envoy's, is at most 1 at L4 and at L7"


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of load."""

    name: str
    protocol: str
    path: str
    connections: int
    close: bool = False
    # Against Envoys that resume TLS sessions, as they do unless told not to.
    resuming: bool = False


CASES = (
    Case("L4, keep-alive", "tcp", "/", 64),
    Case("L4, a connection a request", "tcp", "/", 32, close=True),
    Case("the same, Envoy resuming sessions", "tcp", "/", 32, close=True, resuming=True),
    Case("L4, 1 MiB bodies", "tcp", "/mib", 16),
    Case("L7, keep-alive", "http", "/", 64),
    Case("L7, a connection a request", "http", "/", 32, close=True),
    Case("L7, 1 MiB bodies", "http", "/mib", 16),
)


@dataclass(frozen=True, slots=True)
class Run:
    """One pair under one load."""

    load: wrk.Load
    cpu: float  # seconds a request


def tables(options: Options, folder: Path) -> Iterator[Table]:
    """Measure and return the table of load and the table of memory."""
    if lacks := missing():
        yield Table("a", "data path", (), (), notes=[f"Skipped. To measure it: {'; '.join(lacks)}"])
        return
    with running("a", folder) as pairs:
        ours, theirs = pairs.ours, pairs.theirs
        idle = memory.looks((ours, theirs))
        results = {
            case.name: rounds("a", case, (ours, pairs.resuming if case.resuming else theirs), options) for case in CASES
        }
        idle.append(memory.look((ours, theirs), "after all loads below"))
        yield _load_table(results, lost_records(pairs.sidecars))
        yield memory.table("a", idle)


def rounds(table: str, case: Case, pairs: Sequence[Pair], options: Options) -> dict[str, list[Run]]:
    """Have the pairs take turns under one load, after a run of each that does not count."""
    runs: dict[str, list[Run]] = {pair.name: [] for pair in pairs}
    for pair in pairs:
        _run(case, pair, 1)  # Connections, pools and caches are warm before anything counts.
    for number in range(options.rounds):
        for pair in pairs:
            found = _run(case, pair, options.seconds)
            say(
                f"{table}: {case.name}, round {number + 1} of {options.rounds}, {pair.name}: "
                f"{found.cpu * 1e6:.1f} µs of CPU a request, {found.load.per_second:.0f}/s"
            )
            runs[pair.name].append(found)
    return runs


def _run(case: Case, pair: Pair, seconds: float) -> Run:
    before = pair.cpu_seconds()
    load = wrk.run(
        f"http://{pair.listening[case.protocol]}{case.path}",
        seconds=seconds,
        connections=case.connections,
        close=case.close,
        prefix=pair.prefix,
    )
    if not load.requests or load.errors:
        raise Failed(f"{case.name}, {pair.name}: {load.requests} requests, {load.errors} errors")
    return Run(load, (pair.cpu_seconds() - before) / load.requests)


def ratio(runs: dict[str, list[Run]], of: Callable[[Run], float]) -> float:
    """Return the first's to the second's, the median of the pairs of runs that followed each other."""
    ours, theirs = runs.values()
    return statistics.median(of(a) / of(b) for a, b in zip(ours, theirs, strict=True))


def median(runs: list[Run], of: Callable[[Run], float]) -> float:
    """Return a figure of the run in the middle."""
    return statistics.median(of(run) for run in runs)


FIGURES: dict[str, Callable[[Run], float]] = {
    "cpu_us": lambda run: run.cpu * 1e6,
    "per_second": lambda run: run.load.per_second,
    "p50_ms": lambda run: run.load.p50 * 1e3,
    "p99_ms": lambda run: run.load.p99 * 1e3,
}


def _load_table(results: dict[str, dict[str, list[Run]]], lost: int) -> Table:
    data: dict[str, Any] = {"records_lost": lost}
    rows = []
    for case, runs in results.items():
        names = ("firedoor", "Envoy")
        found = {name: {key: median(runs[name], of) for key, of in FIGURES.items()} for name in names}
        ratios = {key: ratio(runs, of) for key, of in FIGURES.items()}
        data[case] = {**found, "ratios": ratios}
        ours, theirs = found["firedoor"], found["Envoy"]
        rows.append(
            [case, f"{ours['cpu_us']:.1f}", f"{theirs['cpu_us']:.1f}", f"{ratios['cpu_us']:.2f}"]
            + [f"{ours['per_second']:.0f}", f"{theirs['per_second']:.0f}", f"{ratios['per_second']:.2f}"]
            + [f"{ours[key]:.2f} / {theirs[key]:.2f}" for key in ("p50_ms", "p99_ms")]
        )
    header = ["case", "CPU µs a request", "Envoy", "ratio", "requests/s", "Envoy", "ratio", "p50 ms, Envoy's"]
    return Table(
        "a",
        "data path: two sidecars against two Envoys, wrk in front, nginx behind",
        [*header, "p99 ms, Envoy's"],
        rows,
        goal=GOAL,
        notes=[f"Decision records that were lost: {lost}."] if lost else [],
        data=data,
    )


def lost_records(sidecars: Sequence[Sidecar]) -> int:
    """Return how many decision records the sidecars have lost."""
    counters = [one.status().counters for one in sidecars]
    return sum(one["records_lost"] + one["records_lost_at_the_sink"] for one in counters)
