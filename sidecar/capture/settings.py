# SPDX-License-Identifier: Apache-2.0
"""The `capture` section of the sidecar's configuration.

    capture:
      uid: 990                 # the sidecar's own; nobody else's
      exclude:
        - {direction: inbound, ports: [9100], addresses: [10.0.0.0/8], reason: metrics of the node}

Everything becomes a number or an address here: no text of the configuration gets into a rule.
"""

import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

from firedoor.segments import document as yaml_text
from firedoor.segments.setting_values import MAX_PORT, choice, integer, split_host_port, text
from firedoor.segments.settings import Findings, Option, Section
from firedoor.sidecar.listeners import HIGHEST_UID

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Istio's sidecar has 150xx: both can be in one pod.
INBOUND_PORT, OUTBOUND_PORT, PROBE_PORT, DNS_PORT = 14006, 14032, 14020, 14053
# So many programs, or destinations of one, may have one source port at once. Redirected to a single port of ours, the
# kernel gives all but the first another source port (nf_nat_core.c), and whose they are is found by it.
OUTBOUND_PORTS = 16
# Below it a program needs a capability (ip(7)), and the sidecar has none.
LOWEST_PORT = 1024
MOST_EXCLUSIONS = 100
LONGEST_REASON = 200

_PORTS = {
    "inbound_port": (INBOUND_PORT, "what arrives is redirected to it"),
    "outbound_port": (OUTBOUND_PORT, f"what leaves is redirected to it and the {OUTBOUND_PORTS - 1} after it"),
    "probe_port": (PROBE_PORT, "where declared probes are answered, without an identity"),
    "dns_port": (DNS_PORT, "the DNS relay, to which port 53 is redirected"),
}
_EXCLUSION = ("direction", "protocol", "ports", "addresses", "uids", "reason")


@dataclass(frozen=True, kw_only=True, slots=True)
class Exclusion:
    """What passes by the sidecar, and why; of ports, addresses and uids, those that are given must all match."""

    inbound: bool
    protocol: Literal["tcp", "udp"]
    # Of the receiving end.
    ports: tuple[int, ...]
    # Of the far end.
    addresses: tuple[Network, ...]
    # Of the program here; outbound only.
    uids: tuple[int, ...]
    reason: str

    def __str__(self) -> str:
        """Say what passes, without the reason."""
        words = ["inbound" if self.inbound else "outbound", self.protocol]
        if self.ports:
            words.append(f"to port {', '.join(map(str, self.ports))}")
        if self.addresses:
            words.append(f"{'from' if self.inbound else 'to'} {', '.join(map(str, self.addresses))}")
        if self.uids:
            words.append(f"of uid {', '.join(map(str, self.uids))}")
        return " ".join(words)


@dataclass(frozen=True, kw_only=True, slots=True)
class Capture:
    """What the rules are made of."""

    uid: int
    inbound_port: int
    outbound_port: int
    probe_port: int
    dns_port: int
    # Whether UDP and ICMP pass; they cannot be carried.
    udp_passes: bool
    exclude: tuple[Exclusion, ...]

    @property
    def outbound_ports(self) -> range:
        """The ports to which what leaves is redirected."""
        return range(self.outbound_port, self.outbound_port + OUTBOUND_PORTS)

    @property
    def private_ports(self) -> tuple[int, ...]:
        """The ports to which nothing comes but by a redirection."""
        return (self.inbound_port, *self.outbound_ports, self.dns_port)

    def exclusions(self) -> list[str]:
        """Say what passes by the sidecar, a line each, numbered as the rules name them."""
        return [f"exclusion {number}: {one}: {one.reason}" for number, one in enumerate(self.exclude)]


def options(environment: str) -> tuple[Option, ...]:
    """Return the keys."""
    option = partial(Option, environment)
    return (
        option("capture.uid", "UID", "the sidecar's own user: what it sends is not captured"),
        *(option(f"capture.{key}", "PORT", what) for key, (_, what) in _PORTS.items()),
        option("capture.udp", "drop|pass", "what happens to UDP and ICMP, which cannot be carried"),
        option("capture.exclude", "YAML", "what passes by the sidecar, each with its reason", several=True),
    )


