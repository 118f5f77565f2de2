# SPDX-License-Identifier: Apache-2.0
"""What is under way when a generation comes that does not admit it any more."""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import h2.events
import pytest

from tests.broker.harness import AgentClient
from tests.broker.test_control import Stream
from tests.load.conftest import Estate, policy
from tests.load.programs import check
from tests.load.writers import Admin
from tests.mtls.proxy.http.web import H2
from tests.waiting import PATIENCE, async_until

# From the edit to the end of what it forbids, seconds. By itself nothing of it would end within minutes; a busy machine
# may take some seconds for anything, and how fast it is otherwise is measured elsewhere (bench/).
SOON = 20.0


@pytest.fixture(scope="module")
def running(estate: Estate) -> Estate:
    estate.begin()
    return estate


class Streams:
    """One HTTP/2 connection, and how much has arrived, in order, on each of its streams."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE)
        self._socket.connect(str(path))
        self._client = H2(self._socket)
        # By stream: how much has arrived, and how the answer begins.
        self.arrived: dict[int, int] = {}
        self.statuses: dict[int, str] = {}
        self.reset: list[int] = []

    def ask(self, target: str) -> int:
        """Ask, and return the stream once there is an answer."""
        stream = self._client.ask("GET", target, ("x-number", "0"))
        self.arrived[stream] = 0
        self._read(lambda: stream in self.statuses)
        return stream

    def read_more(self, stream: int, size: int) -> None:
        """Read until so much more has arrived on a stream."""
        goal = self.arrived[stream] + size
        self._read(lambda: self.arrived[stream] >= goal)

    def read_to_reset(self) -> None:
        """Read until a stream is reset."""
        self._read(lambda: bool(self.reset))

    def _read(self, until: Callable[[], bool]) -> None:
        def noted(event: h2.events.Event) -> bool:
            self._note(event)
            return until()

        assert self._client.read(noted), "the connection has ended"

    def _note(self, event: h2.events.Event) -> None:
        assert not isinstance(event, h2.events.ConnectionTerminated)
        if isinstance(event, h2.events.ResponseReceived):
            self.statuses[event.stream_id] = dict(event.headers)[b":status"].decode()
        elif isinstance(event, h2.events.StreamReset):
            self.reset.append(event.stream_id)
        elif isinstance(event, h2.events.DataReceived) and self.statuses[event.stream_id] == "200":
            self.arrived[event.stream_id] = check(self.arrived[event.stream_id], event.data)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def streams(running: Estate) -> Iterator[Streams]:
    found = Streams(running.http)
    yield found
    found.close()


def test_a_generation_that_drops_a_flow_ends_one_of_two_streams_of_a_connection(
    running: Estate, streams: Streams
) -> None:
    kept, dropped = streams.ask("/models/stream"), streams.ask("/follow/stream")
    for stream in (kept, dropped):
        streams.read_more(stream, 4096)
    edited = time.monotonic()
    running.edit(policy("follows"))
    streams.read_to_reset()
    assert streams.reset == [dropped]
    assert time.monotonic() - edited < SOON
    # The other one has lost nothing and goes on, and so does the connection.
    streams.read_more(kept, 64 * 1024)
    assert streams.statuses[streams.ask("/follow/stream")] == "403"
    assert streams.statuses[streams.ask("/models/stream")] == "200"
    assert streams.reset == [dropped]


async def test_a_banned_agent_loses_its_control_stream(running: Estate) -> None:
    admin = Admin(running.folder / "b.sock")
    roots = await admin.roots()
    broker = SimpleNamespace(broker=SimpleNamespace(listen=running.address), roots=lambda: roots)
    agent = AgentClient(broker, Path(tempfile.mkdtemp(dir=running.folder)))  # type: ignore[arg-type]
    try:
        agent.use(await agent.attest(await admin.token()), agent.key)
        stream = Stream(agent)
        await stream.next()
        assert stream.disconnects == 0
        running.ban(agent.path)
        await async_until(lambda: stream.poll() or stream.disconnects)
        # It is told nothing more, however often it tries; who is not banned is.
        running.change(policy("short"))
        stream.poll()
        assert stream.updates == []
        stream.stop()
    finally:
        await agent.close()
        await admin.channel.close()
