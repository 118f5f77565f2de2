# SPDX-License-Identifier: Apache-2.0
"""Two cores with a real mTLS hop between them, an app behind one and clients before the other.

world = World(folder)                       # cores, app and trust domain; nothing is published yet
world.publish()                             # SVIDs, roots and POLICY to both
inbound = world.inbound()                   # a listener of `server`, in front of the app
outbound = world.outbound(inbound.address)  # a listener of `client`, a Unix socket
with world.connect(outbound) as link: ...   # a local client
world.publish(policy=NOTHING)               # live connections are decided again
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from firedoor import mtls
from firedoor.certs import TrustDomain
from firedoor.segments import Document, compile_table, load, table_bytes
from tests.simulator import Identity, SimulatedTrustDomain
from tests.waiting import PATIENCE, until

SEGMENTS = """
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {{name: inference}}
spec:
  function: inference
  trust: medium
  mode: {source_mode}
  members: [{source_members}]
  admission: {{entry: ["unix:uid:1"], node: []}}
  {source_more}
---
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {{name: registry}}
spec:
  function: registry
  trust: {destination_trust}
  mode: {destination_mode}
  members: [{destination_members}]
  admission: {{entry: ["unix:uid:1"], node: []}}
  {destination_more}
---
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {{name: training}}
spec:
  function: training
  trust: low
  members: ["spiffe://{{td}}/segment/training/**"]
  admission: {{entry: ["unix:uid:1"], node: []}}
"""

FLOW = """
---
apiVersion: firedoor.dev/v1alpha1
kind: Flow
metadata: {{name: {name}}}
spec:
  owner: ml-platform
  reason: model weights at start-up
  from: {{id: ["{source}"]}}
  to: {{segment: registry, port: {port}}}
  allow: [{{tcp: {{}}}}]
  {more}
"""

VLLM = "/segment/inference/host/h1/svc/vllm"
MODELS = "/segment/registry/host/h2/svc/models"
PORT = 9000


def flow(
    source: str = "spiffe://{td}/segment/inference/**", *, name: str = "pulls", port: int = PORT, more: str = ""
) -> str:
    return FLOW.format(name=name, source=source, port=port, more=more)


def policy(
    *flows: str,
    source_mode: str = "enforce",
    destination_mode: str = "enforce",
    destination_trust: str = "high",
    source_more: str = "",
    destination_more: str = "",
    source_members: str = '"spiffe://{td}/segment/inference/**"',
    destination_members: str = '"spiffe://{td}/segment/registry/**"',
) -> bytes:
    """Compile the segments with these flows to a serialised table."""
    segments = SEGMENTS.format(
        source_members=source_members,
        destination_members=destination_members,
        source_mode=source_mode,
        destination_mode=destination_mode,
        destination_trust=destination_trust,
        source_more=source_more,
        destination_more=destination_more,
    )
    documents = [Document("policy.yaml", segments + "".join(flows))]
    return table_bytes(compile_table(load(documents, TrustDomain.parse("td"))))


class App:
    """A program that we did not teach anything: echoes, or does what `serve` says; counts its accept()s."""

    def __init__(self, serve: Callable[[socket.socket], None] | None = None) -> None:
        self.accepted = 0
        self._serve = serve or echo
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                link, _ = self._socket.accept()
            except OSError:
                return
            self.accepted += 1
            threading.Thread(target=self._one, args=(link,), daemon=True).start()

    def _one(self, link: socket.socket) -> None:
        with link, contextlib.suppress(OSError):
            self._serve(link)

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def echo(link: socket.socket) -> None:
    while data := link.recv(1 << 16):
        link.sendall(data)


class World:
    """See the module."""

    def __init__(self, folder: Path, *, serve: Callable[[socket.socket], None] | None = None, **core: int) -> None:
        self.folder = folder
        self.td = SimulatedTrustDomain("td", at=int(time.time()))
        self.app = App(serve)
        self.client = mtls.Core(**core)
        self.server = mtls.Core(**core)
        self.vllm = self.td.svid(VLLM)
        self.models = self.td.svid(MODELS)
        self.me = [mtls.ClientRule(uid=os.getuid())]

    def close(self) -> None:
        self.client.stop()
        self.server.stop()
        self.app.stop()

    def publish(self, policy: bytes | None = None, **parts: Any) -> None:
        """Publish to both ends: the allowing policy, unless another is given."""
        self.publish_client(policy, **parts)
        self.publish_server(policy, **parts)

    def publish_client(self, policy: bytes | None = None, **parts: Any) -> int:
        svids = parts.pop("client_svids", None)
        parts.pop("server_svids", None)
        svids = [svid(self.vllm, clients=self.me)] if svids is None else svids
        return self.client.publish(self.material(svids, policy, **parts))

    def publish_server(self, policy: bytes | None = None, **parts: Any) -> int:
        svids = parts.pop("server_svids", None)
        parts.pop("client_svids", None)
        svids = [svid(self.models)] if svids is None else svids
        return self.server.publish(self.material(svids, policy, **parts))

    def material(
        self,
        svids: Sequence[mtls.Svid],
        table: bytes | None = None,
        *,
        bundles: Mapping[str, Sequence[bytes]] | None = None,
        tainted: Sequence[bytes] = (),
        revocations: Sequence[mtls.Revocation] = (),
        intermediates: Sequence[tuple[bytes, AbstractSet[str]]] | None = None,
    ) -> mtls.Material:
        return mtls.Material(
            trust_domain="td",
            bundles=self.td.roots_by_name() if bundles is None else bundles,
            tainted=tainted,
            svids=svids,
            revocations=revocations,
            intermediates=intermediates,
            table=policy(flow()) if table is None else table,
            generation=(1, 1),
        )

    def inbound(self, core: mtls.Core | None = None, **changes: Any) -> mtls.Listener:
        """Open the server's listener before the app, on a port of the system's choice."""
        spec = {
            "direction": "inbound",
            "name": "models",
            "as": f"spiffe://td{MODELS}",
            "listen": "127.0.0.1:0",
            "service_port": PORT,
            "protocol": "tcp",
            "app": {"address": self.app.address},
        }
        return (core or self.server).listen(json.dumps({**spec, **changes}))

    def outbound(self, *addresses: str, **changes: Any) -> mtls.Listener:
        """Open the client's listener towards these addresses."""
        spec = {
            "direction": "outbound",
            "name": "models",
            "as": f"spiffe://td{VLLM}",
            "listen": f"unix:{self.folder}/models.sock",
            "service_port": PORT,
            "protocol": "tcp",
            "expect": [f"spiffe://td{MODELS}"],
            "addresses": list(addresses),
        }
        return self.client.listen(json.dumps({**spec, **changes}))

    @contextlib.contextmanager
    def connect(self, listener: mtls.Listener) -> Iterator[socket.socket]:
        """Connect as this process."""
        with dial(listener.address) as link:
            yield link

    def records(self, core: mtls.Core, count: int) -> list[dict[str, Any]]:
        """Drain exactly so many records, in their order."""
        return records(core, count)


