# SPDX-License-Identifier: Apache-2.0
"""Nothing goes round: the rules of capture in a real network namespace, with real sockets.

Plain listeners stand where the sidecar's are, as its user: what reaches whom is the rules' doing alone.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from firedoor.sidecar import capture, config
from tests import netns
from tests.e2e import namespaces
from tests.e2e.namespaces import (
    APP_UID,
    BRIEF,
    INSIDE_V4,
    INSIDE_V6,
    OUTSIDE_V4,
    OUTSIDE_V6,
    SIDECAR_UID,
    Actor,
    Namespace,
    wired,
)

MISSING = netns.missing()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

INBOUND, OUTBOUND, PROBE, DNS, NAMED = 14006, 14032, 14020, 14053, 19000
OUTBOUNDS = range(OUTBOUND, OUTBOUND + 16)
APP = 8080
PAIRS = ((INSIDE_V4, OUTSIDE_V4), (INSIDE_V6, OUTSIDE_V6))
BOTH = pytest.mark.parametrize(("inside", "outside"), PAIRS, ids=["ipv4", "ipv6"])
CONFIG = f"""\
trust_domain: example.org
broker: ["{OUTSIDE_V4}:8081"]
inbound:
  - {{name: models, as: "spiffe://example.org/segment/registry/host/h1/svc/models", listen: "0.0.0.0:{NAMED}",
     service_port: 9000, protocol: tcp, app: {{address: "127.0.0.1:9000"}}}}
capture:
  uid: {SIDECAR_UID}
