# SPDX-License-Identifier: Apache-2.0
"""The directory from the Services and EndpointSlices of a real API server."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from firedoor.broker import broker as broker_module
from firedoor.wire import admin_pb2, control_pb2, policy_pb2
from tests.broker.harness import POLICY, AgentClient, RunningBroker, running
from tests.broker.test_control import Stream, part
from tests.kubernetes import controllers
from tests.kubernetes.asking import PATIENCE
from tests.kubernetes.cluster import Cluster, running_cluster
from tests.kubernetes.endpoints import Endpoints
from tests.postgres import Server
from tests.spire.programs import Answer, run
from tests.waiting import async_until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(400)]

# Address and port: who is expected there.
Rows = dict[tuple[str, int], list[str]]
Holds = Callable[[Rows], object]
DECLARED = """
---
apiVersion: firedoor.dev/v1alpha1
kind: Service
metadata: {{name: declared}}
spec:
  addresses: ["{address}"]
  ports: [{{port: 80, protocol: http, service_port: 9000, expect: ["spiffe://{{td}}/segment/registry/host/h/svc/s"]}}]
"""


class World:
    """A cluster, and brokers that take the directory from it."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.flags = {
            **controllers.flags(cluster, folder / "account"),
            "kubernetes_controllers_directory": "true",
        }
        self.models, self.web = Endpoints(cluster, "models"), Endpoints(cluster, "web")

    @asynccontextmanager
    async def broker(self, name: str = "b", policy: str = POLICY, **more: str) -> AsyncIterator[RunningBroker]:
        (self.folder / name).mkdir(exist_ok=True)
        async with running(self.folder / name, None, **self.flags, **more) as found:
            if policy:
                await found.apply(policy)
            yield found

    def rows(self, services: Iterable[policy_pb2.Service]) -> Rows:
        """Return what is expected where; what other tests have left in the cluster is not asked for."""
        found: Rows = {}
        ours = (f"/ns/{self.models.namespace}/", f"/ns/{self.web.namespace}/", "/host/h/")
        for service in services:
            for address in service.addresses:
                for port in service.ports:
                    place = str(ipaddress.ip_address(address)), port.port
                    assert place not in found
                    found[place] = list(port.expect)
        return {place: expect for place, expect in found.items() if any(one in expect[0] for one in ours)}

    async def listed(self, broker: RunningBroker) -> Rows:
        """Return what a broker says."""
        found = await broker.policy.ListServices(admin_pb2.ListServicesRequest())
        return self.rows(one.service for one in found.services)

    async def until(self, broker: RunningBroker, holds: Holds, what: str) -> Rows:
        """Wait until a broker's directory is so."""
        return await async_until(lambda: self.listed(broker), what, when=holds, seconds=PATIENCE)

    async def sidecar(self, broker: RunningBroker, path: str) -> Sidecar:
        """Attest one that is entitled to an ID."""
        agent = await broker.attest()
        await broker.entry(path, agent.path, [f"unix:user:{path.split('/')[2]}"])
        return Sidecar(self, agent)

    def id(self, of: Endpoints | None = None, segment: str = "registry") -> str:
        return f"spiffe://example.org/segment/{segment}/ns/{(of or self.models).namespace}/sa/default"


@pytest.fixture
def world(cluster: Cluster, tmp_path: Path) -> World:
    return World(cluster, tmp_path)


class Sidecar:
    """The control stream of one sidecar, and the table that it was told last."""

    def __init__(self, world: World, agent: AgentClient) -> None:
        self._world, self._stream = world, Stream(agent)
        self.table = policy_pb2.Table()

    @property
    def rows(self) -> Rows:
        """What of it is this test's."""
        return self._world.rows(self.table.services)

    async def until(self, holds: Holds, what: str) -> control_pb2.Update:
        """Wait until it was told a directory that is so; acknowledge all of it."""

        async def told() -> control_pb2.Update:
            update = await self._stream.next()
            self._stream.ack(update)
            self.table = part(update, "policy").table
            return update

        return await async_until(told, what, when=lambda _: holds(self.rows), state=lambda: self.rows, seconds=PATIENCE)

    def stop(self) -> None:
        self._stream.stop()


