# SPDX-License-Identifier: Apache-2.0
"""What the broker takes from whatever answers in an API server's place; tests/kubernetes asks a real one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trustme
from aiohttp import web

from firedoor.broker.kubernetes.rights import cluster_api
from firedoor.cluster import api as api_module
from firedoor.cluster.access import Access
from firedoor.cluster.api import ClusterApi
from firedoor.cluster.errors import AccessUnusable, ClusterUnavailable
from tests.api_server import serving

SECRET = "header.claims.signature"


class Server:
    """Answers every request in one way; `asked` is what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, list[tuple[str, str]]()
        # Made anew for each request: aiohttp sends a response once.
        self.answer: Callable[[], web.Response] = lambda: web.Response(text="{}")
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append((request.path, request.headers["Authorization"]))
        return self.answer()

    def api(self, **changes: object) -> ClusterApi:
        access = {"server": self.url, "ca": self.folder / "ca.pem", "token": self.folder / "token"} | changes
        return cluster_api("prod", Access(**access))  # type: ignore[arg-type]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    app, found = web.Application(), Server(tmp_path)
    app.router.add_route("*", "/{tail:.*}", found.handle)
    async with serving(app, tmp_path) as found.url:
        yield found


async def unavailable(api: ClusterApi, path: str = "/api/v1/namespaces/a/pods/b") -> str:
    with pytest.raises(ClusterUnavailable) as refused:
        await api.get(path)
    await api.close()
    return str(refused.value)


async def test_an_object_is_read_with_the_token_of_the_moment(server: Server) -> None:
    server.answer, api = lambda: web.json_response({"kind": "Pod"}), server.api()
    assert await api.get("/x") == {"kind": "Pod"}
    (server.folder / "token").write_text("next")
    server.answer = lambda: web.json_response({}, status=404)
    assert await api.get("/x") is None
    await api.close()
    assert server.asked == [("/x", "Bearer ours"), ("/x", "Bearer next")]


async def test_who_may_not_is_told_what_is_missing(server: Server) -> None:
    server.answer = lambda: web.json_response({}, status=403)
    said = await unavailable(server.api())
    assert said == (
        "the API server of cluster prod: it answers 403: the broker's service account may not read pods "
        "(docs/nodes.md has the ClusterRole)"
    )
    api = server.api()
    with pytest.raises(ClusterUnavailable, match="may not review tokens"):
        await api.review(SECRET, "firedoor")
    # Who lists a kind is a controller.
    with pytest.raises(ClusterUnavailable, match=r"may not read services \(docs/kubernetes.md has the ClusterRole\)"):
        await api.get("/api/v1/services?limit=100")
    await api.close()


ANSWERS: dict[str, Callable[[], web.Response]] = {
    "a redirect": lambda: web.Response(status=302, headers={"Location": "https://127.0.0.1:1/"}),
    "an error": lambda: web.Response(status=500, text=SECRET),
    "no JSON": lambda: web.Response(text=SECRET),
    "a list": lambda: web.Response(text="[]"),
    "deep JSON": lambda: web.Response(text="[" * 100_000),
    "two mebibytes and a byte": lambda: web.Response(body=b" " * (2 * 1024 * 1024 + 1)),
}


@pytest.mark.parametrize("case", ANSWERS)
async def test_answers_that_are_refused(server: Server, case: str) -> None:
    server.answer = ANSWERS[case]
    said = await unavailable(server.api())
    assert said.startswith("the API server of cluster prod: it")
    assert SECRET not in said
    assert len(server.asked) == 1


async def test_a_review_without_a_status(server: Server) -> None:
    for text in ("{}", '{"status": []}'):
        server.answer, api = lambda text=text: web.Response(text=text), server.api()  # type: ignore[misc]
        with pytest.raises(ClusterUnavailable, match="without a status"):
            await api.review(SECRET, "firedoor")
        await api.close()


async def test_a_server_of_another_ca_is_not_asked(server: Server, tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    assert "its certificate does not verify" in await unavailable(server.api(ca=tmp_path / "other.pem"))
    (tmp_path / "empty.pem").write_text("\n")
    # An empty file must not make the system's roots count.
    assert "holds no certificates" in await unavailable(server.api(ca=tmp_path / "empty.pem"))
    assert not server.asked


async def test_nobody_there(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cannot be asked" in await unavailable(server.api(server="https://127.0.0.1:1"))
    assert "cannot be read" in await unavailable(server.api(token=server.folder / "none"))
    monkeypatch.setattr(api_module, "_SECONDS", 0.0)
    assert "did not answer within" in await unavailable(server.api())


def test_the_cluster_of_the_broker_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    access = Access("", Path("ca"), Path("token"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(AccessUnusable, match="server: is missing, and this process runs in no pod"):
        access.address()
    for host, url in (("10.96.0.1", "https://10.96.0.1:443"), ("fd00::1", "https://[fd00::1]:443")):
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
        assert access.address() == url
