# SPDX-License-Identifier: Apache-2.0
"""(c) How long it takes from `entry create` to the SVID at a workload that waits for it below a sidecar.

A program of ours holds a FetchX509SVID stream open, as SPIFFE libraries do. An entry is created through the server's
admin socket; the clock runs from before that call until the stream has the new SVID. The same is done with a real
spire-server and spire-agent where they are built.
"""

import queue
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import grpc

from bench import spire
from bench.options import Options
from bench.processes import PATIENCE, Failed, until
from bench.progress import say
from bench.table import Table
from bench.world import Server, World, spiffe_id
from firedoor.wire import workload_grpc, workload_pb2

ENTRIES = 40
# Theirs take seconds each.
SPIRE_ENTRIES = 6
GOAL = "below 50 ms at the median, and a hundredth of SPIRE's"
RECORDED = "SPIRE 1.15.3: 4.5-5.8 s, recorded in the same way; with `make peers` it is measured in the same run"
HEADER = (("workload.spiffe.io", "true"),)


class Workload:
    """A program that watches its SVIDs."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=[("grpc.default_authority", "localhost")])
        self._seen: queue.Queue[tuple[float, set[str]]] = queue.Queue()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        stub = workload_grpc.SpiffeWorkloadAPIStub(self._channel)
        # An agent that has nothing for this process yet ends the stream.
        while not self._closed.wait(0.05):
            with suppress(grpc.RpcError):
                for answer in stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=HEADER):
                    self._seen.put((time.perf_counter(), {svid.spiffe_id for svid in answer.svids}))

    def holds(self, wanted: str) -> float:
        """Wait for an SVID and return when it came. Raise Failed."""
        end = time.monotonic() + PATIENCE
        with suppress(queue.Empty):
            while (left := end - time.monotonic()) > 0:
                at, ids = self._seen.get(timeout=left)
                if wanted in ids:
                    return at
        raise Failed(f"{wanted} did not reach the workload")

    def close(self) -> None:
        """End the stream."""
        self._closed.set()
        self._channel.close()
        self._thread.join(5)


def tables(_options: Options, folder: Path) -> Iterator[Table]:
    """Measure and return the table."""
    server, agent = spire.binary(), spire.binary("spire-agent")
    measured = {"firedoor": _ours(folder)}
    if server and agent:
        measured["SPIRE"] = _theirs(folder, server, agent)
    yield _table(measured)


def _ours(folder: Path) -> list[float]:
    with ExitStack() as stack:
        say("c: starting a broker and a sidecar")
        world = World(folder)
        stack.callback(world.stop)
        parent, token = world.join_token()
        world.create_entries(parent, path(0))
        sidecar = world.sidecar("s", token)
        until(lambda: sidecar.status().svids, "the sidecar has its first SVID")
        return _waits("firedoor", world, parent, sidecar.auth_socket, ENTRIES)


def _theirs(folder: Path, server_program: Path, agent_program: Path) -> list[float]:
    with ExitStack() as stack:
        say("c: starting a spire-server and a spire-agent")
        server = spire.SpireServer(server_program, folder / "spire")
        stack.callback(server.stop)
        parent, token = server.join_token()
        server.create_entries(parent, path(0))
        agent = spire.SpireAgent(agent_program, folder / "agent", server, token)
        stack.callback(agent.stop)
        return _waits("SPIRE", server, parent, agent.socket, SPIRE_ENTRIES)


def _waits(who: str, server: Server, parent: str, socket: Path, count: int) -> list[float]:
    """Create entries one after the other; return the milliseconds until the workload had each SVID."""
    with closing(Workload(socket)) as workload:
        workload.holds(spiffe_id(path(0)))
        waits = []
        for number in range(1, count + 1):
            before = time.perf_counter()
            server.create_entries(parent, path(number))
            waits.append((workload.holds(spiffe_id(path(number))) - before) * 1e3)
    say(f"c: {who}: {count} entries, {statistics.median(waits):.1f} ms at the median")
    return waits


def path(number: int) -> str:
    """Return the path of one of the workload's IDs."""
    return f"/segment/clients/host/a/svc/w{number}"


def _figures(waits: list[float]) -> dict[str, float]:
    p90 = statistics.quantiles(waits, n=10, method="inclusive")[-1]
    return {"min_ms": min(waits), "p50_ms": statistics.median(waits), "p90_ms": p90, "max_ms": max(waits)}


def _table(measured: dict[str, list[float]]) -> Table:
    figures = {who: _figures(waits) for who, waits in measured.items()}
    rows = [[who, str(len(measured[who])), *(f"{one:.1f}" for one in of.values())] for who, of in figures.items()]
    if "SPIRE" in figures:
        rows.append(["SPIRE / firedoor", "", "", f"{figures['SPIRE']['p50_ms'] / figures['firedoor']['p50_ms']:.0f}"])
        rows[-1] += ["", ""]
    return Table(
        "c",
        "from `entry create` to the SVID at the workload, entries one after the other",
        ["", "entries", "min ms", "p50 ms", "p90 ms", "max ms"],
        rows,
        goal=GOAL,
        notes=[] if "SPIRE" in figures else [RECORDED],
        data=dict(figures),
    )
