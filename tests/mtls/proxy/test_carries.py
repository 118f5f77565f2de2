# SPDX-License-Identifier: Apache-2.0
"""What the data path carries, and how it behaves when there is too much of it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from firedoor import mtls
from tests.mtls.proxy.datapath import VLLM, World, asks, dial, dial_tls, ended, exchange
from tests.waiting import until

MIB = 1 << 20


def answer_after_eof(link: socket.socket) -> None:
    """Read to the end, then say how much it was, then close."""
    count = 0
    while data := link.recv(1 << 16):
        count += len(data)
    link.sendall(b"%d bytes" % count)


def read_all(link: socket.socket) -> bytes:
    parts = []
    while part := link.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def test_a_client_that_has_sent_everything_still_gets_its_answer(make_world: Callable[..., World]) -> None:
    world = make_world(serve=answer_after_eof)
    world.publish()
    with dial(world.outbound(world.inbound().address).address) as link:
        link.sendall(b"x" * 100_000)
        link.shutdown(socket.SHUT_WR)
        assert read_all(link) == b"100000 bytes"


def test_an_app_that_has_said_everything_still_hears_its_client(make_world: Callable[..., World]) -> None:
    heard = bytearray()

    def speak_first(link: socket.socket) -> None:
        link.sendall(b"welcome")
        link.shutdown(socket.SHUT_WR)
        heard.extend(read_all(link))

    world = make_world(serve=speak_first)
    world.publish()
    with dial(world.outbound(world.inbound().address).address) as link:
        assert read_all(link) == b"welcome"
        link.sendall(b"goodbye")
    until(lambda: heard == b"goodbye")


def test_close_notify_is_an_end_and_its_lack_is_not(make_world: Callable[..., World]) -> None:
    """A truncated TLS stream must not look like a complete one to the app."""
    ends: list[str] = []

    def note(link: socket.socket) -> None:
        try:
            read_all(link)
            ends.append("clean")
        except ConnectionResetError:
            ends.append("reset")

    world = make_world(serve=note)
    world.publish_server()
    inbound = world.inbound()
    with dial_tls(inbound.address, world.vllm, world.folder) as link:
        link.sendall(b"all of it")
        with contextlib.suppress(OSError):
            link.unwrap()
    until(lambda: ends == ["clean"])
    with dial_tls(inbound.address, world.vllm, world.folder) as link:
        link.sendall(b"half of")
        until(lambda: world.app.accepted == 2)
        # A FIN below TLS without close_notify.
        socket.socket.shutdown(link, socket.SHUT_WR)
        until(lambda: ends == ["clean", "reset"])


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_a_hundred_megabytes_arrive_as_they_left(world: World, kind: str) -> None:
    world.publish()
    address = world.inbound().address
    listener = world.outbound(address, **({} if kind == "unix" else {"listen": "127.0.0.1:0"}))
    block = os.urandom(MIB)
    sent, got = hashlib.sha256(), hashlib.sha256()
    with dial(listener.address, 60) as link:

        def send() -> None:
            for number in range(100):
                data = block[number * 997 :] + block[: number * 997]
                sent.update(data)
                link.sendall(data)
            link.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        count = 0
        while data := link.recv(1 << 20):
            got.update(data)
            count += len(data)
        sender.join()
    assert count == 100 * MIB
    assert got.digest() == sent.digest()
    until(lambda: world.client.stats()["bytes_back"] == 100 * MIB)


def test_a_slow_reader_holds_its_writer_back(make_world: Callable[..., World]) -> None:
    """What waits in between is bounded: the app cannot get rid of more than the buffers of the path."""
    written = [0]

    def flood(link: socket.socket) -> None:
        link.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            while written[0] < 1024 * MIB:
                written[0] += link.send(b"\0" * 65536)
        written.append(-1)

    world = make_world(serve=flood)
    world.publish()
    with dial(world.outbound(world.inbound().address).address) as link:
        until(lambda: written[-1] == -1)
        assert written[0] < 64 * MIB
        assert len(link.recv(100, socket.MSG_WAITALL)) == 100


def test_one_identity_cannot_take_every_connection(world: World) -> None:
    world.publish_server()
    inbound = world.inbound(max_connections_per_identity=2)
    other = world.td.svid(VLLM + "/other")
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            link = stack.enter_context(dial_tls(inbound.address, world.vllm, world.folder))
            assert asks(link) == b"ping"
        third = stack.enter_context(dial_tls(inbound.address, world.vllm, world.folder))
        assert asks(third) is None
        neighbour = stack.enter_context(dial_tls(inbound.address, other, world.folder))
        assert asks(neighbour) == b"ping"
        reasons = [record["reason"] for record in world.records(world.server, 4)]
        assert reasons == ["allowed", "allowed", "too_many_connections_of_identity", "allowed"]
    until(lambda: json.loads(world.server.connections()) == [])
    with dial_tls(inbound.address, world.vllm, world.folder) as link:
        assert asks(link) == b"ping"


def test_a_listener_serves_only_so_many_connections(world: World) -> None:
    world.publish_server()
    inbound = world.inbound(max_connections=1)
    with dial_tls(inbound.address, world.vllm, world.folder) as link:
        assert asks(link) == b"ping"
        assert exchange(inbound.address) is None
        assert [r["reason"] for r in world.records(world.server, 2)] == ["allowed", "too_many_connections"]


@pytest.mark.parametrize("right", [True, False])
def test_the_app_must_belong_to_the_user_that_is_named(world: World, right: bool) -> None:
    world.publish()
    uid = os.getuid() + (0 if right else 1)
    listener = world.outbound(world.inbound(app={"address": world.app.address, "uid": uid}).address)
    assert exchange(listener.address) == (b"ping" if right else None)
    [record] = world.records(world.server, 1)
    assert record["reason"] == ("allowed" if right else "app_wrong_uid")
    assert world.app.accepted == (1 if right else 0)


@pytest.mark.parametrize("uid", [None, os.getuid()])
def test_an_app_that_is_not_there_is_a_denial_with_its_reason(world: World, uid: int | None) -> None:
    world.publish()
    world.app.stop()
    app = {"address": world.app.address} | ({} if uid is None else {"uid": uid})
    assert exchange(world.outbound(world.inbound(app=app).address).address) is None
    [record] = world.records(world.server, 1)
    assert (record["decision"], record["reason"]) == ("denied", "app_unreachable")


@pytest.mark.parametrize("right", [True, False])
def test_an_app_on_a_unix_socket_is_reached(world: World, right: bool) -> None:
    path = world.folder / "app.sock"
    with socket.socket(socket.AF_UNIX) as app:
        app.bind(str(path))
        app.listen()
        app.settimeout(60)
        world.publish()
        uid = os.getuid() + (0 if right else 1)
        inbound = world.inbound(app={"address": f"unix:{path}", "uid": uid})
        with dial(world.outbound(inbound.address).address) as link:
            if right:
                link.sendall(b"ping")
                served, _ = app.accept()
                with served:
                    assert served.recv(4) == b"ping"
            else:
                assert ended(link)


def decided(core: mtls.Core, decisions: int) -> bool:
    return core.stats()["decisions"] == decisions


def test_records_and_losses_are_all_decisions(make_world: Callable[..., World]) -> None:
    """Many clients at once, a ring that is too small, and a reader that comes late."""
    world = make_world(record_capacity=16)
    world.publish()
    listener = world.outbound(world.inbound().address)
    refused = world.outbound("127.0.0.1:1", name="no", service_port=1, listen=f"unix:{world.folder}/no.sock")

    def ask(address: str) -> None:
        for _ in range(10):
            exchange(address)

    threads = [threading.Thread(target=ask, args=(one.address,)) for one in (listener, refused) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for core, decisions in ((world.client, 80), (world.server, 40)):
        until(functools.partial(decided, core, decisions))
        lines = core.drain_records(1000).splitlines()
        stats = core.stats()
        assert len(lines) + stats["records_lost"] == decisions
        assert stats["records_lost"] > 0
        assert stats["allowed"] + stats["audit"] + stats["denied"] == decisions
        assert sum(stats[name] for name in stats if name.startswith("denied_")) == stats["denied"]
    # The quarter for denials: they were not pushed out by what was allowed.
    assert world.client.stats()["denied_port_not_named"] == 40


def test_the_event_is_raised_while_records_wait(world: World) -> None:
    world.publish()
    listener = world.outbound(world.inbound().address)

    def raised() -> bool:
        return bool(select.select([world.client.record_fd()], [], [], 0)[0])

    assert not raised()
    for _ in range(2):
        assert exchange(listener.address) == b"ping"
    until(lambda: world.client.stats()["records_waiting"] == 2)
    assert raised()
    world.client.drain_records(1)
    assert raised()
    world.client.drain_records(1)
    assert not raised()


# Runs out of descriptors on purpose, in a process of its own; prints what happened.
EMFILE = """
import os, resource, sys, tempfile
from pathlib import Path
from tests.mtls.proxy.datapath import *
from tests.waiting import until
world = World(Path(tempfile.mkdtemp()))
world.publish()
listener = world.outbound(world.inbound().address)
assert exchange(listener.address) == b"ping"
until(lambda: world.client.stats()["connections"] == 0 and world.server.stats()["connections"] == 0)
link = socket.socket(socket.AF_UNIX); link.settimeout(60)
held = []
limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 40, limit))
try:
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
link.connect(listener.address[5:])
link.sendall(b"ping")
until(lambda: world.client.stats()["accept_errors"] >= 3)
for fd in held:
    os.close(fd)
assert link.recv(4) == b"ping"
assert exchange(listener.address) == b"ping"
print("recovered after", world.client.stats()["accept_errors"])
world.close()
"""


def test_a_process_without_descriptors_recovers_when_it_has_some_again() -> None:
    ran = subprocess.run([sys.executable, "-c", EMFILE], capture_output=True, text=True, timeout=100)
    assert ran.stdout.startswith("recovered after"), ran.stderr
