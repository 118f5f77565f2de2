# SPDX-License-Identifier: Apache-2.0
"""What one sidecar gets of the decision table: the flows with one end of its own, their services, and every segment.

It needs the members and modes of *all* segments, or an ID of another segment would look to it like one of the fallback.
For questions about its own IDs, a view gives the engine's answers of the whole table. Of the directory it gets what a
flow *from* its IDs could reach; all of it for an ID of a segment in audit mode, which passes what no flow allows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from typing import Final, final

from firedoor.certs import IdPattern, SpiffeId, TrustDomain
from firedoor.segments.listeners import Protocol, protocols_of
from firedoor.segments.membership import Membership
from firedoor.segments.reach import Lead, Reach
from firedoor.wire import policy_pb2

_PROTOCOLS: Final[dict[int, Protocol]] = {
    policy_pb2.PROTOCOL_UNSPECIFIED: "tcp",
    policy_pb2.PROTOCOL_TCP: "tcp",
    policy_pb2.PROTOCOL_HTTP: "http",
    policy_pb2.PROTOCOL_GRPC: "grpc",
}


@final
@dataclass(frozen=True, slots=True)
class Part:
    """What a view has of a table, by name, beside all segments."""

    flows: frozenset[str] = frozenset()
    services: frozenset[str] = frozenset()
    # For services that are no documents (directory.py): the flows from its IDs, and whether it is to have all.
    leaving: frozenset[str] = frozenset()
    audits: bool = False

    def __or__(self, other: Part) -> Part:
        """Return what two IDs on one sidecar need."""
        return Part(
            self.flows | other.flows,
            self.services | other.services,
            self.leaving | other.leaving,
            self.audits or other.audits,
        )


def view(table: policy_pb2.Table, segments: AbstractSet[str], ids: Iterable[SpiffeId]) -> policy_pb2.Table:
    """Cut the part of a table for a sidecar that holds these IDs, in these segments. `Views` is faster for many."""
    return Views(table).view(segments, ids)


@final
class Views:
    """A table, indexed to be cut into the views of many sidecars. Sidecars with the same part share one object."""

    def __init__(self, table: policy_pb2.Table) -> None:
        self._table = table
        own = self._own = TrustDomain.parse(table.trust_domain)
        self._with_segment, self._from_segment = _by_segment(table)
        self._with_id = _by_id(table, own, ("from", "to"))
        self._from_id = _by_id(table, own, ("from",))
        self.service_names = frozenset(one.name for one in table.services)
        self._services = self._services_by_flow()
        self._audits = {one.name for one in table.segments if one.mode == policy_pb2.MODE_AUDIT}
        self._parts: dict[tuple[str, frozenset[str], frozenset[str]], Part] = {}
        self._made: dict[Part, policy_pb2.Table] = {}
        self._head = _encoded(policy_pb2.Table(version=table.version, trust_domain=table.trust_domain))
        # Encoded once, as fields of a table: a view is a matter of joining them.
        self._segment_bytes = {one.name: _encoded(policy_pb2.Table(segments=[one])) for one in table.segments}
        self._flow_bytes = {flow.name: _encoded(policy_pb2.Table(flows=[flow])) for flow in table.flows}
        self._service_bytes = {one.name: _encoded(policy_pb2.Table(services=[one])) for one in table.services}

    def view(self, segments: AbstractSet[str], ids: Iterable[SpiffeId]) -> policy_pb2.Table:
        """Return the view for a sidecar that holds these IDs, in these segments. Do not change it: it may be shared."""
        part = Part()
        for segment in segments:
            part |= self._part(segment, frozenset(), frozenset())
        for spiffe_id in ids:
            part |= self.part(None, spiffe_id)
        return self.with_part(part)

    def part(self, segment: str | None, spiffe_id: SpiffeId) -> Part:
        """Return what a view for this ID, in this segment, has."""
        return self._part(segment or "", self._with_id.claims(spiffe_id), self._from_id.claims(spiffe_id))

    def _part(self, segment: str, named: frozenset[str], leaving: frozenset[str]) -> Part:
        key = (segment, named, leaving)
        if key not in self._parts:
            flows = named.union(self._with_segment.get(segment, ())) if segment else named
            sources = leaving.union(self._from_segment.get(segment, ())) if segment else leaving
            services = frozenset(name for flow in sources for name in self._services.get(flow, ()))
            audits = segment in self._audits
            self._parts[key] = Part(flows, self.service_names if audits else services, frozenset(sources), audits)
        return self._parts[key]

    @cached_property
    def addresses(self) -> Mapping[bytes, frozenset[int]]:
        """The ports of each address that documents have, packed as in a table."""
        found: defaultdict[bytes, set[int]] = defaultdict(set)
        for service in self._table.services:
            ports = [port.port for port in service.ports]
            for address in service.addresses:
                found[address].update(ports)
        return {address: frozenset(ports) for address, ports in found.items()}

    @cached_property
    def rows(self) -> int:
        """How many pairs of address and port documents have."""
        return sum(len(one.addresses) * len(one.ports) for one in self._table.services)

    def flows_to(self, service: policy_pb2.Service) -> set[str]:
        """Return the names of the flows that could lead to a service, which need not be a document's."""
        found: set[str] = set()
        for port in service.ports:
            expect = [IdPattern.parse(text, self._own) for text in port.expect]
            found |= self._reach.flows(port.service_port, _PROTOCOLS[port.protocol], expect)
        return found

    @cached_property
    def _reach(self) -> Reach:
        return _reach(self._table, self._own)

    def _services_by_flow(self) -> dict[str, set[str]]:
        """Return the names of the services that each flow could lead to."""
        found: dict[str, set[str]] = {}
        for service in self._table.services:
            for flow in self.flows_to(service):
                found.setdefault(flow, set()).add(service.name)
        return found

    def with_part(self, part: Part) -> policy_pb2.Table:
        """Return the view with these flows and services. Do not change it: it may be shared."""
        if part not in self._made:
            self._made[part] = policy_pb2.Table(
                version=self._table.version,
                trust_domain=self._table.trust_domain,
                segments=self._table.segments,
                flows=(flow for flow in self._table.flows if flow.name in part.flows),
                services=(one for one in self._table.services if one.name in part.services),
            )
        return self._made[part]

    def part_bytes(self, part: Part) -> bytes:
        """Return what `table_bytes` makes of the view with these flows and services."""
        head, items = self.part_items(part)
        return b"".join((head, *(data for each in items for data in each.values())))

    def part_items(self, part: Part) -> tuple[bytes, tuple[Mapping[str, bytes], ...]]:
        """Return the same in pieces: what is in no list; segments, flows and services, each encoded, by name."""
        flows = {name: data for name, data in self._flow_bytes.items() if name in part.flows}
        services = {name: data for name, data in self._service_bytes.items() if name in part.services}
        return self._head, (self._segment_bytes, flows, services)


