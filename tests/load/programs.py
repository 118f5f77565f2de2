# SPDX-License-Identifier: Apache-2.0
"""The programs at both ends of the load: an HTTP/1.1 server, an opaque one, and their clients, without any retry."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

# What long streams carry: the byte at an offset says whether anything before it is missing.
PATTERN = bytes((i * 7 + i // 256) % 251 for i in range(65536))
CHUNK = 1024
# Between chunks, each way.
PAUSE = 0.02
TOTALS = struct.Struct("!4sQQ")
MARK = b"ends"

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
# A Unix socket, or a host and a port.
Where = Path | tuple[str, int]


async def connect(where: Where) -> tuple[Reader, Writer]:
    if isinstance(where, Path):
        return await asyncio.open_unix_connection(str(where))
    return await asyncio.open_connection(*where)


def piece(offset: int, size: int) -> bytes:
    """Return what a long stream carries there."""
    start = offset % len(PATTERN)
    return (PATTERN[start:] + PATTERN)[:size] if start + size > len(PATTERN) else PATTERN[start : start + size]


def check(offset: int, data: bytes) -> int:
    """Return the offset after these bytes. Raise ValueError when they do not belong there."""
    if data != piece(offset, len(data)):
        raise ValueError(f"other bytes than were sent, at {offset}")
    return offset + len(data)


async def close(writer: Writer) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def pump(writer: Writer, ended: asyncio.Event) -> int:
    """Send the pattern until told; return how much."""
    offset = 0
    while not ended.is_set():
        writer.write(piece(offset, CHUNK))
        offset += CHUNK
        await writer.drain()
        await asyncio.sleep(PAUSE)
    return offset


@dataclass
class App:
    """Answers `GET` with the request's number, and opaque clients with what they said or a stream of the pattern."""

    requests: int = 0
    # By the hash of the leaf that the sidecar saw (XFCC).
    peers: Counter[str] = field(default_factory=Counter)
    # None is every address.
    host: str | None = "127.0.0.1"
    ports: tuple[int, int] = (0, 0)
    _servers: list[asyncio.Server] = field(default_factory=list)

    async def start(self) -> Self:
        for serve, port in zip((self._http, self._opaque), self.ports, strict=True):
            self._servers.append(await asyncio.start_server(serve, self.host, port))
        return self

    async def stop(self) -> None:
        for server in self._servers:
            server.close()

    @property
    def http(self) -> str:
        return self._address(0)

    @property
    def opaque(self) -> str:
        return self._address(1)

    def _address(self, index: int) -> str:
        host, port = self._servers[index].sockets[0].getsockname()
        return f"{host}:{port}"

    async def _http(self, reader: Reader, writer: Writer) -> None:
        try:
            with contextlib.suppress(OSError, EOFError):
                while True:
                    line, headers = await read_head(reader)
                    self.requests += 1
                    # `By=...;Hash=...;URI=...`, as Envoy writes it.
                    identity = dict(one.split("=", 1) for one in headers["x-forwarded-client-cert"].split(";"))
                    self.peers[identity["Hash"]] += 1
                    if line.split(" ")[1].endswith("/stream"):
                        await self._follow(writer)
                        break
                    body = headers["x-number"].encode()
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
                    await writer.drain()
        finally:
            await close(writer)

    async def _follow(self, writer: Writer) -> None:
        """Answer with a body that does not end by itself."""
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        offset = 0
        while True:
            writer.write(b"%x\r\n%s\r\n" % (CHUNK, piece(offset, CHUNK)))
            offset += CHUNK
            await writer.drain()
            await asyncio.sleep(PAUSE)

    async def _opaque(self, reader: Reader, writer: Writer) -> None:
        try:
            with contextlib.suppress(OSError, EOFError, ValueError):
                said = await reader.readuntil(b"\n")
                self.requests += 1
                if said == b"stream\n":
                    await self._stream(reader, writer)
                else:
                    writer.write(said)
                    await writer.drain()
        finally:
            await close(writer)

    async def _stream(self, reader: Reader, writer: Writer) -> None:
        """Send the pattern, read it, and after the other end has closed say how much it was, each way."""
        ended = asyncio.Event()
        sending = asyncio.create_task(pump(writer, ended))
        try:
            received = 0
            while data := await reader.read(65536):
                received = check(received, data)
        finally:
            ended.set()
            sent = await sending
        writer.write(TOTALS.pack(MARK, received, sent))
        await writer.drain()


