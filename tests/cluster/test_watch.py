# SPDX-License-Identifier: Apache-2.0
"""What a watch makes of odd lists, large objects and silence; tests/kubernetes follows a real API server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from firedoor.broker.kubernetes.rights import cluster_api
from firedoor.cluster import api as api_module
from firedoor.cluster import watch
from firedoor.cluster.access import Access
from firedoor.cluster.watch import Watch
from tests.api_server import serving
from tests.waiting import PATIENCE, async_until

Seen = dict[str, Any]


class Kept:
    """A sink that keeps names."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._listing: set[str] = set()
        # What each whole list had.
        self.lists: list[set[str]] = []

    def begin(self) -> None:
        self._listing = set()

    def page(self, items: Sequence[Any]) -> None:
        self._listing |= {item["metadata"]["name"] for item in items}

    def end(self) -> None:
        self.names = self._listing
        self.lists.append(self._listing)

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
        return web.json_response(
            {"kind": "PodList", "metadata": {"resourceVersion": "9", "continue": more}, "items": items}
        )


def _object(number: int, size: int) -> Seen:
    return {"metadata": {"name": f"n{number}", "resourceVersion": "9"}, "spec": "x" * size}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    app, found = web.Application(), Server([10] * 40)
    app.router.add_get("/{tail:.*}", found.handle)
    async with serving(app, tmp_path, shutdown_timeout=0.1) as found.url:
        yield found


async def follow(server: Server, folder: Path, sink: Kept, count: int, most: int = 100) -> None:
    """Follow until the sink has so many; it takes `most` at once."""
    api = cluster_api("test", Access(server.url, folder / "ca.pem", folder / "token"))
    task = asyncio.create_task(Watch(api, "/api/v1/pods", "Pod", "pods", sink, most=most).run())
    try:
        await async_until(lambda: len(sink.names) >= count)
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


@pytest.mark.parametrize("most", [1, 25])
async def test_a_list_of_many_small_pages_is_one(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """However few a sink takes at once, as many as there may be are listed."""
    monkeypatch.setattr(watch, "_MOST_OBJECTS", 500)
    monkeypatch.setattr(watch, "_MOST_SHORT", 5)
    server.sizes[:] = [1] * 500
    sink = Kept()
    await follow(server, tmp_path, sink, 500, most)
    assert set(server.limits) == {most}


async def test_pages_with_nothing_on_them_do_not_end_a_list(tmp_path: Path) -> None:
    """As a server may send them that looks at so many objects, and finds none with the label."""
    lists = [listing(1), listing(), listing(), listing(2)]
    for page in lists[:-1]:
        page["metadata"]["continue"] = "more"
    async with played(tmp_path, lists, [[]]) as (_, found, sink):
        await async_until(lambda: found.current)
        assert sink.lists == [{"n1", "n2"}]


@pytest.mark.parametrize(("bound", "items"), [("_MOST_SHORT", 0), ("_MOST_SHORT", 2), ("_MOST_OBJECTS", 2)])
async def test_a_list_without_end_is_trouble_and_no_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str, items: int
) -> None:
    """The same page again and again, as a sink that counts names would take for ever."""
    monkeypatch.setattr(watch, bound, 20)

    async def page(request: web.Request) -> web.StreamResponse:
        more = {"resourceVersion": "9", "continue": "more"}
        return web.json_response({"kind": "PodList", "metadata": more, "items": [_object(0, 1), _object(1, 1)][:items]})

    app, sink = web.Application(), Kept()
    app.router.add_get("/{tail:.*}", page)
    async with serving(app, tmp_path, shutdown_timeout=0.1) as url:
        api = cluster_api("test", Access(url, tmp_path / "ca.pem", tmp_path / "token"))
        watched = Watch(api, "/api/v1/pods", "Pod", "pods", sink)
        task = asyncio.create_task(watched.run())
        try:
            await async_until(lambda: bool(watched.trouble))
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await api.close()
    assert "its list of pods has no end: " in watched.trouble
    assert not sink.lists
    assert watched.told.is_set()
    assert not watched.listed.is_set()


