# SPDX-License-Identifier: Apache-2.0
"""Frames that cost their sender nothing, without end: what they make us keep is bounded, and others are served
meanwhile and afterwards. Whether the connection ends is the HTTP/2 library's to say.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Callable, Iterator

import pytest

from tests.mtls.proxy.datapath import World
from tests.mtls.proxy.http.test_traps import attacked, frame
from tests.mtls.proxy.http.test_traps_http2 import MOST_MEMORY, PING, PRIORITY, SETTINGS, WINDOW_UPDATE, bounded_memory
from tests.mtls.proxy.http.web import Seen, h2_peer

MakeWorld = Callable[..., World]

# Kept at 64 bytes a frame, which is little, they would be twice MOST_MEMORY.
FRAMES = 2 * MOST_MEMORY // 64
AT_ONCE = 1000
ACK = 0x1

FLOODS = {
    # CVE-2019-9512: each asks for an answer, and nobody reads the answers.
    "ping": frame(PING, 0, 0, b"firedoor"),
    "ping answers that nobody asked for": frame(PING, ACK, 0, b"firedoor"),
    # CVE-2019-9515: so does each of these.
    "settings": frame(SETTINGS, 0, 0, struct.pack(">HI", 0x4, 1 << 16)),
    "empty settings": frame(SETTINGS, 0, 0),
    "settings of many values": frame(SETTINGS, 0, 0, struct.pack(">HI", 0xAAAA, 1) * 20),
    # CVE-2019-9513: about streams that are not there, each another one (below).
    "priority": None,
    "unknown": frame(0xFA, 0xFF, 0, b"?" * 8),
    "unknown on a stream": frame(0xFA, 0xFF, 1, b"?" * 8),
    # One that grows without data to send: too much is an error, little is kept nowhere.
    "window": frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1)),
}


def frames(what: str) -> Iterator[bytes]:
    """Yield them, many at a time."""
    for number in range(FRAMES // AT_ONCE):
        one = FLOODS[what]
        if one is not None:
            yield one * AT_ONCE
        else:
            first = 1 + 2 * number * AT_ONCE
            streams = range(first, first + 2 * AT_ONCE, 2)
            yield b"".join(frame(PRIORITY, 0, stream, struct.pack(">IB", stream + 2, 7)) for stream in streams)


def goes_on(link: socket.socket, part: bytes) -> bool:
    """Send; say whether the other side still takes more."""
    link.settimeout(2)
    try:
        link.sendall(part)
    except (ConnectionError, ssl.SSLError, TimeoutError):
        return False
    return True


@pytest.mark.parametrize("what", FLOODS)
def test_trap_flood(make_world: MakeWorld, what: str) -> None:
    world = make_world(serve=Seen())
    with bounded_memory(), attacked(world) as (peer, inbound), h2_peer(inbound, world.vllm, world) as other:
        for number, part in enumerate(frames(what)):
            if number % 500 == 1:
                assert other.status(other.ask("GET", "/models/a")) == "200"
            if not goes_on(peer.link, part):
                break
        assert other.status(other.ask("GET", "/models/a")) == "200"
