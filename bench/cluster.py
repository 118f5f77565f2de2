# SPDX-License-Identifier: Apache-2.0
"""(cluster) The directory from a cluster of 5,000 pods in 200 Services: the first fill, memory, and one endpoint more.

The API server and its etcd are real, and on the same machine; nobody runs the pods, whose status is written once. All
streams are told all services: their segment has a flow to each.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp

from bench.options import Options
from bench.processes import until
from bench.progress import say
from bench.streams import UNLIMITED, Crowd, connect, enrolled
from bench.table import Table
from bench.world import POLICY, TCP_PORT, World
from firedoor.mtls import Core
from firedoor.wire import admin_grpc, admin_pb2
from tests.kubernetes.cluster import Cluster, running_cluster

NAMESPACES, SERVICES, PODS = 20, 200, 5000
STREAMS: Final = 100
CHANGES: Final = 20
# Objects that are written at once.
_AT_ONCE: Final = 32
_PATIENCE: Final = 300.0
_SLICES: Final = "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices"
MIB = 1 << 20
GOAL = "a new endpoint is acknowledged within a second"


def tables(options: Options, folder: Path) -> Iterator[Table]:
    """Measure and return the table."""
    with ExitStack() as stack:
        say("cluster: an API server")
        (home := folder / "cluster").mkdir()
        cluster = stack.enter_context(running_cluster(home))
        objects = Objects(cluster)
        asyncio.run(objects.make())
        bare = _memory(folder / "bare", ())
        (place := folder / "world").mkdir(0o700)
        began = time.monotonic()
        world = World(place, *UNLIMITED, "--metrics", "127.0.0.1:0", *_flags(cluster, folder), policy="database")
        stack.callback(world.stop)
        world.apply({"policy.yaml": POLICY})
        until(lambda: len(_addresses(world)) >= SERVICES + PODS, "all is there", _PATIENCE)
        filled = time.monotonic() - began
        cpu, memory = world.broker.cpu_seconds(), world.broker.resident_bytes() - bare
        say(f"cluster: filled in {filled:.1f} s, {memory / MIB:.0f} MiB more than without")
        core = Core(data_threads=1)
        stack.callback(core.stop)
        crowd = Crowd(core)
        connect(world, crowd, enrolled(world, core, place, min(STREAMS, options.streams)))
        changes = [_change(world, crowd, objects, number) for number in range(CHANGES)]
    yield _table(len(crowd.sidecars), filled, cpu, memory, changes)


def _memory(folder: Path, words: tuple[str, ...]) -> int:
    """Return what a broker has that follows nothing."""
    folder.mkdir(0o700)
    world = World(folder, *UNLIMITED, *words, policy="database")
    try:
        world.apply({"policy.yaml": POLICY})
        return world.broker.resident_bytes()
    finally:
        world.stop()


def _flags(cluster: Cluster, folder: Path) -> tuple[str, ...]:
    token = folder / "token"
    token.write_text(cluster.tokens["admin"])
    given = {"cluster": "bench", "server": cluster.url, "ca": str(cluster.ca_file), "token": str(token)}
    given |= {"namespace": "default", "directory": "true"}
    return tuple(word for key, value in given.items() for word in (f"--kubernetes-controllers-{key}", value))


def _addresses(world: World) -> set[bytes]:
    request = admin_pb2.ListServicesRequest(page_size=1000)
    found: set[bytes] = set()
    with world.admin() as channel:
        stub = admin_grpc.PolicyAdminStub(channel)
        while True:
            answer = stub.ListServices(request, timeout=60)
            found.update(address for one in answer.services for address in one.service.addresses)
            if not answer.next_page_token:
                return found
            request.page_token = answer.next_page_token


@dataclass(frozen=True, slots=True)
class Change:
    """One endpoint more: seconds until the last sidecar had it and until the broker knew, its CPU and its bytes."""

    had: float
    known: float
    cpu: float
    sent: float


def _change(world: World, crowd: Crowd, objects: Objects, number: int) -> Change:
    """Add a pod that runs already to a Service, and wait until everybody has acknowledged that."""
    epoch, now = max(one.generation for one in crowd.sidecars)
    cpu, sent = world.broker.cpu_seconds(), _sent(world)
    began = time.monotonic()
    objects.add(number)
    had = crowd.wait((epoch, now + 1)) - began
    while world.metrics()["firedoor_broker_sidecars_behind"]:
        crowd.read()
    known = time.monotonic() - began
    say(f"cluster: change {number + 1} of {CHANGES}: {had:.2f} s until all have it, {known:.2f} s acknowledged")
    return Change(had, known, world.broker.cpu_seconds() - cpu, _sent(world) - sent)


def _sent(world: World) -> float:
    found = world.metrics()
    return sum(value for name, value in found.items() if name.startswith("firedoor_broker_update_bytes_total{"))


@dataclass
class Objects:
    """What is in the cluster."""

    cluster: Cluster
    # By namespace and Service, the slice as it was written last; and pods that are in none yet.
    slices: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    spare: list[tuple[tuple[str, str], dict[str, Any]]] = field(default_factory=list)

    async def make(self) -> None:
        """Make all of it."""
        say(f"cluster: {PODS} pods, {SERVICES} Services")
        began = time.monotonic()
        spaces = [await asyncio.to_thread(self.cluster.namespace, f"n{number}") for number in range(NAMESPACES)]
        context = ssl.create_default_context(cafile=str(self.cluster.ca_file))
        headers = {"Authorization": f"Bearer {self.cluster.tokens['admin']}"}
        async with aiohttp.ClientSession(self.cluster.url, headers=headers) as session:
            calls = _Calls(session, context)
            names = [(spaces[number % NAMESPACES], f"s{number}") for number in range(SERVICES)]
            a_service = PODS // SERVICES
            await calls.all([self._service(calls, key, at * a_service, a_service) for at, key in enumerate(names)])
            wanted = [(names[number], PODS + number) for number in range(CHANGES)]
            found = await asyncio.gather(*(_pod(calls, key, number) for key, number in wanted))
        self.spare = [(key, one) for (key, _), one in zip(wanted, found, strict=True)]
        say(f"cluster: made in {time.monotonic() - began:.0f} s")

    async def _service(self, calls: _Calls, key: tuple[str, str], first: int, count: int) -> None:
        namespace, name = key
        account = {"metadata": {"name": name}}
        await calls.call("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts", account)
        ports = [{"port": 80, "targetPort": TCP_PORT}]
        body = {"metadata": {"name": name}, "spec": {"ports": ports, "ipFamilyPolicy": "SingleStack"}}
        await calls.call("POST", f"/api/v1/namespaces/{namespace}/services", body)
        endpoints = [await _pod(calls, key, first + number) for number in range(count)]
        made = {
            "metadata": {"name": f"{name}-1", "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "ports": [{"name": "", "port": TCP_PORT, "protocol": "TCP"}],
            "endpoints": endpoints,
        }
        self.slices[key] = made
        await calls.call("POST", _SLICES.format(namespace), made)

    def add(self, number: int) -> None:
        """Add a pod that is in no slice to one."""
        key, endpoint = self.spare[number]
        made = self.slices[key]
        made["endpoints"].append(endpoint)
        self.cluster.api().put(f"{_SLICES.format(key[0])}/{key[1]}-1", made)


async def _pod(calls: _Calls, key: tuple[str, str], number: int) -> dict[str, Any]:
    """Make a pod that runs; return the endpoint that it is."""
    namespace, service = key
    name, address = f"p{number}", f"10.{100 + number // 65536}.{number // 256 % 256}.{number % 256}"
    metadata = {"name": name, "labels": {"firedoor.dev/segment": "servers", "pod": secrets.token_hex(8)}}
    spec = {
        "serviceAccountName": service,
        "nodeName": "worker",
        "containers": [{"name": "app", "image": "registry.example/app:1"}],
    }
    path = f"/api/v1/namespaces/{namespace}/pods"
    made = await calls.call("POST", path, {"metadata": metadata, "spec": spec})
    status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
    await calls.call("PATCH", f"{path}/{name}/status", {"status": status})
    target = {"kind": "Pod", "name": name, "namespace": namespace, "uid": made["metadata"]["uid"]}
    return {"addresses": [address], "conditions": {"ready": True}, "targetRef": target}


@dataclass
class _Calls:
    """Calls of the API server over connections that last."""

    session: aiohttp.ClientSession
    context: ssl.SSLContext
    _places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))

    async def call(self, method: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Call, and return the answer. Raise aiohttp.ClientError."""
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        async with (
            self._places,
            self.session.request(
                method, path, json=body, ssl=self.context, headers={"Content-Type": kind}, raise_for_status=True
            ) as answer,
        ):
            found: dict[str, Any] = await answer.json()
            return found

    async def all(self, work: list[Any]) -> None:
        """Do all of it; each waits for its turn."""
        await asyncio.gather(*work)


