# SPDX-License-Identifier: Apache-2.0
"""Which flows could lead to the peers that a service expects.

Patterns are compared only where they may overlap at all: those with other first steps are never looked at, so that
thousands of services and flows are a matter of milliseconds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, final

from firedoor.certs import IdPattern, TrustDomain
from firedoor.segments.listeners import Protocol

# So many first steps sort patterns: `/segment/<name>`, `/ns/<name>`.
_STEPS: Final = 2


@final
@dataclass(frozen=True, slots=True)
class Lead:
    """A flow, by where it leads and what it allows there. `segment` is empty when it names IDs alone."""

    name: str
    port: int
    protocols: tuple[Protocol, ...]
    segment: str
    ids: tuple[IdPattern, ...]


@final
class Reach:
    """All flows of a policy, asked for those that could lead to an expectation."""

    def __init__(self, own: TrustDomain, fallback: str | None, leads: Iterable[Lead]) -> None:
        self._own, self._fallback = own, fallback
        self._members = _Patterns()
        self._to_segment: dict[tuple[int, Protocol, str], list[str]] = defaultdict(list)
        self._to_ids: dict[tuple[int, Protocol], _Patterns] = defaultdict(_Patterns)
        for lead in leads:
            for protocol in lead.protocols:
                for pattern in lead.ids:
                    self._to_ids[lead.port, protocol].add(pattern, lead.name)
                if not lead.ids:
                    self._to_segment[lead.port, protocol, lead.segment].append(lead.name)

    def members(self, segment: str, patterns: Iterable[IdPattern]) -> None:
        """Learn who belongs to a segment."""
        for pattern in patterns:
            self._members.add(pattern, segment)

    def flows(self, port: int, protocol: Protocol, expect: Iterable[IdPattern]) -> set[str]:
        """Return the names of the flows to this service port that could allow this protocol to one who is expected.

        It may name more than that (a flow to a segment's IDs is taken by the IDs alone), never fewer.
        """
        found: set[str] = set()
        for pattern in expect:
            segments = self._members.overlapping(pattern)
            if self._fallback is not None and pattern.trust_domain == self._own:
                segments.add(self._fallback)
            for segment in segments:
                found.update(self._to_segment.get((port, protocol, segment), ()))
            if (port, protocol) in self._to_ids:
                found |= self._to_ids[port, protocol].overlapping(pattern)
        return found


class _Patterns:
    """Named patterns, asked for the names of those that overlap another."""

    def __init__(self) -> None:
        self._sorted: dict[tuple[TrustDomain, tuple[str, ...]], list[tuple[IdPattern, str]]] = defaultdict(list)
        self._wide: dict[TrustDomain, list[tuple[IdPattern, str]]] = defaultdict(list)
        self._all: dict[TrustDomain, list[tuple[IdPattern, str]]] = defaultdict(list)

    def add(self, pattern: IdPattern, name: str) -> None:
        prefix, domain = _prefix(pattern), pattern.trust_domain
        (self._sorted[domain, prefix] if prefix else self._wide[domain]).append((pattern, name))
        self._all[domain].append((pattern, name))

    def overlapping(self, pattern: IdPattern) -> set[str]:
        prefix, domain = _prefix(pattern), pattern.trust_domain
        near = [*self._sorted.get((domain, prefix), ()), *self._wide.get(domain, ())] if prefix else self._all[domain]
        return {name for other, name in near if other.overlaps(pattern)}


def _prefix(pattern: IdPattern) -> tuple[str, ...]:
    """Return the first steps of a pattern; nothing when one of them may be anything."""
    prefix = pattern.head[:_STEPS]
    return () if len(prefix) < _STEPS or "*" in prefix else prefix
