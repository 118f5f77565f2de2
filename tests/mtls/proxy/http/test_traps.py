# SPDX-License-Identifier: Apache-2.0
"""What HTTP proxies are known to fall for, a test each; after each the listener still serves others."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from collections.abc import Callable, Iterator

import h2.events
import pytest

from firedoor import mtls
from tests.mtls.proxy.datapath import World, dial, dial_tls, ended
from tests.mtls.proxy.http.web import H2, READ, WRITE, Seen, UnixHTTP, allow, ask, h2_peer, pair, raw, talk
from tests.waiting import until

MakeWorld = Callable[..., World]

GET = b"GET /models/a HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n"


@contextlib.contextmanager
def attacked(world: World) -> Iterator[tuple[H2, mtls.Listener]]:
    """Yield an HTTP/2 connection of a peer's; afterwards another one is served as if nothing had been."""
    world.publish_server(allow(READ, WRITE))
    inbound = world.inbound(protocol="http")
    with h2_peer(inbound, world.vllm, world) as peer:
        yield peer, inbound
    with dial_tls(inbound.address, world.vllm, world.folder) as link:
        assert b" 200 " in talk(link, GET)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def goes_down(peer: H2, parts: Iterator[bytes]) -> bool:
    """Send until the other side has had enough; say whether it had."""
    try:
        for part in parts:
            peer.link.sendall(part)
    except (ConnectionError, ssl.SSLError):
        return True
    return not peer.read(lambda event: False)


def test_trap_rapid_reset(make_world: MakeWorld) -> None:
    with attacked(make_world(serve=Seen())) as (peer, _):

        def resets() -> Iterator[bytes]:
            for _ in range(20_000):
                stream = peer.connection.get_next_available_stream_id()
                head = [(":method", "GET"), (":scheme", "https"), (":authority", "m"), (":path", "/models/a")]
                peer.connection.send_headers(stream, head, end_stream=True)
                peer.connection.reset_stream(stream)
                yield peer.connection.data_to_send()

        assert goes_down(peer, resets())


def test_trap_continuation_flood(make_world: MakeWorld) -> None:
    with attacked(make_world(serve=Seen())) as (peer, _):

        def fragments() -> Iterator[bytes]:
            yield frame(0x1, 0, 1, b"\x82")
            for _ in range(20_000):
                yield frame(0x9, 0, 1, b"\x00\x01x\x7f\x81\x01" + b"y" * 256)

        assert goes_down(peer, fragments())


def test_trap_empty_data_flood(make_world: MakeWorld) -> None:
    with attacked(make_world(serve=Seen())) as (peer, _):
        stream = peer.ask("POST", "/uploads/a", end=False)
        assert goes_down(peer, (frame(0x0, 0, stream) * 100 for _ in range(20_000)))