def _table(streams: int, filled: float, cpu: float, memory: int, changes: list[Change]) -> Table:
    had, known = [one.had for one in changes], [one.known for one in changes]
    rows = [
        ["from the start of the broker until the directory is there", f"{filled:.1f} s"],
        ["the broker's processor time for that, its start too", f"{cpu:.1f} s"],
        ["memory of the broker beside one without a cluster", f"{memory / MIB:.0f} MiB"],
        ["from an endpoint more until every sidecar has it, median / max", f"{_two(had)} s"],
        ["until the broker has every acknowledgement, median / max", f"{_two(known)} s"],
        ["the broker's processor time for it", f"{statistics.median(one.cpu for one in changes) * 1e3:.0f} ms"],
        ["bytes of it a sidecar", f"{statistics.median(one.sent for one in changes) / streams:.0f}"],
    ]
    data: dict[str, Any] = {"streams": streams, "filled_s": filled, "cpu_s": cpu, "memory_bytes": memory}
    data |= {"had_s": had, "acknowledged_s": known, "change_cpu_s": [one.cpu for one in changes]}
    return Table(
        "cluster",
        f"the directory of a cluster with {PODS} pods and {SERVICES} Services, {streams} control streams",
        ["what", "figure"],
        rows,
        goal=GOAL,
        notes=["The API server, its etcd and the streams' ends run on the same cores."],
        data=data,
    )


def _two(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} / {max(values):.2f}"
