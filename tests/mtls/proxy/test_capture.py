# SPDX-License-Identifier: Apache-2.0
"""Captured connections, in network namespaces with plain rules: who gets where, and what the records say.

`here` is the namespace of a client whose uid is captured, `there` that of an app on all addresses; each has a core,
run by root, whose connections are not captured.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.server
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from firedoor import mtls
from tests.mtls.proxy.datapath import MODELS, PORT, VLLM, flow, policy, records, svid
from tests.netns import Place, missing, wired
from tests.simulator import SimulatedTrustDomain
from tests.waiting import until

APP_UID, OTHER_UID = 61_001, 61_002
INBOUND, OUTBOUND = 14_006, 14_032
PORTS = 3
HTTP_PORT, PLAIN_PORT, NAMED_PORT = 9080, 7777, 19_000

pytestmark = pytest.mark.skipif(bool(why := missing()), reason=why)

LEAVING = f"""
table inet capture {{
  chain out {{
    type nat hook output priority -100;
    oifname lo return
    meta skuid {{ {APP_UID}, {OTHER_UID} }} meta l4proto tcp redirect to :{OUTBOUND}-{OUTBOUND + PORTS - 1}
  }}
}}
"""
ARRIVING = f"""
table inet capture {{
  chain in {{
    type nat hook prerouting priority -100;
    iifname lo return
    tcp dport {PLAIN_PORT} return
    meta l4proto tcp redirect to :{INBOUND}
  }}
}}
"""
# Connects, sends, prints what comes back, and says so again for each line of input.
CLIENT = """
import socket, sys
try:
    link = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=25)
    link.sendall(sys.argv[3].encode().decode("unicode_escape").encode())
    print(link.recv(4096).decode().splitlines()[0])
except (ConnectionError, IndexError):
    print("refused")
"""

SERVICE = """
---
apiVersion: firedoor.dev/v1alpha1
kind: Service
metadata: {{name: {name}}}
spec:
  addresses: {addresses}
  ports: [{{port: {port}, protocol: {protocol}, expect: ["{expect}"], {more}}}]
