# SPDX-License-Identifier: Apache-2.0
"""What a broker keeps of a cluster for the directory, and when it writes; tests/kubernetes has a real API server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from firedoor.broker.db.directory_rows import load_directory, put_directory
from firedoor.broker.kubernetes import directory
from firedoor.broker.kubernetes.directory import ClusterDirectory
from firedoor.segments.directory import Derived
from tests.broker.harness import RunningBroker, running
from tests.broker.test_endpoint_index import ONE, OPEN, Seen, pod, port, service, slice_of, target
from tests.waiting import async_until


class Held:
    """Stands for the Lease."""

    held = True


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[RunningBroker]:
    async with running(tmp_path) as found:
        yield found


class Cluster:
    """A directory whose watches are played."""

    def __init__(self, broker: RunningBroker, sidecars: int = 0) -> None:
        self.broker, self.state, self.lease = broker, broker.broker.state, Held()
        self.found = ClusterDirectory(None, self.lease, self.state, broker.broker.metrics, lambda: sidecars)  # type: ignore[arg-type]
        self.services, self.slices, self.pods = self.found._kinds.values()

    def list(self, services: list[Seen], slices: list[Seen], pods: list[Seen]) -> None:
        for kind, seen in ((self.services, services), (self.slices, slices), (self.pods, pods)):
            kind.begin()
            kind.page(seen)
            kind.end()
        for watch in self.found._watches:
            watch.listed.set()

    @contextlib.asynccontextmanager
    async def runs(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.found._write_on())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def sources_are(self, *sources: str) -> None:
        await async_until(lambda: {one.source for one in self.state.directory.values()} == set(sources))


SERVICE = service("a", "10.96.0.7", port(80))
BOTH = ("Service models/a", "pods of service account models/store in segment registry")


async def test_what_is_written_is_one_generation_and_is_there_after_a_restart(broker: RunningBroker) -> None:
    cluster = Cluster(broker)
    before = cluster.state.generation
    async with cluster.runs():
        cluster.list([SERVICE], [OPEN], [ONE])
        await cluster.sources_are(*BOTH)
        assert cluster.state.generation.number == before.number + 1
        stored = await cluster.state.database.read(load_directory)
        assert stored == cluster.state.directory
        # What changes nothing is no generation; what goes, goes.
        cluster.pods.put(ONE)
        cluster.slices.drop(OPEN)
        await cluster.sources_are()
        assert cluster.state.generation.number == before.number + 2
        assert await cluster.state.database.read(load_directory) == {}


async def test_nothing_is_written_before_all_was_listed_nor_by_another_broker(broker: RunningBroker) -> None:
    cluster = Cluster(broker)
    cluster.list([SERVICE], [OPEN], [ONE])
    cluster.found._watches[2].listed.clear()
    assert not await cluster.found._write()
    cluster.found._watches[2].listed.set()
    cluster.lease.held = False
    assert not await cluster.found._write()
    assert cluster.state.directory == {}
    cluster.lease.held = True
    assert await cluster.found._write()
    assert len(cluster.state.directory) == 2
    assert not await cluster.found._write()
    # What somebody else has written since is put right.
    cluster.state.change_directory({}, list(cluster.state.directory))
    assert await cluster.found._write()
    assert len(cluster.state.directory) == 2


async def test_another_list_takes_the_place_of_all_that_was_there(broker: RunningBroker) -> None:
    cluster = Cluster(broker)
    async with cluster.runs():
        cluster.list([SERVICE], [OPEN], [ONE])
        await cluster.sources_are(*BOTH)
        other = pod("b-0", "10.0.0.9", account="other")
        cluster.list([service("b", "10.96.0.9", port(80))], [slice_of("b", target(other), ports=[port(1)])], [other])
        await cluster.sources_are("Service models/b", "pods of service account models/other in segment registry")


async def test_a_namespace_has_no_more_in_memory_than_its_share(
    broker: RunningBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "_MAX_PODS", 3)
    cluster = Cluster(broker)
    many = [pod(f"w-{number}", f"10.1.0.{number + 1}", namespace="web") for number in range(5)]
    cluster.list([SERVICE], [OPEN], [*many, ONE])
    assert len(cluster.pods._held) == 4
    assert cluster.found.trouble() == ["namespace web has too many Pods; some are left out"]
    for seen in many:
        cluster.pods.drop(seen)
    cluster.list([SERVICE], [OPEN], [*many[:3], ONE])
    assert cluster.found.trouble() == []
    assert cluster.pods._weights == {"models": 1, "web": 3}


async def test_a_namespace_that_never_rests_holds_up_nobody(broker: RunningBroker) -> None:
    cluster = Cluster(broker)
    busy = pod("w-0", "10.1.0.1", namespace="web")

    async def storm() -> None:
        number = 0
        while True:
            number += 1
            ports = [port(number % 1000 + 1)]
            cluster.slices.put(slice_of("w", target(busy), ports=ports, namespace="web"))
            await asyncio.sleep(0)

    cluster.list([SERVICE, service("w", "10.96.0.8", port(80), namespace="web")], [], [busy, ONE])
    task = asyncio.create_task(storm())
    try:
        async with cluster.runs():
            await async_until(lambda: any("web" in one.source for one in cluster.state.directory.values()))
            cluster.slices.put(OPEN)
            await async_until(lambda: {one.source for one in cluster.state.directory.values()} >= set(BOTH))
    finally:
        task.cancel()


async def test_a_database_that_is_away_is_said_and_written_to_later(
    broker: RunningBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(broker)

    def full(_connection: Connection, *_: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(directory, "put_directory", full)
    cluster.list([SERVICE], [OPEN], [ONE])
    with pytest.raises(OSError, match="full"):
        await cluster.found._write()
    monkeypatch.undo()
    assert await cluster.found._write()


async def test_rows(broker: RunningBroker) -> None:
    database = broker.broker.database
    made = {f"k8s-{number}": Derived(f"k8s-{number}", "Service a/b", bytes([number % 256])) for number in range(1200)}
    await database.write(lambda connection: put_directory(connection, made.values(), ()))
    assert await database.read(load_directory) == made
    # Only who is told to take services from a cluster serves what others derived.
    state = broker.broker.state
    await state.load()
    assert state.directory == {}
    state.has_directory = True
    await state.load()
    assert state.directory == made
    changed = Derived("k8s-7", "Service a/c", b"x")
    gone = [name for name in made if name != "k8s-7"]
    await database.write(lambda connection: put_directory(connection, [changed], gone))
    assert await database.read(lambda connection: load_directory(connection, list(made))) == {"k8s-7": changed}
    assert await database.read(lambda connection: load_directory(connection, ["k8s-8"])) == {}
