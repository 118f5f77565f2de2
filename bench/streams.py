# SPDX-License-Identifier: Apache-2.0
"""(d) A broker with an open control stream to each of thousands of sidecars.

Each stream is an agent's own: it attested by a join token of its own, has its own key and SVID, an entry below it, and
its own mTLS connection. What is not a whole sidecar is the process that they share: one Rust core makes all the
connections, and Python answers Hello and Ack for each as a sidecar does, but does not check and apply what it is told.
"""

from __future__ import annotations

import asyncio
import json
import resource
import select
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio

from bench.options import Options
from bench.processes import PATIENCE, Failed
from bench.progress import say
from bench.table import Table
from bench.world import SERVER as SERVER_PATH
from bench.world import TRUST_DOMAIN, World, spiffe_id
from firedoor.certs import KeyType, X509Svid, generate_key, make_csr, parse_x509_svid, private_key_der
from firedoor.mtls import ControlClient, Core, Material, Svid
from firedoor.sidecar.deltas import MAX_SAID
from firedoor.wire import agent_grpc, agent_pb2, control_pb2, types
from firedoor.wire.views import DELTA, SPREAD, UNKNOWN_BASE

BROKER_ID = spiffe_id("/spire/server")
UNLIMITED = ("--rate-limits-attestation", "1000000", "--rate-limits-attestation-burst", "1000000")
# Descriptors beside one a stream: the broker's own files and sockets, the programs' pipes.
SPARE_DESCRIPTORS = 300
ATTEST_AT_ONCE = 16
ATTEST_A_CONNECTION = 100
# Fewer hands shake at once than the broker's front takes.
CONNECT_AT_ONCE = 200
UPDATES = 5
IDLE_SECONDS = 30.0
ENTRIES_AT_ONCE = 500
KIB = 1 << 10


@dataclass(slots=True)
class Sidecar:
    """One stream, and the last generation that it was told."""

    client: ControlClient
    connected: bool = False
    generation: tuple[int, int] = (0, 0)
    # The hashes that it acknowledged last.
    said: deque[bytes] = field(default_factory=lambda: deque([b""], maxlen=MAX_SAID))


@dataclass(slots=True)
class Crowd:
    """All streams. `core` holds their connections."""

    core: Core
    sidecars: list[Sidecar] = field(default_factory=list)
    # What it says in its Hello that it takes.
    features: tuple[str, ...] = (DELTA, SPREAD)

    def read(self) -> None:
        """Wait for news and take it, for all."""
        select.select([self.core.event_fd()], [], [], 0.05)
        for one in self.sidecars:
            for kind, data in one.client.drain(16):
                if kind == "connected":
                    one.connected = True
                    one.client.send(self._hello(one))
                elif kind == "message":
                    self._take(one, data)
                else:
                    one.connected = False

    def _hello(self, one: Sidecar) -> bytes:
        hello = control_pb2.Hello(versions=[1], features=self.features, agent_version="bench")
        if one.said[-1]:
            epoch, number = one.generation
            hello.running.CopyFrom(control_pb2.Generation(epoch=epoch, number=number))
            hello.view_hash = one.said[-1]
        return control_pb2.FromSidecar(hello=hello).SerializeToString()

    def _take(self, one: Sidecar, data: bytes) -> None:
        update = control_pb2.FromBroker.FromString(data).update
        if update.HasField("base") and update.delta.base_hash not in one.said:
            nack = control_pb2.Nack(generation=update.generation, code=UNKNOWN_BASE)
            one.client.send(control_pb2.FromSidecar(nack=nack).SerializeToString())
            return
        one.generation = update.generation.epoch, update.generation.number
        if update.view_hash != one.said[-1]:
            one.said.append(update.view_hash)
        ack = control_pb2.Ack(generation=update.generation, view_hash=update.view_hash)
        one.client.send(control_pb2.FromSidecar(ack=ack).SerializeToString())

    def wait(self, least: tuple[int, int], seconds: float = PATIENCE) -> float:
        """Read until all have this generation or a later one; return when that was. Raise Failed."""
        end = time.monotonic() + seconds
        while (missing := sum(one.generation < least for one in self.sidecars)) > 0:
            if time.monotonic() > end:
                raise Failed(f"{missing} of {len(self.sidecars)} streams have not got generation {least}")
            self.read()
        return time.monotonic()