"""


def service(
    *addresses: str, port: int = PORT, protocol: str = "tcp", expect: str = f"spiffe://td{MODELS}", more: str = ""
) -> str:
    listed = json.dumps(list(addresses))
    return SERVICE.format(name=f"s{port}", addresses=listed, port=port, protocol=protocol, expect=expect, more=more)


class World:
    """Both namespaces with a core each."""

    def __init__(self, here: Place, there: Place) -> None:
        self.here, self.there = here, there
        self.td = SimulatedTrustDomain("td", at=int(time.time()))
        self.client, self.server = here.run(mtls.Core), there.run(mtls.Core)
        self.vllm, self.models = self.td.svid(VLLM), self.td.svid(MODELS)
        self.accepted = 0
        self._sockets: list[socket.socket] = []
        here.nft(LEAVING)
        there.nft(ARRIVING)

    def publish(self, *documents: str, **modes: str) -> None:
        """Publish a policy to both ends."""
        table = policy(*(documents or (flow(), service(self.there.v4, self.there.v6))), **modes)
        clients = [mtls.ClientRule(uid=APP_UID)]
        for place, core, one in (
            (self.here, self.client, svid(self.vllm, clients=clients)),
            (self.there, self.server, svid(self.models)),
        ):
            material = mtls.Material(
                trust_domain="td", bundles=self.td.roots_by_name(), svids=[one], table=table, generation=(1, 1)
            )
            place.run(core.publish, material)

    def capture(self, *, clients: str = "entry", **changes: Any) -> None:
        """Open the capture listeners."""
        for listen in (f"127.0.0.1:{OUTBOUND}", f"[::1]:{OUTBOUND}"):
            spec = {"direction": "capture_outbound", "name": listen, "as": f"spiffe://td{VLLM}", "listen": listen}
            self.here.run(self.client.listen, json.dumps({**spec, "ports": PORTS, "clients": clients, "limits": {}}))
        arriving: dict[str, Any] = {
            "direction": "capture_inbound",
            "name": "capture",
            "as": f"spiffe://td{MODELS}",
            "listen": f"[::]:{INBOUND}",
            "ports": [{"port": HTTP_PORT, "protocol": "http"}],
            "app": {"address": "own"},
            "reserved": [9091],
            "limits": {},
        }
        self.there.run(self.server.listen, json.dumps({**arriving, **changes}))

    def serve(self, host: str, port: int = PORT) -> None:
        """Run an app in `there` that echoes, and counts its accept()s."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        made = self.there.run(socket.create_server, (host, port), family=family, dualstack_ipv6=host == "::")
        self._sockets.append(made)
        threading.Thread(target=self._accept, args=(made,), daemon=True).start()

    def _accept(self, made: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = made.accept()
                self.accepted += 1
                threading.Thread(target=_echo, args=(link,), daemon=True).start()

    def ask(self, host: str, port: int = PORT, *, text: str = "ping\\n", uid: int = APP_UID) -> str:
        """Ask as a program that knows nothing of firedoor."""
        return self.here.python(CLIENT, host, str(port), text, uid=uid)

    def shout(self, host: str, port: int) -> bytes:
        """Say something as a program that is not captured, and return all that comes back."""
        found = b""
        with contextlib.suppress(ConnectionError), self.here.run(socket.create_connection, (host, port), 60) as link:
            link.sendall(b"hello app, here I am\n" * 10)
            while part := link.recv(4096):
                found += part
        return found

    def open(self, host: str, port: int = PORT, *, source: int = 0) -> socket.socket:
        """Connect as the captured user, and keep the connection."""
        return self.here.run(_as_app, host, port, source)

    def records(self, core: mtls.Core, count: int = 1) -> list[dict[str, Any]]:
        return records(core, count)

    def said(self, core: mtls.Core) -> tuple[str, str]:
        [record] = self.records(core)
        return record["decision"], record["reason"]

    def close(self) -> None:
        self.client.stop()
        self.server.stop()
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def _echo(link: socket.socket) -> None:
    with link, contextlib.suppress(OSError):
        while data := link.recv(1 << 16):
            link.sendall(data)


def _as_app(host: str, port: int, source: int) -> socket.socket:
    """Connect by a socket of another user: its owner is who the calling thread is for files, when it is made."""
    libc = ctypes.CDLL(None)
    libc.setfsuid(APP_UID)
    try:
        made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    finally:
        libc.setfsuid(os.geteuid())
    made.settimeout(60)
    with contextlib.ExitStack() as stack:
        stack.enter_context(made)
        if source:
            # It may be in use towards another destination.
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(("", source))
        made.connect((host, port))
        stack.pop_all()
    return made


@pytest.fixture
def world() -> Iterator[World]:
    with wired() as (here, there):
        made = World(here, there)
        yield made
        made.close()


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_an_app_on_every_address_is_reached_by_identity_alone(world: World, family: str) -> None:
    world.publish()
    world.capture()
    world.serve("::")
    host = getattr(world.there, family)
    assert world.ask(host) == "ping"
    [sent] = world.records(world.client)
    [received] = world.records(world.server)
    for record in (sent, received):
        assert (record["decision"], record["flow"], record["port"]) == ("allowed", "pulls", PORT)
        assert (record["source"], record["destination"]) == (f"spiffe://td{VLLM}", f"spiffe://td{MODELS}")
    assert sent["client"]["uid"] == APP_UID
    assert sent["peer_address"] == (f"[{host}]:{PORT}" if ":" in host else f"{host}:{PORT}")
    assert world.accepted == 1
    # Root is not captured here: without a certificate nobody gets to the app.
    assert b"hello" not in world.shout(host, PORT)
    assert world.said(world.server)[0] == "denied"
    assert world.accepted == 1


def test_a_port_that_no_flow_names_is_denied_before_anybody_connects(world: World) -> None:
    world.publish(flow(), service(world.there.v4, port=9001))
    world.capture()
    assert world.ask(world.there.v4, 9001) == "refused"
    assert world.said(world.client) == ("denied", "port_not_named")
    assert world.server.stats()["accepted_inbound"] == 0


def test_what_the_directory_does_not_have_is_denied(world: World) -> None:
    world.publish()
    world.capture()
    world.serve("0.0.0.0", PLAIN_PORT)
    assert world.ask(world.there.v4, PLAIN_PORT) == "refused"
    [record] = world.records(world.client)
    assert (record["decision"], record["reason"]) == ("denied", "not_in_directory")
    assert (record["port"], record["peer_address"]) == (PLAIN_PORT, f"{world.there.v4}:{PLAIN_PORT}")
    assert (record["source_segment"], record["client"]["uid"]) == ("inference", APP_UID)
    assert world.accepted == 0


def test_in_audit_mode_it_passes_and_is_recorded_until_enforce(world: World) -> None:
    world.publish(source_mode="audit")
    world.capture()
    world.serve("0.0.0.0", PLAIN_PORT)
    link = world.open(world.there.v4, PLAIN_PORT)
    link.sendall(b"ping")
    assert link.recv(4) == b"ping"
    [record] = world.records(world.client)
    assert (record["decision"], record["reason"], record["destination"]) == ("audit", "not_in_directory", "")
    [live] = json.loads(world.client.connections())
    assert (live["destination"], live["peer_serial"], live["decision"]) == ("", "", "audit")
    world.publish(source_mode="enforce")
    with pytest.raises(ConnectionResetError):
        link.recv(1)
    link.close()
    until(lambda: world.client.stats()["cut_not_in_directory"] == 1)
    # In audit mode too, it is the entitled programs that pass.
    world.publish(source_mode="audit")
    assert world.ask(world.there.v4, PLAIN_PORT, uid=OTHER_UID) == "refused"
    assert world.said(world.client) == ("denied", "client_not_entitled")


def test_what_passed_in_audit_mode_ends_when_the_directory_learns_of_it(world: World) -> None:
    world.publish(source_mode="audit")
    world.capture()
    world.serve("0.0.0.0", PLAIN_PORT)
    with world.open(world.there.v4, PLAIN_PORT) as link:
        link.sendall(b"ping")
        assert link.recv(4) == b"ping"
        world.publish(flow(), service(world.there.v4, port=PLAIN_PORT), source_mode="audit")
        with pytest.raises(ConnectionResetError):
            link.recv(1)
    until(lambda: world.client.stats()["cut_directory_changed"] == 1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"expect": "spiffe://td/segment/registry/host/h3/*/*"}, "directory_changed"),
        ({"more": "service_port: 9001"}, "directory_changed"),
        ({"port": 9001}, "not_in_directory"),
        ({"protocol": "tcp"}, None),
        ({"more": 'connect: ["elsewhere.invalid:1"]'}, None),
    ],
)
def test_a_live_connection_ends_when_the_directory_expects_another(
    world: World, change: dict[str, Any], reason: str | None
) -> None:
    world.publish()
    world.capture()
    world.serve("0.0.0.0")
    with world.open(world.there.v4) as link:
        link.sendall(b"ping")
        assert link.recv(4) == b"ping"
        world.publish(flow(), service(world.there.v4, **change))
        if reason is None:
            link.sendall(b"ping")
            assert link.recv(4) == b"ping"
            return
        with pytest.raises(ConnectionResetError):
            link.recv(1)
    until(lambda: world.client.stats()[f"cut_{reason}"] == 1)


