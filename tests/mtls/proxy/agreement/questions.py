# SPDX-License-Identifier: Apache-2.0
"""Random policies and questions that can be asked of real listeners, and what must come of each.

A `Link` is a source, a destination, a port and a protocol: one pair of listeners. What is asked over it differs in
authority, method and path, or in gRPC service and method; some requests carry a trap, which is refused whatever the
policy says. What is expected is read from the YAML by the second opinion alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from tests.segments.evaluator import Evaluator, decoded_path, matches, seconds
from tests.segments.generator import HOUR, TD, Generator, Question, rfc3339

NEARNESS = ("no_flow", "port_not_named", "action_not_named", "out_of_time")
ENDS = ("source", "destination", "port", "protocol", "time")
REQUEST = {"tcp": (), "http": ("path", "path", "path", "method", "authority"), "grpc": ("grpc_service", "grpc_method")}
# An origin form that every parser takes apart alike, whatever it decodes to.
PLAIN = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@%/?\\-]*")
AUTHORITY = re.compile(r"[A-Za-z0-9.-]+(:[0-9]+)?")

GRPC_AUTHORITY = "models.corp.example"

# What a request is sent with, and the status and reason that it is refused with; HTTP's 400 is gRPC's 3, 403 is 7.
HTTP_TRAPS = {
    "two hosts": (400, "bad_request"),
    "no host": (400, "bad_request"),
    "absolute form": (400, "bad_request"),
    "grpc": (403, "protocol_mismatch"),
    "upgrade": (400, "upgrade_refused"),
    "connect": (403, "connect_refused"),
    "asterisk": (400, "bad_request"),
}
HTTP2_TRAPS = {
    "another host": (400, "bad_request"),
    "grpc": (403, "protocol_mismatch"),
    "user info": (400, "bad_request"),
}
GRPC_TRAPS = {
    "json": (403, "protocol_mismatch"),
    "web": (403, "protocol_mismatch"),
    "get": (403, "protocol_mismatch"),
    "query": (400, "bad_request"),
    "encoded": (400, "bad_request"),
    "deeper": (400, "bad_request"),
    "dot segment": (400, "bad_request"),
}


@dataclass(frozen=True)
class Link:
    """Where questions are asked. `straight`: as a peer at the inbound listener, else through both ends."""

    source: str
    destination: str
    port: int
    protocol: str
    http2: bool
    straight: bool


@dataclass(frozen=True)
class Asked:
    """One question, with the trap that it carries or "", and the target as it is written."""

    question: Question
    trap: str
    target: str

    @property
    def plain(self) -> bool:
        """Whether every parser takes the request apart alike, so that it gets past them to what decides."""
        q = self.question
        readable = PLAIN.fullmatch(q["path"]) and AUTHORITY.fullmatch(q["authority"])
        return q["protocol"] != "http" or readable is not None


@dataclass(frozen=True)
class Verdict:
    """What one end must say: a status as HTTP has it, and the record."""

    status: int
    decision: str
    reason: str
    flow: str

    @property
    def passes(self) -> bool:
        return self.decision != "denied"


class Asker(Generator):
    """Policies whose windows lie around `at`, which is when all questions are asked."""

    def __init__(self, seed: int, at: int) -> None:
        self.at = at
        super().__init__(seed)
        self.opinion = Evaluator(self.text, TD)

    def _flow(self, number: int) -> dict[str, Any]:
        document = super()._flow(number)
        document["spec"].pop("valid", None)
        if self.r.random() < 0.3:
            # An hour away, so that none begins or ends during the test.
            valid = {"from": self.r.choice((-2, -1, -1, 1)), "until": self.r.choice((-1, 1, 1, 2))}
            document["spec"]["valid"] = {
                word: rfc3339(self.at + hours * HOUR) for word, hours in valid.items() if self.r.random() < 0.7
            }
        return document

    def links(self, number: int) -> Iterator[tuple[Link, dict[str, Any]]]:
        """Yield links with the flow that they were made from; every third is one field away from it."""
        while number:
            flow = self.r.choice(self.flows)
            question = {**self._fitting(flow), "time": self.at}
            if self.r.random() < 0.35:
                field = self.r.choice(("source", "destination", "port", "protocol"))
                question[field] = getattr(self, f"_other_{field}")(question[field])
            # A trust domain's own ID is nobody's: no SVID holds it, so that it can neither ask nor be asked.
            if any(question[end].count("/") == 2 for end in ("source", "destination")):
                continue
            yield self._link(question), flow
            number -= 1

    def _link(self, question: Question) -> Link:
        protocol, straight = question["protocol"], self.r.random() < 0.5
        http2 = protocol == "grpc" or (protocol == "http" and self.r.random() < 0.5)
        return Link(question["source"], question["destination"], question["port"], protocol, http2, straight)

    def asked_over(self, link: Link, flow: dict[str, Any], number: int) -> Iterator[Asked]:
        """Yield questions over a link, most of them made from its flow."""
        ends = {field: getattr(link, field) for field in ENDS[:4]} | {"time": self.at}
        same_kind = [f for f in self.flows if any(link.protocol in action for action in f["spec"]["allow"])]
        for _ in range(number):
            near = flow if flow in same_kind and self.r.random() < 0.8 else self.r.choice(same_kind or [flow])
            question = self._request(near, link.protocol)
            if REQUEST[link.protocol] and self.r.random() < 0.45:
                field = self.r.choice(REQUEST[link.protocol])
                question[field] = getattr(self, f"_other_{field}")(question[field])
            # The parser cuts a fragment off before anybody decides, and it is not sent on.
            written = "/" * question["path"].startswith("#") + question["path"]
            question["path"] = written.partition("#")[0]
            asked = Asked({**question, **ends}, "", written)
            yield replace(asked, trap=self._trap(link)) if asked.plain else asked

    def _request(self, flow: dict[str, Any], protocol: str) -> Question:
        actions = [action for action in flow["spec"]["allow"] if protocol in action]
        made = {"tcp": {"tcp": {}}, "http": {"http": {}}, "grpc": {"grpc": {"service": "vectors.Search"}}}[protocol]
        return self._fitting({"spec": {**flow["spec"], "allow": actions or [made]}})

    def _trap(self, link: Link) -> str:
        if link.protocol == "tcp" or self.r.random() > 0.08:
            return ""
        return self.r.choice(list(traps(link)))

    def verdict(self, link: Link, asked: Asked, end: str) -> Verdict:
        """Say what the outbound end (by the source's mode) or the inbound one (by the destination's) must say."""
        if refused := _refused(link, asked):
            return Verdict(refused[0], "denied", refused[1], "")
        flow = self.opinion.allowing_flow(asked.question)
        if flow is not None:
            return Verdict(200, "allowed", "allowed", flow)
        segments = [self.opinion.segment_of(asked.question[side]) for side in ("source", "destination")]
        audited = None not in segments and self._audits(segments[end == "inbound"])
        return Verdict(200, "audit", "", "") if audited else Verdict(403, "denied", "", "")

    def _audits(self, segment: str | None) -> bool:
        return segment is not None and self.opinion.segments[segment].get("mode") == "audit"

    def foreseen(self, link: Link) -> str:
        """Say why no flow could carry anything over a link, "" if one could or the source is in audit mode.

        The outbound end looks for that first, without the request and before it knows who the peer is, so that what
        it records may be further from an allowed request than what `explain` finds.
        """
        near = {"no_flow"}
        if self._audits(self.opinion.segment_of(link.source)):
            return ""
        for flow in self.opinion.flows.values():
            if not self._leaves(flow["from"], link.source) or not self._reaches(flow["to"], link.destination):
                continue
            valid = {word: seconds(value) for word, value in flow.get("valid", {}).items()}
            if flow["to"]["port"] != link.port:
                near.add("port_not_named")
            elif not any(link.protocol in action for action in flow["allow"]):
                near.add("action_not_named")
            elif not valid.get("from", 0) <= self.at < valid.get("until", self.at + 1):
                near.add("out_of_time")
            else:
                return ""
        return next(reason for reason in reversed(NEARNESS) if reason in near)

    def _leaves(self, end: dict[str, Any], source: str) -> bool:
        segment = self.opinion.segment_of(source)
        return end.get("segment", segment) == segment and matches(end.get("id", source), source, TD)

    def _reaches(self, end: dict[str, Any], destination: str) -> bool:
        """Compare by patterns alone: which segment an ID is in is known when its holder has proved it."""
        if "id" in end and not matches(end["id"], destination, TD):
            return False
        if "segment" not in end:
            return True
        segment = self.opinion.segments[end["segment"]]
        anybody = segment.get("fallback", False) and destination.startswith(f"spiffe://{TD}/")
        return anybody or matches(segment["members"], destination, TD)


def _refused(link: Link, asked: Asked) -> tuple[int, str] | None:
    """Say how a request is refused before anything is decided."""
    trap = traps(link).get(asked.trap)
    if asked.trap in ("connect", "upgrade"):
        return trap
    ambiguous = not asked.plain or decoded_path(asked.question["path"]) is None
    return (400, "bad_request") if link.protocol == "http" and ambiguous else trap


def traps(link: Link) -> dict[str, tuple[int, str]]:
    if link.protocol == "grpc":
        return GRPC_TRAPS
    return HTTP2_TRAPS if link.http2 else HTTP_TRAPS


def as_sent(asked: Asked) -> tuple[str, str, str]:
    """Return the method, target and authority that reach the app when the question passes."""
    q = asked.question
    if q["protocol"] == "grpc":
        return "POST", f"/{q['grpc_service']}/{q['grpc_method']}", GRPC_AUTHORITY
    return q["method"], q["path"], q["authority"]
