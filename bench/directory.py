# SPDX-License-Identifier: Apache-2.0
"""(f) How long a directory of services takes from `segment apply` until every sidecar has it.

All sidecars are told all services: their segment has a flow to each. Two are whole ones, which load what they are told
into their data path; the others are control streams, as in table d.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.options import Options
from bench.processes import until
from bench.progress import say
from bench.streams import UNLIMITED, Crowd, Update, connect, enrolled, meanwhile, milliseconds
from bench.table import Table
from bench.world import CLIENT, HTTP_PORT, POLICY, Sidecar, World
from firedoor.mtls import Core

SERVICES, ADDRESSES = 200, 50
STREAMS, SIDECARS = 100, 2
GOAL = "all have 200 services with 50 addresses each within a second of `segment apply`"
SERVICE = """\
apiVersion: firedoor.dev/v1alpha1
kind: Service
metadata: {{name: v{number}}}
spec:
  addresses: [{addresses}]
  ports: [{{port: {port}, protocol: http, expect: ["spiffe://{{td}}/segment/servers/**"]}}]
"""


def tables(options: Options, folder: Path) -> Iterator[Table]:
    """Measure and return the table."""
    with ExitStack() as stack:
        world = World(folder, *UNLIMITED, policy="database")
        stack.callback(world.stop)
        world.apply({"policy.yaml": POLICY})
        core = Core(data_threads=1)
        stack.callback(core.stop)
        crowd = Crowd(core)
        connect(world, crowd, enrolled(world, core, folder, min(STREAMS, options.streams)))
        everybody = Everybody(world, crowd, [_sidecar(world, number) for number in range(SIDECARS)])
        found = everybody.measure(options.rounds, apart=False) | everybody.measure(options.rounds, apart=True)
    yield _table(len(crowd.sidecars), found)


def _sidecar(world: World, number: int) -> Sidecar:
    parent, token = world.join_token()
    world.create_entries(parent, f"{CLIENT}-{number}")
    return world.sidecar(f"s{number}", token)


# What is applied before, and what then.
Edit = tuple[dict[str, str] | None, dict[str, str]]


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds that calls waited before, the updates, and the broker's processor time of each."""

    quiet: list[float]
    updates: list[Update]
    cpu: list[float]


class Everybody:
    """All who are told."""

    def __init__(self, world: World, crowd: Crowd, sidecars: list[Sidecar]) -> None:
        self._world, self._crowd, self._sidecars = world, crowd, sidecars

    def measure(self, rounds: int, *, apart: bool) -> dict[str, Measured]:
        """Apply a directory that is new, some times, then one with another address."""
        files = "a file a service" if apart else "one file"
        fresh: list[Edit] = [({"policy.yaml": POLICY}, documents(apart, 0))] * rounds
        changed: list[Edit] = [(None, documents(apart, number + 1)) for number in range(rounds)]
        kinds = {f"all of it, {files}": fresh, f"one address, {files}": changed}
        return {what: self._measure(what, edits) for what, edits in kinds.items()}

    def _measure(self, what: str, edits: list[Edit]) -> Measured:
        cpu: list[float] = []

        def push() -> list[tuple[float, float]]:
            spans = []
            for first, then in edits:
                if first is not None:
                    self._apply(first)
                before, begin = self._world.broker.cpu_seconds(), time.monotonic()
                self._apply(then)
                spans.append((begin, time.monotonic()))
                cpu.append(self._world.broker.cpu_seconds() - before)
                say(f"f: {what}: {spans[-1][1] - begin:.2f} s until all have it")
            return spans

        quiet, updates = meanwhile(self._world, push)
        return Measured(quiet, updates, cpu)

    def _apply(self, policy: dict[str, str]) -> None:
        """Apply a policy, and wait until everybody has it."""
        generation = self._world.apply(policy)
        self._crowd.wait(generation)
        until(lambda: all(running(one) >= generation for one in self._sidecars), "the sidecars run it", pause=0.005)


def running(sidecar: Sidecar) -> tuple[int, int]:
    """Return the generation that a sidecar runs."""
    found = sidecar.status().generation
    return found.epoch, found.number


def documents(apart: bool, changes: int) -> dict[str, str]:
    """Return the policy with the directory; `changes`: how often the first service's first address has changed."""
    texts = [service(number, changes if number == 0 else 0) for number in range(SERVICES)]
    if apart:
        return {"policy.yaml": POLICY, **{f"v{number}.yaml": text for number, text in enumerate(texts)}}
    return {"policy.yaml": "---\n".join([POLICY, *texts])}


def service(number: int, changes: int) -> str:
    """Return one service's document."""
    hosts = [f"10.{number}.0.{host + 1}" for host in range(ADDRESSES)]
    hosts[0] = f"10.{number}.{changes}.1"
    return SERVICE.format(number=number, addresses=", ".join(hosts), port=HTTP_PORT)


def _table(streams: int, found: dict[str, Measured]) -> Table:
    rows, data = [], dict[str, Any](streams=streams, sidecars=SIDECARS, services=SERVICES, addresses=ADDRESSES)
    for what, one in found.items():
        seconds = [update.seconds for update in one.updates]
        waits = [wait for update in one.updates for wait in update.waits]
        row = [what, f"{statistics.median(seconds):.2f}", f"{max(seconds):.2f}"]
        rows.append([*row, f"{statistics.median(one.cpu) * 1e3:.0f}", milliseconds(waits), milliseconds(one.quiet)])
        data[what] = {"seconds": seconds, "cpu_s": one.cpu, "waits_s": sorted(waits)}
    return Table(
        "f",
        f"a directory of {SERVICES} services with {ADDRESSES} addresses, from `segment apply` until "
        f"{streams} control streams and {SIDECARS} sidecars have it",
        ["what changed", "s", "s at most", "CPU ms of the broker", "a call meanwhile, p50 / p99 / max", "without"],
        rows,
        goal=GOAL,
        notes=["The streams' ends run on the same cores, and their work is in the times."],
        data=data,
    )
