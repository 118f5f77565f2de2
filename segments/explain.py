# SPDX-License-Identifier: Apache-2.0
"""The engine's answer in sentences: which flow allows it and who answers for that, or what is missing.

Nothing is decided here: the decision comes in as an argument, and is only put into words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Protocol, TypeVar, final

from firedoor.certs import SpiffeId
from firedoor.segments.membership import reserved_for
from firedoor.segments.model import Action, Flow, GrpcAction, HttpAction, Mode, PolicySet, Subject, TcpAction
from firedoor.segments.questions import Asked, Question

# More flows than this explain nothing.
_MOST: Final = 5
# From the reason that is furthest from an allowed request to the nearest.
_NEARNESS: Final = (
    "bad_id",
    "bad_request",
    "unknown_source",
    "unknown_destination",
    "no_flow",
    "port_not_named",
    "action_not_named",
    "out_of_time",
    "allowed",
)


class Decided(Protocol):
    """What the engine answers; `firedoor.mtls.Decision` is one."""

    @property
    def allowed(self) -> bool:
        """Whether a flow allows it."""

    @property
    def flow(self) -> str | None:
        """The flow that allows it."""

    @property
    def reason(self) -> str:
        """A stable code."""

    @property
    def source_segment(self) -> str | None:
        """The source's segment."""

    @property
    def destination_segment(self) -> str | None:
        """The destination's segment."""

    @property
    def near(self) -> Sequence[str]:
        """Flows that fit both ends and the port, but not the action or the time."""


D = TypeVar("D", bound=Decided)


@final
@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer for a person: the verdict first, then what is nearest to it."""

    allowed: bool
    reason: str
    flow: str | None
    sentences: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.sentences)


def explain(question: Question, decision: Decided, policy: PolicySet) -> Explanation:
    """Put a decision into sentences. `policy` is the one that the engine's table was compiled from."""
    if decision.allowed:
        sentences = [_allowed(decision, policy)]
    else:
        sentences = [*_denied(question, decision, policy), *_audit(decision, policy)]
    return Explanation(decision.allowed, decision.reason, decision.flow, tuple(sentences))


def nearest_answer(answers: Iterable[tuple[Question, D]]) -> tuple[Question, D]:
    """Of the answers for several examples of a destination, return one that is allowed, or comes nearest to it."""
    return max(answers, key=lambda answer: _NEARNESS.index(answer[1].reason) if answer[1].reason in _NEARNESS else -1)


def _allowed(decision: Decided, policy: PolicySet) -> str:
    flow = policy.flow(decision.flow or "")
    if flow is None:
        return f"allowed by flow {decision.flow}"
    return f"allowed by flow {flow.name}, owned by {flow.owner}: {flow.reason}"


def _denied(question: Question, decision: Decided, policy: PolicySet) -> list[str]:
    ends = f"from segment {decision.source_segment} to segment {decision.destination_segment}"
    match decision.reason:
        case "unknown_source":
            return _unknown("source", question.source, policy)
        case "unknown_destination":
            return _unknown("destination", question.destination, policy)
        case "no_flow":
            return [f"denied: no flow leads {ends}", *_from_or_to(question, decision, policy)]
        case "port_not_named":
            return [
                f"denied: flows lead {ends}, but none to port {question.port}",
                *(f"flow {flow.name} leads to port {flow.port}" for flow in _between(question, decision, policy)),
            ]
        case "action_not_named":
            return [
                f"denied: flows lead {ends} at port {question.port}, but none allows {question.asked}",
                *(_what_differs(flow, question.asked) for flow in _named(decision.near, policy)),
            ]
        case "out_of_time":
            return [
                f"denied: a flow {ends} would allow {question.asked}, but not at {_time(question.time)}",
                *(_when(flow) for flow in _named(decision.near, policy) if flow.valid),
            ]
        case "bad_request":
            return [f"denied: {question.asked} is malformed or could be read in two ways, which no flow can allow"]
    return [f"denied: {decision.reason}"]