def test_whoever_took_over_the_address_gets_nothing(world: World) -> None:
    world.publish(flow(), service(world.there.v4, expect="spiffe://td/segment/registry/host/h3/svc/models"))
    world.capture()
    world.serve("0.0.0.0")
    assert world.ask(world.there.v4) == "refused"
    assert world.said(world.client) == ("denied", "unexpected_id")
    assert world.accepted == 0


def test_other_users_of_the_namespace_are_let_in_only_where_that_is_written_out(world: World) -> None:
    world.publish()
    world.capture(clients="entry")
    world.serve("0.0.0.0")
    assert world.ask(world.there.v4, uid=OTHER_UID) == "refused"
    assert world.said(world.client) == ("denied", "client_not_entitled")
    assert world.ask(world.there.v4) == "ping"


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_who_uses_one_source_port_for_several_destinations_is_known_by_each(world: World, family: str) -> None:
    """As many as there are ports to be redirected to; of one more, nobody can say whose it is."""
    host = getattr(world.there, family)
    ports = range(7000, 7000 + PORTS + 1)
    world.publish(*(text for port in ports for text in (flow(name=f"f{port}", port=port), service(host, port=port))))
    world.capture()
    for port in ports:
        world.serve("::", port)
    with contextlib.ExitStack() as stack:
        for port in ports[:PORTS]:
            link = stack.enter_context(world.open(host, port, source=40_000))
            link.sendall(b"ping")
            assert link.recv(4) == b"ping"
        assert [one["client"]["uid"] for one in world.records(world.client, PORTS)] == [APP_UID] * PORTS
        with pytest.raises(ConnectionError):
            stack.enter_context(world.open(host, ports[PORTS], source=40_000)).recv(1)
        assert world.said(world.client) == ("denied", "client_unknown")


