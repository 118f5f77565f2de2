# SPDX-License-Identifier: Apache-2.0
"""What HTTP/2 peers do to servers, frame by frame; after each attack the listener still serves others."""

from __future__ import annotations

import contextlib
import re
import ssl
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import h2.events
import pytest

from tests.mtls.proxy.datapath import World, dial_tls
from tests.mtls.proxy.http.test_traps import attacked, frame, goes_down
from tests.mtls.proxy.http.web import H2, READ, WRITE, Seen, allow, h2_peer, talk
from tests.waiting import until

MakeWorld = Callable[..., World]

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 2, 3, 4, 6, 8, 9
END_STREAM, END_HEADERS = 0x1, 0x4
MIB = 1 << 20
# HPACK of `GET https /`, static table alone (RFC 7541 appendix A), and of a field that is left out of the table.
GET_HTTPS = b"\x82\x87\x84"
# The largest growth of the whole process that an attack may cause.
MOST_MEMORY = 64 * MIB


def literal(name: bytes, value: bytes, kind: int = 0x00) -> bytes:
    """Write a field without the table (0x00), or put it into the table (0x40)."""
    return bytes([kind]) + integer(len(name), 7) + name + integer(len(value), 7) + value


def integer(value: int, bits: int, first: int = 0) -> bytes:
    most = (1 << bits) - 1
    if value < most:
        return bytes([first | value])
    out, value = bytes([first | most]), value - most
    while value >= 128:
        out, value = out + bytes([value % 128 | 128]), value // 128
    return out + bytes([value])


def head(path: bytes = b"/models/a", method: bytes = b"GET") -> bytes:
    fields = ((b":method", method), (b":scheme", b"https"), (b":authority", b"m"), (b":path", path))
    return b"".join(literal(*field) for field in fields)


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    """Check that the whole process never had much more memory than it has now."""
    # Forget the peak that there was before (proc(5), clear_refs).
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    yield
    assert peak() - before < MOST_MEMORY


