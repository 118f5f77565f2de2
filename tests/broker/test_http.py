# SPDX-License-Identifier: Apache-2.0
"""The little of HTTP that documents are served by, asked by sockets and by a real client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firedoor.broker import http
from firedoor.broker.http import JSON, Answer, HttpServer, Request
from tests.waiting import PATIENCE


def page(request: Request) -> Answer:
    """Answer with what was read."""
    if request.path == "/unchanged":
        return Answer(304, headers={"ETag": '"1"'})
    return Answer(200, f"{request.path} {request.headers.get('host', '')}".encode(), JSON, {"X-A": "b"})


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    # Whoever waits for the test's machine is not cut.
    monkeypatch.setattr(http, "_SECONDS", 3600.0)
    server = HttpServer(page)
    address = await server.listen("127.0.0.1", 0)
    yield int(address.rpartition(":")[2])
    await server.stop()


async def ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), PATIENCE)
    writer.close()
    return answer


async def test_a_real_client(port: int) -> None:
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/a/b?c=d") as response:
            assert (response.status, await response.text()) == (200, f"/a/b 127.0.0.1:{port}")
            assert (response.content_type, response.headers["X-A"]) == (JSON, "b")
        async with session.get(f"http://127.0.0.1:{port}/unchanged") as response:
            assert (response.status, response.headers["ETag"], await response.read()) == (304, '"1"', b"")
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "HEAD"):
            async with session.request(method, f"http://127.0.0.1:{port}/") as response:
                assert (response.status, response.headers["Allow"]) == (405, "GET")


REFUSED = {
    "nothing": b"\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\n",
    "an absolute form": b"GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "a blank in the target": b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "a long target": b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "a long line": b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 5000 + b"\r\n\r\n",
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET / HTTP/1.1\r\nHost: a\r\nhOST: b\r\n\r\n",
    "a folded header": b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
    "a blank before the colon": b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
    "a NUL": b"GET / HTTP/1.1\r\nHost: a\0\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * 100 + b"\r\n",
    "a small method": b"get / HTTP/1.1\r\nHost: a\r\n\r\n",
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_cannot_be_read_in_one_way_is_refused(port: int, name: str) -> None:
    answer = await ask(port, REFUSED[name])
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"\r\nConnection: close\r\n" in answer


async def test_one_request_a_connection(port: int) -> None:
    """What comes after the head is not read, whatever it is said to be."""
    smuggled = b"GET /a HTTP/1.1\r\nHost: a\r\nContent-Length: 40\r\n\r\nGET /b HTTP/1.1\r\nHost: b\r\n\r\n"
    answer = await ask(port, smuggled)
    assert answer.endswith(b"\r\n\r\n/a a")
    assert answer.count(b"HTTP/1.1") == 1


async def test_whoever_does_not_finish_is_cut(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_SECONDS", 0.2)
    assert await ask(port, b"GET / HTTP/1.1\r\nHost: a") == b""


async def test_one_address_has_some_connections(port: int) -> None:
    held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(16)]
    # Each is accepted before the next: this one is the seventeenth.
    with contextlib.suppress(ConnectionError):
        assert await ask(port, b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n") == b""
    for _, writer in held:
        writer.close()
    for _ in range(1000):
        if await answered(port):
            return
        await asyncio.sleep(0.03)
    raise AssertionError("nobody is answered")


async def answered(port: int) -> bool:
    """Say whether a request is answered."""
    with contextlib.suppress(ConnectionError):
        return (await ask(port, b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n")).endswith(b"/a a")
    return False


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(head=st.binary(max_size=200))
async def test_any_head_is_answered(port: int, head: bytes) -> None:
    assert (await ask(port, head + b"\r\n\r\n"))[:9] == b"HTTP/1.1 "
