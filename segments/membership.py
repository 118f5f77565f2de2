# SPDX-License-Identifier: Apache-2.0
"""Which segment an ID belongs to: the same answer as the decision engine's, from the same patterns.

An ID belongs to the one segment whose patterns claim it; else, if it is of our own trust domain, to the fallback
segment, if there is one. To none belong: an ID that two segments claim (lint refuses such a policy), a trust domain's
own ID, everything at or below `/spire`, and an ID of our own trust domain below `/segment/<name>/` that the segment of
that name does not claim, because the prefix is reserved for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, final

from firedoor.certs import IdPattern, SpiffeId, TrustDomain

RESERVED: Final = "spire"


@final
class Membership:
    """An index over the patterns of all segments: looking an ID up costs the length of its path, not their number."""

    def __init__(self, own: TrustDomain, claims: Iterable[tuple[IdPattern, str]], fallback: str | None) -> None:
        self._own = own
        self._fallback = fallback
        self._roots: dict[TrustDomain, _Node] = {}
        for pattern, segment in claims:
            self._roots.setdefault(pattern.trust_domain, _Node()).add(pattern, segment)

    def claims(self, spiffe_id: SpiffeId) -> frozenset[str]:
        """Return the segments with a pattern that matches the ID: one at most in a policy without lint errors."""
        root = self._roots.get(spiffe_id.trust_domain)
        path = spiffe_id.segments
        if root is None or not path or path[0] == RESERVED:
            return frozenset()
        return frozenset(root.find(path))

    def segment_of(self, spiffe_id: SpiffeId) -> str | None:
        """Return the name of the ID's segment."""
        path = spiffe_id.segments
        if not path or path[0] == RESERVED:
            return None
        own = spiffe_id.trust_domain == self._own
        claims = self.claims(spiffe_id) or ({self._fallback} if own else {None})
        segment = next(iter(claims)) if len(claims) == 1 else None
        if own and reserved_for(path) not in (None, segment):
            return None
        return segment


def reserved_for(path: tuple[str, ...]) -> str | None:
    """Return the segment that IDs with this path, given by its segments, are reserved for.

    >>> reserved_for(("segment", "registry", "host", "h1"))
    'registry'
    """
    return path[1] if len(path) > 2 and path[0] == "segment" else None


class _Node:
    """A position in the tree of patterns. `ends`: segments with a pattern that ends here; `opens`: here with **."""

    __slots__ = ("ends", "next", "opens")

    def __init__(self) -> None:
        self.next: dict[str, _Node] = {}
        self.ends: set[str] = set()
        self.opens: set[str] = set()

    def add(self, pattern: IdPattern, segment: str) -> None:
        node = self
        for step in pattern.head:
            node = node.next.setdefault(step, _Node())
        (node.opens if pattern.open else node.ends).add(segment)

    def find(self, path: tuple[str, ...]) -> Iterator[str]:
        nodes = [self]
        for step in path:
            for node in nodes:
                yield from node.opens
            nodes = [child for node in nodes for key in (step, "*") if (child := node.next.get(key))]
        for node in nodes:
            yield from node.ends