def peak() -> int:
    """The most memory that this process has had, bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found.group(1)) * 1024


MADE_RESETS = {
    "a window that grows by nothing": lambda stream: frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", 0)),
    "a window that grows too far": lambda stream: frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", 2**31 - 1)),
    "data after the end": lambda stream: frame(DATA, 0, stream, b"x"),
    "a head after the end": lambda stream: frame(HEADERS, END_HEADERS | END_STREAM, stream, head()),
    "a stream that depends on itself": lambda stream: frame(PRIORITY, 0, stream, struct.pack(">IB", stream, 1)),
    "a priority of a wrong length": lambda stream: frame(PRIORITY, 0, stream, b"\0"),
}


@pytest.mark.parametrize("how", MADE_RESETS)
def test_trap_made_you_reset(make_world: MakeWorld, how: str) -> None:
    """CVE-2025-8671: what makes the server reset streams must not get around the limit on streams."""
    running: list[int] = []

    def slow(link: object) -> None:
        running.append(1)
        app(link)  # type: ignore[arg-type]

    app = Seen()
    with attacked(make_world(serve=slow)) as (peer, _):

        def attack() -> Iterator[bytes]:
            for stream in range(1, 20_000, 2):
                yield frame(HEADERS, END_HEADERS | END_STREAM, stream, head()) + MADE_RESETS[how](stream)

        ended = goes_down(peer, attack())
    # Either it has had enough, or every request was answered in its turn: none can be left behind in the dark.
    assert ended or len(app.requests) == 10_000
    assert len(app.requests) <= 10_000


def test_trap_hpack_bomb(make_world: MakeWorld) -> None:
    """A byte each refers to a field of 4 KiB: 16 KiB on the wire are 64 MiB of fields."""
    with bounded_memory(), attacked(make_world(serve=(app := Seen()))) as (peer, _):

        def bombs() -> Iterator[bytes]:
            yield frame(HEADERS, END_HEADERS | END_STREAM, 1, head() + literal(b"x", b"y" * 3900, 0x40))
            for stream in range(3, 2001, 2):
                # 62 is the first entry of the dynamic table.
                yield frame(HEADERS, END_HEADERS | END_STREAM, stream, head() + bytes([0x80 | 62]) * 16_000)

        goes_down(peer, bombs())
    assert len(app.requests) <= 2


def test_trap_hpack_table_too_large(make_world: MakeWorld) -> None:
    """RFC 7541 section 4.2: a table larger than was agreed on is an error of the connection."""
    with attacked(make_world(serve=Seen())) as (peer, _):
        grow = integer(1 << 24, 5, 0x20)
        peer.link.sendall(frame(HEADERS, END_HEADERS | END_STREAM, 1, grow + head()))
        assert not peer.read(lambda event: isinstance(event, h2.events.ResponseReceived))


def test_trap_header_list_too_large(make_world: MakeWorld) -> None:
    """16 KiB, as HTTP/2 counts them: many small fields are large too."""
    with attacked(make_world(serve=(app := Seen()))) as (peer, _):
        many = peer.ask("GET", "/models/a", *((f"x{number}", "") for number in range(600)))
        assert peer.status(many) in ("431", "reset")
        assert peer.status(peer.ask("GET", "/models/a", *((f"x{number}", "") for number in range(300)))) == "200"
    assert len(app.requests) == 2


def test_trap_continuation_flood_of_nothing(make_world: MakeWorld) -> None:
    with bounded_memory(), attacked(make_world(serve=Seen())) as (peer, _):

        def fragments() -> Iterator[bytes]:
            yield frame(HEADERS, 0, 1, b"\x82")
            for _ in range(2_000):
                yield frame(CONTINUATION, 0, 1) * 100

        assert goes_down(peer, fragments())


def test_trap_a_head_that_does_not_end(make_world: MakeWorld) -> None:
    """Slow headers over HTTP/2: a connection that asks nothing is idle, whatever it has begun."""
    world = make_world(serve=Seen())
    world.publish_server(allow(READ))
    inbound = world.inbound(protocol="http", idle_timeout_ms=300)
    with h2_peer(inbound, world.vllm, world) as peer:
        # It ends; a reset counts as well, or a write that comes too late.
        talk(peer.link, frame(HEADERS, END_STREAM, 1, b"\x82"))
    until(lambda: world.server.stats()["connections"] == 0)


def test_trap_a_preface_that_does_not_end(make_world: MakeWorld) -> None:
    world = make_world(serve=Seen())
    world.publish_server(allow(READ))
    inbound = world.inbound(protocol="http", header_timeout_ms=300)
    with dial_tls(inbound.address, world.vllm, world.folder, alpn=["h2"]) as link:
        # Our settings, and the end.
        talk(link, b"PRI * HTTP/2.0\r\n")
    until(lambda: world.server.stats()["connections"] == 0)


UNREADABLE = {
    "transfer-encoding": [("transfer-encoding", "chunked")],
    "connection": [("connection", "keep-alive")],
    "keep-alive": [("keep-alive", "1")],
    "upgrade": [("upgrade", "websocket")],
    "te other than trailers": [("te", "gzip")],
    "an upper-case name": [("X-A", "b")],
    "a line's end in a value": [("x-a", "b\r\nx-spiffe-id: spiffe://td/admin")],
    "NUL in a value": [("x-a", "b\0c")],
    "a colon in a name": [("x:a", "b")],
    "a space in a name": [("x a", "b")],
    "an empty name": [("", "b")],
    "two paths": [(":path", "/secrets")],
    "two methods": [(":method", "GET")],
    "two authorities": [(":authority", "n")],
    "a pseudo field after others": [("x-a", "b"), (":path", "/secrets")],
    "an unknown pseudo field": [(":spiffe-id", "spiffe://td/admin")],
    "a response's pseudo field": [(":status", "200")],
    "a protocol": [(":protocol", "websocket")],
    "another host": [("host", "n")],
    "two hosts": [("host", "models"), ("host", "n")],
    "a length that is no number": [("content-length", "1x")],
    "two lengths": [("content-length", "1"), ("content-length", "2")],
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_trap_smuggling_over_http_2(make_world: MakeWorld, what: str) -> None:
    """RFC 9113 section 8.2: malformed requests are refused, and nothing of them comes out over HTTP/1.1."""
    with attacked(make_world(serve=(app := Seen()))) as (peer, _):
        stream = peer.ask("GET", "/models/a", *UNREADABLE[what])
        status = peer.status(stream)
        assert status in ("400", "403", "reset", "closed") or passes_clean(app), (what, status)
    assert [request.target for request in app.requests[-1:]] == ["/models/a"]
    for request in app.requests:
        assert request.target == "/models/a"
        assert len(request.all("host")) == 1
        assert not request.all("transfer-encoding") + request.all("upgrade") + request.all("x-spiffe-id")
        assert len(request.all("content-length")) <= 1


def passes_clean(app: Seen) -> bool:
    """Say whether the first request has lost what it may not have, which is as good as a refusal."""
    names = {name.lower() for name, _ in app.requests[0].headers} if app.requests else set()
    return bool(app.requests) and not names & {"connection", "keep-alive", "te", "x-a", "upgrade", "transfer-encoding"}


LENGTHS = {
    "less than it says": ("10", b"short"),
    "more than it says": ("2", b"longer"),
    "nothing, and it says something": ("5", b""),
    "a request where nothing was said to be": ("0", b"GET /secrets HTTP/1.1\r\nHost: m\r\n\r\n"),
}


@pytest.mark.parametrize("what", LENGTHS)
def test_trap_smuggling_by_a_length_that_is_wrong(make_world: MakeWorld, what: str) -> None:
    """The frames say how long a body is; a Content-Length that says otherwise is refused, not sent on."""
    length, body = LENGTHS[what]
    with attacked(make_world(serve=(app := Seen()))) as (peer, _):
        stream = 1
        fields = head(b"/uploads/a", b"POST") + literal(b"content-length", length.encode())
        peer.connection.get_next_available_stream_id()
        peer.link.sendall(frame(HEADERS, END_HEADERS, stream, fields) + frame(DATA, END_STREAM, stream, body))
        peer.link.settimeout(5)
        answers: list[int] = []

        def over(event: h2.events.Event) -> bool:
            answers.append(getattr(event, "stream_id", 0) or 0)
            return isinstance(event, h2.events.StreamReset | h2.events.StreamEnded) or answers.count(1) > 1

        raw_events(peer, over)
    assert {request.target for request in app.requests} <= {"/models/a", "/uploads/a"}
    for request in app.requests:
        # What reached the app is what was framed, or was never whole.
        assert request.target == "/models/a" or len(request.body) <= int(length)


def raw_events(peer: H2, over: Callable[[h2.events.Event], bool]) -> None:
    """Read frames of a stream that python-h2 has not begun: look at their headers alone."""
    got = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError):
        while data := peer.link.recv(1 << 16):
            got += data
            if any(
                kind == RST_STREAM or (flags & END_STREAM and kind in (DATA, HEADERS))
                for kind, flags, stream in framed(got)
                if stream == 1
            ):
                return


def framed(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield kind, flags and stream of each whole frame."""
    while len(data) >= 9:
        length = int.from_bytes(data[:3])
        yield data[3], data[4], int.from_bytes(data[5:9]) & 0x7FFFFFFF
        data = data[9 + length :]


