# SPDX-License-Identifier: Apache-2.0
"""Pods followed by an API server that says odd things, forgets, and goes away. The real one is in tests/kubernetes."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from firedoor.cluster import watch
from firedoor.sidecar.errors import NotReady
from firedoor.sidecar.pod_access import PodAccess
from firedoor.sidecar.pod_watch import WatchedPods
from tests.pods import NODE, Kubelet, pod
from tests.tls_server import serving_tls
from tests.waiting import async_until

# What ends a script: the connection, with nothing more; or nothing, and the watch stays open.
STAYS = b"stays"


class Scripted(Kubelet):
    """Lists `items` at a version, and answers each watch by the next script: lines, or a status."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "127.0.0.1")
        self.version, self.lists = 100, 0
        # How many were asked for at once.
        self.limits: list[int] = []
        # A list, in place of the right one.
        self.listed: Any = None
        self.scripts: list[Iterable[Any] | int] = []
        # From which version each watch went on.
        self.watched: list[str] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        fields = f"spec.nodeName={NODE},status.phase!=Failed,status.phase!=Succeeded"
        assert request.query["fieldSelector"] == fields
        if "watch" not in request.query:
            if "continue" not in request.query:
                self.lists += 1
            first, limit = int(request.query.get("continue", "0")), int(request.query["limit"])
            self.limits.append(limit)
            metadata = {"resourceVersion": str(self.version)}
            if first + limit < len(self.items):
                metadata["continue"] = str(first + limit)
            body = {"kind": "PodList", "metadata": metadata, "items": self.items[first : first + limit]}
            return web.json_response(body if self.listed is None else self.listed)
        self.watched.append(request.query["resourceVersion"])
        script = self.scripts.pop(0) if self.scripts else [STAYS]
        if isinstance(script, int):
            return web.Response(status=script)
        response = web.StreamResponse()
        await response.prepare(request)
        for line in script:
            if line == STAYS:
                await asyncio.Event().wait()
            await response.write(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")
        return response


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scripted]:
    monkeypatch.setattr(watch, "_FIRST_WAIT", 0.01)
    monkeypatch.setattr(watch, "_LONGEST_WAIT", 0.01)
    made = Scripted(tmp_path)
    app = web.Application()
    app.router.add_get("/api/v1/pods", made.answer)
    async with serving_tls(app, made.context, shutdown_timeout=0.1) as address:
        made.address = f"https://{address}"
        yield made


@pytest.fixture
async def source(server: Scripted) -> AsyncIterator[WatchedPods]:
    access = PodAccess(NODE, "api-server", server.address, "", server.ca_file, server.token_file)
    made = WatchedPods(access)
    yield made
    await made.close()


def event(what: str, found: dict[str, Any], version: int) -> dict[str, Any]:
    return {"type": what, "object": {**found, "metadata": {**found["metadata"], "resourceVersion": str(version)}}}


async def names(source: WatchedPods) -> set[str]:
    return {one.name for one in await source.pods(0)}


async def test_what_comes_and_goes(server: Scripted, source: WatchedPods) -> None:
    one, two, other = pod("a"), pod("b"), pod("c")
    other["spec"]["nodeName"] = "gpu-2"
    server.items = [one, other]
    ended = {**one, "status": {"phase": "Succeeded"}}
    server.scripts = [
        [event("ADDED", two, 101), event("ADDED", other, 102), event("MODIFIED", ended, 103)],
        [event("DELETED", two, 104), {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "110"}}}],
    ]
    assert await source.pods(0)
    await async_until(
        lambda: server.watched == ["100", "103", "110"], "each watch goes on from where the last one ended"
    )
    assert {one.name: one.ended for one in await source.pods(0)} == {"a": True}
    assert server.lists == 1