async def test_services_are_there_for_who_could_reach_them_and_for_nobody_else(world: World) -> None:
    models = world.models
    pods = [models.pod("store-0", "10.244.1.1"), models.pod("store-1", "10.244.1.2")]
    v4, v6 = models.service("store")
    models.slice("store", *pods)
    models.service("headless", clusterIP="None")
    models.slice("headless", models.pod("one-0", "10.244.1.3", segment="inference"))
    models.service("nobody")
    async with world.broker() as broker:
        client = await world.sidecar(broker, "/segment/inference/x")
        other = await world.sidecar(broker, "/segment/registry/x")
        expected = {(v4, 80), (v6, 80), ("10.244.1.1", 9000), ("10.244.1.2", 9000)}
        told = await client.until(lambda found: found.keys() == expected, "the client has it")
        assert client.rows == {place: [world.id()] for place in expected}
        found = next(one for one in client.table.services if ipaddress.ip_address(v4).packed in one.addresses)
        (port,) = found.ports
        assert (port.protocol, port.service_port, list(port.connect)) == (policy_pb2.PROTOCOL_HTTP, 9000, [])
        # No flow leads from the registry, so that it is told nothing; the broker knows both.
        while (await other.until(lambda _: True, "it is told too")).generation.number < told.generation.number:
            pass
        assert other.rows == {}
        there = await world.listed(broker)
        assert there[v4, 80] == [world.id()]
        assert there["10.244.1.3", 9000] == [world.id(segment="inference")]
        sources = (await broker.policy.ListServices(admin_pb2.ListServicesRequest())).services
        assert f"Service {models.namespace}/store" in {one.source for one in sources}
        assert "firedoor_broker_directory_trouble 0.0" in broker.broker.metrics.text().decode()
        client.stop()
        other.stop()


async def test_people_see_what_was_derived(world: World) -> None:
    models = world.models
    v4, _ = models.service("store")
    models.slice("store", models.pod("store-0", "10.244.7.1"))
    async with world.broker() as broker:
        await world.until(broker, lambda found: (v4, 80) in found, "it is there")

        async def firedoor(*words: str) -> Answer:
            socket = ("--admin-socket", str(broker.broker.config.admin_socket))
            return await asyncio.to_thread(run, [sys.executable, "-m", "firedoor.cli", *words, *socket])

        asks = ("explain", "--from", "spiffe://example.org/segment/inference/x", "--action", "GET /models/x")
        answer = await firedoor(*asks, "--to", f"{v4}:80")
        assert answer.code == 0, answer
        assert "allowed by flow inference-pulls-models" in answer.out
        where = f"{v4}:80 is Service {models.namespace}/store, http at service port 9000; expected: {world.id()}"
        assert where in answer.out
        assert (await firedoor(*asks, "--to", f"{v4}:81")).code == 5
        answer = await firedoor("segment", "services", v4, "--output", "json")
        (one,) = json.loads(answer.out)["services"]
        assert one["source"] == f"Service {models.namespace}/store"
        assert v4 in one["addresses"]
        assert (await firedoor("segment", "services", "10.99.99.99")).code == 5