def records(core: mtls.Core, count: int) -> list[dict[str, Any]]:
    """Drain exactly so many records, in their order."""
    found: list[dict[str, Any]] = []

    def enough() -> bool:
        found.extend(json.loads(line) for line in core.drain_records(1000).splitlines())
        return len(found) >= count

    until(enough, f"{count} records")
    assert len(found) == count, found
    return found


def svid(identity: Identity, *, clients: Sequence[mtls.ClientRule] = (), **more: Any) -> mtls.Svid:
    return mtls.Svid(id=str(identity.id), chain=identity.chain, key=identity.key_der, clients=clients, **more)


def dial(address: str, seconds: float = PATIENCE) -> socket.socket:
    """Connect to "unix:path" or "host:port"."""
    if address.startswith("unix:"):
        link = socket.socket(socket.AF_UNIX)
        link.settimeout(seconds)
        link.connect(address.removeprefix("unix:"))
        return link
    host, _, port = address.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout=seconds)


def dial_tls(address: str, identity: Identity | None, folder: Path, *, alpn: Sequence[str] = ()) -> ssl.SSLSocket:
    """Connect as an OpenSSL program that trusts anybody; without an identity it has no certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if identity is not None:
        pem = folder / "client.pem"
        pem.write_bytes(identity.key_pem + identity.chain_pem)
        context.load_cert_chain(pem)
    return context.wrap_socket(dial(address))


def asks(link: socket.socket, question: bytes = b"ping") -> bytes | None:
    """Send something and return what comes back; None when the connection ends instead."""
    try:
        link.sendall(question)
        answer = b""
        while len(answer) < len(question):
            part = link.recv(len(question) - len(answer))
            if not part:
                return None
            answer += part
    except (ConnectionError, ssl.SSLError):
        return None
    return answer


def exchange(address: str, question: bytes = b"ping") -> bytes | None:
    """Connect, ask and close; None when the connection is refused or reset, which can be as early as in connect()."""
    try:
        with dial(address) as link:
            return asks(link, question)
    except ConnectionResetError:
        return None


def refuses(address: str) -> None:
    """Wait until nobody listens there: whoever accepts lets go of a closed socket a moment later."""

    def refused() -> bool:
        try:
            dial(address).close()
        except ConnectionRefusedError:
            return True
        return False

    until(refused, f"{address} is closed")


def ended(link: socket.socket) -> bool:
    """Say whether the other side has ended the connection, waiting for it."""
    try:
        return link.recv(1) == b""
    except (ConnectionError, ssl.SSLError):
        return True
