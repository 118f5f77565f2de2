# SPDX-License-Identifier: Apache-2.0
"""What a watch makes of objects that somebody has made large; tests/kubernetes follows a real API server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from firedoor.broker.kubernetes import api as api_module
from firedoor.broker.kubernetes import watch
from firedoor.broker.kubernetes.api import ApiAccess, ClusterApi
from firedoor.broker.kubernetes.watch import Watch
from tests.broker.api_server import serving
from tests.broker.harness import until

SECONDS = 60.0
Seen = dict[str, Any]


class Kept:
    """A sink that keeps names."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._listing: set[str] = set()

    def begin(self) -> None:
        self._listing = set()

    def page(self, items: Sequence[Any]) -> None:
        self._listing |= {item["metadata"]["name"] for item in items}

    def end(self) -> None:
        self.names = self._listing

    def put(self, seen: Any) -> None:
        self.names |= {seen["metadata"]["name"]}

    def drop(self, seen: Any) -> None:
        self.names -= {seen["metadata"]["name"]}


class Server:
    """Lists as an API server does: so many at once, and where to go on."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes, self.limits, self.url = sizes, list[int](), ""
        self.events: list[bytes] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if "watch" in request.query:
            answer = web.StreamResponse()
            await answer.prepare(request)
            for event in self.events:
                await answer.write(event)
            await asyncio.sleep(3600)
            return answer
        first, limit = int(request.query.get("continue", "0")), int(request.query["limit"])
        self.limits.append(limit)
        items = [_object(number, self.sizes[number]) for number in range(first, min(first + limit, len(self.sizes)))]
        more = str(first + limit) if first + limit < len(self.sizes) else ""
        return web.json_response({"metadata": {"resourceVersion": "9", "continue": more}, "items": items})


def _object(number: int, size: int) -> Seen:
    return {"metadata": {"name": f"n{number}", "resourceVersion": "9"}, "spec": "x" * size}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    app, found = web.Application(), Server([10] * 40)
    app.router.add_get("/{tail:.*}", found.handle)
    async with serving(app, tmp_path, shutdown_timeout=0.1) as found.url:
        yield found


async def follow(server: Server, folder: Path, sink: Kept, count: int) -> None:
    """Follow until the sink has so many."""
    api = ClusterApi("test", ApiAccess(server.url, folder / "ca.pem", folder / "token"))
    task = asyncio.create_task(Watch(api, "/api/v1/pods", "pods", sink).run())
    try:
        await until(lambda: len(sink.names) >= count, SECONDS)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await api.close()


async def test_large_objects_are_listed_a_few_at_a_time(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_MAX_PAGE", 20_000)
    server.sizes[10:15] = [9_000] * 5
    server.sizes[15] = 19_000
    sink = Kept()
    await follow(server, tmp_path, sink, 40)
    assert sink.names == {f"n{number}" for number in range(40)}
    # Each page went on from the one before; where they are small again, more are asked for.
    assert 1 in server.limits
    assert len(server.limits) < 30
    assert server.limits[-1] > 1


async def test_one_that_is_too_large_by_itself_is_trouble_and_no_empty_list(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_MAX_PAGE", 20_000)
    monkeypatch.setattr(watch, "_FIRST_WAIT", 0.01)
    server.sizes[15] = 21_000
    api = ClusterApi("test", ApiAccess(server.url, tmp_path / "ca.pem", tmp_path / "token"))
    found = Watch(api, "/api/v1/pods", "pods", Kept())
    task = asyncio.create_task(found.run())
    await until(lambda: "longer than" in found.trouble, SECONDS)
    assert not found.listed.is_set()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await api.close()


async def test_an_event_may_be_as_large_as_an_object_in_json(server: Server, tmp_path: Path) -> None:
    large = _object(99, api_module.MAX_OBJECT - 1000)
    server.events = [json.dumps({"type": "ADDED", "object": large}).encode() + b"\n"]
    sink = Kept()
    await follow(server, tmp_path, sink, 41)
    assert "n99" in sink.names
