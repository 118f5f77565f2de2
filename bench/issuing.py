# SPDX-License-Identifier: Apache-2.0
"""(b) What an X.509-SVID costs the broker, with authorization, admission, audit log and database on.

Minted through the admin socket one a call, and issued to an agent over mTLS in batches. Processor time is that of the
broker's process, its Rust threads included; the callers are another process.
"""

import asyncio
import statistics
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from bench import calls, spire
from bench.agent import Agent
from bench.calls import Calls
from bench.options import Options
from bench.processes import Failed, Program
from bench.progress import say
from bench.table import Table
from bench.world import World, spiffe_id
from firedoor.certs import KeyType, generate_key, make_csr
from firedoor.wire import svid_grpc, svid_pb2

CALLERS = 8
BATCH_CALLERS = 4
BATCH = 100
# Requests made beforehand, so that making keys is nobody's time.
KEYS = 64
MINTED = "/segment/clients/minted"
GOAL = "minted one a call below SPIRE's figure; in batches of 100 at most half of it"
UNLIMITED = ("--rate-limits-signing", "1000000", "--rate-limits-signing-burst", "1000000")
OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 64 << 20)]

Call = Callable[[int], Awaitable[object]]


@dataclass(slots=True)
class Row:
    """One way to get SVIDs. `each`: how many a call brings."""

    name: str
    program: Program
    call: Call
    callers: int
    each: int = 1
    runs: list[Calls] = field(default_factory=list)

    def cpu_us(self) -> float:
        return statistics.median(run.cpu / (run.count * self.each) for run in self.runs) * 1e6

    def cells(self, reference: float | None) -> list[str]:
        per_second = statistics.median(run.count * self.each / run.seconds for run in self.runs)
        waits = [statistics.median(of) * 1e3 for of in ([r.p50 for r in self.runs], [r.p99 for r in self.runs])]
        ratio = f"{self.cpu_us() / reference:.2f}" if reference else ""
        return [self.name, str(self.callers), f"{self.cpu_us():.0f}", ratio, f"{per_second:.0f}"] + [
            f"{wait:.2f}" for wait in waits
        ]


def tables(options: Options, folder: Path) -> Iterator[Table]:
    """Measure and return the table."""
    with ExitStack() as stack:
        say("b: starting a broker")
        world = World(folder, *UNLIMITED)
        stack.callback(world.stop)
        paths = [f"/segment/clients/host/a/svc/w{number}" for number in range(BATCH)]
        parent, token = world.join_token()
        entries = world.create_entries(parent, *paths)
        agent = Agent(world, token, folder)
        stack.callback(agent.close)
        server = None
        if program := spire.binary():
            say("b: starting a spire-server")
            server = spire.SpireServer(program, folder / "spire")
            stack.callback(server.stop)
        rows = asyncio.run(_measure(options, world, agent, entries, server))
    yield _table(rows)


async def _measure(
    options: Options, world: World, agent: Agent, entries: list[str], server: spire.SpireServer | None
) -> list[Row]:
    async with AsyncExitStack() as stack:

        async def channel(target: str) -> grpc.aio.Channel:
            return await stack.enter_async_context(grpc.aio.insecure_channel(target, options=OPTIONS))

        admin, issue = await channel(f"unix:{world.admin_socket}"), await channel(agent.target("issue"))
        batch = _batch(issue, entries)
        rows = [
            Row("firedoor, minted one a call", world.broker, _mint(admin), CALLERS),
            Row("firedoor, to an agent, batches of 1", world.broker, _batch(issue, entries[:1]), CALLERS),
            Row(f"firedoor, to an agent, batches of {BATCH}", world.broker, batch, BATCH_CALLERS, BATCH),
        ]
        if server is not None:
            theirs = _mint(await channel(f"unix:{server.admin_socket}"))
            rows.insert(0, Row("SPIRE, minted one a call", server.program, theirs, CALLERS))
        return await _rounds(options, rows)


async def _rounds(options: Options, rows: list[Row]) -> list[Row]:
    for row in rows:
        await calls.run(row.program, row.call, callers=row.callers, seconds=1)
    for number in range(options.rounds):
        for row in rows:
            run = await calls.run(row.program, row.call, callers=row.callers, seconds=options.seconds)
            row.runs.append(run)
            cpu = run.cpu / (run.count * row.each) * 1e6
            say(f"b: {row.name}, round {number + 1} of {options.rounds}: {cpu:.0f} µs of CPU each")
    return rows


def _mint(channel: grpc.aio.Channel) -> Call:
    stub = svid_grpc.SVIDStub(channel)
    requests = [svid_pb2.MintX509SVIDRequest(csr=_named_csr(MINTED)) for _ in range(KEYS)]
    turn = iter(range(1 << 62))

    async def call(_: int) -> None:
        await stub.MintX509SVID(requests[next(turn) % KEYS])

    return call


def _batch(channel: grpc.aio.Channel, entries: list[str]) -> Call:
    stub = svid_grpc.SVIDStub(channel)
    csrs = [make_csr(generate_key(KeyType.EC_P256)) for _ in range(KEYS)]
    params = [svid_pb2.NewX509SVIDParams(entry_id=one, csr=csrs[at % KEYS]) for at, one in enumerate(entries)]
    request = svid_pb2.BatchNewX509SVIDRequest(params=params)

    async def call(_: int) -> None:
        answer = await stub.BatchNewX509SVID(request)
        if any(one.status.code for one in answer.results):
            raise Failed(f"an SVID was refused: {answer.results[0].status.message}")

    return call


def _named_csr(path: str) -> bytes:
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(spiffe_id(path))])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(names, critical=False)
    return builder.sign(generate_key(KeyType.EC_P256), hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def _table(rows: list[Row]) -> Table:
    theirs = next((row for row in rows if row.name.startswith("SPIRE")), None)
    reference = theirs.cpu_us() if theirs else None
    cells = [row.cells(reference) for row in rows]
    if theirs is None:
        cells.insert(0, ["SPIRE, minted one a call (recorded)", "8", spire.RECORDED, "", "2100-2300", "3.3", ""])
    return Table(
        "b",
        "processor time of the server for an X.509-SVID, P-256",
        ["way", "callers", "CPU µs an SVID", "to SPIRE's", "SVIDs/s", "p50 ms a call", "p99 ms a call"],
        cells,
        goal=GOAL,
        notes=[] if theirs else [spire.RECORDED_ORIGIN],
        data={row.name: {"cpu_us": row.cpu_us(), "runs": len(row.runs)} for row in rows},
    )
