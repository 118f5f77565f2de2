# SPDX-License-Identifier: Apache-2.0
"""The probe port: declared probes against real servers, and what others make of it."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from firedoor.segments import document as yaml_text
from firedoor.segments.settings import Findings, Section
from firedoor.sidecar import probes
from firedoor.sidecar.probes import Probe, ProbeServer
from firedoor.wire import health_grpc, health_pb2
from tests.waiting import async_until

# Of a probe that passes, seconds: a machine may stall meanwhile.
LONG = 60


class App:
    """Answers HTTP with what it is told, and counts its connections."""

    def __init__(self, answer: bytes, pause: float = 0.0) -> None:
        self.answer, self.pause, self.asked = answer, pause, list[bytes]()
        self.open: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open.append(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            self.asked.append(await reader.readuntil(b"\r\n\r\n"))
            await asyncio.sleep(self.pause)
            writer.write(self.answer)
            await writer.drain()
        writer.transport.abort()


@contextlib.asynccontextmanager
async def listening(app: App) -> AsyncIterator[int]:
    server = await asyncio.start_server(app.serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    for one in app.open:
        one.transport.abort()
    await settled()


@contextlib.asynccontextmanager
async def probing(*declared: Probe) -> AsyncIterator[int]:
    server = ProbeServer(declared)
    await server.start(0)
    assert server._server is not None
    # Asked for any port, each family has another.
    yield next(one.getsockname()[1] for one in server._server.sockets if one.family == socket.AF_INET)
    await server.stop()
    await settled()


async def settled() -> None:
    """Let connections that were ended close."""
    await asyncio.sleep(0.02)


async def ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    found = b""
    with contextlib.suppress(ConnectionError):
        found = await reader.read()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return found


async def status(port: int, name: str) -> int:
    return int((await ask(port, f"GET /probe/{name} HTTP/1.1\r\nHost: x\r\n\r\n".encode())).split(b" ")[1])


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nX-Secret: s\r\n\r\nbody", 200),
        (b"HTTP/1.0 204 No Content\r\n\r\n", 200),
        (b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\n\r\n", 200),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", 503),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", 503),
        (b"HTTP/2 200\r\n\r\n", 503),
        (b"200 OK\r\n\r\n", 503),
        (b"HTTP/1.1 200" + b" " * 10_000, 503),
        (b"", 503),
    ],
)
async def test_http(answer: bytes, expected: int) -> None:
    app = App(answer)
    async with listening(app) as app_port, probing(Probe("ready", "http", app_port, "/healthz?full=1", LONG)) as port:
        said = await ask(port, b"GET /probe/ready HTTP/1.1\r\nHost: evil\r\nX-Injected: 1\r\n\r\n")
    assert int(said.split(b" ")[1]) == expected
    assert b"secret" not in said.lower()
    assert b"body" not in said
    [asked] = app.asked
    assert asked.startswith(f"GET /healthz?full=1 HTTP/1.1\r\nHost: 127.0.0.1:{app_port}\r\n".encode())
    assert b"Injected" not in asked


async def test_an_app_that_takes_its_time_does_not_pass() -> None:
    app = App(b"HTTP/1.1 200 OK\r\n\r\n", pause=600)
    async with listening(app) as app_port, probing(Probe("ready", "http", app_port, "/", 1)) as port:
        assert await status(port, "ready") == 503


async def test_tcp() -> None:
    async with listening(App(b"")) as app_port, probing(Probe("a", "tcp", app_port, "", LONG)) as port:
        assert await status(port, "a") == 200
    with socket.socket() as nobody:
        # Bound, so that nobody else listens there meanwhile.
        nobody.bind(("127.0.0.1", 0))
        async with probing(Probe("a", "tcp", nobody.getsockname()[1], "", LONG)) as port:
            assert await status(port, "a") == 503


class Health(health_grpc.HealthServicer):
    def Check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        serving = request.service == "pkg.Models"
        kind = health_pb2.HealthCheckResponse
        return kind(status=kind.SERVING if serving else kind.NOT_SERVING)


async def test_grpc() -> None:
    server = grpc.server(ThreadPoolExecutor(2))
    health_grpc.add_HealthServicer_to_server(Health(), server)
    app_port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    good, bad = Probe("good", "grpc", app_port, "pkg.Models", LONG), Probe("bad", "grpc", app_port, "", LONG)
    async with probing(good, bad, Probe("none", "grpc", 1, "", 1)) as port:
        assert [await status(port, name) for name in ("good", "bad", "none")] == [200, 503, 503]
    server.stop(None).wait()


async def test_what_is_not_declared_is_not_there() -> None:
    app = App(b"HTTP/1.1 200 OK\r\n\r\n")
    async with listening(app) as app_port, probing(Probe("ready", "http", app_port, "/", LONG)) as port:
        for request in (
            b"GET /probe/other HTTP/1.1\r\n\r\n",
            b"GET /probe/ready/x HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"POST /probe/ready HTTP/1.1\r\n\r\n",
            b"GET /probe/ready\r\n\r\n",
            b"\xff\xfe\r\n\r\n",
        ):
            assert (await ask(port, request)).startswith(b"HTTP/1.1 404"), request
        assert await ask(port, b"GET /" + b"x" * 70_000) == b""
    assert app.asked == []


async def test_the_app_is_not_asked_as_often_as_we_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "MEMORY_SECONDS", 3600.0)
    app = App(b"HTTP/1.1 200 OK\r\n\r\n")
    async with listening(app) as app_port, probing(Probe("ready", "http", app_port, "/", LONG)) as port:
        assert set(await asyncio.gather(*(status(port, "ready") for _ in range(20)))) == {200}
        assert len(app.asked) == 1
        monkeypatch.setattr(probes, "MEMORY_SECONDS", 0.0)
        assert await status(port, "ready") == 200
    assert len(app.asked) == 2


async def test_more_than_have_our_time_are_ended_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "CONNECTIONS", 2)
    async with listening(App(b"")) as app_port, probing(Probe("a", "tcp", app_port, "", LONG)) as port:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        assert await ask(port, b"GET /probe/a HTTP/1.1\r\n\r\n") == b""
        for _, writer in held:
            writer.close()
            await writer.wait_closed()
        await async_until(lambda: ask(port, b"GET /probe/a HTTP/1.1\r\n\r\n"), "an answer")


async def test_without_probes_nothing_listens() -> None:
    server = ProbeServer(())
    await server.start(1)
    await server.stop()


def parsed(text: str) -> tuple[tuple[Probe, ...], list[str]]:
    (node,) = yaml_text.read(yaml_text.Document("x.yaml", text))
    findings = Findings()
    return probes.parse(Section(node, "capture", ("probes",), findings)), findings.lines


def test_the_configuration() -> None:
    found, lines = parsed(
        "probes: [{name: a, http: {port: 80, path: /x}}, {name: b, tcp: {port: 1}, seconds: 10},"
        " {name: c, grpc: {port: 2, service: p.S}}, {name: d, http: {port: 3}}]"
    )
    assert lines == []
    assert found == (
        Probe("a", "http", 80, "/x", 1),
        Probe("b", "tcp", 1, "", 10),
        Probe("c", "grpc", 2, "p.S", 1),
        Probe("d", "http", 3, "/", 1),
    )


@pytest.mark.parametrize(
    ("item", "sentence"),
    [
        ("{name: a}", "probes[0]: needs one of http, tcp and grpc"),
        ("{name: a, tcp: {port: 1}, grpc: {port: 1}}", "probes[0]: needs one of http, tcp and grpc"),
        ("{tcp: {port: 1}}", "probes[0].name: is missing"),
        ("{name: A, tcp: {port: 1}}", "probes[0].name: must be 1 to 63"),
        ("{name: a, tcp: {port: 0}}", "probes[0].tcp.port: "),
        ("{name: a, tcp: {port: 1, host: evil}}", "probes[0].tcp.host: no such key"),
        ('{name: a, http: {port: 1, path: "/a b"}}', "probes[0].http.path: must be a path"),
        ('{name: a, http: {port: 1, path: "http://evil/"}}', "probes[0].http.path: must be a path"),
        ("{name: a, http: {port: 1, service: x}}", "probes[0].http.service: no such key"),
        ('{name: a, grpc: {port: 1, service: "a/b"}}', "probes[0].grpc.service: must be the full name"),
        ("{name: a, tcp: {port: 1}, seconds: 11}", "probes[0].seconds: "),
        ("{name: a, tcp: {port: 1}}, {name: a, tcp: {port: 2}}", "probes[1].name: the name `a` stands in the list"),
        (", ".join(f"{{name: p{n}, tcp: {{port: 1}}}}" for n in range(33)), "probes: has more than 32 items"),
    ],
)
def test_what_is_refused(item: str, sentence: str, tmp_path: Path) -> None:
    _, lines = parsed(f"probes: [{item}]")
    assert any(f"capture.{sentence}" in line for line in lines), lines
