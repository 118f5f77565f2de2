# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics, `/live` and `/ready`, by HTTP on loopback.

The server reads one request line and answers; it keeps no connection and knows no other path, so that nothing larger
is needed for it. The exposition format is a line a value, and is written here: the usual library would bring an HTTP
server and client of its own, 4 MiB in every sidecar.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence

from firedoor.segments.setting_values import split_host_port

REQUEST_SECONDS = 5.0
LARGEST_HEAD_BYTES = 8192
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PLAIN = "text/plain; charset=utf-8"
# What says how things are now; everything else only grows.
GAUGES = frozenset(
    {
        "api_streams",
        "connected_to_server",
        "connections",
        "connections_inbound",
        "connections_outbound",
        "entries",
        "jwt_svids",
        "ready",
        "records_waiting",
        "svids",
        "wit_svids",
    }
)


class Snapshot:
    """Reads values when it is asked: gauges and counters by name, SVID expiries by ID."""

    def __init__(
        self, values: Callable[[], dict[str, float]], expiries: Callable[[], Iterable[tuple[str, int]]]
    ) -> None:
        self._values, self._expiries = values, expiries

    def text(self) -> bytes:
        """Return what is true now, in Prometheus's text format 0.0.4."""
        lines: list[str] = []
        for name, value in sorted(self._values().items()):
            kind = "gauge" if name in GAUGES else "counter"
            full = f"firedoor_{name}" if kind == "gauge" else f"firedoor_{name}_total"
            lines += [*_head(full, kind, name.replace("_", " ")), f"{full} {float(value)}"]
        expiry = "firedoor_svid_expiry_seconds"
        lines += _head(expiry, "gauge", "when an SVID expires, in Unix seconds")
        # A SPIFFE ID has no character that would need to be escaped in a label.
        lines += [f'{expiry}{{spiffe_id="{spiffe_id}"}} {float(at)}' for spiffe_id, at in self._expiries()]
        return "".join(f"{line}\n" for line in lines).encode()


def _head(name: str, kind: str, what: str) -> list[str]:
    return [f"# HELP {name} {what}", f"# TYPE {name} {kind}"]


class MetricsServer:
    """Answers GET for `/metrics`, `/live` and `/ready`."""

    def __init__(self, snapshot: Snapshot, missing: Callable[[], Sequence[str]]) -> None:
        self._snapshot, self._missing = snapshot, missing
        self._server: asyncio.Server | None = None
        self.address = ""

    async def start(self, address: str) -> None:
        """Listen. Raise OSError."""
        host, port = split_host_port(address)
        self._server = await asyncio.start_server(self._serve, host, port, limit=LARGEST_HEAD_BYTES)
        name = self._server.sockets[0].getsockname()
        self.address = f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"

    async def stop(self) -> None:
        """Stop listening."""
        if self._server:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._answer(head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")))
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _answer(self, request: Sequence[str]) -> bytes:
        if len(request) != 3 or request[0] not in ("GET", "HEAD"):
            return _response("405 Method Not Allowed", PLAIN, b"only GET\n")
        path = request[1].partition("?")[0]
        if path == "/live":
            return _response("200 OK", PLAIN, b"live\n")
        if path == "/ready":
            missing = self._missing()
            text = "".join(f"missing: {one}\n" for one in missing).encode() or b"ready\n"
            return _response("503 Service Unavailable" if missing else "200 OK", PLAIN, text)
        if path == "/metrics":
            return _response("200 OK", METRICS_TYPE, self._snapshot.text())
        return _response("404 Not Found", PLAIN, b"only /metrics, /live and /ready\n")


def _response(status: str, kind: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body
