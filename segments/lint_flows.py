# SPDX-License-Identifier: Apache-2.0
"""The lint checks on flows; `linter.py` lists them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Final

from firedoor.certs import IdPattern
from firedoor.segments.cover import action_covers, any_covers, flow_reaches, names_everybody
from firedoor.segments.findings import Finding, Position
from firedoor.segments.model import Flow, HttpAction, PolicySet, Segment, Subject
from firedoor.segments.schema import nearest

# (the word in the document, the end of the flow)
_Ends = tuple[tuple[str, Subject], tuple[str, Subject]]


def _ends(flow: Flow) -> _Ends:
    return (("from", flow.source), ("to", flow.destination))


def answered_for(policy: PolicySet) -> Iterator[Finding]:
    """Somebody owns each flow, and it has a reason that can be asked about."""
    for flow in policy.flows:
        if not flow.owner:
            at = flow.at("spec", "owner")
            yield Finding("error", "missing_owner", at, f"flow {flow.name} has no owner", "add `owner: <team>`")
        if not flow.reason:
            at = flow.at("spec", "reason")
            fix = "add `reason:`, a line that says what it is for"
            yield Finding("error", "missing_reason", at, f"flow {flow.name} has no reason", fix)


def subjects(policy: PolicySet) -> Iterator[Finding]:
    """Each end names a declared segment, nobody more than is meant, and somebody who can exist."""
    declared = {segment.name: segment for segment in policy.segments}
    for flow in policy.flows:
        for word, subject in _ends(flow):
            at = flow.at("spec", word, "segment")
            if subject.segment is not None and subject.segment not in declared:
                message = f"flow {flow.name} names segment {subject.segment}, which is not declared"
                yield Finding("error", "unknown_segment", at, message, nearest(subject.segment, declared))
                continue
            segment = declared.get(subject.segment or "")
            if word == "to" and segment is not None and segment.fallback:
                yield Finding(
                    "warning",
                    "leads_to_fallback",
                    at,
                    f"flow {flow.name} leads to segment {segment.name}, the fallback: to whatever no segment claims",
                    "declare a segment for the destination",
                )
            yield from _ids(policy, flow, word, subject)


def _ids(policy: PolicySet, flow: Flow, word: str, subject: Subject) -> Iterator[Finding]:
    many = len(subject.ids) > 1
    for index, pattern in enumerate(subject.ids):
        at = flow.at("spec", word, "id", index) if many else flow.at("spec", word, "id")
        if subject.segment is None and names_everybody(pattern, policy.trust_domain):
            message = f"`{word}` of flow {flow.name} names everybody: {pattern}"
            yield Finding("error", "wildcard_subject", at, message, "name the segment that is meant")
        elif not can_match(policy, subject.segment, pattern):
            where = "any segment" if subject.segment is None else f"segment {subject.segment}"
            yield Finding(
                "error",
                "outside_segment",
                at,
                f"{pattern} in `{word}` of flow {flow.name} matches no member of {where}",
                "correct the pattern, or add it to the segment's members",
            )


def can_match(policy: PolicySet, name: str | None, pattern: IdPattern) -> bool:
    """Say whether the pattern may match a member of the segment of that name; None: of any."""
    for segment in policy.segments:
        if name is not None and segment.name != name:
            continue
        if any(member.overlaps(pattern) for member in segment.members):
            return True
        if segment.fallback and _left_over(policy, segment, pattern):
            return True
    return False


def _left_over(policy: PolicySet, fallback: Segment, pattern: IdPattern) -> bool:
    """Say whether some ID may match the pattern and be claimed by no segment."""
    if pattern.trust_domain != policy.trust_domain:
        return False
    return not any(any_covers(one.members, pattern) for one in policy.segments if one is not fallback)


def effects(policy: PolicySet) -> Iterator[Finding]:
    """A flow allows something at some time."""
    for flow in policy.flows:
        if not flow.allow:
            at = flow.at("spec", "allow")
            yield Finding("error", "empty_allow", at, f"flow {flow.name} allows nothing", "add an action, or remove it")
        valid = flow.valid
        if valid and valid.start is not None and valid.until is not None and valid.until <= valid.start:
            at = flow.at("spec", "valid")
            yield Finding("error", "never_valid", at, f"flow {flow.name} ends before it begins", "correct `valid`")
        for index, action in enumerate(flow.allow):
            if isinstance(action, HttpAction) and "CONNECT" in action.methods:
                yield Finding(
                    "warning",
                    "refused_method",
                    flow.at("spec", "allow", index, "http", "methods"),
                    f"flow {flow.name} allows CONNECT, which listeners refuse before flows are asked",
                    "remove it",
                )


def unreachable(policy: PolicySet) -> Iterator[Finding]:
    """No action is covered by another: it would never decide, and removing it would change nothing."""
    segments = {segment.name: segment for segment in policy.segments}
    by_port: dict[int, list[Flow]] = defaultdict(list)
    for flow in policy.flows:
        by_port[flow.port].append(flow)
    for flows in by_port.values():
        for flow in flows:
            wider = [other for other in flows if other is not flow and flow_reaches(other, flow, segments)]
            for index in range(len(flow.allow)):
                yield from _covered(flow, index, wider, segments)


def _covered(flow: Flow, index: int, wider: list[Flow], segments: dict[str, Segment]) -> Iterator[Finding]:
    action = flow.allow[index]
    for place, other in enumerate(flow.allow):
        # Of two that cover each other the first stays.
        if place != index and action_covers(other, action) and (place < index or not action_covers(action, other)):
            yield _unreachable(flow, index, f"action {place + 1} of the same flow", flow.at("spec", "allow", place))
            return
    for rival in wider:
        for place, other in enumerate(rival.allow):
            equal = action_covers(action, other) and flow_reaches(flow, rival, segments)
            if action_covers(other, action) and (not equal or rival.name < flow.name):
                yield _unreachable(flow, index, f"flow {rival.name}", rival.at("spec", "allow", place))
                return


def _unreachable(flow: Flow, index: int, by: str, where: Position) -> Finding:
    return Finding(
        "error",
        "unreachable_rule",
        flow.at("spec", "allow", index),
        f"everything that action {index + 1} of flow {flow.name} allows is allowed by {by} ({where}) already",
        "remove it, or narrow the wider one",
    )


FLOW_CHECKS: Final[tuple[Callable[[PolicySet], Iterator[Finding]], ...]] = (
    answered_for,
    subjects,
    effects,
    unreachable,
)