async def test_a_pod_as_large_as_one_can_be(server: Scripted, source: WatchedPods) -> None:
    """What one namespace writes keeps nobody from hearing of the others."""
    large, other = pod("large"), pod("other")
    # Six bytes each in JSON.
    large["spec"]["containers"] = [{"name": "a", "env": [{"name": "X", "value": 1_500_000 * "\x01"}]}]
    server.scripts = [[event("ADDED", large, 101), event("ADDED", other, 102)]]
    assert not await source.pods(0)
    await async_until(lambda: server.watched == ["100", "102"], "both were taken")
    assert await names(source) == {"large", "other"}


async def test_large_pods_are_listed_a_few_at_a_time(server: Scripted, source: WatchedPods) -> None:
    """All in one answer would be longer than what is read of one."""
    server.items = [pod(f"p{number}") for number in range(5)]
    for one in server.items:
        # Six bytes each in JSON.
        one["spec"]["containers"] = [{"name": "a", "env": [{"name": "X", "value": 1_400_000 * "\x01"}]}]
    assert await names(source) == {f"p{number}" for number in range(5)}
    assert server.limits[0] > server.limits[-1]
    assert len(server.limits) > 2


FORGOTTEN = {"type": "ERROR", "object": {"kind": "Status", "code": 410}}
ODD: dict[str, list[Any] | int] = {
    "an event without an object": [{"type": "ADDED"}],
    "an object without metadata": [{"type": "ADDED", "object": {}}],
    "an object without a version": [{"type": "ADDED", "object": {"metadata": {}}}],
    "a version that is none": [{"type": "ADDED", "object": {"metadata": {"resourceVersion": 7}}}],
    "an error": [{"type": "ERROR", "object": {"code": 500}}],
    "it has forgotten": [FORGOTTEN],
    "it has forgotten, by its status": 410,
}


@pytest.mark.parametrize("case", ODD)
async def test_after_what_is_odd_all_are_listed_anew(server: Scripted, source: WatchedPods, case: str) -> None:
    server.items, server.scripts = [pod("a")], [ODD[case]]
    assert await names(source) == {"a"}
    server.items, server.version = [pod("b")], 200
    await async_until(lambda: server.watched == ["100", "200"], "a list, and a watch from there")
    assert await names(source) == {"b"}


BROKEN: dict[str, list[Any] | int] = {
    "no JSON": [b"{\n"],
    "no object": [b"[]\n"],
    "deep": [b"[" * 100_000 + b"\n"],
    "a line without an end": [b"x" * 17_000_000, STAYS],
    "another status": 500,
    "no right": 403,
    "a redirection": 302,
}


@pytest.mark.parametrize("case", BROKEN)
async def test_after_what_is_broken_the_watch_goes_on(server: Scripted, source: WatchedPods, case: str) -> None:
    server.items, server.scripts = [pod("a")], [BROKEN[case], [event("ADDED", pod("b"), 101), STAYS]]
    assert await names(source) == {"a"}
    await async_until(lambda: len(server.watched) == 2, "another watch")
    await async_until(lambda: names(source), "both", when=lambda found: found == {"a", "b"})
    assert (server.lists, source.trouble) == (1, "")


LISTS = {
    "no list": {"kind": "Status"},
    "a list of others": {"kind": "NodeList", "items": [], "metadata": {"resourceVersion": "1"}},
    "a list without items": {"kind": "PodList", "metadata": {"resourceVersion": "1"}},
    "no items": {"kind": "PodList", "items": None, "metadata": {"resourceVersion": "1"}},
    "items that are none": {"kind": "PodList", "items": 7, "metadata": {"resourceVersion": "1"}},
    "no version": {"kind": "PodList", "items": [], "metadata": {}},
    "no metadata": {"kind": "PodList", "items": [], "metadata": []},
}


@pytest.mark.parametrize("case", LISTS)
async def test_a_list_that_is_none_is_no_empty_list(server: Scripted, source: WatchedPods, case: str) -> None:
    server.items, server.listed = [pod("a")], LISTS[case]
    with pytest.raises(NotReady, match="the API server does not tell the pods of this node"):
        await source.pods(0)
    assert source.trouble
    server.listed = None
    await async_until(lambda: not source.trouble, "a list")
    assert await names(source) == {"a"}
