# SPDX-License-Identifier: Apache-2.0
"""Programs that nobody changed, on every address, behind capture: reached by identity and flow alone, and no way round.

The rules are those of `firedoor capture apply`, the sidecars run as a user of their own, and the programs are moto and
boto3, the MCP SDK's server and client, and grpcio's.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from firedoor.cli.demo.processes import Child
from firedoor.cli.demo.records import Record
from tests.e2e.captured import (
    DNS,
    EVERYWHERE,
    HUB_V4,
    HUB_V6,
    IDS,
    INBOUND,
    NAMED,
    OUTBOUND,
    PROBE,
    PROGRAMS,
    V4,
    V6,
    Captured,
    Counter,
    captured,
    flow,
    missing,
    segment,
    service,
)
from tests.e2e.namespaces import APP_UID, BRIEF, SIDECAR_UID, Actor

MISSING = missing()
pytestmark = [pytest.mark.peer, pytest.mark.skipif(bool(MISSING), reason=MISSING)]

S3, MCP, GRPC, OPAQUE, ONLY_V4, UNLISTED, UDP, INSIDE = 5000, 8000, 50051, 7000, 7001, 7777, 4433, 7100
MORE = (7002, 7003)
PORTS = {S3: "http", MCP: "http", GRPC: "grpc", **dict.fromkeys((OPAQUE, *MORE), "tcp")}
BOTH = pytest.mark.parametrize("host", [V4["server"], V6["server"]], ids=["ipv4", "ipv6"])
ANY_HTTP = '{http: {methods: [GET, HEAD, PUT, POST, DELETE], paths: ["/", "/**"]}}'
POLICY = "".join(
    (
        segment("inference"),
        segment("batch", mode="audit"),
        segment("registry", trust="high"),
        flow(S3, ANY_HTTP),
        flow(MCP, ANY_HTTP),
        flow(GRPC, "{grpc: {service: grpc.health.v1.Health, methods: [Check]}}"),
        *(flow(port, "{tcp: {}}") for port in (OPAQUE, *MORE, ONLY_V4)),
        service("apps", (V4["server"], V6["server"]), PORTS),
        service("old", (V4["server"],), {ONLY_V4: "tcp"}),
    )
)
DECLARED = "  ports:\n" + "".join(f"    - {{port: {port}, protocol: {one}}}\n" for port, one in PORTS.items())
LISTENER = f"""\
inbound:
  - {{name: named, as: "spiffe://example.org{IDS["server"]}", listen: "[::]:{NAMED}", service_port: {OPAQUE},
     protocol: tcp, app: {{address: "127.0.0.1:{OPAQUE}"}}}}
"""
METADATA = ("169.254.169.254", "fd00:ec2::254")
# What a program of the rules' namespace sees, and one outside.
REFUSED, NOT_SENT, SILENCE, RESET = "ConnectionRefusedError", "PermissionError", "TimeoutError", "ConnectionResetError"


class World:
    """What runs where. `keys` are those that the object store gave."""

    def __init__(self, net: Captured) -> None:
        self.net = net
        server = net.server.space
        self.counter = Counter(server, [*PORTS, ONLY_V4, UNLISTED, INBOUND, OUTBOUND, NAMED])
        net.begin(POLICY, DECLARED, LISTENER)
        moto = net.program("s3", server, "-m", "moto.server", "-H", "::", "-p", S3)
        tools = net.program("mcp", server, PROGRAMS / "mcp_tools.py", MCP, "")
        model = net.program("grpc", server, PROGRAMS / "model_server.py", GRPC, "[::]")
        self.app = server.actor(APP_UID)
        everywhere(self.app, OPAQUE, *MORE, ONLY_V4, UNLISTED)
        everywhere(self.app, UDP, udp=True)
        self.client = net.asker("client", net.client.space)
        self.outcast = net.asker("outcast", net.outcast.space)
        self.stranger = net.asker("stranger", net.hub)
        self.user = net.client.space.actor(APP_UID)
        self.neighbour = net.client.space.actor(APP_UID + 1)
        everywhere(self.neighbour, INSIDE)
        self.outsider = net.hub.actor()
        for host in METADATA:
            net.hub.run("ip", "address", "add", host, "dev", "lo", *(["nodad"] if ":" in host else []))
            self.outsider.listen(host, 80)
        everywhere(self.outsider, UNLISTED)
        for child, port in ((moto, S3), (tools, MCP), (model, GRPC)):
            child.wait_for(lambda port=port: f":{port} " in server.run("ss", "-Hltn"))  # type: ignore[misc]
        filled = self.client.ask({"do": "s3_fill", "at": at(V4["server"], S3)})
        assert filled["ok"], filled
        self.keys = filled["detail"]

    def asked(self, who: Child, what: int, host: str) -> dict[str, Any]:
        """Have a client ask the server of that port."""
        do = {S3: "s3_get", MCP: "mcp", GRPC: "health"}[what]
        return who.ask({"do": do, "at": at(host, what), "keys": json.loads(self.keys)})

    def recorded_since(self) -> list[Record]:
        """Return what the client's sidecar has recorded since the last look: all that comes before what comes now."""
        self.user.ask(HUB_V4, UNLISTED)
        *found, _ = self.net.client.recorded_until(reason="not_in_directory", peer_address=at(HUB_V4, UNLISTED))
        return found

    def is_denied(self, host: str, port: int, reason: str) -> None:
        """Have the app ask, and find nothing but a record that says why."""
        self.net.client.records()
        assert self.user.ask(host, port) in (REFUSED, RESET, "")
        record = self.net.client.recorded(reason=reason)
        assert (record["decision"], record["client"]["uid"]) == ("denied", APP_UID)
        assert record["peer_address"] == at(host, port)


