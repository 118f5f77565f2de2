# SPDX-License-Identifier: Apache-2.0
"""The data path's listeners, as configured, and the JSON form in which the core takes them.

inbound:
- {name: models, as: "spiffe://td/segment/registry/host/h1/svc/models", listen: 0.0.0.0:19000,
service_port: 9000, protocol: tcp, app: {address: 127.0.0.1:9000, uid: 1001}}
outbound:
- {name: models, as: "spiffe://td/segment/inference/host/h2/svc/vllm", listen: "unix:/run/firedoor/out/m.sock",
protocol: tcp, expect: ["spiffe://td/segment/registry/host/*/svc/models"], service_port: 9000,
addresses: ["registry.internal:19000"]}
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from firedoor.certs import IdPattern, SpiffeId, TrustDomain
from firedoor.segments import document as yaml_text
from firedoor.segments import setting_values
from firedoor.segments.setting_values import MAX_PORT, choice, host_port, integer, ip_port, loopback_port
from firedoor.segments.settings import Findings, Section
from firedoor.sidecar import settings

PROTOCOLS = ("tcp", "http", "grpc")
HIGHEST_UID = 2**32 - 2  # The last value is "no user" (chown(2)).
LONGEST_TIMEOUT_MS = 24 * 3600 * 1000
MOST_CONNECTIONS = 1_000_000

_COMMON = ("name", "as", "listen", "protocol", "service_port")
# The least and the most of each limit; the data path has the defaults.
LIMITS = {
    "handshake_timeout_ms": (1, LONGEST_TIMEOUT_MS),
    "idle_timeout_ms": (1, LONGEST_TIMEOUT_MS),
    "max_connections": (1, MOST_CONNECTIONS),
    "max_connections_per_identity": (1, MOST_CONNECTIONS),
    "max_lifetime_ms": (1000, LONGEST_TIMEOUT_MS),
}
HTTP_LIMITS = {
    "header_timeout_ms": (1, LONGEST_TIMEOUT_MS),
    "max_header_bytes": (1024, 64 * 1024),
    "max_resets_per_second": (1, 1_000_000),
    "max_streams": (1, 10_000),
}
_INBOUND = (*_COMMON, *LIMITS, *HTTP_LIMITS, "app")
_OUTBOUND = (*_COMMON, *LIMITS, *HTTP_LIMITS, "expect", "addresses", "mode")
_MODE = re.compile(r"0?[0-7]{3}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Listener:
    """What inbound and outbound listeners share. `at` is where it is configured."""

    name: str
    identity: SpiffeId
    listen: str
    protocol: str
    service_port: int
    limits: tuple[tuple[str, int], ...]
    at: str

    @property
    def direction(self) -> Literal["inbound", "outbound"]:
        """Say which way the first byte goes, seen from the app."""
        raise NotImplementedError

    @property
    def told_by_uid(self) -> bool:
        """Whether local clients come by TCP, where the kernel names their uid and nothing else."""
        return False

    def spec(self) -> str:
        """Return what `Core.listen` takes, as JSON."""
        return json.dumps(self.core())

    def core(self) -> dict[str, Any]:
        """Return what `Core.listen` takes."""
        return {
            "direction": self.direction,
            "name": self.name,
            "as": str(self.identity),
            "listen": self.listen,
            "protocol": self.protocol,
            "service_port": self.service_port,
            **dict(self.limits),
            **self._own(),
        }

    def _own(self) -> dict[str, Any]:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, slots=True)
class Inbound(Listener):
    """Takes mTLS connections and hands them to the app."""

    app_address: str
    app_uid: int | None

    @property
    def direction(self) -> Literal["inbound", "outbound"]:
        """Towards the app."""
        return "inbound"

    def _own(self) -> dict[str, Any]:
        app: dict[str, Any] = {"address": self.app_address}
        return {"app": app if self.app_uid is None else {**app, "uid": self.app_uid}}


@dataclass(frozen=True, kw_only=True, slots=True)
class Outbound(Listener):
    """Takes local connections and makes mTLS connections of them."""

    expect: tuple[IdPattern, ...]
    addresses: tuple[str, ...]
    mode: str | None

    @property
    def direction(self) -> Literal["inbound", "outbound"]:
        """Away from the app."""
        return "outbound"

    @property
    def told_by_uid(self) -> bool:
        """Whether it listens on loopback TCP."""
        return not self.listen.startswith("unix:")

    def _own(self) -> dict[str, Any]:
        own: dict[str, Any] = {"expect": [str(one) for one in self.expect], "addresses": list(self.addresses)}
        return own if self.mode is None else {**own, "mode": self.mode}


def parse_inbound(node: yaml_text.Node, key: str, trust_domain: TrustDomain, findings: Findings) -> Inbound:
    """Read one item of `inbound`."""
    section = Section(node, key, _INBOUND, findings)
    app_node = section.get("app")
    if app_node is None:
        findings.add(node.at, section.path("app"), "is missing: the app's own address")
    app = Section(app_node or yaml_text.Mapping(node.at, ()), section.path("app"), ("address", "uid"), findings)
    return Inbound(
        **_common(section, trust_domain, ip_port),
        app_address=app.require("address", _app_address, "") if app_node is not None else "",
        app_uid=app.parse("uid", uid, None),
    )


def parse_outbound(node: yaml_text.Node, key: str, trust_domain: TrustDomain, findings: Findings) -> Outbound:
    """Read one item of `outbound`."""
    section = Section(node, key, _OUTBOUND, findings)
    section.require_some("expect", "the IDs that the peer may have")
    section.require_some("addresses", "where the peer may be found")
    found = Outbound(
        **_common(section, trust_domain, _local_address),
        expect=section.each("expect", lambda value: IdPattern.parse(value, trust_domain)),
        addresses=section.each("addresses", host_port),
        mode=section.parse("mode", _mode, None),
    )
    mode = section.get("mode")
    if mode is not None and found.told_by_uid:
        findings.add(mode.at, section.path("mode"), "a file mode has a meaning for a Unix socket only")
    return found


def _common(section: Section, trust_domain: TrustDomain, listen: Any) -> dict[str, Any]:
    protocol = section.require("protocol", choice(*PROTOCOLS), "tcp")
    return {
        "name": section.require("name", setting_values.name, ""),
        "identity": section.require("as", settings.own_workload_id(trust_domain), trust_domain.id),
        "listen": section.require("listen", listen, ""),
        "protocol": protocol,
        "service_port": section.require("service_port", integer(1, MAX_PORT), 1),
        "limits": _limits(section, protocol),
        "at": str(section.node.at),
    }


def _limits(section: Section, protocol: str) -> tuple[tuple[str, int], ...]:
    found = []
    for name, (least, most) in {**LIMITS, **HTTP_LIMITS}.items():
        given = section.get(name)
        if given is None:
            continue
        if name in HTTP_LIMITS and protocol == "tcp":
            section.findings.add(given.at, section.path(name), "has a meaning for http and grpc only")
        found.append((name, section.parse(name, integer(least, most), 0)))
    return tuple(found)


def uid(value: str) -> int | None:
    """Read the number of a user."""
    return integer(0, HIGHEST_UID)(value)


def _mode(value: str) -> str | None:
    if not _MODE.fullmatch(value):
        raise ValueError('must be three octal digits, quoted: "0660"')
    return value.rjust(4, "0")


def _unix(value: str) -> str:
    return f"unix:{settings.socket_path(value)}"


def _local_address(value: str) -> str:
    return _unix(value) if value.startswith("unix:") else loopback_port(value)


def _app_address(value: str) -> str:
    return _unix(value) if value.startswith("unix:") else host_port(value)
