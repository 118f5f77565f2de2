# SPDX-License-Identifier: Apache-2.0
"""The listeners to which a network namespace's connections are redirected, in the `capture` section.

    capture:
      as: "spiffe://td/segment/registry/host/h1/svc/models"
      clients: network-namespace        # or entry: who matches an entry of `as` by uid
      ports:
        - {port: 9000, protocol: http}  # any other port is opaque
        - {port: 9001, protocol: tcp, plaintext: audit}
      app: {address: own, uid: 1001}    # own: the address that the peer wanted; or loopback
      limits: {max_connections: 4096}

Without `as` nothing is served: where rules redirect, nothing passes.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

from firedoor.certs import SpiffeId, TrustDomain
from firedoor.segments import document as yaml_text
from firedoor.segments.setting_values import MAX_PORT, choice, integer
from firedoor.segments.settings import Findings, Option, Section
from firedoor.sidecar import settings
from firedoor.sidecar.capture.settings import OUTBOUND_PORTS
from firedoor.sidecar.listeners import HTTP_LIMITS, LIMITS, PROTOCOLS, Listener, uid

MOST_PORTS = 1024
# Redirected connections arrive at whichever address the peer wanted.
ANY_V4, ANY_V6 = "0.0.0.0", "[::]"  # noqa: S104
NAME = "capture"
NAME_V6 = "capture-6"


@dataclass(frozen=True, slots=True)
class Port:
    """What arrives at a port; `plaintext`: also without TLS, while the segment is in audit mode."""

    port: int
    protocol: str
    plaintext: bool

    def core(self) -> dict[str, Any]:
        """Return what `Core.listen` takes."""
        own = {"port": self.port, "protocol": self.protocol}
        return {**own, "plaintext": "audit"} if self.plaintext else own


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptureInbound(Listener):
    """Takes mTLS connections to any port of the namespace, and hands them to the app at that port."""

    ports: tuple["Port", ...]
    app_address: Literal["own", "loopback"]
    app_uid: int | None
    # Of the sidecar's own, which are no listeners.
    reserved: tuple[int, ...]

    @property
    def direction(self) -> Literal["inbound", "outbound"]:
        """Towards the app."""
        return "inbound"

    def core(self) -> dict[str, Any]:
        """Return what `Core.listen` takes; the service port is each connection's own."""
        app: dict[str, Any] = {"address": self.app_address}
        return {
            "direction": "capture_inbound",
            **_common(self),
            "ports": [one.core() for one in self.ports],
            "app": app if self.app_uid is None else {**app, "uid": self.app_uid},
            "reserved": list(self.reserved),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptureOutbound(Listener):
    """Takes connections of the namespace's programs to anywhere, and makes of them what the directory says."""

    clients: Literal["entry", "network-namespace"]

    @property
    def direction(self) -> Literal["inbound", "outbound"]:
        """Away from the app."""
        return "outbound"

    @property
    def told_by_uid(self) -> bool:
        """Whether an entry's programs are told by their uid; else every program of the namespace is one of them."""
        return self.clients == "entry"

    def core(self) -> dict[str, Any]:
        """Return what `Core.listen` takes."""
        return {"direction": "capture_outbound", **_common(self), "ports": OUTBOUND_PORTS, "clients": self.clients}


def _common(listener: Listener) -> dict[str, Any]:
    return {
        "name": listener.name,
        "as": str(listener.identity),
        "listen": listener.listen,
        "limits": dict(listener.limits),
    }


def options(environment: str) -> tuple[Option, ...]:
    """Return the keys of the section that are read here."""
    option = partial(Option, environment)
    return (
        option("capture.as", "ID", "the identity of the network namespace; nothing is served without it"),
        option("capture.clients", "entry|network-namespace", "who may use it: an entry's programs by uid, or all"),
        option("capture.ports", "YAML", "what arrives, by port: protocol, plaintext: audit", several=True),
        option("capture.app", "YAML", "where it is handed on: {address: own|loopback, uid: UID}", several=True),
        option("capture.probes", "YAML", "what the probe port answers for: {name, http|tcp|grpc}", several=True),
        option("capture.limits", "YAML", "limits as other listeners have them", several=True),
    )


@dataclass(frozen=True, slots=True)
class Places:
    """Where the rules lead: ports, by which families, and ports of the sidecar's own that are no listeners."""

    inbound: int
    outbound: int
    reserved: tuple[int, ...]
    # The kernel knows IPv6 at all; it has ::1.
    ipv6: bool = True
    ipv6_loopback: bool = True


def parse(section: Section, trust_domain: TrustDomain, places: Places) -> tuple[Listener, ...]:
    """Read the keys above; nothing when there is no identity to serve with."""
    if section.get("as") is None:
        for key in ("clients", "ports", "app", "limits"):
            if section.get(key) is not None:
                section.findings.add(section.at(key), section.path(key), "has no meaning without capture.as")
        return ()
    identity = section.require("as", settings.own_workload_id(trust_domain), trust_domain.id)
    clients = cast(
        Literal["entry", "network-namespace"], section.parse("clients", choice("entry", "network-namespace"), "entry")
    )
    app = _inner(section, "app", ("address", "uid"))
    made: list[Listener] = [
        CaptureInbound(
            # One socket for both families.
            **_shared(section, NAME, identity, f"{ANY_V6 if places.ipv6 else ANY_V4}:{places.inbound}"),
            ports=_ports(section),
            app_address=cast(Literal["own", "loopback"], app.parse("address", choice("own", "loopback"), "own")),
            app_uid=app.parse("uid", uid, None),
            reserved=places.reserved,
        )
    ]
    hosts = ((NAME, "127.0.0.1"), (NAME_V6, "[::1]")) if places.ipv6_loopback else ((NAME, "127.0.0.1"),)
    for name, host in hosts:
        made.append(CaptureOutbound(**_shared(section, name, identity, f"{host}:{places.outbound}"), clients=clients))
    return tuple(made)


def _shared(section: Section, name: str, identity: SpiffeId, listen: str) -> dict[str, Any]:
    return {
        "name": name,
        "identity": identity,
        "listen": listen,
        "protocol": "tcp",
        "service_port": 0,
        "limits": _limits(section),
        "at": str(section.at("as")),
    }


def _inner(section: Section, key: str, known: tuple[str, ...]) -> Section:
    node = section.get(key) or yaml_text.Mapping(section.node.at, ())
    return Section(node, section.path(key), known, section.findings)


def _limits(section: Section) -> tuple[tuple[str, int], ...]:
    every = {**LIMITS, **HTTP_LIMITS}
    inner = _inner(section, "limits", tuple(every))
    given = ((name, bounds) for name, bounds in every.items() if inner.get(name) is not None)
    return tuple((name, inner.parse(name, integer(least, most), 0)) for name, (least, most) in given)


def _ports(section: Section) -> tuple[Port, ...]:
    found: dict[int, Port] = {}
    items = list(section.items("ports"))
    if len(items) > MOST_PORTS:
        section.findings.add(section.at("ports"), section.path("ports"), f"has more than {MOST_PORTS} items")
        return ()
    for number, node in enumerate(items):
        one = _port(node, section.path(f"ports[{number}]"), section.findings)
        if one.port in found:
            section.findings.add(node.at, section.path(f"ports[{number}].port"), "stands in the list twice")
        found[one.port] = one
    return tuple(found[port] for port in sorted(found))


def _port(node: yaml_text.Node, key: str, findings: Findings) -> Port:
    one = Section(node, key, ("port", "protocol", "plaintext"), findings)
    return Port(
        one.require("port", integer(1, MAX_PORT), 1),
        one.require("protocol", choice(*PROTOCOLS), "tcp"),
        one.parse("plaintext", choice("audit"), "") == "audit",
    )