async def test_one_that_is_too_large_by_itself_is_trouble_and_no_empty_list(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_MAX_PAGE", 20_000)
    monkeypatch.setattr(watch, "_FIRST_WAIT", 0.01)
    server.sizes[15] = 21_000
    api = cluster_api("test", Access(server.url, tmp_path / "ca.pem", tmp_path / "token"))
    found = Watch(api, "/api/v1/pods", "Pod", "pods", Kept())
    task = asyncio.create_task(found.run())
    await async_until(lambda: "longer than" in found.trouble)
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


class Played:
    """Answers each list and each watch by what stands next in its script, the last one again and again.

    Watches can be answered by the version that they go on from, too.
    """

    def __init__(self, lists: list[Any], watches: list[Any] | dict[str, Any]) -> None:
        self.lists, self.watches, self.url = lists, watches, ""
        self.listed, self.watched = 0, list[str]()
        # A request that this is set for is not answered at all.
        self.mute = False

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if self.mute:
            await asyncio.Event().wait()
        if "watch" not in request.query:
            self.listed += 1
            return web.json_response(self.lists.pop(0) if len(self.lists) > 1 else self.lists[0])
        self.watched.append(request.query["resourceVersion"])
        if isinstance(self.watches, dict):
            script = self.watches[self.watched[-1]]
        else:
            script = self.watches.pop(0) if len(self.watches) > 1 else self.watches[0]
        if isinstance(script, int):
            return web.Response(status=script)
        answer = web.StreamResponse()
        await answer.prepare(request)
        for event in script:
            await answer.write(json.dumps(event).encode() + b"\n")
        # Open, and nothing comes.
        await asyncio.Event().wait()
        raise AssertionError


@asynccontextmanager
async def played(
    folder: Path, lists: list[Any], watches: list[Any] | dict[str, Any]
) -> AsyncIterator[tuple[Played, Watch, Kept]]:
    """Serve a script, and follow it."""
    app, server, sink = web.Application(), Played(lists, watches), Kept()
    app.router.add_get("/{tail:.*}", server.handle)
    async with serving(app, folder, shutdown_timeout=0.1) as server.url:
        api = cluster_api("test", Access(server.url, folder / "ca.pem", folder / "token"))
        found = Watch(api, "/api/v1/pods", "Pod", "pods", sink)
        task = asyncio.create_task(found.run())
        try:
            yield server, found, sink
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await api.close()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_FIRST_WAIT", 0.01)
    monkeypatch.setattr(watch, "_LONGEST_WAIT", 0.01)


def listing(*numbers: int, version: str = "9") -> Seen:
    items = [_object(number, 1) for number in numbers]
    return {"kind": "PodList", "metadata": {"resourceVersion": version}, "items": items}


EMPTY: dict[str, Seen] = {
    "without items": {"kind": "PodList", "metadata": {"resourceVersion": "9"}},
    "of another kind": {"kind": "NodeList", "metadata": {"resourceVersion": "9"}, "items": []},
    "a status": {"kind": "Status", "metadata": {}, "status": "Success"},
    "without a version": {"kind": "PodList", "metadata": {}, "items": []},
}


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("case", EMPTY)
async def test_an_empty_list_that_is_none_takes_nothing_away(tmp_path: Path, case: str) -> None:
    lists = [listing(1), EMPTY[case], EMPTY[case], listing(2)]
    async with played(tmp_path, lists, [410, []]) as (server, found, sink):
        await async_until(lambda: sink.names == {"n2"})
        assert sink.lists == [{"n1"}, {"n2"}]
        assert server.listed == 4
        await async_until(lambda: found.current)


@pytest.mark.usefixtures("soon")
async def test_a_watch_that_falls_silent_is_made_anew_from_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_SILENT_SECONDS", 0.5)
    bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "12"}}}
    added = {"type": "ADDED", "object": {"metadata": {"name": "n2", "resourceVersion": "13"}}}
    async with played(tmp_path, [listing(1)], {"9": [bookmark], "12": [added], "13": []}) as (server, found, sink):
        await async_until(lambda: sink.names == {"n1", "n2"})
        await async_until(lambda: server.watched[-1] == "13")
        assert server.listed == 1
        assert not found.trouble


@pytest.mark.usefixtures("soon")
async def test_who_does_not_take_a_watch_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is used again may lead to somebody who is gone without a word."""
    monkeypatch.setattr(watch, "_SILENT_SECONDS", 0.5)
    async with played(tmp_path, [listing(1)], [[]]) as (server, found, _):
        await async_until(lambda: found.current)
        monkeypatch.setattr(api_module, "_SECONDS", 0.5)
        server.mute = True
        await async_until(lambda: "it did not answer within" in found.trouble)
        assert not found.current
        monkeypatch.setattr(api_module, "_SECONDS", PATIENCE)
        server.mute = False
        await async_until(lambda: found.current)
        assert server.listed == 1


@pytest.mark.usefixtures("soon")
async def test_trouble_lasts_until_a_watch_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "firedoor.cluster")
    async with played(tmp_path, [listing(1)], [500, 500, 500, 500, []]) as (server, found, _):
        await async_until(lambda: len(server.watched) >= 5 and not found.trouble)
    said = [record.levelname for record in caplog.records if record.name == "firedoor.cluster.watch"]
    assert said == ["WARNING", "INFO"]