def parse(top: Section) -> Capture | None:
    """Read `capture`; None when it is absent."""
    if top.get("capture") is None:
        return None
    section = top.section("capture")
    items = list(section.items("exclude"))
    if len(items) > MOST_EXCLUSIONS:
        section.findings.add(section.at("exclude"), section.path("exclude"), f"has more than {MOST_EXCLUSIONS} items")
    ports = {
        key: section.parse(key, integer(LOWEST_PORT, MAX_PORT - _others(key)), default)
        for key, (default, _) in _PORTS.items()
    }
    _check_apart(section, ports)
    return Capture(
        uid=section.require("uid", integer(1, HIGHEST_UID), 1, ": the sidecar's own user, by number"),
        udp_passes=section.parse("udp", choice("drop", "pass"), "drop") == "pass",
        exclude=tuple(
            _exclusion(node, section.path(f"exclude[{n}]"), section.findings) for n, node in enumerate(items)
        ),
        **ports,
    )


def _others(key: str) -> int:
    """Return how many ports a key has beside the one that it names."""
    return OUTBOUND_PORTS - 1 if key == "outbound_port" else 0


def _check_apart(section: Section, ports: dict[str, int]) -> None:
    taken: dict[int, str] = {}
    for key, first in ports.items():
        mine = range(first, first + _others(key) + 1)
        if clash := next((taken[port] for port in mine if port in taken), None):
            section.findings.add(section.at(key), section.path(key), f"is the same port as {clash}")
        for port in mine:
            taken.setdefault(port, key)


def _exclusion(node: yaml_text.Node, key: str, findings: Findings) -> Exclusion:
    section = Section(node, key, _EXCLUSION, findings)
    found = Exclusion(
        inbound=section.require("direction", choice("inbound", "outbound"), "inbound") == "inbound",
        protocol=cast(Literal["tcp", "udp"], section.parse("protocol", choice("tcp", "udp"), "tcp")),
        ports=_sorted(section.each("ports", integer(1, MAX_PORT))),
        addresses=tuple(dict.fromkeys(section.each("addresses", network))),
        uids=_sorted(section.each("uids", integer(0, HIGHEST_UID))),
        reason=section.require("reason", _reason, "", ": why it may pass by the sidecar"),
    )
    if not (found.ports or found.addresses or found.uids):
        findings.add(section.node.at, key, "names none of ports, addresses and uids: everything would pass")
    if found.inbound and found.uids:
        findings.add(section.at("uids"), section.path("uids"), "has a meaning for outbound only")
    return found


def _sorted(values: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(set(values)))


def network(value: str) -> Network:
    """Take an address, or a network as ADDRESS/LENGTH without bits of a host."""
    try:
        found = ipaddress.ip_network(value)
    except ValueError:
        raise ValueError("must be an address or a network such as 10.0.0.0/8, with no bits after its length") from None
    if found.version == 6 and "%" in value:
        raise ValueError("must not have a zone")
    return found


def _reason(value: str) -> str:
    if len(text(value)) > LONGEST_REASON or not value.isprintable():
        raise ValueError(f"must be one line of at most {LONGEST_REASON} characters")
    return value


def open_ports(
    capture: Capture, listens: Iterable[tuple[str, str]], finding: Callable[[str, str], None]
) -> tuple[int, ...]:
    """Return the ports of the sidecar's own listeners that others reach; `listens` has (what, IP:PORT or unix:)."""
    found: set[int] = set()
    private = {*capture.private_ports, capture.probe_port}
    for what, listen in listens:
        if listen.startswith("unix:"):
            continue
        host, port = split_host_port(listen)
        if port == 0:
            finding(what, f"{listen}: needs a port of its own: capture lets through what is written out")
        elif port in private:
            finding(what, f"{listen}: is a port of capture")
        elif not ipaddress.ip_address(host).is_loopback:
            found.add(port)
    return tuple(sorted(found))
