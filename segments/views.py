# SPDX-License-Identifier: Apache-2.0
"""What one sidecar gets of the decision table: the flows with one end of its own, and every segment.

It needs the members and modes of *all* segments, or an ID of another segment would look to it like one of the fallback.
For questions about its own IDs, a view gives the engine's answers of the whole table.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import final

from firedoor.certs import IdPattern, SpiffeId, TrustDomain
from firedoor.segments.membership import Membership
from firedoor.wire import policy_pb2


def view(table: policy_pb2.Table, segments: AbstractSet[str], ids: Iterable[SpiffeId]) -> policy_pb2.Table:
    """Cut the part of a table for a sidecar that holds these IDs, in these segments. `Views` is faster for many."""
    return Views(table).view(segments, ids)


@final
class Views:
    """A table, indexed to be cut into the views of many sidecars. Sidecars with the same flows share one object."""

    def __init__(self, table: policy_pb2.Table) -> None:
        self._table = table
        self._by_segment: dict[str, set[str]] = {}
        own = TrustDomain.parse(table.trust_domain)
        claims: list[tuple[IdPattern, str]] = []
        for flow in table.flows:
            for end in (getattr(flow, "from"), flow.to):
                self._by_segment.setdefault(end.segment, set()).add(flow.name)
                if not end.segment:
                    claims.extend((IdPattern.parse(text, own), flow.name) for text in end.ids)
        self._by_id = Membership(own, claims, None)
        self._made: dict[frozenset[str], policy_pb2.Table] = {}

    def view(self, segments: AbstractSet[str], ids: Iterable[SpiffeId]) -> policy_pb2.Table:
        """Return the view for a sidecar that holds these IDs, in these segments. Do not change it: it may be shared."""
        names = {name for segment in segments if segment for name in self._by_segment.get(segment, ())}
        names.update(name for spiffe_id in ids for name in self._by_id.claims(spiffe_id))
        return self.with_flows(frozenset(names))

    def flows(self, segment: str | None, spiffe_id: SpiffeId) -> frozenset[str]:
        """Return the names of the flows that a view for this ID, in this segment, has."""
        return frozenset(self._by_segment.get(segment or "", ())).union(self._by_id.claims(spiffe_id))

    def with_flows(self, names: frozenset[str]) -> policy_pb2.Table:
        """Return the view with these flows. Do not change it: it may be shared."""
        if names not in self._made:
            self._made[names] = policy_pb2.Table(
                version=self._table.version,
                trust_domain=self._table.trust_domain,
                segments=self._table.segments,
                flows=(flow for flow in self._table.flows if flow.name in names),
            )
        return self._made[names]