@pytest.mark.parametrize(
    "path", ["", "models/a", "*", "http://m/models/a", "//models/a", "/models/a\r\nx: y", "/models/a b"]
)
def test_trap_targets_over_http_2(make_world: MakeWorld, path: str) -> None:
    with attacked(make_world(serve=(app := Seen()))) as (peer, _):
        assert peer.status(peer.ask("GET", path)) in ("400", "reset", "closed")
    assert [request.target for request in app.requests] == ["/models/a"]


@pytest.mark.parametrize("extended", [False, True])
def test_trap_connect_over_http_2(make_world: MakeWorld, extended: bool) -> None:
    """RFC 8441 lets WebSockets through by CONNECT; nobody offered it."""
    with attacked(make_world(serve=(app := Seen()))) as (peer, _):
        stream = peer.connection.get_next_available_stream_id()
        fields = [(":method", "CONNECT"), (":authority", "models:443")]
        if extended:
            fields[1:1] = [(":protocol", "websocket"), (":scheme", "https"), (":path", "/models/a")]
        peer.connection.send_headers(stream, fields)
        peer.flush()
        assert peer.status(stream) in ("400", "403", "reset", "closed")
    assert len(app.requests) == 1


def test_trap_identity_headers_over_http_2(make_world: MakeWorld) -> None:
    forged = [
        ("x-forwarded-client-cert", "By=spiffe://td/x;URI=spiffe://td/admin"),
        ("x_forwarded_client_cert", "URI=spiffe://td/admin"),
        ("x-spiffe-id", "spiffe://td/admin"),
        ("x_spiffe_id", "spiffe://td/admin"),
    ]
    with attacked(make_world(serve=(app := Seen()))) as (peer, _):
        assert peer.status(peer.ask("GET", "/models/a", *forged)) == "200"
    [says] = app.requests[0].all("x-forwarded-client-cert")
    assert "admin" not in says
    assert not [name for name, _ in app.requests[0].headers if "spiffe" in name.lower() or "_" in name]


def test_trap_too_many_streams(make_world: MakeWorld) -> None:
    """Streams above the limit are refused, not kept; those below it are answered."""
    world = make_world(serve=Seen())
    world.publish_server(allow(READ, WRITE))
    with h2_peer(world.inbound(protocol="http", max_streams=10), world.vllm, world) as peer:
        eventually_settled(peer)
        limit = peer.connection.remote_settings.max_concurrent_streams
        assert limit == 10
        # python-h2 would not send the eleventh.
        opened = b"".join(
            frame(HEADERS, END_HEADERS, stream, head(b"/uploads/a", b"POST")) for stream in range(1, 2 * 12, 2)
        )
        peer.link.sendall(opened)
        refused: set[int] = set()
        got = b""
        while len(refused) < 2:
            got += peer.link.recv(1 << 16)
            refused |= {stream for kind, _, stream in framed(got) if kind == RST_STREAM}
        assert refused == {21, 23}


def eventually_settled(peer: H2) -> None:
    assert peer.read(lambda event: isinstance(event, h2.events.RemoteSettingsChanged))