def test_a_whole_namespace_can_be_one_workload(world: World) -> None:
    world.publish()
    world.capture(clients="network-namespace")
    world.serve("0.0.0.0")
    assert world.ask(world.there.v4, uid=OTHER_UID) == "ping"
    [record] = world.records(world.client)
    assert record["client"]["uid"] == OTHER_UID


def test_connections_to_capture_ports_and_to_our_own_listeners_are_refused(world: World) -> None:
    world.publish(flow(port=NAMED_PORT), service(world.there.v4, port=NAMED_PORT))
    world.capture()
    named = {
        "direction": "inbound",
        "name": "named",
        "as": f"spiffe://td{MODELS}",
        "listen": f"0.0.0.0:{NAMED_PORT}",
        "service_port": PORT,
        "protocol": "tcp",
        "app": {"address": "127.0.0.1:9000"},
    }
    world.there.run(world.server.listen, json.dumps(named))
    for port, reason in ((INBOUND, "not_redirected"), (NAMED_PORT, "capture_loop"), (9091, "capture_loop")):
        with contextlib.suppress(ConnectionError):
            world.here.run(socket.create_connection, (world.there.v4, port), 60).close()
        assert world.said(world.server) == ("denied", reason)
    # Over loopback nothing is redirected.
    for host in ("127.0.0.1", "::1"):
        assert world.ask(host, OUTBOUND) == "refused"
        assert world.said(world.client) == ("denied", "not_redirected")


def test_the_metadata_address_is_refused_in_audit_mode_too(world: World) -> None:
    world.publish(source_mode="audit")
    world.capture()
    world.here.ip("route", "add", "169.254.169.254/32", "via", world.there.v4)
    assert world.ask("169.254.169.254", 80) == "refused"
    assert world.said(world.client) == ("denied", "metadata_address")


def test_what_is_only_routed_through_is_not_taken_for_ours(world: World) -> None:
    world.publish()
    world.capture()
    world.here.ip("route", "add", "10.98.0.0/24", "via", world.there.v4)
    with contextlib.suppress(ConnectionError):
        world.here.run(socket.create_connection, ("10.98.0.1", PORT), 60).close()
    assert world.said(world.server) == ("denied", "not_our_address")


def test_a_service_stands_where_its_hints_say(world: World) -> None:
    """As a Service of Kubernetes does: another address and port than those of who answers."""
    world.here.ip("route", "add", "10.97.0.0/24", "via", world.there.v4)
    hint = f'service_port: {PORT}, connect: ["10.97.0.8:1", "{world.there.v4}:{PORT}"]'
    world.publish(flow(), service("10.97.0.7", port=80, more=hint))
    world.capture()
    world.serve("0.0.0.0")
    assert world.ask("10.97.0.7", 80) == "ping"
    [record] = world.records(world.client)
    assert (record["port"], record["peer_address"]) == (PORT, f"{world.there.v4}:{PORT}")


