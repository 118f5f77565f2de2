# SPDX-License-Identifier: Apache-2.0
"""(e) What it costs a server to keep one agent with so many entries informed.

Asked as SPIRE's agents ask, every five seconds whether anything changed or not: SyncAuthorizedEntries over mTLS, from a
real spire-server and from our broker. And told as our sidecars are told: a control stream, on which nothing is said
until an entry changes.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from bench import spire
from bench.agent import SERVER as SERVER_ID
from bench.options import Options
from bench.processes import Failed
from bench.progress import say
from bench.side import TIMED, WINDOW, Side
from bench.streams import Crowd, Sidecar
from bench.table import Table
from bench.world import World
from firedoor.wire import entry_grpc, entry_pb2, types

CHANGES = 5
MIB = 1 << 20
GOAL = "a change costs, not an entry: nothing is said while nothing changes"
HEADER = (
    "entries",
    "SPIRE, a poll",
    "firedoor, a poll",
    "firedoor, a change",
    "SPIRE, a quiet second",
    "firedoor, a quiet second",
    "SPIRE, an entry made",
    "firedoor, an entry made",
    "SPIRE, MiB",
    "firedoor, MiB",
)
NOTES = (
    "SPIRE's agents ask every 5 s by default. A change: one entry's hint is set through the admin socket; the time is "
    "that of the broker's whole process, the transaction included, until the stream has it. A quiet second: nobody "
    "asks, nothing changes; a spire-server reads all of its entries anew every 5 s. A poll is the median of half "
    f"seconds of polling, so that this is not in it. Each is measured for {WINDOW:.0f} s at least.",
    f"An entry made: of the last ones, {TIMED} at most, created through the API, 500 a call, all below one agent and "
    "with one selector. Our broker has all others through it, too. The spire-server has them as rows in its SQLite "
    "database, copied while it was stopped from one that it made itself: before it makes an entry it reads every one "
    "below the same parent and every one with the same selector, so that to fill it through the API takes the square "
    "of their number. What a server does besides, while they are made, is in this figure, too.",
)


def tables(options: Options, folder: Path) -> Iterator[Table]:
    """Measure and return the table."""
    with ExitStack() as stack:
        world = World(folder)
        stack.callback(world.stop)
        ours, theirs = Side.start("firedoor", world, folder / "ours", stack), None
        if program := spire.binary():
            server = spire.SpireServer(program, folder / "spire")
            stack.callback(server.stop)
            theirs = Side.start("SPIRE", server, folder / "theirs", stack)
        changes: list[float | None] = []
        for count in options.entries:
            changes.append(_ours(world, ours, options.seconds) if ours.grow(count, options.minutes) else None)
            if theirs and theirs.grow(count, options.minutes):
                theirs.measure(options.seconds)
    yield _table(options, ours, theirs, changes)


def _ours(world: World, side: Side, seconds: float) -> float:
    """Measure our side while a control stream is open; return the milliseconds of a change."""
    crowd = Crowd(side.agent.core)
    client = side.agent.core.control_client(addresses=[side.agent.address], as_id=side.agent.id, expect=SERVER_ID)
    crowd.sidecars.append(Sidecar(client))
    try:
        crowd.wait((0, 1))
        side.measure(seconds, lambda window: _idle(crowd, window))
        with world.admin() as channel:
            stub = entry_grpc.EntryStub(channel)
            changed = side.cpu_ms(lambda: _change(stub, crowd, side.ids[0])) / CHANGES
    finally:
        client.stop()
    say(f"e: {side.name}: {changed:.2f} ms a change")
    return changed


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


def _table(options: Options, ours: Side, theirs: Side | None, changes: list[float | None]) -> Table:
    rows = []
    for at, (count, changed) in enumerate(zip(options.entries, changes, strict=True)):
        we, they = _cells(ours, at), _cells(theirs, at) if theirs else [""] * 4
        pairs = [cell for pair in zip(they, we, strict=True) for cell in pair]
        rows.append([str(count), *pairs[:2], "" if changed is None else f"{changed:.2f}", *pairs[2:]])
    sides = [ours, theirs] if theirs else [ours]
    return Table(
        "e",
        "processor time of the server to keep an agent informed, ms",
        HEADER,
        rows,
        goal=GOAL,
        notes=NOTES,
        data={side.name: [asdict(one) if one else None for one in side.figures] for side in sides}
        | {"entries": list(options.entries), "change_ms": changes},
    )


def _cells(side: Side, at: int) -> list[str]:
    """Return its poll, quiet second, entry and memory with so many; in the first cell why there are none."""
    if not (figures := side.figures[at]):
        return [side.missing, "", "", ""]
    times = (figures.poll, figures.quiet_second, figures.entry)
    return [*(f"{value:.2f}" for value in times), f"{figures.resident / MIB:.0f}"]
