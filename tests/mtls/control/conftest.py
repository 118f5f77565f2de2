# SPDX-License-Identifier: Apache-2.0
"""A broker's core with a control server behind a TLS front, and sidecars that connect to it from cores of their own."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from firedoor import mtls
from firedoor.wire import control_pb2
from tests.simulator import Identity, SimulatedTrustDomain
from tests.waiting import until

SERVER = "/spire/server"
AGENT = "/spire/agent/join_token/a"
ServerEvent = tuple[str, str, int, bytes]


def hello(version: str = "1.0") -> bytes:
    return control_pb2.FromSidecar(hello=control_pb2.Hello(versions=[1], agent_version=version)).SerializeToString()


def ack(number: int) -> bytes:
    generation = control_pb2.Generation(epoch=1, number=number)
    return control_pb2.FromSidecar(ack=control_pb2.Ack(generation=generation)).SerializeToString()


def nack(code: str) -> bytes:
    return control_pb2.FromSidecar(nack=control_pb2.Nack(code=code)).SerializeToString()


def publish(core: mtls.Core, td: SimulatedTrustDomain, *identities: Identity) -> None:
    svids = [mtls.Svid(id=str(each.id), chain=each.chain, key=each.key_der) for each in identities]
    core.publish(mtls.Material(trust_domain=td.td.name, bundles=td.roots_by_name(), svids=svids))


@dataclass
class Sidecar:
    """One control client, with what it was told so far."""

    client: mtls.ControlClient
    id: str

    def __post_init__(self) -> None:
        self.news: list[tuple[str, str]] = []
        self.messages: list[bytes] = []
        self._greeted = 0

    def read(self) -> Sidecar:
        for kind, content in self.client.drain(100):
            if kind == "message":
                self.messages.append(content)
            else:
                self.news.append((kind, content.decode()))
        return self

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.read().news]

    def connected(self) -> Sidecar:
        """Wait for a connection that had no Hello, and say it."""
        until(lambda: self.kinds().count("connected") > self._greeted and self.news[-1][0] == "connected")
        self._greeted = self.kinds().count("connected")
        self.client.send(hello())
        return self

    def received(self, count: int) -> list[bytes]:
        until(lambda: len(self.read().messages) >= count)
        return self.messages


class Broker:
    """The broker's end."""

    def __init__(self, td: SimulatedTrustDomain, folder: Path) -> None:
        self.td = td
        self.core = mtls.Core(data_threads=1)
        publish(self.core, td, td.svid(SERVER))
        self.control = self.core.control_server()
        self.backend = str(folder / "back.sock")
        self.front = self.open(self.control)
        self.events: list[ServerEvent] = []
        self._cores: list[mtls.Core] = []

    def open(self, control: mtls.ControlServer | None) -> mtls.Front:
        as_id = f"{self.td.td.id}{SERVER}"
        return self.core.tls_front(listen="127.0.0.1:0", as_id=as_id, backend=self.backend, control=control)

    def read(self) -> list[ServerEvent]:
        self.events += self.control.drain(1000)
        return self.events

    def said(self, kind: str, count: int = 1) -> list[ServerEvent]:
        """Wait for events of a kind and return them."""
        until(lambda: sum(event[0] == kind for event in self.read()) >= count)
        return [event for event in self.events if event[0] == kind]

    def sidecar(
        self,
        path: str = AGENT,
        *,
        expect: str = SERVER,
        address: str = "",
        core: mtls.Core | None = None,
        **fields: Any,
    ) -> Sidecar:
        """Connect a sidecar; by default with a core of its own."""
        if core is None:
            core = self.new_core()
            publish(core, self.td, self.td.svid(path, **fields))
        as_id = f"{self.td.td.id}{path}"
        addresses = [address or self.front.address]
        expected = f"{self.td.td.id}{expect}"
        return Sidecar(core.control_client(addresses=addresses, as_id=as_id, expect=expected), as_id)

    def new_core(self) -> mtls.Core:
        self._cores.append(mtls.Core(data_threads=1))
        return self._cores[-1]

    def stop(self) -> None:
        for core in (*self._cores, self.core):
            core.stop()


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="fd-"))
    path.chmod(0o700)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def td() -> SimulatedTrustDomain:
    return SimulatedTrustDomain("td", at=int(time.time()))


@pytest.fixture
def broker(td: SimulatedTrustDomain, folder: Path) -> Iterator[Broker]:
    made = Broker(td, folder)
    yield made
    made.stop()
