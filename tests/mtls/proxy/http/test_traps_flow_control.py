# SPDX-License-Identifier: Apache-2.0
"""Windows of HTTP/2, on all three connections that a request crosses: what streams took they give back, whatever
becomes of them, and what one stream holds is not the others'.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable, Iterator

import h2.events
import pytest

from tests.mtls.proxy.datapath import World, dial
from tests.mtls.proxy.http.web import H2, READ, WRITE, allow
from tests.waiting import PATIENCE

MakeWorld = Callable[..., World]

MIB = 1 << 20
WHOLE = 10 * MIB
CANCELLED = 10_000
# Running at once: the outbound end puts 31 on one connection (STREAMS_TOGETHER).
AT_ONCE = 25
# Of each stream's bodies. All of them together are many times a connection's window (CONNECTION_WINDOW). The answers'
# do not fit this client's window, so that they wait in the sidecars when they are cancelled.
PART = b"x" * 10_000
ANSWERED = b"z" * 100_000
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"


def app(link: socket.socket) -> None:
    """Answer /uploads/whole when its body has come, and all else before."""
    with link.makefile("rb") as lines:
        while target := lines.readline().split(b" ")[1:2]:
            length = 0
            while (line := lines.readline()) != b"\r\n":
                name, _, value = line.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            if target == [b"/uploads/whole"]:
                body = lines.read(length)
                link.sendall(HEAD % len(body) + body)
            elif target == [b"/uploads/unread"]:
                link.sendall(HEAD % WHOLE + b"z" * WHOLE)
            elif target == [b"/uploads/deaf"]:
                gone = select.poll()
                gone.register(link, select.POLLRDHUP)
                gone.poll(30_000)
            else:
                # Less than it says: the answer has not ended when it is cancelled.
                link.sendall(HEAD % WHOLE + ANSWERED)
                while lines.read1(MIB):
                    pass


@contextlib.contextmanager
def local(world: World, **changes: int) -> Iterator[H2]:
    """Connect as a local program that speaks HTTP/2, through an outbound end to an inbound one."""
    world.publish(allow(READ, WRITE))
    inbound = world.inbound(protocol="http", **changes)
    outbound = world.outbound(inbound.address, protocol="http", **changes)
    with dial(outbound.address) as link:
        yield H2(link)


def begin(peer: H2, path: str, length: int) -> int:
    """Begin a POST without sending it yet."""
    stream = peer.connection.get_next_available_stream_id()
    fields = [(":method", "POST"), (":scheme", "http"), (":authority", "m"), (":path", path)]
    peer.connection.send_headers(stream, [*fields, ("content-length", str(length))])
    return stream


def answered(peer: H2, streams: set[int]) -> bool:
    """Read until each stream has an answer's head, some of which may have come while windows were waited for."""
    return all(peer.status(stream) == "200" for stream in streams)


def send(peer: H2, stream: int, body: bytes) -> None:
    """Send bytes as the windows allow."""
    at = 0
    while at < len(body):
        room = min(peer.connection.local_flow_control_window(stream), peer.connection.max_outbound_frame_size)
        if not room:
            assert peer.read(lambda event: isinstance(event, h2.events.WindowUpdated)), "the window stays closed"
            continue
        peer.connection.send_data(stream, body[at : at + room])
        at += room
        peer.flush()


def received(peer: H2, stream: int) -> int:
    """Read an answer to its end; return how long its body was."""
    length = 0

    def over(event: h2.events.Event) -> bool:
        nonlocal length
        if isinstance(event, h2.events.DataReceived) and event.stream_id == stream:
            length += len(event.data)
        return isinstance(event, h2.events.StreamEnded) and event.stream_id == stream

    assert peer.read(over), f"the answer ends after {length} bytes"
    return length


def test_trap_flow_control_leaks(make_world: MakeWorld) -> None:
    """10,000 streams that are cancelled with bytes under way both ways leave each connection its whole window."""
    world = make_world(serve=app)
    # So many cancels are an attack otherwise (max_resets_per_second).
    with local(world, max_resets_per_second=1_000_000) as peer:
        for _ in range(CANCELLED // AT_ONCE):
            streams = {begin(peer, "/uploads/part", WHOLE) for _ in range(AT_ONCE)}
            for stream in streams:
                send(peer, stream, PART)
            assert answered(peer, streams)
            for stream in streams:
                # The end comes along with bytes that nobody has looked at yet.
                peer.connection.send_data(stream, PART)
                peer.connection.reset_stream(stream)
            peer.flush()
        whole(peer)
        # It was one connection all the time, between local program and sidecar and between the sidecars.
        assert world.client.stats()["accepted_outbound"] == 1
        assert world.server.stats()["accepted_inbound"] == 1


def whole(peer: H2) -> None:
    """Carry a large body there and back."""
    stream = begin(peer, "/uploads/whole", WHOLE)
    send(peer, stream, b"y" * WHOLE)
    peer.connection.end_stream(stream)
    assert received(peer, stream) == WHOLE


def settle(peer: H2) -> None:
    """Read until nothing comes any more for a moment."""
    peer.link.settimeout(0.3)
    with contextlib.suppress(TimeoutError):
        peer.read(lambda event: False)
    peer.link.settimeout(PATIENCE)


@pytest.mark.parametrize("stalled", [1, 5, 30, 90])
def test_trap_answers_that_nobody_reads_starve_others(make_world: MakeWorld, stalled: int) -> None:
    with local(make_world(serve=app)) as peer:
        # This client's own window for the whole connection is not what is asked about.
        peer.connection.increment_flow_control_window(1 << 30)
        streams = {begin(peer, "/uploads/unread", 0) for _ in range(stalled)}
        for stream in streams:
            peer.connection.end_stream(stream)
        peer.stalled |= streams
        assert answered(peer, streams)
        settle(peer)
        whole(peer)


@pytest.mark.parametrize("stalled", [1, 5, 30])
def test_trap_uploads_that_nobody_reads_starve_others(make_world: MakeWorld, stalled: int) -> None:
    with local(make_world(serve=app)) as peer:
        settle(peer)
        streams = {begin(peer, "/uploads/deaf", WHOLE) for _ in range(stalled)}
        sent = dict.fromkeys(streams, 0)
        while rooms := {
            stream: room for stream in streams if (room := peer.connection.local_flow_control_window(stream))
        }:
            for stream in rooms:
                room = min(peer.connection.local_flow_control_window(stream), WHOLE - sent[stream])
                send(peer, stream, b"x" * room)
                sent[stream] += room
            settle(peer)
        assert max(sent.values()) < WHOLE
        whole(peer)