def at(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def everywhere(actor: Actor, *ports: int, udp: bool = False) -> None:
    for port in ports:
        for host in EVERYWHERE:
            actor.listen(host, port, udp=udp)


def met(actor: Actor, *ports: int) -> list[str]:
    """Return whom an actor has accepted."""
    return [one for port in ports for host in EVERYWHERE for one in actor.met(host, port)]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with captured() as net:
        yield World(net)


@BOTH
@pytest.mark.parametrize("what", [S3, MCP, GRPC], ids=["s3", "mcp", "grpc"])
def test_a_client_with_an_identity_and_a_flow_succeeds(world: World, what: int, host: str) -> None:
    for node in (world.net.client, world.net.server):
        node.records()
    assert world.asked(world.client, what, host)["ok"]
    assert world.counter.reached(what) > 0
    for node in (world.net.client, world.net.server):
        record = node.recorded(decision="allowed", port=what)
        assert record["source"] == f"spiffe://example.org{IDS['client']}"
        assert record["destination"] == f"spiffe://example.org{IDS['server']}"
        assert record["flow"] == f"to-{what}"


@BOTH
@pytest.mark.parametrize("what", [S3, MCP, GRPC], ids=["s3", "mcp", "grpc"])
def test_the_same_client_without_an_identity_does_not_reach_accept(world: World, what: int, host: str) -> None:
    reached = world.counter.reached(what)
    world.net.server.records()
    assert not world.asked(world.stranger, what, host)["ok"]
    # Records of others may still be on their way.
    record = world.net.server.recorded(port=what, source="")
    assert record["decision"] == "denied"
    assert world.counter.reached(what) == reached


@BOTH
@pytest.mark.parametrize("what", [S3, MCP, GRPC], ids=["s3", "mcp", "grpc"])
def test_the_same_client_with_an_identity_but_no_flow_does_not_reach_accept(world: World, what: int, host: str) -> None:
    """Its own end is in audit mode and lets it go on: it is the server's that refuses."""
    reached = world.counter.reached(what)
    for node in (world.net.outcast, world.net.server):
        node.records()
    assert not world.asked(world.outcast, what, host)["ok"]
    assert world.net.outcast.recorded(port=what)["decision"] == "audit"
    record = world.net.server.recorded(port=what, source=f"spiffe://example.org{IDS['outcast']}")
    assert (record["decision"], record["reason"]) == ("denied", "no_flow")
    assert world.counter.reached(what) == reached


@BOTH
def test_another_user_of_the_clients_namespace_has_no_identity(world: World, host: str) -> None:
    reached = world.counter.reached(OPAQUE)
    world.net.client.records()
    assert world.neighbour.ask(host, OPAQUE) in (REFUSED, RESET, "")
    record = world.net.client.recorded(reason="client_not_entitled")
    assert record["client"]["uid"] == APP_UID + 1
    assert world.user.ask(host, OPAQUE) == "tcp not redirected"
    assert world.counter.reached(OPAQUE) == reached + 1


@BOTH
def test_one_source_port_towards_several_services(world: World, host: str) -> None:
    """As the kernel gives them out to who has many connections."""
    world.net.client.records()
    for port in (OPAQUE, *MORE):
        assert world.user.ask(host, port, source=40_000) == "tcp not redirected"
        assert world.net.client.recorded(port=port)["client"]["uid"] == APP_UID


@BOTH
def test_directly_to_the_peers_app_port(world: World, host: str) -> None:
    """Neither by its own sidecar, which knows of no such service, nor from where there is none."""
    arrived = world.counter.arrived(UNLISTED)
    world.is_denied(host, UNLISTED, "not_in_directory")
    assert world.counter.arrived(UNLISTED) == arrived, "nothing was sent"
    world.net.server.records()
    assert not world.stranger.ask({"do": "plain", "at": at(host, UNLISTED), "method": "GET", "target": "/"})["ok"]
    assert world.counter.arrived(UNLISTED) == arrived + 1
    assert world.net.server.recorded(port=UNLISTED)["decision"] == "denied"
    assert world.counter.reached(UNLISTED) == 0
    assert met(world.app, UNLISTED) == []


@BOTH
def test_directly_to_the_peers_sidecar_without_a_certificate(world: World, host: str) -> None:
    for port in (NAMED, INBOUND, OUTBOUND):
        arrived = world.counter.arrived(port)
        world.is_denied(host, port, "not_in_directory")
        assert world.counter.arrived(port) == arrived, "nothing was sent"
    reached = world.counter.reached(OPAQUE)
    for port in (NAMED, OPAQUE):
        world.net.server.records()
        words = ("openssl", "s_client", "-connect", at(host, port))
        said = world.net.hub.run("sh", "-c", '"$@" </dev/null 2>&1; true', "sh", *words)
        assert "BEGIN CERTIFICATE" in said
        assert world.net.server.recorded(reason="no_certificate")["decision"] == "denied"
    for port in (INBOUND, OUTBOUND):
        assert world.outsider.ask(host, port, seconds=BRIEF) == SILENCE
    assert world.counter.reached(OPAQUE) == reached


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"], ids=["ipv4", "ipv6"])
def test_to_the_sidecars_private_ports_over_loopback(world: World, host: str) -> None:
    """They are refused to the app; what other programs serve there is not."""
    space = world.net.client.space
    listening = space.run("ss", "-Hltn")
    for port in (INBOUND, OUTBOUND):
        assert f":{port} " in listening, "the sidecar is there"
    world.recorded_since()
    for port in (INBOUND, OUTBOUND, PROBE, DNS):
        assert world.user.ask(host, port) == REFUSED
    assert world.user.ask(host, INSIDE) == "tcp not redirected"
    assert world.recorded_since() == []


@pytest.mark.parametrize("host", METADATA, ids=["ipv4", "ipv6"])
def test_to_the_metadata_address(world: World, host: str) -> None:
    world.recorded_since()
    before = world.outsider.met(host, 80)
    assert world.user.ask(host, 80) == REFUSED
    assert world.user.ask(host, 80, udp=True) == NOT_SENT
    assert world.outsider.met(host, 80) == before
    assert world.recorded_since() == [], "the rules refuse it before the sidecar sees it"
    assert world.net.client.space.actor(SIDECAR_UID).ask(host, 80) == "tcp not redirected", "it is there"


@pytest.mark.parametrize("host", [HUB_V4, HUB_V6], ids=["ipv4", "ipv6"])
def test_to_a_destination_that_no_service_lists(world: World, host: str) -> None:
    world.is_denied(host, UNLISTED, "not_in_directory")
    assert met(world.outsider, UNLISTED) == []


def test_by_ipv6_where_a_service_has_ipv4_alone(world: World) -> None:
    assert world.user.ask(V4["server"], ONLY_V4) == "tcp not redirected"
    reached = world.counter.reached(ONLY_V4)
    world.is_denied(V6["server"], ONLY_V4, "not_in_directory")
    assert world.counter.reached(ONLY_V4) == reached


@BOTH
def test_by_udp(world: World, host: str) -> None:
    assert world.user.ask(host, UDP, udp=True) == NOT_SENT
    assert world.outsider.ask(host, UDP, udp=True, seconds=BRIEF) == SILENCE
    assert met(world.app, UDP) == []


def test_removed_the_rules_leave_the_namespace_as_it_was(world: World) -> None:
    """They alone are what keeps others away: without them the app is reached by anybody, at once."""
    node = world.net.server
    written = node.space.rules()
    assert written != node.before
    assert (
        node.space.firedoor("capture", "check", "--config", str(node.config))
        == "the rules stand as they were written\n"
    )
    try:
        node.space.firedoor("capture", "remove")
        assert node.space.rules() == node.before
        assert world.outsider.ask(node.v4, UNLISTED) == "tcp not redirected"
    finally:
        node.apply()
    assert node.space.rules() == written
    assert world.asked(world.client, S3, node.v4)["ok"]
    assert not world.asked(world.stranger, S3, node.v4)["ok"]