async def read_head(reader: Reader) -> tuple[str, dict[str, str]]:
    """Return the first line of a head, and its fields by lower-case name."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    fields = (line.partition(":") for line in lines if line)
    return first, {name.lower(): value.strip() for name, _, value in fields}


@dataclass
class Link:
    """A connection of an HTTP client's."""

    reader: Reader
    writer: Writer

    @classmethod
    async def open(cls, where: Where) -> Link:
        return cls(*await connect(where))

    async def get(self, target: str, number: int) -> bool:
        """Ask and check the answer; say whether the connection takes another request. Raise OSError or ValueError."""
        self.writer.write(f"GET {target} HTTP/1.1\r\nHost: models\r\nX-Number: {number}\r\n\r\n".encode())
        line, headers = await read_head(self.reader)
        if not line.startswith("HTTP/1.1 200 "):
            raise ValueError(line)
        body = await self.reader.readexactly(int(headers["content-length"]))
        if body != b"%d" % number:
            raise ValueError(f"another's answer: {body!r}")
        return headers.get("connection", "") != "close"


class KeepAlive:
    """A pool of connections, used in turn; a request that finds none free opens one."""

    def __init__(self, where: Where, least: int = 8, target: str = "/models/x") -> None:
        self._where, self._least, self._target = where, least, target
        self._free: deque[Link] = deque()

    async def request(self, number: int) -> None:
        # Those that the other side has closed are known to be no good before anything is sent.
        while self._free and self._free[0].reader.at_eof():
            await close(self._free.popleft().writer)
        link = self._free.popleft() if len(self._free) >= self._least else await Link.open(self._where)
        again = False
        try:
            again = await link.get(self._target, number)
        finally:
            if again:
                self._free.append(link)
            else:
                await close(link.writer)

    async def close(self) -> None:
        while self._free:
            await close(self._free.pop().writer)


async def get_once(where: Where, number: int) -> None:
    """One request on a connection of its own."""
    link = await Link.open(where)
    try:
        await link.get("/models/x", number)
    finally:
        await close(link.writer)


async def say_once(where: Where, number: int) -> None:
    """The same with an opaque protocol."""
    reader, writer = await connect(where)
    try:
        writer.write(b"%d\n" % number)
        answer = await reader.readuntil(b"\n")
        if answer != b"%d\n" % number:
            raise ValueError(f"another's answer: {answer!r}")
    finally:
        await close(writer)


@dataclass
class Stream:
    """A long opaque stream, the pattern both ways."""

    path: Path
    received: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    # Unix seconds.
    over: float = 0.0

    async def run(self) -> None:
        """Stream until `ended` is set, then check that nothing was lost. Raise OSError, EOFError or ValueError."""
        reader, writer = await asyncio.open_unix_connection(str(self.path))
        writer.write(b"stream\n")
        sending = asyncio.create_task(self._send(writer))
        try:
            held = b""
            while data := await reader.read(65536):
                # The totals come last; until then they cannot be told from the pattern.
                held += data
                if len(held) > TOTALS.size:
                    self.received = check(self.received, held[: -TOTALS.size])
                    held = held[-TOTALS.size :]
            mark, theirs, ours = TOTALS.unpack(held) if len(held) == TOTALS.size else (b"", 0, 0)
            if mark != MARK:
                raise EOFError("the stream ended before it was told to")
        finally:
            self.over = time.time()
            self.ended.set()
            sent = await sending
            await close(writer)
        if (theirs, ours) != (sent, self.received):
            raise ValueError(f"sent {sent}, arrived {theirs}; they sent {ours}, arrived {self.received}")

    async def _send(self, writer: Writer) -> int:
        with contextlib.suppress(OSError):
            sent = await pump(writer, self.ended)
            writer.write_eof()
            return sent
        return -1

    async def end(self) -> None:
        self.ended.set()


@dataclass
class Body:
    """A long HTTP response."""

    path: Path
    received: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    # Unix seconds.
    over: float = 0.0

    async def run(self) -> None:
        """Read until `ended` is set, and check that nothing is missing. Raise OSError, EOFError or ValueError."""
        link = await Link.open(self.path)
        try:
            link.writer.write(b"GET /follow/stream HTTP/1.1\r\nHost: models\r\nX-Number: 0\r\n\r\n")
            line, _ = await read_head(link.reader)
            if not line.startswith("HTTP/1.1 200 "):
                raise ValueError(line)
            while not self.ended.is_set():
                size = int(await link.reader.readuntil(b"\r\n"), 16)
                data = await link.reader.readexactly(size + 2)
                self.received = check(self.received, data[:-2])
        finally:
            self.over = time.time()
            await close(link.writer)

    async def end(self) -> None:
        self.ended.set()
