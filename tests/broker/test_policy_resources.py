# SPDX-License-Identifier: Apache-2.0
"""What a broker makes of lists and watches; tests/kubernetes follows a real API server."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from firedoor.broker.errors import ConfigError
from firedoor.broker.kubernetes import policy_resources
from firedoor.broker.kubernetes.policy_resources import PLURALS, Resource, Resources
from firedoor.broker.kubernetes.rights import cluster_api
from firedoor.cluster import watch
from firedoor.cluster.access import Access
from tests.api_server import serving
from tests.waiting import PATIENCE, async_until

Event = dict[str, Any]


def segment(name: str, version: int = 1, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "generation": version, "resourceVersion": str(version)}, "spec": spec}


class Server:
    """Stands in an API server's place: lists what it has, and plays what a watch is to say."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, ""
        self.pages: list[list[dict[str, Any]]] = [[]]
        # One for each watch of segments, in turn; after the last they hang.
        self.watches: list[list[bytes | int]] = []
        self.asked: list[str] = []
        self.status = 200

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path_qs)
        if self.status != 200:
            return web.Response(status=self.status)
        ours = request.path.endswith("/segments")
        if "watch" in request.query:
            return await self._watch(request, self.watches.pop(0) if ours and self.watches else None)
        page = int(request.query.get("continue", "0"))
        more = str(page + 1) if ours and page + 1 < len(self.pages) else ""
        metadata = {"resourceVersion": "100", "continue": more}
        kind = next(kind for kind, plural in PLURALS.items() if request.path.endswith(plural)) + "List"
        return web.json_response({"kind": kind, "metadata": metadata, "items": self.pages[page] if ours else []})

    async def _watch(self, request: web.Request, script: list[bytes | int] | None) -> web.StreamResponse:
        if script and isinstance(script[0], int):
            return web.Response(status=script[0])
        answer = web.StreamResponse()
        await answer.prepare(request)
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            for part in script or ():
                await answer.write(part)  # type: ignore[arg-type]
            if script is None:
                await asyncio.sleep(3600)
        return answer


def said(kind: str, seen: dict[str, Any]) -> bytes:
    return json.dumps({"type": kind, "object": seen}).encode() + b"\n"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    app, found = web.Application(), Server(tmp_path)
    app.router.add_get("/{tail:.*}", found.handle)
    async with serving(app, tmp_path, shutdown_timeout=0.1) as found.url:
        yield found


@pytest.fixture
async def following(server: Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[[], Resources]]:
    """Follow the server, without long waits."""
    monkeypatch.setattr(watch, "_FIRST_WAIT", 0.01)
    monkeypatch.setattr(watch, "_LONGEST_WAIT", 0.02)
    monkeypatch.setattr(policy_resources, "READY_SECONDS", PATIENCE)
    api = cluster_api("test", Access(server.url, server.folder / "ca.pem", server.folder / "token"))
    tasks: list[asyncio.Task[None]] = []

    def start() -> Resources:
        resources = Resources(api, "kubernetes: test")
        tasks.append(asyncio.create_task(resources.run()))
        return resources

    yield start
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await api.close()


def names(resources: Resources) -> list[str]:
    return [one.name for one in resources.resources()]


async def test_pages_are_one_list(server: Server, following: Callable[[], Resources]) -> None:
    server.pages = [[segment("a")], [segment("b")], [segment("c")]]
    resources = following()
    await resources.ready()
    assert names(resources) == ["a", "b", "c"]
    assert [one.name for one in resources.read()] == ["Segment/a", "Segment/b", "Segment/c"]


async def test_events_change_the_set(server: Server, following: Callable[[], Resources]) -> None:
    server.pages = [[segment("a")]]
    changed, whole = segment("b", 3), said("ADDED", segment("c", 4))
    server.watches = [[said("ADDED", segment("b", 2)), said("MODIFIED", changed), whole[:10], whole[10:]]]
    server.watches += [[said("DELETED", segment("a", 5)), said("BOOKMARK", {"metadata": {"resourceVersion": "9"}})]]
    resources = following()
    await async_until(lambda: names(resources) == ["b", "c"])
    # The next watch goes on where the one before ended.
    await async_until(lambda: any("resourceVersion=9" in path for path in server.asked))
    assert any("resourceVersion=4" in path for path in server.asked)


async def test_a_status_is_no_change_of_the_policy(server: Server, following: Callable[[], Resources]) -> None:
    server.pages = [[segment("a")]]
    told = {**segment("a", 2), "status": {"conditions": [{"type": "Accepted", "status": "True"}]}}
    server.watches = [[said("MODIFIED", told)]]
    resources = following()
    await resources.ready()
    await async_until(lambda: any(one.conditions for one in resources.resources()))
    before = resources.fingerprint()
    assert before == (3,), "each kind was listed once"


FORGOTTEN = {"kind": "Status", "code": 410, "metadata": {}}
GONE: dict[str, list[bytes | int]] = {"event": [said("ERROR", FORGOTTEN)], "status": [410]}


@pytest.mark.parametrize("case", GONE)
async def test_what_was_forgotten_is_listed_anew(server: Server, following: Callable[[], Resources], case: str) -> None:
    server.watches = [GONE[case]]
    server.pages = [[segment("a")]]
    resources = following()
    await async_until(lambda: sum("/segments?limit" in path for path in server.asked) == 2)
    assert names(resources) == ["a"]


BROKEN: dict[str, list[bytes | int]] = {
    "no JSON": [b"{]\n"],
    "no object": [b"[]\n"],
    "an event of nothing": [b'{"type": "ADDED"}\n'],
    "no name": [said("ADDED", {"metadata": {}})],
    "no metadata": [said("ADDED", {})],
    "a bookmark of nothing": [said("BOOKMARK", {})],
    "another error": [said("ERROR", {"code": 500, "metadata": {}})],
    "a status": [500],
    "forbidden": [403],
    "a line without an end": [b"x" * (17 << 20)],
}


@pytest.mark.parametrize("case", BROKEN)
async def test_a_watch_that_goes_wrong_changes_nothing(
    server: Server, following: Callable[[], Resources], case: str
) -> None:
    server.pages = [[segment("a")]]
    server.watches = [BROKEN[case]] * 3 + [[said("ADDED", segment("b", 2))]]
    resources = following()
    await async_until(lambda: bool(resources.trouble))
    assert names(resources) == ["a"]
    await async_until(lambda: names(resources) == ["a", "b"] and not resources.trouble)


async def test_who_may_not_is_told_where_the_role_is(server: Server, following: Callable[[], Resources]) -> None:
    server.status = 403
    resources = following()
    await async_until(lambda: len(resources.trouble) == len(PLURALS))
    assert "may not read flows (docs/kubernetes.md has the ClusterRole)" in resources.trouble["Flow"]


async def test_a_cluster_without_the_resources_is_no_empty_policy(
    server: Server, following: Callable[[], Resources]
) -> None:
    server.status = 404
    resources = following()
    await async_until(lambda: len(resources.trouble) == len(PLURALS))
    with pytest.raises(ConfigError, match="the cluster has no Segments: apply deploy/kubernetes/crds"):
        resources.read()


def test_what_cannot_be_seen_is_not_hidden_by_escaping() -> None:
    """A file with such a character is refused; so is an object."""
    text = Resource.of("Segment", segment("a", function="x\u202ey")).document.text
    assert "\u202e" in text
