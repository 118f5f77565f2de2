# SPDX-License-Identifier: Apache-2.0
"""What a policy is made of. All types are frozen and come from `load()`; nothing here has been linted yet.

The trust domain is already written into every pattern, times are Unix seconds, and lists are in the order of the file:
only the compiled table is sorted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, unique
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address
from types import MappingProxyType
from typing import Final, TypeAlias, final

from firedoor.certs import IdPattern, Selector, SpiffeId, TrustDomain
from firedoor.segments.findings import Position
from firedoor.segments.membership import Membership
from firedoor.segments.paths import PathPattern

API_VERSION: Final = "firedoor.dev/v1alpha1"


@unique
class Trust(IntEnum):
    """How much a segment's workloads are trusted: a label for people, exports and the blast radius, and ordered."""

    LOW = 1
    MEDIUM = 2
    HIGH = 3


@unique
class Mode(IntEnum):
    """Whether "no flow allows this" denies, or is only recorded."""

    ENFORCE = 1
    AUDIT = 2


@unique
class AuditLoss(IntEnum):
    """What happens when decision records cannot be kept: they are counted, or new requests are denied."""

    COUNT = 1
    DENY = 2


@final
@dataclass(frozen=True, slots=True)
class Admission:
    """Which selectors an SVID of the segment needs, all of them.

    `mint` lets IDs be minted without a workload, `breakglass` lets one person have one that another person approved.
    """

    entry: tuple[Selector, ...] = ()
    node: tuple[Selector, ...] = ()
    mint: bool = False
    breakglass: bool = False


@final
@dataclass(frozen=True, slots=True)
class Expiry:
    """How long a stream may outlive the SVID that opened it; 0 seconds: it is closed."""

    until_revoked: int = 0


class Placed:
    """Something that was read from a document and knows where its parts stood."""

    marks: Mapping[str, Position]

    def at(self, *path: str | int) -> Position:
        """Return the line of a part (`"spec", "members", 0`), or of the nearest part around it."""
        steps = [str(step) for step in path]
        while ".".join(steps) not in self.marks:
            steps.pop()
        return self.marks[".".join(steps)]


@final
@dataclass(frozen=True)
class Segment(Placed):
    """A named zone: who belongs to it and what an SVID of it needs."""

    name: str
    function: str
    trust: Trust
    vlan: int | None
    mode: Mode
    members: tuple[IdPattern, ...]
    admission: Admission
    fallback: bool
    audit_loss: AuditLoss
    expiry: Expiry
    # Nothing here goes by it: guards of a cluster do.
    read_only: bool = False
    marks: Mapping[str, Position] = field(default_factory=lambda: MappingProxyType({}), compare=False, repr=False)


@final
@dataclass(frozen=True, slots=True)
class Subject:
    """One end of a flow. What is given must hold: being of the segment, and matching one of the patterns."""

    segment: str | None = None
    ids: tuple[IdPattern, ...] = ()


@final
@dataclass(frozen=True, slots=True)
class TcpAction:
    """Any opaque connection."""


@final
@dataclass(frozen=True, slots=True)
class HttpAction:
    """HTTP requests. An empty list does not restrict."""

    methods: tuple[str, ...] = ()
    paths: tuple[PathPattern, ...] = ()
    authorities: tuple[str, ...] = ()


@final
@dataclass(frozen=True, slots=True)
class GrpcAction:
    """Calls of one gRPC service; without methods, of all of them."""

    service: str
    methods: tuple[str, ...] = ()


Action: TypeAlias = TcpAction | HttpAction | GrpcAction


@final
@dataclass(frozen=True, slots=True)
class Validity:
    """When a flow holds: from <= time < until, each open when None."""

    start: int | None = None
    until: int | None = None


@final
@dataclass(frozen=True)
class Flow(Placed):
    """A named, owned, reasoned permission."""

    name: str
    owner: str
    reason: str
    source: Subject
    destination: Subject
    port: int
    allow: tuple[Action, ...]
    valid: Validity | None
    marks: Mapping[str, Position] = field(default_factory=lambda: MappingProxyType({}), compare=False, repr=False)


Address: TypeAlias = IPv4Address | IPv6Address


@unique
class Speaks(IntEnum):
    """What a service's port is served as; the numbers are those of policy.proto."""

    TCP = 1
    HTTP = 2
    GRPC = 3


@final
@dataclass(frozen=True, slots=True)
class ServicePort:
    """A port that clients connect to, and the peers that may answer there."""

    port: int
    protocol: Speaks
    expect: tuple[IdPattern, ...]
    # The receiving listener's own; what flows name.
    service_port: int
    # `host:port`, hints where those peers are; none: where the client wanted to go.
    connect: tuple[str, ...] = ()


@final
@dataclass(frozen=True)
class Service(Placed):
    """What stands behind some addresses: a row of the directory, which permits nothing."""

    name: str
    addresses: tuple[Address, ...]
    ports: tuple[ServicePort, ...]
    marks: Mapping[str, Position] = field(default_factory=lambda: MappingProxyType({}), compare=False, repr=False)


@final
@dataclass(frozen=True)
class PolicySet:
    """All segments, flows and services, each sorted by name, with names that stand once."""

    trust_domain: TrustDomain
    segments: tuple[Segment, ...]
    flows: tuple[Flow, ...]
    services: tuple[Service, ...] = ()
    _membership: Membership = field(init=False, compare=False, repr=False)
    _segments: Mapping[str, Segment] = field(init=False, compare=False, repr=False)
    _flows: Mapping[str, Flow] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        claims = ((pattern, one.name) for one in self.segments for pattern in one.members)
        fallback = next((one.name for one in self.segments if one.fallback), None)
        object.__setattr__(self, "_membership", Membership(self.trust_domain, claims, fallback))
        object.__setattr__(self, "_segments", {one.name: one for one in self.segments})
        object.__setattr__(self, "_flows", {one.name: one for one in self.flows})

    def segment(self, name: str) -> Segment | None:
        """Return the segment of that name."""
        return self._segments.get(name)

    def flow(self, name: str) -> Flow | None:
        """Return the flow of that name."""
        return self._flows.get(name)

    def service_at(self, address: Address, port: int) -> tuple[Service, ServicePort] | None:
        """Return what the directory has for an address and port."""
        return self._directory.get((address, port))

    @cached_property
    def _directory(self) -> Mapping[tuple[Address, int], tuple[Service, ServicePort]]:
        # For those who explain; an edit need not wait for it.
        rows = ((one, port, address) for one in self.services for port in one.ports for address in one.addresses)
        return {(address, port.port): (one, port) for one, port, address in rows}

    def segment_of(self, spiffe_id: SpiffeId) -> Segment | None:
        """Return the one segment that the ID belongs to, by the same rules as the decision engine."""
        name = self._membership.segment_of(spiffe_id)
        return None if name is None else self.segment(name)

    def claims(self, spiffe_id: SpiffeId) -> frozenset[str]:
        """Return the names of the segments with a pattern that matches the ID."""
        return self._membership.claims(spiffe_id)
