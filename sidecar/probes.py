# SPDX-License-Identifier: Apache-2.0
"""The probe port: whoever asks there, without an identity, learns whether a declared probe of the app passes.

    capture:
      probes:
        - {name: ready, http: {port: 8080, path: /healthz}}
        - {name: alive, tcp: {port: 9000}, seconds: 2}
        - {name: serving, grpc: {port: 9000, service: inference.GRPCInferenceService}}

`GET /probe/ready` repeats that probe on loopback, as a kubelet would make it, and answers 200 or 503: nothing of the
app's answer goes out, and nothing of the question goes in. However often it is asked, the app sees two probes a second.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import grpc
import grpc.aio

from firedoor.segments import document as yaml_text
from firedoor.segments import setting_values
from firedoor.segments.setting_values import MAX_PORT, integer
from firedoor.segments.settings import Findings, Section
from firedoor.sidecar.short_talks import LARGEST_HEAD_BYTES, ShortTalks
from firedoor.wire import health_grpc, health_pb2

KINDS: Final = ("http", "tcp", "grpc")
MOST_PROBES: Final = 32
# What the app's answer may take; a kubelet's default is 1 s.
SECONDS: Final = 1
MOST_SECONDS: Final = 10
# An answer is true for so long.
MEMORY_SECONDS: Final = 0.5
# This many who ask have our time at once.
CONNECTIONS: Final = 32
REQUEST_SECONDS: Final = 5.0
_HOST: Final = "127.0.0.1"
_PATH: Final = re.compile(r"/[!-~]{0,1023}")
_SERVICE: Final = re.compile(r"[A-Za-z0-9_.]{0,255}")
# kubelet's rule for HTTP probes.
_PASSING: Final = re.compile(rb"HTTP/1\.[01] [23]\d\d[ \r\n]")


@dataclass(frozen=True, slots=True)
class Probe:
    """One declared probe; `what` is the path of http, the service of grpc."""

    name: str
    kind: str
    port: int
    what: str
    seconds: int

    async def passes(self) -> bool:
        """Ask the app."""
        ask = {"http": self._http, "tcp": self._tcp, "grpc": self._grpc}[self.kind]
        try:
            async with asyncio.timeout(self.seconds):
                return await ask()
        except (OSError, TimeoutError, EOFError, asyncio.LimitOverrunError, grpc.RpcError):
            return False

    async def _tcp(self) -> bool:
        _, writer = await asyncio.open_connection(_HOST, self.port)
        writer.transport.abort()
        return True

    async def _http(self) -> bool:
        reader, writer = await asyncio.open_connection(_HOST, self.port, limit=LARGEST_HEAD_BYTES)
        # Nothing is waited for: what is left of the answer is nobody's.
        with contextlib.ExitStack() as stack:
            stack.callback(writer.transport.abort)
            lines = (f"GET {self.what} HTTP/1.1", f"Host: {_HOST}:{self.port}", "User-Agent: firedoor-probe")
            writer.write("\r\n".join((*lines, "Connection: close", "", "")).encode())
            return _PASSING.match(await reader.readuntil(b"\r\n")) is not None

    async def _grpc(self) -> bool:
        # No channel is kept: a probe is rare, and the app may be another process by the next one.
        async with grpc.aio.insecure_channel(f"{_HOST}:{self.port}", _CHANNEL) as channel:
            asked = health_pb2.HealthCheckRequest(service=self.what)
            answer = await health_grpc.HealthStub(channel).Check(asked)
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


_CHANNEL: Final = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", LARGEST_HEAD_BYTES),
)


def parse(section: Section) -> tuple[Probe, ...]:
    """Read `probes` of a section."""
    items = list(section.items("probes"))
    if len(items) > MOST_PROBES:
        section.findings.add(section.at("probes"), section.path("probes"), f"has more than {MOST_PROBES} items")
        return ()
    found: dict[str, Probe] = {}
    for number, node in enumerate(items):
        key = section.path(f"probes[{number}]")
        probe = _probe(node, key, section.findings)
        if probe.name in found:
            section.findings.add(node.at, f"{key}.name", f"the name `{probe.name}` stands in the list twice")
        found[probe.name] = probe
    return tuple(found.values())


def _probe(node: yaml_text.Node, key: str, findings: Findings) -> Probe:
    one = Section(node, key, ("name", "seconds", *KINDS), findings)
    name = one.require("name", setting_values.name, "")
    seconds = one.parse("seconds", integer(1, MOST_SECONDS), SECONDS)
    kinds = [kind for kind in KINDS if one.get(kind) is not None]
    if len(kinds) != 1:
        findings.add(node.at, key, "needs one of http, tcp and grpc")
        return Probe(name, "tcp", 1, "", seconds)
    kind = kinds[0]
    known = {"http": ("port", "path"), "tcp": ("port",), "grpc": ("port", "service")}[kind]
    inner = Section(one.get(kind) or node, one.path(kind), known, findings)
    port = inner.require("port", integer(1, MAX_PORT), 1)
    what = {"http": _path_of, "tcp": lambda _: "", "grpc": _service_of}[kind](inner)
    return Probe(name, kind, port, what, seconds)


def _path_of(section: Section) -> str:
    return section.parse("path", _path, "/")


def _service_of(section: Section) -> str:
    return section.parse("service", _service, "")


def _path(value: str) -> str:
    if not _PATH.fullmatch(value):
        raise ValueError("must be a path without spaces, such as /healthz")
    return value


def _service(value: str) -> str:
    if not _SERVICE.fullmatch(value):
        raise ValueError("must be the full name of a gRPC service")
    return value


class _Remembered:
    """A probe and what came of it last."""

    def __init__(self, probe: Probe) -> None:
        self._probe, self._lock = probe, asyncio.Lock()
        self._passed, self._at = False, float("-inf")

    async def passes(self) -> bool:
        async with self._lock:
            if time.monotonic() - self._at >= MEMORY_SECONDS:
                self._passed = await self._probe.passes()
                self._at = time.monotonic()
            return self._passed


class ProbeServer(ShortTalks):
    """Answers `GET /probe/NAME` for the declared probes."""

    def __init__(self, probes: Sequence[Probe]) -> None:
        super().__init__(CONNECTIONS)
        self._probes = {f"/probe/{one.name}": _Remembered(one) for one in probes}
        self._server: asyncio.Server | None = None

    async def start(self, port: int) -> None:
        """Listen on every address, unless there is nothing to answer. Raise OSError."""
        if self._probes:
            self._server = await self._listen(None, port)

    async def stop(self) -> None:
        """Stop listening, and end what is open."""
        if self._server:
            self._close(self._server)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(REQUEST_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
        # As long as others wait for the same probe, one answer is as old as the next.
        async with asyncio.timeout(REQUEST_SECONDS + MOST_SECONDS):
            writer.write(_response(await self._answer(head)))
            await writer.drain()

    async def _answer(self, head: bytes) -> str:
        words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        probe = self._probes.get(words[1]) if len(words) == 3 and words[0] == "GET" else None
        if probe is None:
            return "404 Not Found"
        return "200 OK" if await probe.passes() else "503 Service Unavailable"


def _response(status: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
