# SPDX-License-Identifier: Apache-2.0
"""Two cores that run one random policy after the other, with a pair of listeners for each link."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from firedoor import mtls
from firedoor.certs import TrustDomain
from firedoor.segments import Document, PolicySet, compile_table, load, table_bytes
from tests.mtls.proxy.agreement.apps import Grpc, Http
from tests.mtls.proxy.agreement.questions import Link
from tests.mtls.proxy.datapath import App, dial
from tests.segments.generator import FOREIGN, TD
from tests.simulator import Identity, SimulatedTrustDomain
from tests.waiting import until

RECORDED = ("listener", "direction", "decision", "reason", "flow")
# Reasons of requests of which not everything could be read, or that are not HTTP.
UNREAD = ("bad_request", "connect_refused", "upgrade_refused", "protocol_mismatch", "handshake_closed")
ALPN = {"tcp": "firedoor-tcp/1", "grpc": "h2"}


class Stage:
    """See the module."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.at = int(time.time())
        self.domains = {name: SimulatedTrustDomain(name, at=self.at) for name in (TD, FOREIGN)}
        self.client, self.server = mtls.Core(data_threads=1), mtls.Core(data_threads=1)
        self.reached = {"http": Http(), "grpc": Grpc()}
        self.apps = {"tcp": App(), **{name: App(serve) for name, serve in self.reached.items()}}
        self._identities: dict[str, Identity] = {}
        self._contexts: dict[tuple[str, str], ssl.SSLContext] = {}
        self._opened: list[mtls.Listener] = []
        self._count = 0

    def close(self) -> None:
        self.client.stop()
        self.server.stop()
        for app in self.apps.values():
            app.stop()

    def identity(self, spiffe_id: str) -> Identity:
        if spiffe_id not in self._identities:
            name, _, path = spiffe_id.removeprefix("spiffe://").partition("/")
            self._identities[spiffe_id] = self.domains[name].svid(f"/{path}" if path else "")
        return self._identities[spiffe_id]

    def publish(self, text: str, links: Sequence[Link]) -> PolicySet:
        """Put a policy in force at both ends, each with the identities that its listeners need."""
        policy = load([Document("random.yaml", text)], TrustDomain.parse(TD))
        table = table_bytes(compile_table(policy))
        self.client.publish(self._material(table, {link.source for link in links if not link.straight}))
        self.server.publish(self._material(table, {link.destination for link in links}))
        return policy

    def _material(self, table: bytes, ids: set[str]) -> mtls.Material:
        me = [mtls.ClientRule(uid=os.getuid())]
        found = [(spiffe_id, self.identity(spiffe_id)) for spiffe_id in sorted(ids)]
        svids = [
            mtls.Svid(id=spiffe_id, chain=one.chain, key=one.key_der, federates_with=[TD, FOREIGN], clients=me)
            for spiffe_id, one in found
        ]
        bundles = {name: [root.der for root in domain.roots] for name, domain in self.domains.items()}
        return mtls.Material(trust_domain=TD, bundles=bundles, svids=svids, table=table, generation=(1, 1))

    @contextlib.contextmanager
    def listeners(self, link: Link) -> Iterator[tuple[str, str]]:
        """Open what a link needs; yield the name of its listeners and the address to ask at."""
        self._count += 1
        name = f"l{self._count}"
        common = {"name": name, "service_port": link.port, "protocol": link.protocol}
        inward = {"direction": "inbound", "as": link.destination, "listen": "127.0.0.1:0"}
        app = {"app": {"address": self.apps[link.protocol].address}}
        inbound = self.server.listen(json.dumps({**common, **inward, **app}))
        opened = [inbound]
        if not link.straight:
            outward = {"direction": "outbound", "as": link.source, "listen": f"unix:{self.folder}/{name}"}
            peer = {"expect": [link.destination], "addresses": [inbound.address]}
            opened.append(self.client.listen(json.dumps({**common, **outward, **peer})))
        try:
            yield name, opened[-1].address
        finally:
            for listener in opened:
                listener.stop()

    def connect(self, link: Link, address: str) -> socket.socket:
        """Connect as the link's source: itself by TLS, or as a local program to its sidecar."""
        plain = dial(address)
        if not link.straight:
            return plain
        # Or the first request waits for the handshake's last message to be acknowledged.
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        alpn = ALPN.get(link.protocol, "h2" if link.http2 else "http/1.1")
        return self._context(link.source, alpn).wrap_socket(plain)

    def _context(self, spiffe_id: str, alpn: str) -> ssl.SSLContext:
        if (spiffe_id, alpn) not in self._contexts:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            context.set_alpn_protocols([alpn])
            identity = self.identity(spiffe_id)
            with tempfile.NamedTemporaryFile(dir=self.folder) as pem:
                pem.write(identity.key_pem + identity.chain_pem)
                pem.flush()
                context.load_cert_chain(pem.name)
            self._contexts[spiffe_id, alpn] = context
        return self._contexts[spiffe_id, alpn]

    def records(self) -> Counter[tuple[str, ...]]:
        """Count all records since the last call; of requests that could be read, with method and path."""
        found: Counter[tuple[str, ...]] = Counter()
        for core in (self.client, self.server):
            # What was refused is in no list of live ones, and may still be writing its record.
            until(lambda core=core: core.stats()["connections"] == 0, "all connections have ended")  # type: ignore[misc]
            for line in core.drain_records(1 << 20).splitlines():
                record: dict[str, Any] = json.loads(line)
                of = ("method", "path") if record["reason"] not in UNREAD else ()
                found[tuple(record[field] for field in (*RECORDED, *of))] += 1
        return found
