# SPDX-License-Identifier: Apache-2.0
"""(h) How long it takes from a revocation until the connections of the revoked are closed.

A client keeps connections open through two sidecars. One end's SVIDs are revoked through the broker's admin socket; the
clock runs from before that call until each connection has ended at the client. Then it has another SVID, and it begins
again.
"""

import select
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

from bench.options import Options
from bench.processes import PATIENCE, Failed, until
from bench.progress import say
from bench.table import Table
from bench.world import CLIENT, SERVER, TCP_PORT, World, spiffe_id
from firedoor.wire import admin_grpc, admin_pb2

TURNS, CONNECTIONS = 30, 20
GOAL = "99 of 100 closed within a second"


class Echo:
    """Sends back what comes, until the other end closes."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=CONNECTIONS)
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=_serve, args=(self._socket.accept()[0],), daemon=True).start()

    def close(self) -> None:
        """Take nobody any more."""
        self._socket.close()


def _serve(peer: socket.socket) -> None:
    with peer, suppress(OSError):
        while data := peer.recv(64):
            peer.sendall(data)


def tables(_options: Options, folder: Path) -> Iterator[Table]:
    """Measure and return the table."""
    with ExitStack() as stack:
        say("h: starting a broker and two sidecars")
        echo = Echo()
        stack.callback(echo.close)
        world = World(folder)
        stack.callback(world.stop)
        path = _sidecars(world, echo)
        ends = (CLIENT, SERVER)
        rows = {end: [one for _ in range(TURNS) for one in _turn(world, path, spiffe_id(end))] for end in ends}
    yield _table(rows)


def _sidecars(world: World, echo: Echo) -> Path:
    """Start a sidecar at each end; return where the client connects."""
    path = world.folder / "out.sock"
    inbound = {
        "name": "in",
        "as": spiffe_id(SERVER),
        "listen": "127.0.0.1:0",
        "service_port": TCP_PORT,
        "protocol": "tcp",
        "app": {"address": echo.address},
    }
    parent, token = world.join_token()
    world.create_entries(parent, SERVER)
    address = world.sidecar("server", token, inbound=[inbound]).listening("in")
    outbound = {
        "name": "out",
        "as": spiffe_id(CLIENT),
        "listen": f"unix:{path}",
        "protocol": "tcp",
        "expect": [spiffe_id(SERVER)],
        "service_port": TCP_PORT,
        "addresses": [address],
    }
    parent, token = world.join_token()
    world.create_entries(parent, CLIENT)
    world.sidecar("client", token, outbound=[outbound]).listening("out")
    return path


def _turn(world: World, path: Path, revoked: str) -> list[float]:
    """Open connections, revoke, and return the milliseconds until each had ended."""
    until(lambda: _answers(path), "a request is carried")
    peers = [_connect(path) for _ in range(CONNECTIONS)]
    with world.admin() as channel:
        stub = admin_grpc.RevocationAdminStub(channel)
        before = time.perf_counter()
        call = stub.RevokeSvids.future(admin_pb2.RevokeSvidsRequest(spiffe_id=revoked), timeout=PATIENCE)
        waits = [(at - before) * 1e3 for at in _ends(peers)]
        call.result()
    return waits


def _connect(path: Path) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(PATIENCE)
    peer.connect(str(path))
    peer.sendall(b"x")
    if peer.recv(64) != b"x":
        raise Failed("a connection was not carried")
    return peer


def _answers(path: Path) -> bool:
    try:
        _connect(path).close()
    except (OSError, Failed):
        return False
    return True


def _ends(peers: list[socket.socket]) -> Iterator[float]:
    """Yield when each connection ended, as they do. Raise Failed."""
    left = set(peers)
    while left:
        readable, _, _ = select.select(list(left), [], [], PATIENCE)
        at = time.perf_counter()
        if not readable:
            raise Failed(f"{len(left)} connections did not end")
        for one in readable:
            one.close()
            left.discard(one)
            yield at


def _table(rows: dict[str, list[float]]) -> Table:
    shown, data = [], {}
    for end, waits in rows.items():
        cuts = statistics.quantiles(waits, n=100, method="inclusive")
        data[end] = {"p50_ms": cuts[49], "p99_ms": cuts[98], "max_ms": max(waits)}
        shown.append(["the client's" if end == CLIENT else "the server's", str(len(waits))])
        shown[-1] += [f"{one:.1f}" for one in data[end].values()]
    say(f"h: {data[CLIENT]['p99_ms']:.1f} ms for 99 of 100")
    return Table(
        "h",
        "from a revocation until connections of the revoked are closed",
        ["whose SVID", "connections", "p50 ms", "p99 ms", "max ms"],
        shown,
        goal=GOAL,
        data=dict(data),
    )
