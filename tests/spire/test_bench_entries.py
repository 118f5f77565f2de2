# SPDX-License-Identifier: Apache-2.0
"""The benchmark's ways to have many entries: rows of a spire-server's own shape, and no longer than it may take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from bench.agent import Agent
from bench.processes import Failed
from bench.side import Side, path, poll
from bench.spire import SpireServer
from bench.world import OPTIONS, World
from firedoor.wire import entry_grpc, entry_pb2
from tests.spire.programs import needed


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


@pytest.fixture
def server(tmp_path: Path, stack: ExitStack) -> SpireServer:
    """A real spire-server as the benchmark configures it."""
    found = SpireServer(Path(needed("spire", "spire-server")), tmp_path / "spire")
    stack.callback(found.stop)
    return found


def test_rows_are_entries_as_the_server_makes_them(server: SpireServer, tmp_path: Path, stack: ExitStack) -> None:
    parent, token = server.join_token()
    (folder := tmp_path / "agent").mkdir(mode=0o700)
    agent = Agent(server, token, folder)
    stack.callback(agent.close)
    (one,) = server.create_entries(parent, path(0))
    more = server.put_entries(one, path(1), path(2), seconds=60)
    with server.admin() as channel:
        stub = entry_grpc.EntryStub(channel)
        entries = {entry.id: entry for entry in stub.ListEntries(entry_pb2.ListEntriesRequest()).entries}
        assert list(entries) == [one, *more]
        like = entries[one]
        for number, entry_id in enumerate(more, 1):
            like.id, like.spiffe_id.path = entry_id, path(number)
            assert entries[entry_id] == like
        # It finds the copy as it finds its own: by ID, parent and selectors.
        like.id = ""
        again = stub.BatchCreateEntry(entry_pb2.BatchCreateEntryRequest(entries=[like])).results[0]
        assert (again.status.code, again.entry.id) == (grpc.StatusCode.ALREADY_EXISTS.value[0], more[-1])
    # The agent of before is still one, and is told of them.
    with grpc.insecure_channel(agent.target("asks"), options=OPTIONS) as channel:
        assert poll(entry_grpc.EntryStub(channel)) == 3


def test_what_is_copied_is_there(server: SpireServer) -> None:
    with pytest.raises(Failed, match="registered_entries has no row"):
        server.put_entries("none", path(1), seconds=60)


def test_a_side_that_takes_too_long_goes_without(tmp_path: Path, stack: ExitStack) -> None:
    world = World(tmp_path)
    stack.callback(world.stop)
    side = Side.start("firedoor", world, tmp_path / "agent", stack)
    assert side.grow(3, minutes=1)
    assert not side.grow(500_000, minutes=1e-6)
    assert side.missing == "not within 1e-06 min"
    assert not side.grow(600_000, minutes=1), "once is enough"
    assert side.figures == [None, None]