"""
METADATA = ("169.254.169.254", "fd00:ec2::254")
ANY = {INSIDE_V4: "0.0.0.0", OUTSIDE_V4: "0.0.0.0", INSIDE_V6: "::", OUTSIDE_V6: "::"}
LOOPBACK = {INSIDE_V4: "127.0.0.1", INSIDE_V6: "::1"}
# What a client sees when nobody answers at all, and when somebody says so.
SILENCE, REFUSED, NOT_SENT = "TimeoutError", "ConnectionRefusedError", "PermissionError"


class World:
    """A workload's namespace with an app and a sidecar's user, and somebody outside."""

    def __init__(self, inside: Namespace, outside: Namespace, folder: Path) -> None:
        self.inside, self.outside, self.config = inside, outside, folder / "sidecar.yaml"
        self.app, self.sidecar, self.peer = inside.actor(APP_UID), inside.actor(SIDECAR_UID), outside.actor()

    def capture(self, more: str = "") -> None:
        """Write the rules: without the command line, which others show, because it takes its time to load."""
        self.config.write_text(CONFIG + more)
        found = config.load(self.config, {"HOME": "/"}, {}, uid=0)
        assert found.capture
        rules = capture.make(found.capture, found.open_ports)
        self.inside.run("nft", "-j", "-f", "-", given=json.dumps(rules.replacing()))

    def apply(self) -> str:
        """Write the same by the command."""
        return self.inside.firedoor("capture", "apply", "--config", str(self.config), "--app-uid", str(APP_UID))

    def check(self, code: int = 0) -> str:
        return self.inside.firedoor("capture", "check", "--config", str(self.config), code=code)

    def everywhere(self, one: Actor, port: int, *, udp: bool = False) -> None:
        for host in ("0.0.0.0", "::"):
            one.listen(host, port, udp=udp)


@contextmanager
def privileged(inside: Namespace, capability: str) -> Iterator[int]:
    """Run a program of the app's user with one capability; yield its pid."""
    user = (f"--reuid={APP_UID}", f"--regid={APP_UID}", "--clear-groups")
    caps = (f"--inh-caps=+{capability}", f"--ambient-caps=+{capability}")
    words = [*inside.entering(), "setpriv", *user, *caps, "sh", "-c", "echo ready; exec sleep 60"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        try:
            yield process.pid
        finally:
            process.kill()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with wired() as (inside, outside):
        found = World(inside, outside, tmp_path)
        # The first question for a neighbour on a new wire is lost, and asked again after a second.
        assert found.peer.call("ping", INSIDE_V6) == "answered"
        yield found


@BOTH
def test_an_app_on_every_address_is_reached_through_the_inbound_port_alone(
    world: World, inside: str, outside: str
) -> None:
    world.everywhere(world.app, APP)
    world.everywhere(world.sidecar, INBOUND)
    assert world.peer.ask(inside, APP) == "tcp not redirected", "before capture it is reached"
    world.capture()
    assert world.peer.ask(inside, APP) == f"tcp {inside} {APP}"
    assert world.peer.ask(inside, 22) == f"tcp {inside} 22"
    assert world.app.met(ANY[inside], APP) == ["not redirected"]


@BOTH
def test_what_the_app_sends_goes_to_the_outbound_port(world: World, inside: str, outside: str) -> None:
    """The peer's app, its named listener, the ports of its capture: none is reached directly."""
    world.everywhere(world.peer, APP)
    world.everywhere(world.peer, NAMED)
    world.everywhere(world.sidecar, OUTBOUND)
    world.capture()
    for port in (APP, NAMED, INBOUND, OUTBOUND, 443):
        assert world.app.ask(outside, port) == f"tcp {outside} {port}"
    assert world.inside.actor().ask(outside, APP) == f"tcp {outside} {APP}", "root is captured too"
    assert world.peer.met(ANY[outside], APP) == []
    assert world.peer.met(ANY[outside], NAMED) == []


@BOTH
def test_a_connection_that_cannot_keep_its_source_port_is_refused(world: World, inside: str, outside: str) -> None:
    """Whose it is, is found by that port: the sidecar must not take it for somebody else's."""
    for port in OUTBOUNDS:
        world.everywhere(world.sidecar, port)
    world.capture()
    for number in range(len(OUTBOUNDS)):
        assert world.app.ask(outside, APP + number, source=40_000) == f"tcp {outside} {APP + number}"
    assert world.app.ask(outside, APP + len(OUTBOUNDS), source=40_000) == REFUSED
    assert world.app.ask(outside, APP + len(OUTBOUNDS), source=40_001) == f"tcp {outside} {APP + len(OUTBOUNDS)}"
    assert [len(world.sidecar.met(ANY[inside], port)) for port in OUTBOUNDS] == [2, *[1] * (len(OUTBOUNDS) - 1)]


@BOTH
def test_nor_does_the_relay_take_a_connection_for_somebody_elses(world: World, inside: str, outside: str) -> None:
    world.sidecar.listen(LOOPBACK[inside], DNS)
    world.capture()
    other = "2001:db8::53" if ":" in inside else "198.51.100.53"
    assert world.app.ask(outside, 53, source=40_000) == f"tcp {outside} 53"
    assert world.app.ask(other, 53, source=40_000) == REFUSED
    assert world.app.ask(other, 53, source=40_001) == f"tcp {other} 53"


@BOTH
def test_what_the_sidecar_sends_leaves_and_is_answered(world: World, inside: str, outside: str) -> None:
    world.everywhere(world.peer, APP)
    world.everywhere(world.peer, APP, udp=True)
    world.everywhere(world.app, APP)
    world.capture()
    assert world.sidecar.ask(outside, APP) == "tcp not redirected"
    assert world.sidecar.ask(outside, APP, udp=True) == "udp question"
    for host in (LOOPBACK[inside], inside):
        assert world.sidecar.ask(host, APP) == "tcp not redirected", "it reaches the app"


@BOTH
def test_errors_of_the_sidecars_connections_arrive(world: World, inside: str, outside: str) -> None:
    world.capture()
    assert world.sidecar.ask(outside, APP, udp=True) == REFUSED, "port unreachable"
    assert world.sidecar.ask(outside, APP) == REFUSED


@BOTH
def test_private_ports_are_refused_to_the_app_and_other_loopback_passes(
    world: World, inside: str, outside: str
) -> None:
    for port in (INBOUND, OUTBOUND, PROBE, DNS):
        world.everywhere(world.sidecar, port)
    world.everywhere(world.sidecar, DNS, udp=True)
    world.everywhere(world.sidecar, 9091)
    other = world.inside.actor(APP_UID + 1)
    world.everywhere(other, 7000)
    world.everywhere(other, 7000, udp=True)
    world.capture()
    for host in (LOOPBACK[inside], inside):
        for port in (INBOUND, OUTBOUND, PROBE, DNS):
            assert world.app.ask(host, port) == REFUSED
        assert world.app.ask(host, DNS, udp=True) == NOT_SENT
        assert world.app.ask(host, 7000) == "tcp not redirected"
        assert world.app.ask(host, 7000, udp=True) == "udp question"
        assert world.app.ask(host, 9091) == "tcp not redirected"
    for port in (INBOUND, OUTBOUND, PROBE, DNS):
        assert world.sidecar.met(ANY[inside], port) == []


@BOTH
def test_private_ports_are_not_reached_from_outside_by_their_names(world: World, inside: str, outside: str) -> None:
    for port in (INBOUND, OUTBOUND, DNS):
        world.everywhere(world.sidecar, port)
    world.everywhere(world.sidecar, DNS, udp=True)
    world.capture()
    for port in (INBOUND, OUTBOUND, DNS):
        assert world.peer.ask(inside, port, seconds=BRIEF) == SILENCE
        assert world.sidecar.met(ANY[inside], port) == []
    assert world.peer.ask(inside, DNS, udp=True, seconds=BRIEF) == SILENCE


@BOTH
def test_own_listeners_and_the_probe_port_are_reached_as_they_are(world: World, inside: str, outside: str) -> None:
    world.everywhere(world.sidecar, NAMED)
    world.everywhere(world.sidecar, PROBE)
    world.capture()
    assert world.peer.ask(inside, NAMED) == "tcp not redirected"
    assert world.peer.ask(inside, PROBE) == "tcp not redirected"


@pytest.mark.parametrize("address", METADATA)
def test_the_metadata_address_is_refused_to_the_app(world: World, address: str) -> None:
    world.outside.run("ip", "address", "add", address, "dev", "lo", *(["nodad"] if ":" in address else []))
    world.peer.listen(address, 80)
    world.everywhere(world.sidecar, OUTBOUND)
    world.capture(f'  exclude: [{{direction: outbound, addresses: ["{address}"], reason: "refused all the same"}}]\n')
    assert world.app.ask(address, 80) == REFUSED
    assert world.app.ask(address, 80, udp=True) == NOT_SENT
    assert world.peer.met(address, 80) == []
    assert world.sidecar.met("::" if ":" in address else "0.0.0.0", OUTBOUND) == []
    assert world.sidecar.ask(address, 80) == "tcp not redirected"


@pytest.mark.parametrize("address", [*METADATA, OUTSIDE_V4, OUTSIDE_V6, "127.0.0.53"])
@pytest.mark.parametrize("udp", [False, True], ids=["tcp", "udp"])
def test_dns_to_any_address_goes_to_the_relay(world: World, address: str, udp: bool) -> None:
    # On the loopback address itself: from any address, an answer would have another source than the question's aim.
    host = "::1" if ":" in address else "127.0.0.1"
    world.sidecar.listen(host, DNS, udp=udp)
    world.capture()
    # The socket is connected: an answer from another address would not be taken.
    assert world.app.ask(address, 53, udp=udp) == ("udp question" if udp else f"tcp {address} 53")
    assert world.sidecar.met(host, DNS)


@BOTH
def test_udp_passes_in_neither_direction(world: World, inside: str, outside: str) -> None:
    world.everywhere(world.peer, 4433, udp=True)
    world.everywhere(world.app, 4433, udp=True)
    world.capture()
    assert world.app.ask(outside, 4433, udp=True) == NOT_SENT
    assert world.peer.ask(inside, 4433, udp=True, seconds=BRIEF) == SILENCE
    assert world.peer.met(ANY[outside], 4433) == []
    assert world.app.met(ANY[inside], 4433) == []


@BOTH
def test_echo_passes_in_neither_direction(world: World, inside: str, outside: str) -> None:
    assert world.peer.call("ping", inside) == "answered"
    assert world.app.call("ping", outside) == "answered"
    world.capture()
    assert world.peer.call("ping", inside, seconds=BRIEF) == SILENCE
    assert world.app.call("ping", outside, seconds=BRIEF) in (NOT_SENT, SILENCE)


def test_neighbours_are_found_after_capture(world: World) -> None:
    world.capture()
    world.everywhere(world.peer, APP)
    for one in (world.inside, world.outside):
        one.run("ip", "neigh", "flush", "all")
    assert world.sidecar.ask(OUTSIDE_V6, APP) == "tcp not redirected"


@BOTH
def test_udp_that_is_written_out_passes(world: World, inside: str, outside: str) -> None:
    world.everywhere(world.peer, 4433, udp=True)
    world.everywhere(world.app, 4433, udp=True)
    world.sidecar.listen(LOOPBACK[inside], DNS, udp=True)
    world.everywhere(world.peer, 53, udp=True)
    world.capture("  udp: pass\n")
    assert world.app.ask(outside, 4433, udp=True) == "udp question"
    assert world.peer.ask(inside, 4433, udp=True) == "udp question"
    assert world.peer.call("ping", inside) == "answered"
    assert world.app.ask(outside, 53, udp=True) == "udp question"
    assert world.peer.met(ANY[outside], 53) == [], "DNS goes to the relay all the same"


@BOTH
def test_ipv6_is_captured_where_only_ipv4_is_listened_on(world: World, inside: str, outside: str) -> None:
    world.everywhere(world.peer, APP)
    world.everywhere(world.app, APP)
    for port in (INBOUND, OUTBOUND):
        world.sidecar.listen("0.0.0.0", port)
    world.capture()
    six = ":" in inside
    assert world.app.ask(outside, APP) == (REFUSED if six else f"tcp {outside} {APP}")
    assert world.peer.ask(inside, APP) == (REFUSED if six else f"tcp {inside} {APP}")
    assert world.peer.met(ANY[outside], APP) == world.app.met(ANY[inside], APP) == []


@BOTH
def test_nothing_passes_while_the_sidecar_is_down(world: World, inside: str, outside: str) -> None:
    world.everywhere(world.peer, APP)
    world.everywhere(world.app, APP)
    world.capture()
    assert world.app.ask(outside, APP) == REFUSED
    assert world.peer.ask(inside, APP) == REFUSED
    assert world.peer.ask(inside, NAMED) == REFUSED
    assert world.peer.met(ANY[outside], APP) == world.app.met(ANY[inside], APP) == []
    world.everywhere(world.sidecar, INBOUND)
    world.everywhere(world.sidecar, OUTBOUND)
    assert world.app.ask(outside, APP) == f"tcp {outside} {APP}", "it takes over again"
    assert world.peer.ask(inside, APP) == f"tcp {inside} {APP}"


@BOTH
def test_an_app_that_takes_the_sidecars_ports_while_it_is_down_is_not_reached(
    world: World, inside: str, outside: str
) -> None:
    world.capture()
    for port in (INBOUND, NAMED, PROBE):
        world.everywhere(world.app, port)
    assert world.peer.ask(inside, APP, seconds=BRIEF) == SILENCE
    for port in (NAMED, PROBE):
        assert world.peer.ask(inside, port, seconds=BRIEF) == SILENCE
    for port in (INBOUND, NAMED, PROBE):
        assert world.app.met(ANY[inside], port) == []


@BOTH
def test_connections_of_before_are_cut(world: World, inside: str, outside: str) -> None:
    """One that the app made, and one that it took: neither says anything more."""
    server = world.inside.actor(APP_UID)
    client = world.outside.actor()
    world.peer.call("hold_next", ANY[outside], APP)
    world.app.call("hold", outside, APP)
    server.call("hold_next", ANY[inside], APP)
    client.call("hold", inside, APP)
    # What makes the kernel follow connections is there before ours in many a namespace.
    world.inside.run(*["nft", "add", "table", "inet", "other"])
    world.inside.run("nft", "add chain inet other seen { type filter hook input priority 0; ct state established; }")
    for one, text in ((world.app, "1"), (world.peer, "2"), (server, "3"), (client, "4")):
        one.call("speak", text)
    assert [one.call("hear") for one in (world.peer, world.app, client, server)] == ["1", "2", "3", "4"]
    world.capture()
    for one in (world.app, world.peer, server, client):
        one.call("speak", "still there?")
    for one in (world.peer, world.app, client, server):
        assert one.call("hear", seconds=BRIEF) in (SILENCE, "ConnectionResetError")


def test_what_is_excluded_passes_and_nothing_else(world: World) -> None:
    world.everywhere(world.app, 9100)
    world.everywhere(world.app, 9101)
    world.everywhere(world.peer, APP)
    world.everywhere(world.peer, 123, udp=True)
    world.everywhere(world.sidecar, INBOUND)
    world.everywhere(world.sidecar, OUTBOUND)
    other = world.inside.actor(APP_UID + 1)
    world.capture(
        f"""\
  exclude:
    - {{direction: inbound, ports: [9100], addresses: ["{OUTSIDE_V4}"], reason: metrics of the node}}
    - {{direction: outbound, uids: [{APP_UID + 1}], reason: the backup has an identity of its own}}
    - {{direction: outbound, protocol: udp, ports: [123], addresses: [10.0.0.0/8], reason: time}}
"""
    )
    assert world.peer.ask(INSIDE_V4, 9100) == "tcp not redirected"
    assert world.peer.ask(INSIDE_V4, 9101) == f"tcp {INSIDE_V4} 9101"
    assert world.peer.ask(INSIDE_V6, 9100) == f"tcp {INSIDE_V6} 9100", "the exclusion names an address of IPv4"
    for host in (OUTSIDE_V4, OUTSIDE_V6):
        assert other.ask(host, APP) == "tcp not redirected"
        assert world.app.ask(host, APP) == f"tcp {host} {APP}"
    assert world.app.ask(OUTSIDE_V4, 123, udp=True) == "udp question"
    assert world.app.ask(OUTSIDE_V6, 123, udp=True) == NOT_SENT


def test_nothing_is_forwarded(world: World) -> None:
    world.inside.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    with namespaces.namespace("far") as far:
        world.inside.run(*f"ip link add eth1 type veth peer name eth0 netns {far.name}".split())
        for one, device, four, six in ((world.inside, "eth1", 1, 1), (far, "eth0", 2, 2)):
            one.run(*f"ip address add 10.78.0.{four}/24 dev {device}".split())
            one.run(*f"ip address add fd78::{six}/64 dev {device} nodad".split())
            one.run("ip", "link", "set", device, "up")
        far.run(*["ip", "route", "add", "default", "via", "10.78.0.1"])
        far.run(*["ip", "-6", "route", "add", "default", "via", "fd78::1"])
        world.outside.run(*f"ip route add 10.78.0.0/24 via {INSIDE_V4}".split())
        world.outside.run(*f"ip -6 route add fd78::/64 via {INSIDE_V6}".split())
        there = far.actor()
        world.everywhere(there, APP)
        assert world.peer.ask("10.78.0.2", APP) == "tcp not redirected"
        assert world.peer.ask("fd78::2", APP) == "tcp not redirected"
        world.everywhere(world.sidecar, INBOUND)
        world.capture()
        for host in ("10.78.0.2", "fd78::2"):
            assert world.peer.ask(host, APP, seconds=BRIEF) == SILENCE
        assert world.sidecar.met("0.0.0.0", INBOUND) == world.sidecar.met("::", INBOUND) == []


def test_removed_they_leave_the_namespace_as_it_was(world: World) -> None:
    world.inside.run("nft", "add table inet other")
    world.inside.run("nft", "add chain inet other c { type filter hook input priority 5; policy accept; }")
    before = world.inside.rules()
    world.capture()
    first = world.inside.rules()
    assert world.apply() == "37 rules are written, for IPv4 and IPv6\n"
    assert world.inside.rules() == first != before
    assert world.inside.firedoor("capture", "remove") == "the rules are removed\n"
    assert world.inside.rules() == before
    assert world.inside.firedoor("capture", "remove") == "there were no rules\n"
    world.everywhere(world.app, APP)
    assert world.peer.ask(INSIDE_V4, APP) == "tcp not redirected"


CHANGES = {
    "a rule more": ("nft insert rule inet firedoor arriving tcp dport 8080 accept", "arriving: not ours"),
    "a rule fewer": ("nft flush chain inet firedoor leaving_first", "leaving_first: missing: the cloud's metadata"),
    "a chain more": ("nft add chain inet firedoor aside", "chain aside is not ours"),
    "a set": ("nft add set inet firedoor those { type ipv4_addr; }", "there is a set that is not ours"),
    "another policy": ("nft chain inet firedoor arriving { policy accept; }", "chain arriving hangs elsewhere"),
    "asleep": ("nft add table inet firedoor { flags dormant; }", "the table has a flag: it is dormant"),
    "gone": ("nft delete table inet firedoor", "the table is not there"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_check_says_what_no_longer_stands(world: World, change: str) -> None:
    command, sentence = CHANGES[change]
    world.capture()
    assert world.check() == "the rules stand as they were written\n"
    world.peer.ask(INSIDE_V4, INBOUND)  # What was counted makes no difference.
    world.check()
    world.inside.run("nft", command.removeprefix("nft "))
    assert sentence in world.check(code=1)
    world.capture()
    world.check()


def test_check_says_when_the_configuration_is_another(world: World) -> None:
    world.capture()
    world.config.write_text(CONFIG + "  udp: pass\n")
    assert "arriving: missing: UDP and ICMP pass" in world.check(code=1)


def test_a_process_that_could_go_round_is_refused(world: World) -> None:
    world.config.write_text(CONFIG)
    apply = ("capture", "apply", "--config", str(world.config))
    said = world.inside.firedoor(*apply, "--app-uid", str(SIDECAR_UID), code=2)
    assert f"could go round: it has the sidecar's uid {SIDECAR_UID}" in said
    assert "it is root" in world.inside.firedoor(*apply, "--app-uid", "0", code=2)
    for pid, sentence in ((world.sidecar.process.pid, "the sidecar's uid"), (world.peer.process.pid, "it is root")):
        assert sentence in world.inside.firedoor(*apply, "--app-pid", str(pid), code=2)
    for name in ("setuid", "net_admin", "net_raw", "sys_admin"):
        with privileged(world.inside, name) as found:
            said = world.inside.firedoor(*apply, "--app-pid", str(found), code=2)
            assert f"it has CAP_{name.upper()} and could" in said
    assert "firedoor" not in world.inside.rules()
    said = world.inside.firedoor(*apply, "--app-pid", str(world.app.process.pid))
    assert "set no_new_privs" in said
    assert "firedoor" in world.inside.rules()


def test_without_the_capability_nothing_is_tried(world: World) -> None:
    world.capture()
    before = world.inside.rules()
    # As root without it, so that the interpreter can be read.
    drop = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
    said = world.inside.run(
        *drop, sys.executable, "-m", "firedoor.cli", "capture", "apply", "--config", str(world.config), code=2
    )
    assert said.startswith("firedoor: CAP_NET_ADMIN in this network namespace is needed")
    for word in (("remove",), ("check", "--config", str(world.config))):
        said = world.inside.run(*drop, sys.executable, "-m", "firedoor.cli", "capture", *word, code=2)
        assert "CAP_NET_ADMIN in this network namespace is needed" in said
    assert world.inside.rules() == before
