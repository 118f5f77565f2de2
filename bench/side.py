# SPDX-License-Identifier: Apache-2.0
"""A server with one agent: it gets entries, the agent asks for them, and the server's processor time is counted."""

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc

from bench.agent import Agent
from bench.processes import Failed, Late, Program, until
from bench.progress import say
from bench.spire import SpireServer
from bench.world import OPTIONS, Server
from firedoor.wire import entry_grpc, entry_pb2, types

# How many are created in a call, and how many at the most are timed.
AT_ONCE: Final = 500
TIMED: Final = 1000
# Seconds. A spire-server reads all of its entries anew five seconds after it has done so: three times in this at least,
# unless that alone takes long.
WINDOW: Final = 18.0
_BLOCK: Final = 0.5
# What SPIRE's agent asks for (SyncAuthorizedEntries).
MASK: Final = types.EntryMask(
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


@dataclass(frozen=True, slots=True)
class Figures:
    """What one side took with so many entries; processor time is the server's, in milliseconds."""

    entry: float
    poll: float
    quiet_second: float
    resident: int


@dataclass(slots=True)
class Side:
    """A server with an agent. `missing` says why its later rows have no figures."""

    name: str
    server: Server
    agent: Agent
    parent: str
    ids: list[str] = field(default_factory=list)
    figures: list[Figures | None] = field(default_factory=list)
    missing: str = ""
    _entry_ms: float = 0.0

    @classmethod
    def start(cls, name: str, server: Server, folder: Path, stack: ExitStack) -> "Side":
        """Attest an agent at a server."""
        folder.mkdir(mode=0o700)
        parent, token = server.join_token()
        side = cls(name, server, Agent(server, token, folder), parent)
        stack.callback(side.agent.close)
        return side

    @property
    def program(self) -> Program:
        """Its server, which is another process after rows were put into its database."""
        return self.server.program

    def grow(self, count: int, minutes: float) -> bool:
        """Have so many entries within so many minutes; return whether it has, and as many as were asked for before."""
        if self.missing:
            self.figures.append(None)
            return False
        say(f"e: {self.name}: {count} entries")
        try:
            self._entry_ms = self._grow(count, time.monotonic() + 60 * minutes)
        except Late as late:
            say(f"e: {self.name}: {count} entries: {late}")
            self.missing = f"not within {minutes:g} min"
            self.figures.append(None)
        return not self.missing

    def measure(self, seconds: float, quiet: Callable[[float], None] = time.sleep) -> None:
        """Measure for so long; `quiet` is what is done while nothing changes, for the seconds that it is given."""
        window = max(seconds, WINDOW)
        poll_ms = self._ask(window)
        quiet_ms = self.cpu_ms(lambda: quiet(window)) / window
        self.figures.append(Figures(self._entry_ms, poll_ms, quiet_ms, self.program.resident_bytes()))
        entry_ms = self._entry_ms
        say(f"e: {self.name}: {entry_ms:.2f} ms an entry, {poll_ms:.2f} ms a poll, {quiet_ms:.2f} ms a quiet second")

    def cpu_ms(self, work: Callable[[], object]) -> float:
        """Return the processor time that the server takes while something is done, in milliseconds."""
        before = self.program.cpu_seconds()
        work()
        return (self.program.cpu_seconds() - before) * 1e3

    def _grow(self, count: int, end: float) -> float:
        """Create entries until the agent is told of so many; return the milliseconds of an entry, of the last ones."""
        rest = max(count - TIMED, len(self.ids))
        if isinstance(self.server, SpireServer):
            self._create(min(rest, AT_ONCE), end)
            if missing := range(len(self.ids), rest):
                began = time.monotonic()
                self.ids += self.server.put_entries(self.ids[0], *map(path, missing), seconds=end - began)
                say(f"e: {self.name}: {len(missing)} rows, and started again, in {time.monotonic() - began:.0f} s")
        self._create(rest, end)
        timed, began = count - len(self.ids), time.monotonic()
        spent = self.cpu_ms(lambda: self._create(count, end)) / timed
        say(f"e: {self.name}: {timed} entries created in {time.monotonic() - began:.1f} s")
        with grpc.insecure_channel(self.agent.target(f"wait{count}"), options=OPTIONS) as channel:
            stub = entry_grpc.EntryStub(channel)
            what = f"{self.name} tells the agent of {count} entries"
            until(lambda: poll(stub) == count, what, max(0.0, end - time.monotonic()), pause=0.5)
        return spent

    def _create(self, count: int, end: float) -> None:
        while (have := len(self.ids)) < count:
            if (left := end - time.monotonic()) <= 0:
                raise Late(f"it has {have}")
            upto = min(count, have + AT_ONCE)
            self.ids += self.server.create_entries(self.parent, *map(path, range(have, upto)), timeout=left)

    def _ask(self, seconds: float) -> float:
        """Poll for so long, one poll after the other; return the milliseconds of one.

        The median of half seconds: what the server does every few seconds besides is in its quiet second.
        """
        with grpc.insecure_channel(self.agent.target(f"ask{len(self.ids)}"), options=OPTIONS) as channel:
            stub = entry_grpc.EntryStub(channel)
            poll(stub)
            end, blocks = time.monotonic() + seconds, []
            while time.monotonic() < end:
                blocks.append(self._block(stub))
        return statistics.median(blocks)

    def _block(self, stub: entry_grpc.EntryStub) -> float:
        count, end, before = 0, time.monotonic() + _BLOCK, self.program.cpu_seconds()
        while time.monotonic() < end:
            if poll(stub) != len(self.ids):
                raise Failed(f"{self.name} told the agent of another number of entries than it has")
            count += 1
        return (self.program.cpu_seconds() - before) * 1e3 / count


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
