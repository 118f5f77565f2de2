# SPDX-License-Identifier: Apache-2.0
"""An auth socket with a policy behind it, for the tests of the Auth API and of the client library."""

import asyncio
import contextlib
import http.client
import json
import os
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from firedoor.segments import Document, compile_table, load, table_bytes
from firedoor.sidecar.config import Config
from firedoor.sidecar.listeners import Inbound
from firedoor.sidecar.sockets import Sockets
from firedoor.sidecar.view import Entry
from tests.sidecar.conftest import TD, Bench, entry

UID = f"unix:uid:{os.geteuid()}"
X = entry("/segment/a/x", UID, hint="inner", created_at=1)
Y = entry("/segment/a/y", UID, created_at=2)
STRANGER = entry("/segment/b/z", "unix:uid:4000000000")
PEER = "spiffe://example.org/segment/b/z"
POLICY = """
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {name: a}
spec:
  function: a
  trust: medium
  members: ["spiffe://{td}/segment/a/**"]
  admission: {entry: ["unix:uid:1"], node: []}
---
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {name: b}
spec:
  function: b
  trust: medium
  members: ["spiffe://{td}/segment/b/**"]
  admission: {entry: ["unix:uid:2"], node: []}
---
apiVersion: firedoor.dev/v1alpha1
kind: Flow
metadata: {name: b-reads-a}
spec:
  owner: tests
  reason: tests
  from: {segment: b}
  to: {segment: a, port: 9000}
  allow: [{http: {methods: [GET], paths: ["/models/**"]}}, {grpc: {service: pkg.Models, methods: [Get]}}]
"""
TABLE = table_bytes(compile_table(load([Document("policy.yaml", POLICY)], TD)))


def inbound(one: Entry, protocol: str = "http", port: int = 9000) -> Inbound:
    """A listener as the configuration has it; nothing opens it."""
    return Inbound(
        name=f"{protocol}-{port}",
        identity=one.spiffe_id,
        listen="127.0.0.1:0",
        protocol=protocol,
        service_port=port,
        limits=(),
        at="sidecar.yaml:1",
        app_address="127.0.0.1:1",
        app_uid=None,
    )


@dataclass
class AuthSocket:
    """What a test holds: the trust domain and holder behind the socket, and the socket."""

    bench: Bench
    config: Config
    sockets: Sockets

    @property
    def path(self) -> Path:
        return self.config.auth_socket

    @property
    def url(self) -> str:
        """As SPIFFE_ENDPOINT_SOCKET has it."""
        return f"unix://{self.path}"

    def entitle(self, *entries: Entry, **more: Any) -> None:
        """As `Bench.entitle`, with the policy."""
        self.bench.entitle(*entries, **more)
        self.bench.holder.set(view=replace(self.bench.holder.view, table=TABLE))

    async def http(
        self, method: str, target: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """Ask by HTTP and return status and JSON."""
        return await asyncio.to_thread(self._http, method, target, body, headers or {})

    def _http(self, method: str, target: str, body: object, headers: Mapping[str, str]) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("localhost", timeout=60)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(60)
        connection.sock.connect(str(self.path))
        with contextlib.closing(connection):
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            connection.request(method, target, data, dict(headers))
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())


@contextlib.asynccontextmanager
async def opened(bench: Bench, config: Config, *listeners: Inbound) -> AsyncIterator[AuthSocket]:
    """Open the socket; it is gone afterwards."""
    sockets = Sockets(bench.core, config)
    await sockets.open_auth(*bench.apis(listeners), lambda: bench.holder.view.synced)
    try:
        yield AuthSocket(bench, config, sockets)
    finally:
        await sockets.close()
