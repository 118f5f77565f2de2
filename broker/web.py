# SPDX-License-Identifier: Apache-2.0
"""/metrics, /live and /ready on loopback: three fixed answers to GET, nothing else of HTTP."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

_MAX_LINE: Final = 4096
_MAX_HEADERS: Final = 64
_SECONDS: Final = 5.0
_TEXT: Final = "text/plain; charset=utf-8"
_PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"


class Web:
    """Serves health and metrics. `missing` returns what keeps the process from being ready."""

    def __init__(self, metrics: Callable[[], bytes], missing: Callable[[], list[str]]) -> None:
        self._metrics, self._missing = metrics, missing
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> str:
        """Listen and return the address as bound."""
        self._server = await asyncio.start_server(self._serve, host, port, limit=_MAX_LINE)
        bound = self._server.sockets[0].getsockname()
        return f"{bound[0]}:{bound[1]}"

    async def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_SECONDS):
                request = await _read_request(reader)
                writer.write(self._answer(request))
                await writer.drain()
        except (TimeoutError, ValueError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_SECONDS):
                    await writer.wait_closed()

    def _answer(self, request: bytes) -> bytes:
        method, target, *_ = [*request.split(b" "), b"", b""]
        path = target.partition(b"?")[0]
        if method not in (b"GET", b"HEAD"):
            return _response(405, _TEXT, b"only GET\n")
        if path == b"/metrics":
            return _response(200, _PROMETHEUS, self._metrics())
        if path == b"/live":
            return _response(200, _TEXT, b"live\n")
        if path == b"/ready":
            missing = self._missing()
            return _response(503 if missing else 200, _TEXT, "".join(f"{m}\n" for m in missing or ["ready"]).encode())
        return _response(404, _TEXT, b"/metrics, /live or /ready\n")


async def _read_request(reader: asyncio.StreamReader) -> bytes:
    request = await reader.readuntil(b"\n")
    for _ in range(_MAX_HEADERS):
        if (await reader.readuntil(b"\n")).strip() == b"":
            return request.strip()
    raise ValueError("too many headers")


_REASONS: Final = {200: "OK", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


def _response(status: int, kind: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + body