SMUGGLED = b"GET /secrets HTTP/1.1\r\nHost: m\r\n\r\n"
PAIRS = {
    "length and chunks": (b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n" + SMUGGLED),
    "two lengths": (b"Content-Length: 0\r\nContent-Length: %d\r\n" % len(SMUGGLED), SMUGGLED),
    "a list of lengths": (b"Content-Length: 0, %d\r\n" % len(SMUGGLED), SMUGGLED),
    "a signed length": (b"Content-Length: +%d\r\n" % len(SMUGGLED), SMUGGLED),
    "chunked that is not last": (b"Transfer-Encoding: chunked, identity\r\n", b"0\r\n\r\n" + SMUGGLED),
    "chunked with a tab": (b"Transfer-Encoding:\tchunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n" + SMUGGLED),
    "chunked by another name": (b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n" + SMUGGLED),
    "space before the colon": (b"Transfer-Encoding : chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n" + SMUGGLED),
    "folded field": (b"X: a\r\n Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n" + SMUGGLED),
}


@pytest.mark.parametrize("end", ["outbound", "inbound"])
@pytest.mark.parametrize("name", PAIRS)
def test_trap_smuggling(make_world: MakeWorld, name: str, end: str) -> None:
    """Whatever is made of such a request, the app never sees the one that no flow allows."""
    fields, body = PAIRS[name]
    world = make_world(serve=(app := Seen()))
    outbound = pair(world, allow(READ, WRITE))
    data = b"POST /uploads/a HTTP/1.1\r\nHost: m\r\n" + fields + b"\r\n" + body + GET
    if end == "outbound":
        raw(outbound.address, data)
    else:
        inbound = world.inbound(name="second", protocol="http")
        with dial_tls(inbound.address, world.vllm, world.folder) as link:
            talk(link, data)
    assert ask(outbound.address, "GET", "/models/last")[0] == 200
    assert app.requests[-1].target == "/models/last"
    assert {request.target for request in app.requests} <= {"/uploads/a", "/models/a", "/models/last"}
    for request in app.requests:
        assert not (request.all("content-length") and request.all("transfer-encoding"))


def test_trap_slow_headers(make_world: MakeWorld) -> None:
    world = make_world(serve=Seen())
    world.publish_server(allow(READ))
    # Without a byte of a head it ends as one that has asked nothing, and without a record.
    inbound = world.inbound(protocol="http", header_timeout_ms=5000)
    with dial_tls(inbound.address, world.vllm, world.folder) as link:
        link.sendall(GET[:-4])
        talk(link, b"")
        assert ended(link)
    [record] = world.records(world.server, 1)
    assert (record["decision"], record["reason"]) == ("denied", "header_timeout")
    with dial_tls(inbound.address, world.vllm, world.folder) as link:
        assert b" 200 " in talk(link, GET)


def test_trap_idle_connections_end(make_world: MakeWorld) -> None:
    world = make_world(serve=Seen())
    world.publish_server(allow(READ))
    inbound = world.inbound(protocol="http", idle_timeout_ms=200)
    with h2_peer(inbound, world.vllm, world) as peer:
        talk(peer.link, b"")
    until(lambda: world.server.stats()["connections"] == 0)


def test_trap_early_response(make_world: MakeWorld) -> None:
    """An app that answers before the body has ended is heard."""

    def early(link: socket.socket) -> None:
        link.recv(100)
        link.sendall(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
        while link.recv(1 << 16):
            pass

    outbound = pair(make_world(serve=early), allow(WRITE))
    head = b"POST /uploads/a HTTP/1.1\r\nHost: m\r\nContent-Length: 9000000\r\n\r\n"
    got = raw(outbound.address, head + b"x" * 1000, lambda got: got.endswith(b"big"))
    assert got.startswith(b"HTTP/1.1 413")


def test_trap_trailers(make_world: MakeWorld) -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum, X-SPIFFE-ID\r\n\r\n"
    answer = chunked + b"2\r\nok\r\n0\r\nX-Sum: 7\r\nX-SPIFFE-ID: spiffe://td/admin\r\n\r\n"
    world = make_world(serve=Seen(answer))
    outbound = pair(world, allow(READ))
    head = GET.replace(b"close", b"close, te").replace(b"\r\n\r\n", b"\r\nTE: trailers\r\n\r\n")
    got = raw(outbound.address, head).lower()
    assert b"x-sum: 7" in got
    assert b"spiffe://td/admin" not in got


def test_trap_goaway(make_world: MakeWorld) -> None:
    """The inbound end drains a connection early; requests go on over the next one and none is lost."""
    world = make_world(serve=(app := Seen()))
    world.publish(allow(READ))
    inbound = world.inbound(protocol="http", max_lifetime_ms=3000)
    outbound = world.outbound(inbound.address, protocol="http")
    with contextlib.closing(UnixHTTP(outbound.address)) as client:

        def moved() -> bool:
            client.request("GET", "/models/a")
            response = client.getresponse()
            assert (response.status, response.read()) == (200, b"ok")
            return world.server.stats()["accepted_inbound"] >= 3

        until(moved)
    assert len(app.requests) == world.server.stats()["allowed"]


def test_a_live_stream_ends_when_its_flow_does_and_another_does_not(make_world: MakeWorld) -> None:
    def drip(link: socket.socket) -> None:
        link.recv(1 << 16)
        link.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        link.settimeout(30)
        link.recv(1)

    world = make_world(serve=drip)
    world.publish_server(allow(READ, "{http: {methods: [GET], paths: [/stream]}}"))
    with h2_peer(world.inbound(protocol="http"), world.vllm, world) as peer:
        cut, kept = peer.ask("GET", "/stream"), peer.ask("GET", "/models/a")
        assert peer.status(cut) == peer.status(kept) == "200"
        world.publish_server(allow(READ))
        assert peer.read(lambda event: isinstance(event, h2.events.StreamReset) and event.stream_id == cut)
        assert '"decision":"allowed"' in world.server.connections().replace(" ", "")
        assert peer.status(peer.ask("GET", "/models/b")) == "200"
    until(lambda: world.server.connections() == "[]")


def test_a_peer_without_http_2_and_one_with_nothing_we_speak(make_world: MakeWorld) -> None:
    world = make_world(serve=Seen())
    world.publish(allow(READ))
    inbound = world.inbound(protocol="tcp")
    outbound = world.outbound(inbound.address, protocol="http")
    assert ask(outbound.address, "GET", "/models/a")[0] == 503
    [record] = world.records(world.client, 1)
    assert record["decision"] == "denied"


def test_a_local_client_that_is_not_entitled_reaches_nothing(make_world: MakeWorld) -> None:
    world = make_world(serve=(app := Seen()))
    outbound = pair(world, allow(READ))
    world.me = [mtls.ClientRule(uid=1)]
    world.publish(allow(READ))
    with contextlib.suppress(ConnectionError), dial(outbound.address) as link:
        assert talk(link, GET) == b""
    [record] = world.records(world.client, 1)
    assert record["reason"] == "client_not_entitled"
    assert app.requests == []