async def test_a_new_endpoint_is_known(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    models = world.models
    v4, _ = models.service("store")
    models.slice("store", models.pod("store-0", "10.244.2.1"))
    others = [models.pod(f"store-{number}", f"10.244.2.{number + 1}") for number in range(1, 6)]
    async with world.broker() as broker:
        client = await world.sidecar(broker, "/segment/inference/x")
        await client.until(lambda found: (v4, 80) in found, "the client has it")
        took = []
        for number, pod in enumerate(others, 1):
            before = time.monotonic()
            await asyncio.to_thread(models.add, "store-1", pod)
            place = f"10.244.2.{number + 1}", 9000
            await client.until(partial(_has, place), "the client knows the endpoint")
            took.append(time.monotonic() - before)
        with capsys.disabled():
            print(f"\na new endpoint is known after {', '.join(f'{one:.2f}' for one in took)} s")
        # Gone from the slices, it is gone.
        await asyncio.to_thread(models.slice, "store", others[0])
        await client.until(lambda found: found.keys() >= {(v4, 80)} and len(found) < 5, "the others are gone")
        await asyncio.to_thread(models.slice, "store")
        await client.until(lambda found: not found, "nobody is behind it")
        client.stop()


def _has(place: tuple[str, int], found: Rows) -> bool:
    return place in found


async def test_whoever_writes_in_one_namespace_claims_nothing_of_another(world: World) -> None:
    models, web = world.models, world.web
    v4, v6 = models.service("store")
    store = models.pod("store-0", "10.244.3.1")
    models.slice("store", store)
    theirs = web.pod("web-0", "10.244.3.9", segment="registry")
    # What somebody may write who may write all in `web`: addresses of others, and slices that name them.
    mine, other = web.service("mine", externalIPs=[v4, "10.244.3.1"])
    web.service("name", type="ExternalName", externalName="10.244.3.1", ipFamilyPolicy=None)
    balanced, another = web.service("balanced", type="LoadBalancer")
    status = {"status": {"loadBalancer": {"ingress": [{"ip": v4}]}}}
    world.cluster.api().patch(f"/api/v1/namespaces/{web.namespace}/services/balanced/status", status)
    named = {"kind": "Pod", "name": "web-0", "namespace": web.namespace, "uid": theirs["metadata"]["uid"]}
    lies: list[dict[str, Any]] = [
        {"addresses": ["10.244.3.1"], "targetRef": named},
        {"addresses": ["10.244.3.1"], "targetRef": {**named, "uid": store["metadata"]["uid"]}},
        {"addresses": ["10.244.3.1"], "targetRef": {**named, "namespace": models.namespace}},
        {"addresses": [v4], "targetRef": named},
        {"addresses": ["10.244.3.1"]},
    ]
    truth: dict[str, Any] = {"addresses": ["10.244.3.9"], "targetRef": named}
    for service in ("mine", "balanced"):
        web.write(service, lies, f"{service}-lies")
        web.write(service, [truth], f"{service}-truth")
    web.write("store", [truth], "store-of-theirs")
    async with world.broker() as broker:
        found = await world.until(broker, lambda found: (mine, 80) in found and (v4, 80) in found, "all is there")
        for place in ((v4, 80), (v6, 80), ("10.244.3.1", 9000)):
            assert found[place] == [world.id()]
        for place in ((mine, 80), (balanced, 80), ("10.244.3.9", 9000)):
            assert found[place] == [world.id(web)]
        theirs_are = {address for (address, _), expect in found.items() if expect == [world.id(web)]}
        assert theirs_are == {mine, balanced, "10.244.3.9", other, another}


async def test_a_document_counts_before_what_is_derived(world: World) -> None:
    v4, v6 = world.models.service("store")
    world.models.slice("store", world.models.pod("store-0", "10.244.4.1"))
    async with world.broker(policy=POLICY + DECLARED.format(address=v4)) as broker:
        client = await world.sidecar(broker, "/segment/inference/x")
        await client.until(lambda found: (v6, 80) in found, "what was derived is there")
        found = client.rows
        assert found[v4, 80] == ["spiffe://example.org/segment/registry/host/h/svc/s"]
        assert found[v6, 80] == [world.id()]
        # Without the document, what is derived has the address again.
        await broker.apply(POLICY)
        await client.until(lambda found: found.get((v4, 80)) == [world.id()], "the Service has its address")
        client.stop()


async def test_it_outlives_an_api_server_that_restarts_and_has_forgotten(tmp_path: Path) -> None:
    with running_cluster(tmp_path) as cluster:
        world = World(cluster, tmp_path)
        models = world.models
        first, second = (models.pod(f"store-{number}", f"10.244.5.{number + 1}") for number in range(2))
        v4, _ = models.service("store")
        models.slice("store", first)
        place = "10.244.5.2", 9000
        async with world.broker() as broker:
            found = await world.until(broker, lambda found: (v4, 80) in found, "it is there")
            directory = broker.broker.directory
            assert directory is not None
            await asyncio.to_thread(cluster.stop_server)
            await async_until(directory.trouble)
            assert await world.listed(broker) == found
            answer = await broker.policy.ListServices(admin_pb2.ListServicesRequest())
            assert "cannot be followed" in answer.trouble[0]
        # A broker that starts meanwhile has what was there.
        async with world.broker(policy="") as broker:
            assert await world.listed(broker) == found
            assert await asyncio.to_thread(cluster.start_server)
            await asyncio.to_thread(models.add, "store-1", second)
            await world.until(broker, lambda found: place in found, "what changed is seen")
            # It was away for so long that the API server does not know what happened since (410).
            directory = broker.broker.directory
            assert directory is not None
            await asyncio.to_thread(cluster.stop_server)
            await async_until(lambda: len(directory.trouble()) >= len(directory._watches))
            for watch in directory._watches:
                watch._version = "1"
            assert await asyncio.to_thread(cluster.start_server)
            await asyncio.to_thread(models.slice, "store", first)
            found = await world.until(
                broker, lambda found: place not in found and (v4, 80) in found, "all is listed anew"
            )
            await async_until(lambda: not directory.trouble())


async def test_of_two_brokers_one_writes_and_both_have_it(
    world: World, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_module, "NEWCOMER_WAITS", 0.0)
    url, password_file = postgres.database()
    shared = {"database": url, "database_password_file": str(password_file)}
    models = world.models
    first, second, third = (models.pod(f"store-{number}", f"10.244.6.{number + 1}") for number in range(3))
    v4, _ = models.service("store")
    models.slice("store", first)
    async with AsyncExitStack() as stack:
        async with world.broker("a", **shared) as one:
            await world.until(one, lambda found: (v4, 80) in found, "the first has it")
            two = await stack.enter_async_context(world.broker("b", policy="", **shared))
            client = await world.sidecar(two, "/segment/inference/x")
            await client.until(lambda found: (v4, 80) in found, "a sidecar of the second has it")
            await asyncio.to_thread(models.add, "store-1", second)
            await client.until(lambda found: ("10.244.6.2", 9000) in found, "what the first writes the second has")
            held = [found.broker.controllers.lease.held for found in (one, two) if found.broker.controllers]
            assert held == [True, False]
            await async_until(lambda: one.broker.state.directory == two.broker.state.directory)
            assert await world.listed(one) == await world.listed(two)
        # The first is gone, and the second writes.
        await asyncio.to_thread(models.add, "store-1", third)
        await client.until(lambda found: ("10.244.6.3", 9000) in found, "the second writes")
        client.stop()
