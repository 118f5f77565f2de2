# SPDX-License-Identifier: Apache-2.0
"""How long requests live: until their end, a deadline, or new material, whether anybody reads or not."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator

import h2.events
import pytest

from firedoor import mtls
from tests.mtls.proxy.datapath import MODELS, VLLM, World, dial, dial_tls
from tests.mtls.proxy.http.web import READ, WRITE, Seen, allow, ask, h2_peer, pair, read_request, talk
from tests.waiting import SHORT, until

MakeWorld = Callable[..., World]

GET = b"GET /models/a HTTP/1.1\r\nHost: m\r\n\r\n"
BEGINS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n"
# More than one connection between the ends carries.
REVOKED = 60
LIVES_ON = {
    "source_more": "expiry: {until-revoked: 1h}",
    "destination_more": "expiry: {until-revoked: 1h}",
}


class Drip:
    """An app whose answer goes on until it is told to end it."""

    def __init__(self) -> None:
        self.end = threading.Event()
        self.gone = threading.Event()

    def __call__(self, link: socket.socket) -> None:
        with link.makefile("rb") as lines:
            read_request(lines)
            link.sendall(BEGINS)
            try:
                while not self.end.wait(0.05):
                    link.sendall(b"1\r\n.\r\n")
                link.sendall(b"4\r\nlast\r\n0\r\n\r\n")
            except OSError:
                self.gone.set()


@pytest.fixture
def drip() -> Iterator[Drip]:
    app = Drip()
    yield app
    app.end.set()


def ends(link: socket.socket) -> tuple[bytes, float]:
    """Read to the end of an answer or of the connection; return what came and when it ended."""
    got = b""
    with contextlib.suppress(ConnectionError):
        while not got.endswith(b"0\r\n\r\n"):
            part = link.recv(1 << 16)
            if not part:
                break
            got += part
    return got, time.time()


@pytest.mark.parametrize("whose", ["client", "server"])
def test_a_request_ends_when_either_svid_does(make_world: MakeWorld, drip: Drip, whose: str) -> None:
    world = make_world(serve=drip)
    expires = int(time.time()) + SHORT
    if whose == "client":
        world.vllm = world.td.svid(VLLM, expires=expires)
    else:
        world.models = world.td.svid(MODELS, expires=expires)
    outbound = pair(world, allow(READ))
    with dial(outbound.address) as link:
        link.sendall(GET)
        got, at = ends(link)
    assert b"first" in got
    assert b"last" not in got
    assert at >= expires
    # The end whose clock strikes first cuts; the other sees the stream fail.
    until(lambda: sum(core.stats().get("cut_svid_expired", 0) for core in (world.client, world.server)) >= 1)
    assert drip.gone.wait(60)


def test_a_request_outlives_its_svid_where_both_segments_say_so(make_world: MakeWorld, drip: Drip) -> None:
    world = make_world(serve=drip)
    expires = int(time.time()) + SHORT
    world.vllm = world.td.svid(VLLM, expires=expires)
    outbound = pair(world, allow(READ, **LIVES_ON))
    with dial(outbound.address) as link:
        link.sendall(GET)
        assert link.recv(1)
        until(lambda: time.time() > expires + 1)
        # New requests need the new SVID; the old one goes on.
        world.vllm = world.td.svid(VLLM)
        world.publish(allow(READ, **LIVES_ON))
        assert ask(outbound.address, "GET", "/secrets")[0] == 403
        # What comes from now on was sent after its end.
        drip.end.set()
        got, _ = ends(link)
    assert got.endswith(b"4\r\nlast\r\n0\r\n\r\n")


def test_a_request_that_outlives_its_svid_ends_when_it_is_revoked(make_world: MakeWorld, drip: Drip) -> None:
    world = make_world(serve=drip)
    expires = int(time.time()) + SHORT
    old = world.vllm = world.td.svid(VLLM, expires=expires)
    outbound = pair(world, allow(READ, **LIVES_ON))
    with dial(outbound.address) as link:
        link.sendall(GET)
        assert link.recv(1)
        until(lambda: time.time() > expires + 1)
        world.vllm = world.td.svid(VLLM)
        revoked = mtls.Revocation(serial=f"{old.leaf.serial_number:x}")
        world.publish(allow(READ, **LIVES_ON), revocations=[revoked])
        got, _ = ends(link)
    assert b"first" in got
    assert b"last" not in got
    until(lambda: world.server.connections() == world.client.connections() == "[]")
    assert world.server.stats()["cut_revoked_serial"] == 1


def test_a_revocation_is_counted_for_each_request_before_its_connection_closes(
    make_world: MakeWorld, drip: Drip
) -> None:
    world = make_world(serve=drip, data_threads=2)
    outbound = pair(world, allow(READ))
    with contextlib.ExitStack() as stack:
        links = [stack.enter_context(dial(outbound.address)) for _ in range(REVOKED)]
        for link in links:
            link.sendall(GET)
            assert link.recv(1)
        revoked = mtls.Revocation(serial=f"{world.vllm.leaf.serial_number:x}")
        world.publish_server(allow(READ), revocations=[revoked])
        for link in links:
            assert b"last" not in ends(link)[0]
    until(lambda: world.server.connections() == world.client.connections() == "[]")
    assert world.server.stats()["cut_revoked_serial"] == REVOKED
    until(lambda: world.server.stats()["connections"] == 0, "the end of the peer's connections")


def test_no_request_begins_on_what_hangs_on_a_tainted_authority(make_world: MakeWorld, drip: Drip) -> None:
    """So that nothing is under way there when it is revoked; what is goes on until then."""
    # Connections to peers are shared by thread.
    world = make_world(serve=drip, data_threads=1)
    old = world.td.authority
    world.td.rotate()
    # This end was re-issued before the connection was made, the other will be after it.
    world.vllm = world.td.svid(VLLM)
    outbound, peers = pair(world, allow(READ)), lambda: world.server.stats()["accepted_inbound"]
    with dial(outbound.address) as first, dial(outbound.address) as second:
        first.sendall(GET)
        assert first.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        world.models = world.td.svid(MODELS)
        world.publish(allow(READ))
        second.sendall(GET)
        assert second.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        # It is as good as another one while nobody means to revoke it.
        assert peers() == 1
        world.publish(allow(READ), tainted=[old.der])
        with dial(outbound.address) as third:
            third.sendall(GET)
            assert third.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
            assert peers() == 2
            drip.end.set()
            for link in (first, second):
                assert ends(link)[0].endswith(b"4\r\nlast\r\n0\r\n\r\n")
            world.td.forget(old)
            world.publish(allow(READ), revocations=[mtls.Revocation(authority_id=old.authority_id)])
            assert ends(third)[0].endswith(b"4\r\nlast\r\n0\r\n\r\n")


def test_a_peer_that_is_reissued_after_the_taint_is_met_again(make_world: MakeWorld, drip: Drip) -> None:
    """In an emergency the taint comes first: a connection made meanwhile is none to stay with."""
    world = make_world(serve=drip, data_threads=1)
    old = world.td.authority
    world.td.rotate()
    world.vllm = world.td.svid(VLLM)
    outbound, peers = pair(world, allow(READ)), lambda: world.server.stats()["accepted_inbound"]
    world.publish(allow(READ), tainted=[old.der])

    def asked(link: socket.socket) -> bool:
        link.sendall(GET)
        return link.recv(1 << 16).startswith(b"HTTP/1.1 200 ")

    with dial(outbound.address) as first:
        assert asked(first)
        world.models = world.td.svid(MODELS)
        world.publish(allow(READ), tainted=[old.der])
        before = peers()

        def met_again() -> bool:
            with dial(outbound.address) as link:
                return asked(link) and peers() > before

        until(met_again)
        with dial(outbound.address) as second:
            assert asked(second)
            world.td.forget(old)
            world.publish(allow(READ), revocations=[mtls.Revocation(authority_id=old.authority_id)])
            assert not ends(first)[0].endswith(b"last\r\n0\r\n\r\n")
            drip.end.set()
            assert ends(second)[0].endswith(b"4\r\nlast\r\n0\r\n\r\n")


def test_a_peer_that_stays_with_a_tainted_authority_is_served_and_asked_to_come_again(make_world: MakeWorld) -> None:
    world = make_world(serve=Seen())
    old = world.td.authority
    world.td.rotate()
    world.models = world.td.svid(MODELS)
    world.publish_server(allow(READ))
    inbound = world.inbound(protocol="http")
    get = b"GET /models/a HTTP/1.1\r\nHost: m\r\n\r\n"
    with dial_tls(inbound.address, world.vllm, world.folder) as link:
        for _ in range(2):
            assert b" 200 " in talk(link, get, lambda got: got.endswith(b"ok"))
        world.publish_server(allow(READ), tainted=[old.der])
        # Its connection ends without a request; another one is as good as the first was.
        assert talk(link, b"") == b""
    with dial_tls(inbound.address, world.vllm, world.folder) as link:
        for _ in range(2):
            assert b" 200 " in talk(link, get, lambda got: got.endswith(b"ok"))


def flood(link: socket.socket) -> None:
    """Send an answer without end."""
    link.recv(1 << 16)
    link.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    while True:
        link.sendall(chunk)


def settles(core: mtls.Core) -> None:
    """Wait until no more bytes are carried: everything is full."""
    seen = [0]

    def still() -> bool:
        carried = core.stats()["bytes_forward"] + core.stats()["bytes_back"]
        seen.append(carried)
        time.sleep(0.1)
        return carried > 0 and len(seen) > 3 and seen[-1] == seen[-3]

    until(still)


def test_trap_a_reader_that_stalls_is_cut_too_over_http_2(make_world: MakeWorld) -> None:
    world = make_world(serve=flood)
    world.publish_server(allow(READ, "{http: {methods: [GET], paths: [/stream]}}"))
    with h2_peer(world.inbound(protocol="http"), world.vllm, world) as peer:
        stream = peer.ask("GET", "/stream")
        settles(world.server)
        world.publish_server(allow(READ))
        until(lambda: world.server.connections() == "[]")
        assert peer.read(lambda event: isinstance(event, h2.events.StreamReset) and event.stream_id == stream)
        peer.flush()
    until(lambda: world.server.stats()["cut_action_not_named"] == 1)


def test_trap_a_reader_that_stalls_is_cut_too_over_http_1(make_world: MakeWorld) -> None:
    world = make_world(serve=flood)
    outbound = pair(world, allow(READ))
    with dial(outbound.address) as link:
        link.sendall(GET)
        settles(world.client)
        world.publish(allow(WRITE))
        until(lambda: world.client.connections() == world.server.connections() == "[]")
        until(lambda: world.client.stats()["connections"] == 0)


def test_trap_a_writer_that_stalls_is_cut_too(make_world: MakeWorld) -> None:
    """A request's body that does not come is no reason to wait for it."""
    world = make_world(serve=Seen())
    outbound = pair(world, allow(WRITE))
    with dial(outbound.address) as link:
        link.sendall(b"POST /uploads/a HTTP/1.1\r\nHost: m\r\nContent-Length: 10\r\n\r\n12345")
        until(lambda: "uploads" in str(world.records(world.server, 1)))
        world.publish(allow(READ))
        assert b" 200 " not in talk(link, b"")
        until(lambda: world.client.connections() == world.server.connections() == "[]")


