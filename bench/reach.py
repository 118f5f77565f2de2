# SPDX-License-Identifier: Apache-2.0
"""(c) How long it takes from `entry create` to the SVID at a workload that waits for it below a sidecar.

A program of ours holds a FetchX509SVID stream open, as SPIFFE libraries do. An entry is created through the broker's
admin socket; the clock runs from before that call until the stream has the new SVID.
"""

import queue
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc

from bench.options import Options
from bench.processes import PATIENCE, Failed, until
from bench.progress import say
from bench.table import Table
from bench.world import World, spiffe_id
from firedoor.wire import workload_grpc, workload_pb2

ENTRIES = 40
GOAL = "below 50 ms at the median (SPIRE 1.15.3: 4.5-5.8 s, recorded in the same way)"
HEADER = (("workload.spiffe.io", "true"),)


class Workload:
    """A program that watches its SVIDs."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=[("grpc.default_authority", "localhost")])
        self._seen: queue.Queue[tuple[float, set[str]]] = queue.Queue()
        stub = workload_grpc.SpiffeWorkloadAPIStub(self._channel)
        self._stream = stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=HEADER)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with suppress(grpc.RpcError):
            for answer in self._stream:
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
        self._stream.cancel()
        self._channel.close()
        self._thread.join(5)


def tables(_options: Options, folder: Path) -> Iterator[Table]:
    """Measure and return the table."""
    with ExitStack() as stack:
        say("c: starting a broker and a sidecar")
        world = World(folder)
        stack.callback(world.stop)
        parent, token = world.join_token()
        world.create_entries(parent, path(0))
        sidecar = world.sidecar("s", token)
        until(lambda: sidecar.status().svids, "the sidecar has its first SVID")
        workload = Workload(sidecar.auth_socket)
        stack.callback(workload.close)
        workload.holds(spiffe_id(path(0)))
        waits = []
        for number in range(1, ENTRIES + 1):
            before = time.perf_counter()
            world.create_entries(parent, path(number))
            waits.append((workload.holds(spiffe_id(path(number))) - before) * 1e3)
        say(f"c: {ENTRIES} entries, {statistics.median(waits):.1f} ms at the median")
    yield _table(waits)


def path(number: int) -> str:
    """Return the path of one of the workload's IDs."""
    return f"/segment/clients/host/a/svc/w{number}"


def _table(waits: list[float]) -> Table:
    figures = {"p50_ms": statistics.median(waits), "p90_ms": statistics.quantiles(waits, n=10, method="inclusive")[-1]}
    figures |= {"min_ms": min(waits), "max_ms": max(waits)}
    return Table(
        "c",
        f"from `entry create` to the SVID at the workload, {len(waits)} entries one after the other",
        ["", "min ms", "p50 ms", "p90 ms", "max ms"],
        [["firedoor", *(f"{figures[key]:.1f}" for key in ("min_ms", "p50_ms", "p90_ms", "max_ms"))]],
        goal=GOAL,
        data=figures,
    )
