# SPDX-License-Identifier: Apache-2.0
"""Objects followed through a real API server, in pages, over a network that loses what it carries without a word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from firedoor.broker.kubernetes.rights import cluster_api
from firedoor.cluster import watch
from firedoor.cluster.access import Access
from firedoor.cluster.watch import Watch
from tests.kubernetes.cluster import Cluster
from tests.slow_network import SlowNetwork
from tests.waiting import async_until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]


class Names:
    """A sink that keeps names, and how many came at once."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.pages: list[int] = []
        self._listing: set[str] = set()

    def begin(self) -> None:
        self._listing = set()

    def page(self, items: Sequence[Any]) -> None:
        self.pages.append(len(items))
        self._listing |= {item["metadata"]["name"] for item in items}

    def end(self) -> None:
        self.names = self._listing

    def put(self, seen: Any) -> None:
        self.names.add(seen["metadata"]["name"])

    def drop(self, seen: Any) -> None:
        self.names.discard(seen["metadata"]["name"])


def put_map(cluster: Cluster, namespace: str, name: str) -> None:
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}
    cluster.api().post(f"/api/v1/namespaces/{namespace}/configmaps", body)


@asynccontextmanager
async def following(
    cluster: Cluster, namespace: str, folder: Path, url: str = "", most: int = 100
) -> AsyncIterator[tuple[Watch, Names]]:
    """Follow the ConfigMaps of a namespace."""
    (folder / "token").write_text(cluster.tokens["admin"])
    api = cluster_api("test", Access(url or cluster.url, cluster.ca_file, folder / "token"))
    sink = Names()
    found = Watch(api, f"/api/v1/namespaces/{namespace}/configmaps", "ConfigMap", "ConfigMaps", sink, most=most)
    task = asyncio.create_task(found.run())
    try:
        yield found, sink
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await api.close()


async def test_what_there_is_comes_in_pages_and_then_what_changes(cluster: Cluster, tmp_path: Path) -> None:
    namespace = await asyncio.to_thread(cluster.namespace, "pages")
    for number in range(5):
        await asyncio.to_thread(put_map, cluster, namespace, f"m{number}")
    async with following(cluster, namespace, tmp_path, most=2) as (found, sink):
        await async_until(lambda: found.current)
        assert sink.pages == [2, 2, 1]
        await asyncio.to_thread(put_map, cluster, namespace, "later")
        await async_until(lambda: sink.names == {"later", *(f"m{number}" for number in range(5))})
        path = f"/api/v1/namespaces/{namespace}/configmaps/m0"
        await asyncio.to_thread(cluster.api().delete, path)
        await async_until(lambda: "m0" not in sink.names)


async def test_none_is_a_list_too(cluster: Cluster, tmp_path: Path) -> None:
    namespace = await asyncio.to_thread(cluster.namespace, "empty")
    async with following(cluster, namespace, tmp_path) as (found, sink):
        await async_until(lambda: found.current)
        assert (sink.pages, sink.names) == ([0], set())


async def test_a_connection_that_is_lost_without_a_word_is_found_out(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_SILENT_SECONDS", 2.0)
    namespace = await asyncio.to_thread(cluster.namespace, "lost")
    with SlowNetwork(cluster.url.removeprefix("https://"), 0) as network:
        async with following(cluster, namespace, tmp_path, f"https://{network.address}") as (found, sink):
            await async_until(lambda: found.current)
            network.lose()
            await asyncio.to_thread(put_map, cluster, namespace, "unheard")
            await async_until(lambda: sink.names == {"unheard"})
