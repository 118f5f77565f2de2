# SPDX-License-Identifier: Apache-2.0
"""Whether a segment admits an ID: the question before every signature.

`entry` selectors are as trustworthy as the node's agent, which says that it saw them; only `node` selectors, which the
broker attested itself, resist a compromised node. All that the segment names must be there. A pod's sidecar is agent
and workload in one, so that nothing stands behind what it says of itself: such an agent is admitted by `node` selectors
or not at all, the fallback's IDs too.

The answer is an `Admitted`, which nothing else can make, so that what signs can ask for one.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Literal, final

from firedoor.certs import K8S_POD, Selector, SpiffeId
from firedoor.segments.errors import (
    AdmissionEmpty,
    AdmissionRefused,
    BreakGlassRefused,
    MintRefused,
    NoSegment,
    PodNotAsked,
)
from firedoor.segments.model import PolicySet, Segment

Basis = Literal["workload", "mint", "breakglass"]


@final
@dataclass(frozen=True, slots=True, init=False)
class Admitted:
    """The segment of `spiffe_id` admits it. Made by the `check_...` functions alone."""

    spiffe_id: SpiffeId
    segment: Segment
    # Selectors were checked, or the segment lets it be minted without a workload, or given to who was approved.
    basis: Basis

    def __init__(self) -> None:
        raise TypeError("Admitted is made by the functions that check")


def check_entry(policy: PolicySet, spiffe_id: SpiffeId, *, entry: AbstractSet[Selector]) -> Segment:
    """Check the half of admission that is known when an entry is written, and return the ID's segment. Raise Refused.

    This is for early refusal: it proves nothing about the node, and no `Admitted` comes of it.
    """
    segment = _segment(policy, spiffe_id)
    if not (segment.admission.entry or segment.admission.node or segment.fallback):
        raise AdmissionEmpty(spiffe_id, segment.name)
    for selector in segment.admission.entry:
        if selector not in entry:
            raise AdmissionRefused(spiffe_id, segment.name, "entry", selector)
    return segment


def check_admission(
    policy: PolicySet, spiffe_id: SpiffeId, *, entry: AbstractSet[Selector], node: AbstractSet[Selector]
) -> Admitted:
    """Check both halves of admission, before a signature. Raise Refused with the first selector that is missing.

    `node` is what the broker itself attested for the calling agent, never what the agent reports.
    """
    segment = check_entry(policy, spiffe_id, entry=entry)
    for selector in segment.admission.node:
        if selector not in node:
            raise AdmissionRefused(spiffe_id, segment.name, "node", selector)
    if not segment.admission.node and any(selector.type == K8S_POD for selector in node):
        raise PodNotAsked(spiffe_id, segment.name)
    return _admitted(spiffe_id, segment, "workload")


def check_mint(policy: PolicySet, spiffe_id: SpiffeId) -> Admitted:
    """Check that an SVID for the ID may be minted without a workload. Raise Refused."""
    segment = _segment(policy, spiffe_id)
    if not segment.admission.mint:
        raise MintRefused(spiffe_id, segment.name)
    return _admitted(spiffe_id, segment, "mint")


def check_breakglass(policy: PolicySet, spiffe_id: SpiffeId) -> Admitted:
    """Check that an SVID for the ID may be given to a person whom another one approved. Raise Refused."""
    segment = _segment(policy, spiffe_id)
    if not segment.admission.breakglass:
        raise BreakGlassRefused(spiffe_id, segment.name)
    return _admitted(spiffe_id, segment, "breakglass")


def _segment(policy: PolicySet, spiffe_id: SpiffeId) -> Segment:
    segment = policy.segment_of(spiffe_id)
    if segment is None:
        raise NoSegment(spiffe_id)
    return segment


def _admitted(spiffe_id: SpiffeId, segment: Segment, basis: Basis) -> Admitted:
    made = object.__new__(Admitted)
    object.__setattr__(made, "spiffe_id", spiffe_id)
    object.__setattr__(made, "segment", segment)
    object.__setattr__(made, "basis", basis)
    return made
