# SPDX-License-Identifier: Apache-2.0
"""Two sidecars, two local programs and a flow: what it allows arrives, and nothing else does."""

import contextlib
import json
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import POLICY, World
from tests.waiting import PATIENCE, until

CLIENT = "/segment/inference/host/h2/svc/vllm"
SERVER = "/segment/registry/host/h1/svc/models"


class App:
    """A TCP program that counts who gets as far as accept() and says hello."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self._accepted, self._counting = 0, threading.Lock()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.socket.getsockname()[1]}"

    @property
    def accepted(self) -> int:
        """How many got as far as accept(): also who has just come, and whom the thread has not seen yet."""
        while True:
            with self._counting:
                if not select.select([self.socket], [], [], 0)[0]:
                    return self._accepted
            time.sleep(0.01)

    def _serve(self) -> None:
        while True:
            try:
                select.select([self.socket], [], [])
                with self._counting:
                    peer, _ = self.socket.accept()
                    self._accepted += 1
            except (OSError, ValueError):
                return
            threading.Thread(target=self._answer, args=(peer,), daemon=True).start()

    def _answer(self, peer: socket.socket) -> None:
        # Who was let in may be cut off before it has heard us.
        with peer, contextlib.suppress(OSError):
            peer.sendall(b"hello " + peer.recv(100))

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self._thread.join(5)


@pytest.fixture
def app() -> Iterator[App]:
    found = App()
    yield found
    found.close()


def inbound(app: App) -> str:
    one = {
        "name": "models",
        "as": f"spiffe://example.org{SERVER}",
        "listen": "127.0.0.1:0",
        "service_port": 9000,
        "protocol": "tcp",
        "app": {"address": app.address, "uid": os.geteuid()},
    }
    return json.dumps([one])


def outbound(folder: Path, address: str, listen: str = "") -> str:
    one = {
        "name": "models",
        "as": f"spiffe://example.org{CLIENT}",
        "listen": listen or f"unix:{folder / 'out.sock'}",
        "protocol": "tcp",
        "expect": ["spiffe://example.org/segment/registry/host/*/svc/models"],
        "service_port": 9000,
        "addresses": [address],
    }
    return json.dumps([one])


def ask(address: str | Path) -> bytes:
    """Connect, say who, and return the whole answer; empty when there is none."""
    with socket.socket(socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET) as peer:
        peer.settimeout(PATIENCE)
        try:
            if isinstance(address, Path):
                peer.connect(str(address))
            else:
                host, _, port = address.rpartition(":")
                peer.connect((host, int(port)))
            peer.sendall(b"you")
            return peer.recv(100)
        except OSError:
            return b""


def listening(world: World, name: str) -> str:
    """Return where a sidecar's only listener is bound."""
    status = world.status(name)
    assert status is not None
    assert status.listeners[0].open, status.listeners[0].reason
    return status.listeners[0].listen


def records(world: World, name: str) -> list[dict[str, object]]:
    """Return a sidecar's decision records."""
    file = world.folder / name / "decisions.jsonl"
    # The last line may be half there.
    whole = file.read_text().rpartition("\n")[0] if file.exists() else ""
    return [json.loads(line) for line in whole.splitlines()]


@pytest.fixture
def pair(world: World, app: App) -> World:
    """A broker, sidecar `r` before the app and sidecar `i` beside the client."""
    world.start_broker()
    parent = world.enrol()
    world.create_entry(parent, SERVER)
    world.start_sidecar("--inbound", inbound(app), name="r").ready()
    parent = world.enrol()
    world.create_entry(parent, CLIENT)
    world.start_sidecar("--outbound", outbound(world.folder, listening(world, "r")), name="i").ready()
    return world


def reread(world: World, policy: str) -> None:
    """Change the policy in force."""
    world.write_policy(policy)
    world.programs[0].process.send_signal(signal.SIGHUP)


def test_a_flow_carries_and_its_removal_stops(pair: World, app: App) -> None:
    path = pair.folder / "out.sock"
    assert ask(path) == b"hello you"
    assert app.accepted == 1
    for name, direction in (("r", "inbound"), ("i", "outbound")):
        (found,) = until(lambda name=name: records(pair, name), "a decision record")  # type: ignore[misc]
        assert (found["direction"], found["decision"], found["flow"]) == (
            direction,
            "allowed",
            "inference-pulls-models",
        )
        assert found["source"] == f"spiffe://example.org{CLIENT}"
    first, second = records(pair, "r")[0], records(pair, "i")[0]
    assert first["correlation"] == second["correlation"]

    reread(pair, POLICY.replace("port: 9000", "port: 9001"))
    until(lambda: ask(path) == b"", "the denial")
    reached = app.accepted
    assert ask(path) == b""
    assert app.accepted == reached

    reread(pair, POLICY)
    until(lambda: ask(path) == b"hello you", "the flow's return")
    assert app.accepted == reached + 1


def test_entry_deleted_closes_the_listener(pair: World, app: App) -> None:
    status = pair.status("i")
    assert status is not None
    pair.delete_entry(status.svids[0].entry_id)
    until(lambda: (one := pair.status("i")) and not one.listeners[0].open, "the listener's end")
    until(lambda: not (pair.folder / "out.sock").exists(), "the end of its socket")
    assert ask(pair.folder / "out.sock") == b""
    assert app.accepted == 0


def test_listener_on_tcp_wants_an_entry_that_the_uid_decides(pair: World, app: App) -> None:
    parent = pair.enrol()
    pair.create_entry(parent, CLIENT, f"uid:{os.geteuid()}", f"gid:{os.getegid()}")
    words = ("--outbound", outbound(pair.folder, listening(pair, "r"), "127.0.0.1:0"))
    pair.start_sidecar(*words, name="t")
    found = until(lambda: (one := pair.status("t")) and one.connected and one.missing and one, "a status")
    reason = until(lambda: "loopback" in str(pair.status("t")) and str(pair.status("t")), "the reason")
    assert "asks for more than uid or user" in reason
    assert not found.listeners[0].open
    # The twin: the same listener, an entry without the gid.
    parent = pair.enrol()
    pair.create_entry(parent, CLIENT + "-2", f"uid:{os.geteuid()}")
    words = ("--outbound", outbound(pair.folder, listening(pair, "r"), "127.0.0.1:0").replace("svc/vllm", "svc/vllm-2"))
    pair.start_sidecar(*words, name="u").ready()
    assert ask(listening(pair, "u")) == b"hello you"
