# SPDX-License-Identifier: Apache-2.0
"""A connection through an outbound and an inbound listener of one core, against a direct one to the same program."""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator

from bench.timing import per_call
from firedoor.certs import KeyType, TrustDomain, generate_key, issue_ca, issue_x509, private_key_der
from firedoor.mtls import ClientRule, Core, Material, Svid
from firedoor.segments import Document, compile_table, load, table_bytes

CLIENT, SERVER = "spiffe://td/segment/a/client", "spiffe://td/segment/b/server"
POLICY = """\
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {name: a}
spec:
  {function: bench, trust: low, members: ["spiffe://{td}/segment/a/**"], admission: {entry: ["unix:uid:0"]}}
---
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {name: b}
spec:
  {function: bench, trust: low, members: ["spiffe://{td}/segment/b/**"], admission: {entry: ["unix:uid:0"]}}
---
apiVersion: firedoor.dev/v1alpha1
kind: Flow
metadata: {name: f}
spec: {owner: bench, reason: bench, from: {segment: a}, to: {segment: b, port: 9000}, allow: [{tcp: {}}]}
"""


def echo() -> tuple[str, int]:
    """Start a program that answers each byte with a byte."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)

    def serve() -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                while data := connection.recv(65536):
                    connection.sendall(data)

    threading.Thread(target=serve, daemon=True).start()
    host, port = listener.getsockname()
    return host, port


def material() -> Material:
    """Give one core both identities."""
    td, now = TrustDomain.parse("td"), int(time.time())
    ca = issue_ca(td, generate_key(KeyType.EC_P256), at=now, random=os.urandom)
    svids = []
    for spiffe_id in (CLIENT, SERVER):
        key = generate_key(KeyType.EC_P256)
        made = issue_x509(
            td.with_path(spiffe_id.removeprefix("spiffe://td")), key.public_key(), ca, at=now, random=os.urandom
        )
        rule = ClientRule(uid=os.geteuid())
        svids.append(Svid(id=spiffe_id, chain=made.chain, key=private_key_der(key), clients=[rule]))
    table = table_bytes(compile_table(load([Document("bench.yaml", POLICY)], td)))
    return Material(trust_domain="td", bundles={"td": [ca.der]}, svids=svids, table=table, generation=(1, 1))


def rows() -> Iterator[tuple[str, float]]:
    """Yield a row for connections and one for bytes on a connection that is open."""
    app = echo()
    yield from _measure("direct", app)
    core = Core()
    core.publish(material())
    common = {"service_port": 9000, "protocol": "tcp"}
    inbound = core.listen(json.dumps({
        **common, "direction": "inbound", "name": "in", "as": SERVER, "listen": "127.0.0.1:0",
        "app": {"address": f"127.0.0.1:{app[1]}"},
    }))  # fmt: skip
    outbound = core.listen(json.dumps({
        **common, "direction": "outbound", "name": "out", "as": CLIENT, "listen": "127.0.0.1:0",
        "expect": [SERVER], "addresses": [inbound.address],
    }))  # fmt: skip
    host, _, port = outbound.address.rpartition(":")
    yield from _measure("through two listeners, mTLS", (host, int(port)))
    core.stop()


def _measure(how: str, address: tuple[str, int]) -> Iterator[tuple[str, float]]:
    def connect() -> None:
        with socket.create_connection(address) as connection:
            connection.sendall(b"x")
            assert connection.recv(1) == b"x"

    yield f"connect, one byte there and back, {how}", per_call(connect)
    with socket.create_connection(address) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def ask() -> None:
            connection.sendall(b"x")
            connection.recv(1)

        yield f"one byte there and back, {how}", per_call(ask)