def tables(options: Options, folder: Path) -> Iterator[Table]:
    """Measure and return the table."""
    count = _possible(options.streams)
    with ExitStack() as stack:
        world = World(folder, *UNLIMITED, "--metrics", "127.0.0.1:0")
        stack.callback(world.stop)
        core = Core(data_threads=1)
        stack.callback(core.stop)
        agents = enrolled(world, core, folder, count)
        crowd = Crowd(core)
        before = world.broker.resident_bytes()
        began = time.monotonic()
        connect(world, crowd, agents)
        opened = time.monotonic() - began
        grown = world.broker.resident_bytes() - before
        say(f"d: {count} streams in {opened:.1f} s, {grown / count / KIB:.1f} KiB each")
        told = world.metrics()
        kind = '_total{kind="whole"}'
        whole = told[f"firedoor_broker_update_bytes{kind}"] / told[f"firedoor_broker_updates{kind}"]
        idle = _idle(world, crowd)
        say(f"d: {idle * 1e3:.1f} ms of processor time a second while nothing changes")
        figures = Figures(count, opened, grown, whole, idle, *_updates(world, crowd, parent_of(agents[0])))
    yield _table(figures)


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured. `opened` are seconds, `grown` and `whole` bytes, `idle` processor seconds a second."""

    count: int
    opened: float
    grown: int
    whole: float
    idle: float
    quiet: list[float]
    updates: list[Update]


def _idle(world: World, crowd: Crowd) -> float:
    """Return the processor seconds that the broker takes a second while nothing changes."""
    before, began = world.broker.cpu_seconds(), time.monotonic()
    while (passed := time.monotonic() - began) < IDLE_SECONDS:
        crowd.read()
    return (world.broker.cpu_seconds() - before) / passed


def _possible(wanted: int) -> int:
    """Raise the limit on descriptors, and return how many streams it allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and wanted > hard - SPARE_DESCRIPTORS:
        say(f"d: the limit on open files is {hard}; {hard - SPARE_DESCRIPTORS} streams instead of {wanted}")
        return hard - SPARE_DESCRIPTORS
    return wanted


# --- making agents ----------------------------------------------------------------------------------------------


def enrolled(world: World, core: Core, folder: Path, count: int) -> list[str]:
    """Attest so many agents, with an entry below each; return their IDs. The core can speak for all of them."""
    say(f"attesting {count} agents")
    began = time.monotonic()
    agents = asyncio.run(_attest(world, core, folder, count))
    say(f"{count} agents in {time.monotonic() - began:.0f} s")
    _entries(world, [parent_of(one.id) for one in agents])
    roots = [root.der for root in world.bundle().x509_roots]
    core.publish(Material(trust_domain=TRUST_DOMAIN, bundles={TRUST_DOMAIN: roots}, svids=agents))
    return [one.id for one in agents]


def parent_of(agent: str) -> str:
    """Return an agent's path."""
    return agent.removeprefix(f"spiffe://{TRUST_DOMAIN}")


async def _attest(world: World, core: Core, folder: Path, count: int) -> list[Svid]:
    """Attest agents by join tokens, some at a time and a hundred over an anonymous connection: more it may not send."""
    roots = [root.der for root in world.bundle().x509_roots]
    core.publish(Material(trust_domain=TRUST_DOMAIN, bundles={TRUST_DOMAIN: roots}, svids=[]))
    door = core.connector(path=str(folder / "attest.sock"), addresses=[world.address], expect=BROKER_ID)
    places = asyncio.Semaphore(ATTEST_AT_ONCE)
    made: list[Svid] = []
    async with grpc.aio.insecure_channel(f"unix:{world.admin_socket}") as admin:
        tokens = agent_grpc.AgentStub(admin)

        async def one(attesting: agent_grpc.AgentAsyncStub) -> Svid:
            async with places:
                return await _attest_one(tokens, attesting)

        while len(made) < count:
            upto = min(ATTEST_A_CONNECTION, count - len(made))
            own = [("grpc.use_local_subchannel_pool", 1)]
            async with grpc.aio.insecure_channel(f"unix:{door.path}", options=own) as network:
                stub = agent_grpc.AgentStub(network)
                made += await asyncio.gather(*(one(stub) for _ in range(upto)))
    door.stop()
    return made


async def _attest_one(tokens: agent_grpc.AgentAsyncStub, attesting: agent_grpc.AgentAsyncStub) -> Svid:
    token = await tokens.CreateJoinToken(agent_pb2.CreateJoinTokenRequest(ttl=3600))
    key = generate_key(KeyType.EC_P256)
    params = agent_pb2.AttestAgentRequest.Params(
        data=types.AttestationData(type="join_token", payload=token.value.encode()),
        params=agent_pb2.AgentX509SVIDParams(csr=make_csr(key)),
    )
    call = attesting.AttestAgent(iter([agent_pb2.AttestAgentRequest(params=params)]))
    svid: X509Svid | None = None
    async for answer in call:
        svid = parse_x509_svid(tuple(answer.result.svid.cert_chain))
    if svid is None:
        raise Failed("an agent was not attested")
    return Svid(id=str(svid.id), chain=svid.chain, key=private_key_der(key))


def _entries(world: World, parents: list[str]) -> None:
    """Create an entry below each agent."""
    say(f"creating {len(parents)} entries")
    wanted = [(parent, f"/segment/clients/host/{number}/svc/client") for number, parent in enumerate(parents)]
    for start in range(0, len(wanted), ENTRIES_AT_ONCE):
        world.create(wanted[start : start + ENTRIES_AT_ONCE])


# --- streams ----------------------------------------------------------------------------------------------------


def connect(world: World, crowd: Crowd, agents: list[str]) -> None:
    """Open a stream an agent, some at a time, and wait until each has its first view."""
    for start in range(0, len(agents), CONNECT_AT_ONCE):
        for agent_id in agents[start : start + CONNECT_AT_ONCE]:
            client = crowd.core.control_client(addresses=[world.address], as_id=agent_id, expect=BROKER_ID)
            crowd.sidecars.append(Sidecar(client))
        crowd.wait((0, 1))
        world.broker.check()