def _encoded(table: policy_pb2.Table) -> bytes:
    return table.SerializeToString(deterministic=True)


def _by_segment(table: policy_pb2.Table) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Return the names of the flows with an end in a segment, and of those that begin there."""
    either: dict[str, set[str]] = {}
    begins: dict[str, set[str]] = {}
    for flow in table.flows:
        source = getattr(flow, "from").segment
        begins.setdefault(source, set()).add(flow.name)
        for segment in (source, flow.to.segment):
            either.setdefault(segment, set()).add(flow.name)
    return either, begins


def _by_id(table: policy_pb2.Table, own: TrustDomain, ends: tuple[str, ...]) -> Membership:
    """Index the flows by the ends that name IDs and no segment."""
    subjects = ((getattr(flow, end), flow.name) for flow in table.flows for end in ends)
    claims = [(IdPattern.parse(text, own), name) for end, name in subjects if not end.segment for text in end.ids]
    return Membership(own, claims, None)


def _reach(table: policy_pb2.Table, own: TrustDomain) -> Reach:
    """Index where the flows of a table lead."""
    leads = (
        Lead(
            flow.name,
            flow.port,
            protocols_of(flow),
            flow.to.segment,
            tuple(IdPattern.parse(text, own) for text in flow.to.ids),
        )
        for flow in table.flows
    )
    reach = Reach(own, next((one.name for one in table.segments if one.fallback), None), leads)
    for segment in table.segments:
        reach.members(segment.name, (IdPattern.parse(text, own) for text in segment.members))
    return reach
