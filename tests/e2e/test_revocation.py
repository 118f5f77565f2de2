# SPDX-License-Identifier: Apache-2.0
"""An identity is taken away: the connections of its holder end, and no other begins."""

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.conftest import World
from tests.e2e.test_datapath import CLIENT, SERVER, App, ask, inbound, listening, outbound
from tests.waiting import PATIENCE, until


class Waiting(App):
    """A program that keeps its connections open until the other end closes them."""

    def __init__(self) -> None:
        self._held: list[socket.socket] = []
        super().__init__()

    def _answer(self, peer: socket.socket) -> None:
        self._held.append(peer)
        with contextlib.suppress(OSError):
            peer.sendall(b"hello " + peer.recv(100))

    def close(self) -> None:
        super().close()
        for one in self._held:
            one.close()


@pytest.fixture
def app() -> Iterator[App]:
    found = Waiting()
    yield found
    found.close()


@pytest.fixture
def pair(world: World, app: App) -> World:
    world.start_broker()
    world.create_entry(world.enrol(), SERVER)
    world.start_sidecar("--inbound", inbound(app), name="r").ready()
    world.create_entry(world.enrol(), CLIENT)
    world.start_sidecar("--outbound", outbound(world.folder, listening(world, "r")), name="i").ready()
    return world


def revoke(world: World, *words: str) -> Any:
    command = [sys.executable, "-m", "firedoor.cli", "svid", "revoke", *words, "--output", "json"]
    ran = subprocess.run(
        [*command, "--admin-socket", str(world.folder / "b.sock")], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def open_connection(world: World) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(PATIENCE)
    peer.connect(str(world.folder / "out.sock"))
    peer.sendall(b"you")
    assert peer.recv(100) == b"hello you"
    return peer


def cuts(world: World, name: str) -> int:
    """Return how many connections a sidecar has cut."""
    status = world.status(name)
    assert status is not None
    return sum(count for counter, count in status.counters.items() if counter.startswith("cut_"))


def ended(peer: socket.socket) -> bool:
    """Wait until the connection ends."""
    try:
        return peer.recv(100) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize("whose", ["client", "server"])
def test_live_connections_end_and_who_is_entitled_comes_back(pair: World, whose: str) -> None:
    path = CLIENT if whose == "client" else SERVER
    with open_connection(pair) as peer:
        answer = revoke(pair, "--id", f"spiffe://example.org{path}")
        assert answer["svids"] == 1
        assert ended(peer)
    # Whichever end hears of it first: its own identity is revoked, or its peer's.
    until(lambda: cuts(pair, "r") + cuts(pair, "i"), "a connection that was cut")
    until(lambda: ask(pair.folder / "out.sock") == b"hello you", "another SVID")


def test_without_the_entry_nobody_comes_back(pair: World, app: App) -> None:
    with open_connection(pair) as peer:
        answer = revoke(pair, "--id", "spiffe://example.org/segment/inference/**", "--delete-entries")
        assert [one["deleted"] for one in answer["entries"]] == [True]
        assert ended(peer)
    reached = app.accepted
    assert ask(pair.folder / "out.sock") == b""
    assert app.accepted == reached
