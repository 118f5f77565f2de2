# SPDX-License-Identifier: Apache-2.0
"""As much of HTTP/1.1 as fixed documents need: one GET a connection, a small head, a few seconds.

With one request a connection there is nothing that could be smuggled past a body, and no body is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

TEXT: Final = "text/plain; charset=utf-8"
JSON: Final = "application/json"
_MAX_LINE: Final = 4096
_MAX_HEADERS: Final = 64
# Open connections at once, and of one address: who asks too often cannot keep the others out.
_MAX_CLIENTS: Final = 256
_MAX_CLIENTS_OF_ADDRESS: Final = 16
# For the head, the answer, and the client's taking of it.
_SECONDS: Final = 10.0
_ABSTRACT: Final = "unix-abstract:"
_REQUEST_LINE: Final = re.compile(rb"([A-Z]{1,16}) (/[\x21-\x7e]{0,2047}) HTTP/1\.([01])")
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x20-\x7e\x80-\xff\t]*?)[ \t]*")
_NOT_MODIFIED: Final = 304
_REASONS: Final = {
    200: "OK",
    _NOT_MODIFIED: "Not Modified",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    501: "Not Implemented",
    503: "Service Unavailable",
}


@dataclass(frozen=True, slots=True)
class Request:
    """A GET. `path` is without the query; names of headers are in lower case, and of each the last counts."""

    path: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent back."""

    status: int
    body: bytes = b""
    kind: str = TEXT
    headers: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> bytes:
        """Return it as it goes over the wire."""
        fields = {"Content-Type": self.kind, "Content-Length": str(len(self.body)), **self.headers}
        if self.status == _NOT_MODIFIED:
            # RFC 9110 section 8.6: a length would be that of the document that is not sent.
            del fields["Content-Length"], fields["Content-Type"]
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"HTTP/1.1 {self.status} {_REASONS[self.status]}\r\n{head}Connection: close\r\n\r\n".encode() + self.body


class _Wrong(Exception):
    """The request is answered with this."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer


class HttpServer:
    """Serves what a function answers. It must be quick, and knows its own documents."""

    def __init__(self, answer: Callable[[Request], Answer]) -> None:
        self._answer = answer
        self._server: asyncio.Server | None = None
        self._clients: Counter[str] = Counter()

    async def listen(self, host: str, port: int) -> str:
        """Listen without TLS, and return the address as bound. Raise OSError."""
        self._server = await asyncio.start_server(self._admit, host, port, limit=_MAX_LINE)
        bound = self._server.sockets[0].getsockname()
        return f"[{bound[0]}]:{bound[1]}" if ":" in bound[0] else f"{bound[0]}:{bound[1]}"

    async def listen_privately(self, address: str) -> None:
        """Listen at a `mtls.private_address()`, behind a front. Raise OSError."""
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        bound.bind("\0" + address.removeprefix(_ABSTRACT))
        self._server = await asyncio.start_unix_server(self._serve, sock=bound, limit=_MAX_LINE)

    async def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _admit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a client unless there are too many."""
        host = str((writer.get_extra_info("peername") or ("",))[0])
        if self._clients.total() >= _MAX_CLIENTS or self._clients[host] >= _MAX_CLIENTS_OF_ADDRESS:
            writer.transport.abort()
            return
        self._clients[host] += 1
        try:
            await self._serve(reader, writer)
        finally:
            self._clients[host] -= 1
            self._clients += Counter()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_SECONDS):
                writer.write((await self._answered(reader)).text())
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_SECONDS):
                    await writer.wait_closed()

    async def _answered(self, reader: asyncio.StreamReader) -> Answer:
        try:
            return self._answer(await _read_request(reader))
        except _Wrong as wrong:
            return wrong.answer


async def _read_request(reader: asyncio.StreamReader) -> Request:
    """Read a head. Raise _Wrong."""
    found = _REQUEST_LINE.fullmatch(await _line(reader))
    if found is None:
        raise _Wrong(Answer(400, b"this is no request line\n"))
    headers = await _headers(reader)
    if found[1] != b"GET":
        raise _Wrong(Answer(405, headers={"Allow": "GET"}))
    if found[3] == b"1" and "host" not in headers:
        raise _Wrong(Answer(400, b"there is no Host\n"))
    return Request(found[2].partition(b"?")[0].decode("ascii"), headers)


async def _headers(reader: asyncio.StreamReader) -> dict[str, str]:
    headers: dict[str, str] = {}
    for _ in range(_MAX_HEADERS):
        line = await _line(reader)
        if not line:
            return headers
        found = _FIELD.fullmatch(line)
        name = found[1].decode("ascii").lower() if found else ""
        # Of what stands twice, two readers may take one each.
        if found is None or (name == "host" and name in headers):
            raise _Wrong(Answer(400, b"a header cannot be read, or Host stands twice\n"))
        headers[name] = found[2].decode("latin-1")
    raise _Wrong(Answer(400, b"there are too many headers\n"))


async def _line(reader: asyncio.StreamReader) -> bytes:
    """Return a line without its end. Raise _Wrong or IncompleteReadError."""
    try:
        line = await reader.readuntil(b"\n")
    except asyncio.LimitOverrunError:
        raise _Wrong(Answer(400, b"a line is too long\n")) from None
    return line[:-1].removesuffix(b"\r")