def test_resets_are_counted_for_each_identity_over_all_its_connections(make_world: MakeWorld) -> None:
    world = make_world(serve=Drip())
    world.publish_server(allow(READ))
    inbound = world.inbound(protocol="http", max_resets_per_second=1)

    def refused() -> bool:
        with contextlib.suppress(ConnectionError, ssl.SSLError), h2_peer(inbound, world.vllm, world) as peer:
            for _ in range(4):
                stream = peer.ask("GET", "/models/a")
                if peer.status(stream) != "200":
                    break
                peer.connection.reset_stream(stream)
                peer.flush()
        until(lambda: world.server.connections() == "[]")
        return bool(world.server.stats().get("denied_too_many_resets", 0))

    # The allowance grows by one each second, so that how many connections it takes is a matter of the machine. No
    # connection has more than HTTP/2's own limits let one have.
    until(refused, "a connection that may not begin")
    other = world.td.svid("/segment/inference/host/h9/svc/other")
    with h2_peer(inbound, other, world) as peer:
        assert peer.status(peer.ask("GET", "/models/a")) == "200"


class Wire:
    """A network between two hosts that can go dead: bytes are taken and go nowhere."""

    def __init__(self, to: str) -> None:
        self._to, self._socket = to, socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.dead: set[int] = set()
        self.connections = 0
        self._threads = [threading.Thread(target=self._run)]
        self._threads[0].start()

    def _run(self) -> None:
        while True:
            near, _ = self._socket.accept()
            if not self.address:
                near.close()
                return
            self.connections += 1
            self._threads.append(threading.Thread(target=self._join, args=(near, self.connections)))
            self._threads[-1].start()

    def _join(self, near: socket.socket, number: int) -> None:
        with near, dial(self._to, 60) as far:
            back = threading.Thread(target=self._copy, args=(far, near, number))
            back.start()
            self._copy(near, far, number)
            back.join()

    def _copy(self, source: socket.socket, target: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if number not in self.dead:
                    target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        """Wait until all connections have ended."""
        at, self.address = self.address, ""
        dial(at).close()
        for thread in self._threads:
            thread.join(60)
        self._socket.close()


def test_a_peer_that_has_vanished_is_noticed_and_another_connection_is_made(make_world: MakeWorld) -> None:
    # Connections to peers are shared by thread.
    world = make_world(serve=Seen(), data_threads=1)
    world.publish(allow(READ))
    wire = Wire(world.inbound(protocol="http").address)
    outbound = world.outbound(wire.address, protocol="http")
    assert ask(outbound.address, "GET", "/models/a")[0] == 200
    wire.dead.add(1)
    # Nothing more comes back over it: the request that it carries fails, the next one goes another way.
    assert ask(outbound.address, "GET", "/models/a")[0] == 502
    assert ask(outbound.address, "GET", "/models/a")[0] == 200
    assert wire.connections == 2
    world.close()
    wire.stop()