def _unknown(end: str, spiffe_id: SpiffeId, policy: PolicySet) -> list[str]:
    said = [f"denied: the {end} {spiffe_id} belongs to no segment"]
    claims = policy.claims(spiffe_id)
    owner = reserved_for(spiffe_id.segments) if spiffe_id.trust_domain == policy.trust_domain else None
    if len(claims) > 1:
        said.append(f"segments {', '.join(sorted(claims))} claim it, and an ID can belong to one only")
    elif owner is not None and policy.segment(owner) is None:
        said.append(f"IDs below /segment/{owner}/ are reserved for segment {owner}, which is not declared")
    elif owner is not None:
        said.append(f"IDs below /segment/{owner}/ are reserved for segment {owner}, whose members do not include it")
    elif not spiffe_id.path or spiffe_id.segments[0] == "spire":
        said.append("a trust domain's own ID and everything below /spire/ are outside all segments")
    else:
        said.append("no segment's members match it")
    return said


def _from_or_to(question: Question, decision: Decided, policy: PolicySet) -> list[str]:
    """Say where the source may go, and from where the destination may be reached."""
    goes = [f for f in policy.flows if _fits(f.source, question.source, decision.source_segment)]
    comes = [f for f in policy.flows if _fits(f.destination, question.destination, decision.destination_segment)]
    said = [f"flow {flow.name} leads from this source to {_end(flow.destination)}" for flow in goes[:_MOST]]
    return said + [f"flow {flow.name} leads to this destination from {_end(flow.source)}" for flow in comes[:_MOST]]


def _between(question: Question, decision: Decided, policy: PolicySet) -> list[Flow]:
    fitting = (
        flow
        for flow in policy.flows
        if _fits(flow.source, question.source, decision.source_segment)
        and _fits(flow.destination, question.destination, decision.destination_segment)
    )
    return list(fitting)[:_MOST]


def _fits(subject: Subject, spiffe_id: SpiffeId, segment: str | None) -> bool:
    if subject.segment not in (None, segment):
        return False
    return not subject.ids or any(pattern.matches(spiffe_id) for pattern in subject.ids)


def _named(names: Iterable[str], policy: PolicySet) -> list[Flow]:
    return [flow for name in list(names)[:_MOST] if (flow := policy.flow(name)) is not None]


def _end(subject: Subject) -> str:
    ids = ", ".join(str(pattern) for pattern in subject.ids)
    if subject.segment is None:
        return ids
    return f"segment {subject.segment} ({ids})" if ids else f"segment {subject.segment}"


def _what_differs(flow: Flow, asked: Asked) -> str:
    """Say of a flow that fits but for the action which of its facts is another."""
    alike = [action for action in flow.allow if _protocol(action) == asked.protocol]
    if not alike:
        protocols = " and ".join(sorted({_protocol(action) for action in flow.allow})) or "nothing"
        return f"flow {flow.name} allows {protocols} there, not {asked.protocol}"
    return f"flow {flow.name} allows " + "; or ".join(_fact(action, asked) for action in alike[:_MOST])


def _fact(action: Action, asked: Asked) -> str:
    if isinstance(action, HttpAction):
        if action.methods and asked.method not in action.methods:
            return f"the methods {', '.join(action.methods)}, not {asked.method}"
        if action.authorities and asked.authority.lower() not in action.authorities:
            return f"the authorities {', '.join(action.authorities)}, not {asked.authority or 'none'}"
        return f"the paths {', '.join(map(str, action.paths))}, not {asked.path}"
    if isinstance(action, GrpcAction):
        if action.service != asked.grpc_service:
            return f"the service {action.service}, not {asked.grpc_service}"
        return f"the methods {', '.join(action.methods)} of {action.service}, not {asked.grpc_method}"
    return "any opaque connection"


def _protocol(action: Action) -> str:
    return "tcp" if isinstance(action, TcpAction) else "http" if isinstance(action, HttpAction) else "grpc"


def _when(flow: Flow) -> str:
    assert flow.valid is not None  # noqa: S101  (the caller asks only about such flows)
    start, until = flow.valid.start, flow.valid.until
    since = f" from {_time(start)}" if start is not None else ""
    return f"flow {flow.name} holds{since}{f' until {_time(until)}' if until is not None else ''}"


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _audit(decision: Decided, policy: PolicySet) -> list[str]:
    """Say which end would let it pass all the same: audit mode relaxes "no flow allows this" and nothing else."""
    if decision.reason not in ("no_flow", "port_not_named", "action_not_named", "out_of_time"):
        return []
    said = []
    for end, name in (("source", decision.source_segment), ("destination", decision.destination_segment)):
        segment = policy.segment(name or "")
        if segment is not None and segment.mode == Mode.AUDIT:
            said.append(f"the {end}'s segment {segment.name} is in audit mode: its end records this and lets it pass")
    return said
