# SPDX-License-Identifier: Apache-2.0
"""Which flows can reach a listener, to find the listener that no flow can.

An opaque listener (`tcp`) whose port only http flows name would deny everything: its sidecar's `validate` says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

from firedoor.certs import IdPattern, SpiffeId, TrustDomain
from firedoor.segments.membership import Membership
from firedoor.segments.model import PolicySet
from firedoor.segments.table import compile_table
from firedoor.wire import policy_pb2

Protocol = Literal["tcp", "http", "grpc"]


@final
@dataclass(frozen=True, slots=True)
class ListenerFlows:
    """Names of the flows to an ID and port: those with an action of the listener's protocol, and those without."""

    usable: tuple[str, ...]
    # Flow name and the protocols that it does allow.
    other: tuple[tuple[str, tuple[Protocol, ...]], ...]

    def problem(self, as_id: SpiffeId, port: int, protocol: Protocol) -> str | None:
        """Say in a sentence why the listener would deny everything, if it would."""
        if self.usable:
            return None
        if not self.other:
            return f"no flow leads to {as_id} at port {port}, so this listener would deny everything"
        listed = ", ".join(f"{name} ({'/'.join(protocols)})" for name, protocols in self.other)
        return (
            f"the listener is {protocol}, but the flows to {as_id} at port {port} allow something else: {listed}; "
            f"change the listener's protocol or the flow's actions"
        )


def flows_for_listener(
    policy: PolicySet | policy_pb2.Table, as_id: SpiffeId, port: int, protocol: Protocol
) -> ListenerFlows:
    """Return the flows that lead to a receiving listener with this identity, service port and protocol."""
    table = compile_table(policy) if isinstance(policy, PolicySet) else policy
    own = TrustDomain.parse(table.trust_domain)
    segment = membership_of(table).segment_of(as_id)
    usable: list[str] = []
    other: list[tuple[str, tuple[Protocol, ...]]] = []
    for flow in table.flows:
        if flow.port != port or segment is None or not _leads_to(flow.to, segment, as_id, own):
            continue
        protocols = protocols_of(flow)
        if protocol in protocols:
            usable.append(flow.name)
        else:
            other.append((flow.name, protocols))
    return ListenerFlows(tuple(usable), tuple(other))


def membership_of(table: policy_pb2.Table) -> Membership:
    """Index the members of a table's segments."""
    own = TrustDomain.parse(table.trust_domain)
    claims = ((IdPattern.parse(text, own), one.name) for one in table.segments for text in one.members)
    return Membership(own, claims, next((one.name for one in table.segments if one.fallback), None))


def _leads_to(end: policy_pb2.Subject, segment: str, as_id: SpiffeId, own: TrustDomain) -> bool:
    if end.segment and end.segment != segment:
        return False
    if end.ids:
        return any(IdPattern.parse(text, own).matches(as_id) for text in end.ids)
    return bool(end.segment)


def protocols_of(flow: policy_pb2.Flow) -> tuple[Protocol, ...]:
    """Return the protocols that a flow allows something of."""
    found = {action.WhichOneof("kind") for action in flow.allow}
    every: tuple[Protocol, ...] = ("tcp", "http", "grpc")
    return tuple(one for one in every if one in found)
