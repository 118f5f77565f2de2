# SPDX-License-Identifier: Apache-2.0
"""(memory) what the proxies keep of a thousand connections that have carried one request each."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.options import Options
from bench.pairs import Pair, missing, running
from bench.processes import Failed
from bench.progress import say
from bench.table import Table

IDLE_CONNECTIONS = 1000
# In this order: what freed memory is there when the second begins is the smaller.
LEVELS = {"http": "L7", "tcp": "L4"}
MIB = 1 << 20


def tables(_options: Options, folder: Path) -> Iterator[Table]:
    """Measure and return the table, without any other load."""
    if lacks := missing():
        yield Table("memory", "idle connections", (), (), notes=[f"Skipped. To measure it: {'; '.join(lacks)}"])
        return
    with running("memory", folder) as pairs:
        yield table("memory", looks((pairs.ours, pairs.theirs)))


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident bytes of each process at one moment: (inbound, outbound) of each pair."""

    when: str
    resident: dict[str, list[int]]


def look(pairs: Sequence[Pair], when: str) -> Memory:
    """Ask now."""
    return Memory(when, {pair.name: [one.resident_bytes() for one in pair.programs] for pair in pairs})


def looks(pairs: Sequence[Pair]) -> list[Memory]:
    """Ask at the start, and while idle connections of each kind are open."""
    return [look(pairs, "after the start"), *(_idle(pairs, kind, level) for kind, level in LEVELS.items())]


def _idle(pairs: Sequence[Pair], kind: str, level: str) -> Memory:
    """Hold connections that have carried one request each, and look."""
    with ExitStack() as stack:
        for pair in pairs:
            say(f"{IDLE_CONNECTIONS} idle {level} connections through {pair.name}")
            for _ in range(IDLE_CONNECTIONS):
                stack.enter_context(_used_connection(pair.listening[kind]))
        return look(pairs, f"{IDLE_CONNECTIONS} idle {level} connections")


def _used_connection(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.sendall(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")
    if not connection.recv(4096).startswith(b"HTTP/1.1 200"):
        raise Failed(f"{address}: no answer through the proxies")
    return connection


def table(name: str, memory: Sequence[Memory]) -> Table:
    """Make the table."""
    rows = [
        [one.when, *(f"{part / MIB:.1f}" for name in ("firedoor", "Envoy") for part in one.resident[name])]
        for one in memory
    ]
    return Table(
        name,
        "resident memory of the proxies, MiB, in the order of the rows",
        ["when", "sidecar, inbound", "outbound", "Envoy, inbound", "outbound"],
        rows,
        goal=f"at most 80 MiB a sidecar at {IDLE_CONNECTIONS} idle connections",
        data={one.when: one.resident for one in memory},
    )
