# SPDX-License-Identifier: Apache-2.0
"""The `run` section of the sidecar's configuration: the network namespace that `firedoor run` makes.

    run: {name: web, network: 10.201.7.0/30, network6: "fd01:7::/126"}

Of each network the first address is this machine's, the second the workload's.
"""

import ipaddress
import re
from dataclasses import dataclass
from functools import partial

from firedoor.segments.setting_values import MAX_PORT, choice, duration, integer
from firedoor.segments.settings import Option, Section

# An interface's name has 15 characters at most (IFNAMSIZ), and ours begin with "fd-".
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,10}")
START_SECONDS, LONGEST_START_SECONDS = 60, 86_400


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What the namespace is called and how it is reached."""

    name: str
    network: ipaddress.IPv4Network
    # None: the namespace has no IPv6 but its link-local address.
    network6: ipaddress.IPv6Network | None
    # Captured ports that are reached from outside; None: those that the section `capture` declares.
    publish: tuple[int, ...] | None
    # Whether the machine's forwarding may be turned on.
    set_forwarding: bool
    # Seconds that the sidecar has until it is ready.
    ready_within: int

    @property
    def interface(self) -> str:
        """The machine's end of the wire."""
        return f"fd-{self.name}"

    @property
    def networks(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        """One or both."""
        return (self.network,) if self.network6 is None else (self.network, self.network6)


def options(environment: str) -> tuple[Option, ...]:
    """Return the keys."""
    option = partial(Option, environment)
    return (
        option("run.name", "NAME", "what `firedoor run` calls its network namespace"),
        option("run.network", "NETWORK", "IPv4 addresses of its wire, such as 10.201.7.0/30"),
        option("run.network6", "NETWORK", "IPv6 addresses of its wire"),
        option("run.publish", "PORT", "captured ports that are reached from outside (capture.ports)", several=True),
        option("run.forwarding", "require|set", "whether the machine's forwarding may be turned on"),
        option("run.ready_within", "DURATION", "how long the sidecar may take until it is ready (60s)"),
    )


def parse(top: Section) -> Run | None:
    """Read `run`; None when it is absent."""
    if top.get("run") is None:
        return None
    if top.get("capture") is None:
        top.findings.add(top.at("run"), "run", "needs a section `capture`")
    section = top.section("run")
    return Run(
        name=section.require("name", _name, "x"),
        network=section.require("network", _network4, ipaddress.IPv4Network("192.0.2.0/30")),
        network6=section.parse("network6", _network6, None),
        publish=_publish(section),
        set_forwarding=section.parse("forwarding", choice("require", "set"), "require") == "set",
        ready_within=section.parse("ready_within", duration(1, LONGEST_START_SECONDS), START_SECONDS),
    )


def _publish(section: Section) -> tuple[int, ...] | None:
    """Read the list; an empty one publishes nothing."""
    if section.get("publish") is None:
        return None
    return tuple(sorted(set(section.each("publish", integer(1, MAX_PORT)))))


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError("must be 1 to 11 of a-z, 0-9 and dashes, with no dash first")
    return value


def _network4(value: str) -> ipaddress.IPv4Network:
    try:
        found = ipaddress.IPv4Network(value)
    except ValueError:
        raise ValueError("must be an IPv4 network such as 10.201.7.0/30, with no bits after its length") from None
    _check_size(found.prefixlen, 30)
    return found


def _network6(value: str) -> ipaddress.IPv6Network | None:
    try:
        found = ipaddress.IPv6Network(value)
    except ValueError:
        raise ValueError("must be an IPv6 network such as fd01:7::/126, with no bits after its length") from None
    _check_size(found.prefixlen, 126)
    return found


def _check_size(length: int, longest: int) -> None:
    if length > longest:
        raise ValueError(f"must have room for two addresses: a length of {longest} at most")
