# SPDX-License-Identifier: Apache-2.0
"""(e) What it costs a server to keep one agent with so many entries informed.

Asked as SPIRE's agents ask, every five seconds whether anything changed or not: SyncAuthorizedEntries over mTLS, from a
real spire-server and from our broker. And told as our sidecars are told: a control stream, on which nothing is said
until an entry changes.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from bench import spire
from bench.agent import SERVER as SERVER_ID
from bench.agent import Agent
from bench.options import Options
from bench.processes import Failed, Program, until
from bench.progress import say
from bench.streams import Crowd, Sidecar
from bench.table import Table
from bench.world import OPTIONS, Server, World
from firedoor.wire import entry_grpc, entry_pb2, types

CREATED_AT_ONCE = 500
CHANGES = 5
MIB = 1 << 20
GOAL = "a change costs, not an entry: nothing is said while nothing changes"
NOTES = (
    "SPIRE's agents ask every 5 s by default. A change: one entry's hint is set through the admin socket; the time is "
    "that of the broker's whole process, the transaction included, until the stream has it.",
)
# What SPIRE's agent asks for (SyncAuthorizedEntries).
MASK = types.EntryMask(
    spiffe_id=True,
    selectors=True,
    federates_with=True,
    admin=True,
    downstream=True,
    revision_number=True,
    store_svid=True,
    hint=True,
    created_at=True,
    additional_attributes=True,
)


@dataclass(slots=True)
class Side:
    """A server with an agent. CPU is in milliseconds, by number of entries."""

    name: str
    server: Server
    program: Program
    agent: Agent
    parent: str
    ids: list[str] = field(default_factory=list)
    polls: list[float] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)

    def grow(self, count: int) -> None:
        """Create entries below the agent until there are so many."""
        say(f"e: {self.name}: {count} entries")
        while (have := len(self.ids)) < count:
            upto = min(count, have + CREATED_AT_ONCE)
            self.ids += self.server.create_entries(self.parent, *(path(number) for number in range(have, upto)))
        with grpc.insecure_channel(self.agent.target(f"wait{count}"), options=OPTIONS) as channel:
            stub = entry_grpc.EntryStub(channel)
            until(lambda: poll(stub) == count, f"{self.name} tells the agent of {count} entries", pause=0.5)

    def ask(self, seconds: float) -> None:
        """Poll for so long, one poll after the other."""
        with grpc.insecure_channel(self.agent.target(f"ask{len(self.polls)}"), options=OPTIONS) as channel:
            stub = entry_grpc.EntryStub(channel)
            poll(stub)
            cpu, end, count = self.program.cpu_seconds(), time.monotonic() + seconds, 0
            while time.monotonic() < end:
                poll(stub)
                count += 1
        self.polls.append((self.program.cpu_seconds() - cpu) / count * 1e3)
        self.resident.append(self.program.resident_bytes())

    def close(self) -> None:
        """End its agent."""
        self.agent.close()


def tables(options: Options, folder: Path) -> Iterator[Table]:
    """Measure and return the table."""
    with ExitStack() as stack:
        world = World(folder)
        stack.callback(world.stop)
        ours = _side("firedoor", world, world.broker, folder / "ours", stack)
        sides = [ours]
        if program := spire.binary():
            server = spire.SpireServer(program, folder / "spire")
            stack.callback(server.stop)
            sides.append(_side("SPIRE", server, server.program, folder / "theirs", stack))
        changes = []
        for count in options.entries:
            for side in sides:
                side.grow(count)
                side.ask(options.seconds)
            changes.append(_changes(world, ours, options.seconds))
            shown = ", ".join(f"{side.name} {side.polls[-1]:.2f} ms a poll" for side in sides)
            say(f"e: {count} entries: {shown}; {changes[-1][0]:.2f} ms a change")
    yield _table(options, sides, changes)


def _side(name: str, server: Server, program: Program, folder: Path, stack: ExitStack) -> Side:
    folder.mkdir(mode=0o700)
    parent, token = server.join_token()
    side = Side(name, server, program, Agent(server, token, folder), parent)
    stack.callback(side.close)
    return side


def path(number: int) -> str:
    """Return the path of one of the IDs."""
    return f"/segment/clients/host/a/svc/w{number}"


def poll(stub: entry_grpc.EntryStub) -> int:
    """Ask as SPIRE's agent does when it has everything already; return how many entries there are."""
    count = 0
    for answer in stub.SyncAuthorizedEntries(iter([entry_pb2.SyncAuthorizedEntriesRequest(output_mask=MASK)])):
        count += len(answer.entries) + len(answer.entry_revisions)
        if not answer.more:
            break
    return count


def _changes(world: World, side: Side, seconds: float) -> tuple[float, float]:
    """Change an entry some times while a control stream is open; CPU ms a change, and a second without any."""
    crowd = Crowd(side.agent.core)
    client = side.agent.core.control_client(addresses=[side.agent.address], as_id=side.agent.id, expect=SERVER_ID)
    crowd.sidecars.append(Sidecar(client))
    try:
        crowd.wait((0, 1))
        quiet = _cpu_of(side.program, lambda: _idle(crowd, seconds)) / seconds
        with world.admin() as channel:
            stub = entry_grpc.EntryStub(channel)
            spent = _cpu_of(side.program, lambda: _change(stub, crowd, side.ids[0]))
    finally:
        client.stop()
    return spent / CHANGES, quiet


def _cpu_of(program: Program, work: Callable[[], object]) -> float:
    before = program.cpu_seconds()
    work()
    return (program.cpu_seconds() - before) * 1e3


def _idle(crowd: Crowd, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        crowd.read()


def _change(stub: entry_grpc.EntryStub, crowd: Crowd, entry_id: str) -> None:
    for number in range(CHANGES):
        epoch, now = crowd.sidecars[0].generation
        entry = types.Entry(id=entry_id, hint=f"h{number}")
        request = entry_pb2.BatchUpdateEntryRequest(entries=[entry], input_mask=types.EntryMask(hint=True))
        status = stub.BatchUpdateEntry(request, timeout=60).results[0].status
        if status.code:
            raise Failed(f"an entry was not changed: {status.message}")
        crowd.wait((epoch, now + 1))


def _table(options: Options, sides: list[Side], changes: list[tuple[float, float]]) -> Table:
    ours, *others = sides
    theirs = others[0] if others else None
    rows = []
    for at, count in enumerate(options.entries):
        row = [str(count), f"{theirs.polls[at]:.2f}" if theirs else "", f"{ours.polls[at]:.2f}"]
        row += [f"{changes[at][0]:.2f}", f"{changes[at][1]:.2f}"]
        row += [f"{theirs.resident[at] / MIB:.0f}" if theirs else "", f"{ours.resident[at] / MIB:.0f}"]
        rows.append(row)
    return Table(
        "e",
        "processor time of the server to keep an agent informed, ms",
        ["entries", "SPIRE, a poll", "firedoor, a poll", "a change", "a second without", "SPIRE, MiB", "firedoor, MiB"],
        rows,
        goal=GOAL,
        notes=NOTES,
        data={side.name: {"poll_ms": side.polls, "resident_bytes": side.resident} for side in sides}
        | {"entries": list(options.entries), "change_ms": [one for one, _ in changes]},
    )
