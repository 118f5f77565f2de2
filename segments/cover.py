# SPDX-License-Identifier: Apache-2.0
"""Which parts of a policy are wider than others: the algebra below lint, and below what a policy edit promotes.

`covers(a, b)` is true only if everything that `b` allows or means is in `a`; where that cannot be seen at a glance
(three patterns that together cover a fourth) the answer is no, so that nothing is called unreachable that is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from firedoor.certs import IdPattern, TrustDomain
from firedoor.segments.model import Action, Flow, GrpcAction, HttpAction, Segment, Subject, TcpAction, Validity


def any_covers(patterns: Iterable[IdPattern], other: IdPattern) -> bool:
    """Say whether one of the patterns covers the other."""
    return any(pattern.covers(other) for pattern in patterns)


def subject_covers(wide: Subject, narrow: Subject, segments: Mapping[str, Segment]) -> bool:
    """Say whether one end of a flow stands for everybody that another stands for."""
    if wide.segment is not None and wide.segment != narrow.segment:
        return False
    if not wide.ids:
        return True
    if narrow.ids:
        return all(any_covers(wide.ids, pattern) for pattern in narrow.ids)
    segment = segments.get(narrow.segment or "")
    if segment is None or segment.fallback:
        return False
    return all(any_covers(wide.ids, pattern) for pattern in segment.members)


def action_covers(wide: Action, narrow: Action) -> bool:
    """Say whether one action allows everything that another allows."""
    if isinstance(wide, HttpAction) and isinstance(narrow, HttpAction):
        paths = not wide.paths or (
            bool(narrow.paths) and all(any(one.covers(path) for one in wide.paths) for path in narrow.paths)
        )
        return paths and _words(wide.methods, narrow.methods) and _words(wide.authorities, narrow.authorities)
    if isinstance(wide, GrpcAction) and isinstance(narrow, GrpcAction):
        return wide.service == narrow.service and _words(wide.methods, narrow.methods)
    return isinstance(wide, TcpAction) and isinstance(narrow, TcpAction)


def _words(wide: tuple[str, ...], narrow: tuple[str, ...]) -> bool:
    return not wide or (bool(narrow) and set(narrow) <= set(wide))


def validity_covers(wide: Validity | None, narrow: Validity | None) -> bool:
    """Say whether one time window holds whenever another does."""
    outer, inner = wide or Validity(), narrow or Validity()
    starts = outer.start is None or (inner.start is not None and outer.start <= inner.start)
    ends = outer.until is None or (inner.until is not None and inner.until <= outer.until)
    return starts and ends


def flow_reaches(wide: Flow, narrow: Flow, segments: Mapping[str, Segment]) -> bool:
    """Say whether a flow holds wherever and whenever another does, whatever the two allow there."""
    return (
        wide.port == narrow.port
        and subject_covers(wide.source, narrow.source, segments)
        and subject_covers(wide.destination, narrow.destination, segments)
        and validity_covers(wide.valid, narrow.valid)
    )


def names_everybody(pattern: IdPattern, own: TrustDomain) -> bool:
    """Say whether a pattern stands for a whole trust domain, or for all its segments at once.

    >>> names_everybody(IdPattern.parse("spiffe://{td}/segment/*/**", TrustDomain.parse("td")), TrustDomain.parse("td"))
    True
    """
    fixed = [(place, step) for place, step in enumerate(pattern.head) if step != "*"]
    return not fixed or (pattern.trust_domain == own and fixed == [(0, "segment")])