@dataclass(frozen=True, slots=True)
class Update:
    """One small update: seconds until all had it and the broker all acknowledgements, and what calls waited meanwhile.

    `sent` are the broker's bytes for all, and its processor seconds.
    """

    seconds: float
    waits: list[float]
    sent: float = 0.0
    cpu: float = 0.0


def _updates(world: World, crowd: Crowd, parent: str) -> tuple[list[float], list[Update]]:
    """Push small updates while another process calls; return what calls wait before them, and each update."""
    costs: list[tuple[float, float]] = []
    quiet, updates = meanwhile(world, lambda: [_push(world, crowd, parent, number, costs) for number in range(UPDATES)])
    return quiet, [Update(one.seconds, one.waits, *cost) for one, cost in zip(updates, costs, strict=True)]


def meanwhile(world: World, push: Callable[[], list[tuple[float, float]]]) -> tuple[list[float], list[Update]]:
    """Push updates, each from a time to a time, while another process calls; return what calls wait before and then."""
    words = [sys.executable, "-m", "bench.caller", str(world.admin_socket)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdin
        assert caller.stdout
        caller.stdout.readline()
        quiet_from = time.monotonic()
        time.sleep(1)
        quiet_until = time.monotonic()
        spans = push()
        caller.stdin.close()
        calls = json.loads(caller.stdout.readline())
    quiet = _overlapping(calls, quiet_from, quiet_until)
    return quiet, [Update(end - begin, _overlapping(calls, begin, end)) for begin, end in spans]


def _push(
    world: World, crowd: Crowd, parent: str, number: int, costs: list[tuple[float, float]]
) -> tuple[float, float]:
    """Create an entry of one sidecar: a new generation for all of them, with news for one."""
    epoch, now = max(one.generation for one in crowd.sidecars)
    sent, cpu = _sent(world), world.broker.cpu_seconds()
    begin = time.monotonic()
    world.create_entries(parent, f"{SERVER_PATH}-{number}")
    got = crowd.wait((epoch, now + 1))
    # Who has it has answered; the broker says when it has read the last answer.
    while world.metrics()["firedoor_broker_sidecars_behind"]:
        crowd.read()
    end = time.monotonic()
    costs.append((_sent(world) - sent, world.broker.cpu_seconds() - cpu))
    say(f"d: update {number + 1} of {UPDATES}: {got - begin:.2f} s until all have it, {end - begin:.2f} s acknowledged")
    return begin, end


def _sent(world: World) -> float:
    """Return the bytes of all updates so far."""
    found = world.metrics()
    return sum(value for name, value in found.items() if name.startswith("firedoor_broker_update_bytes_total{"))


def _overlapping(calls: list[tuple[float, float]], begin: float, end: float) -> list[float]:
    return [done - asked for asked, done in calls if asked < end and done > begin]


def _table(all_: Figures) -> Table:
    count, updates = all_.count, all_.updates
    seconds = statistics.median(one.seconds for one in updates)
    sent, cpu = (statistics.median(values) for values in zip(*((one.sent, one.cpu) for one in updates), strict=True))
    during = [wait for one in updates for wait in one.waits]
    rows = [
        ["until all are connected and have their view", f"{all_.opened:.1f} s"],
        ["memory of the broker a stream", f"{all_.grown / count / KIB:.1f} KiB"],
        ["processor of the broker while nothing changes, of one core", f"{all_.idle * 100:.2f} %"],
        ["from a small change to the last acknowledgement, median", f"{seconds:.2f} s"],
        ["the broker's processor time for it", f"{cpu:.2f} s"],
        ["bytes of it a stream, and of a whole view", f"{sent / count:.0f}, {all_.whole:.0f}"],
        ["a call meanwhile waits: p50 / p99 / max", milliseconds(during)],
        ["the same without an update", milliseconds(all_.quiet)],
    ]
    data: dict[str, Any] = {"streams": count, "opened_s": all_.opened, "bytes_a_stream": all_.grown / count}
    data |= {"update_s": seconds, "update_cpu_s": cpu, "sent_a_stream": sent / count, "whole_bytes": all_.whole}
    data |= {"idle_cores": all_.idle, "wait_during_s": sorted(during), "wait_quiet_s": sorted(all_.quiet)}
    return Table(
        "d",
        f"{count} sidecars with an open control stream each",
        ["what", "figure"],
        rows,
        goal="less than 2 s from a change to the last acknowledgement of 10,000 sidecars",
        notes=["The clients run on the same cores, and their work is in the times."],
        data=data,
    )


def milliseconds(waits: list[float]) -> str:
    """Return median, 99th of a hundred, and the longest."""
    if len(waits) < 2:
        return "no call was made"
    p99 = statistics.quantiles(waits, n=100, method="inclusive")[98]
    return f"{statistics.median(waits) * 1e3:.1f} / {p99 * 1e3:.1f} / {max(waits) * 1e3:.1f} ms"