def test_an_app_on_loopback_is_reached_when_that_is_written_out(world: World) -> None:
    world.publish()
    world.capture(app={"address": "loopback"})
    world.serve("127.0.0.1")
    assert world.ask(world.there.v4) == "ping"


PLAINTEXT = [{"port": PORT, "protocol": "tcp", "plaintext": "audit"}]


def test_plaintext_passes_in_audit_mode_is_recorded_and_ends_with_enforce(world: World) -> None:
    watching = {"destination_mode": "audit", "destination_trust": "medium"}
    world.publish(**watching)
    world.capture(ports=PLAINTEXT)
    world.serve("::")
    for host in (world.there.v4, world.there.v6):
        with world.here.run(socket.create_connection, (host, PORT), 60) as link:
            link.sendall(b"ping")
            assert link.recv(4) == b"ping"
        [record] = world.records(world.server)
        assert (record["decision"], record["reason"], record["source"]) == ("audit", "no_identity", "")
        assert (record["destination_segment"], record["port"]) == ("registry", PORT)
    # Who has an identity is served by it, at the same port.
    assert world.ask(world.there.v4) == "ping"
    assert world.said(world.server) == ("allowed", "allowed")
    with world.here.run(socket.create_connection, (world.there.v4, PORT), 60) as link:
        link.sendall(b"ping")
        assert link.recv(4) == b"ping"
        world.publish(destination_trust="medium")
        with pytest.raises(ConnectionResetError):
            link.recv(1)
    until(lambda: world.server.stats()["cut_no_identity"] == 1)
    world.records(world.server)
    assert world.shout(world.there.v4, PORT) == b""
    assert world.said(world.server) == ("denied", "no_identity")
    assert world.ask(world.there.v4) == "ping"


def test_plaintext_passes_at_no_other_port(world: World) -> None:
    world.publish(destination_mode="audit", destination_trust="medium")
    world.capture(ports=PLAINTEXT)
    world.serve("0.0.0.0", 9001)
    assert b"hello" not in world.shout(world.there.v4, 9001)
    assert world.said(world.server)[0] == "denied"
    assert world.accepted == 0


def test_plaintext_is_refused_where_trust_is_high(world: World) -> None:
    world.publish(destination_mode="audit")
    with pytest.raises(mtls.ListenError, match="trust: high"):
        world.capture(ports=PLAINTEXT)


class _Web(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_requests_are_decided_on_where_the_port_is_declared(world: World) -> None:
    allowed = flow(port=HTTP_PORT).replace("{tcp: {}}", '{http: {methods: [GET], paths: ["/models/**"]}}')
    world.publish(allowed, service(world.there.v4, port=HTTP_PORT, protocol="http"))
    world.capture()
    web = world.there.run(http.server.ThreadingHTTPServer, ("0.0.0.0", HTTP_PORT), _Web)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    try:
        for path, answer in (("/models/a", "HTTP/1.1 200 OK"), ("/other", "HTTP/1.1 403 Forbidden")):
            said = world.ask(world.there.v4, HTTP_PORT, text=f"GET {path} HTTP/1.1\\r\\nhost: m\\r\\n\\r\\n")
            assert said == answer
        sent = world.records(world.client, 2)
        assert [(one["path"], one["decision"], one["protocol"]) for one in sent] == [
            ("/models/a", "allowed", "http"),
            ("/other", "denied", "http"),
        ]
        with world.open(world.there.v4, HTTP_PORT) as link:
            link.sendall(b"GET /models/b HTTP/1.1\r\nhost: m\r\n\r\n")
            assert link.recv(4096).startswith(b"HTTP/1.1 200")
            # The connection of this client goes on; a request after the change does not pass.
            world.publish(allowed)
            with contextlib.suppress(ConnectionError):
                link.sendall(b"GET /models/c HTTP/1.1\r\nhost: m\r\n\r\n")
                assert not link.recv(4096).startswith(b"HTTP/1.1 200")
        assert [one["decision"] for one in world.records(world.server, 2)] == ["allowed", "allowed"]
    finally:
        web.shutdown()
        web.server_close()
