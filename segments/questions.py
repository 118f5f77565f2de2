# SPDX-License-Identifier: Apache-2.0
"""Questions about a policy, as people type them: who, to whom, and what.

>>> parse_action("GET /models/llama")
Asked(protocol='http', authority='', method='GET', path='/models/llama', grpc_service='', grpc_method='')
>>> parse_action("grpc inference.GRPCInferenceService/ModelInfer").grpc_method
'ModelInfer'
>>> parse_destination("registry:9000")
('registry', 9000)
>>> parse_destination("[fd00:20::5]:9000")
(IPv6Address('fd00:20::5'), 9000)
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, final

from firedoor.certs import IdPattern, SpiffeId, SpiffeIdError
from firedoor.segments.errors import QuestionError
from firedoor.segments.listeners import Protocol
from firedoor.segments.model import Address, PolicySet, Segment
from firedoor.segments.names import is_name

_HTTP: Final = re.compile(r"([A-Za-z-]+) +(?:https?://)?([^/\s]*)(/\S*)")
_GRPC: Final = re.compile(r"grpc +/?([A-Za-z0-9_.]+)/([A-Za-z0-9_]+)")


@final
@dataclass(frozen=True, slots=True)
class Asked:
    """What the source wants to do. Fields that do not belong to the protocol are empty."""

    protocol: Protocol
    authority: str = ""
    method: str = ""
    path: str = ""
    grpc_service: str = ""
    grpc_method: str = ""

    def __str__(self) -> str:
        if self.protocol == "http":
            return f"{self.method} {self.authority}{self.path}"
        if self.protocol == "grpc":
            return f"grpc {self.grpc_service}/{self.grpc_method}"
        return "tcp"


@final
@dataclass(frozen=True, slots=True)
class Question:
    """May `source` do this on `destination`, at its listener with this service port, at this time? Unix seconds."""

    source: SpiffeId
    destination: SpiffeId
    port: int
    asked: Asked
    time: int


def parse_action(text: str) -> Asked:
    """Read `tcp`, `GET /path`, `GET host/path` or `grpc package.Service/Method`. Raise QuestionError."""
    text = text.strip()
    if text == "tcp":
        return Asked("tcp")
    if text.startswith("grpc "):
        if found := _GRPC.fullmatch(text):
            return Asked("grpc", grpc_service=found[1], grpc_method=found[2])
    elif found := _HTTP.fullmatch(text):
        return Asked("http", method=found[1], authority=found[2], path=found[3])
    raise QuestionError("an action is written `tcp`, `GET /path`, `GET host/path` or `grpc package.Service/Method`")


_DESTINATION: Final = "a destination is written SEGMENT:PORT, spiffe://…:PORT or ADDRESS:PORT"


def parse_destination(text: str) -> tuple[SpiffeId | Address | str, int]:
    """Read `SEGMENT:PORT`, `spiffe://…:PORT`, or an address and port of the directory. Raise QuestionError."""
    name, _, digits = text.rpartition(":")
    port = int(digits) if re.fullmatch(r"[1-9][0-9]{0,4}", digits) else 0
    if not 0 < port < 65536:
        raise QuestionError(f"{_DESTINATION}, with a port from 1 to 65535")
    if name.startswith("spiffe://"):
        try:
            return SpiffeId.parse(name), port
        except SpiffeIdError as error:
            raise QuestionError(f"the destination is not a SPIFFE ID: {error}") from None
    if is_name(name):
        return name, port
    try:
        return ipaddress.ip_address(name[1:-1] if name.startswith("[") and name.endswith("]") else name), port
    except ValueError:
        raise QuestionError(f"{_DESTINATION}; this names none of them") from None


def examples(policy: PolicySet, segment: Segment, port: int) -> list[SpiffeId]:
    """Return IDs of a segment that stand for all of it: flows to this port decide alike for every other member.

    There is one for each pattern that the segment or a flow names, so a question about a segment can be asked of IDs.
    """
    everybody = IdPattern.parse("spiffe://{td}/**", policy.trust_domain)
    members = [*segment.members, *([everybody] if segment.fallback else [])]
    named = [
        pattern
        for flow in policy.flows
        if flow.port == port and flow.destination.segment in (None, segment.name)
        for pattern in flow.destination.ids
    ]
    found = {
        _example(member, pattern) for member in members for pattern in (member, *named) if member.overlaps(pattern)
    }
    return sorted(one for one in found if policy.segment_of(one) == segment)


def expected_examples(policy: PolicySet, expect: Iterable[IdPattern]) -> list[SpiffeId]:
    """Return IDs of members that a service's expectation matches, one for each pattern of members that it meets."""
    everybody = IdPattern.parse("spiffe://{td}/**", policy.trust_domain)
    members = [pattern for one in policy.segments for pattern in (*one.members, *([everybody] if one.fallback else []))]
    found = {_example(member, pattern) for pattern in expect for member in members if member.overlaps(pattern)}
    return sorted(one for one in found if policy.segment_of(one) is not None)


def _example(one: IdPattern, other: IdPattern) -> SpiffeId:
    """Return an ID that both of two overlapping patterns match."""
    steps: list[str] = []
    for place in range(max(len(one.head) + one.open, len(other.head) + other.open)):
        fixed = [p.head[place] for p in (one, other) if place < len(p.head) and p.head[place] != "*"]
        steps.append(fixed[0] if fixed else "example")
    return one.trust_domain.with_path("/" + "/".join(steps))
