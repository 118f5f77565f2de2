# SPDX-License-Identifier: Apache-2.0
"""Filters and pages of SPIRE's List and Count calls, and how much a batch may hold.

A page is cut from what is there: no number that a client sends is ever allocated (SPIRE 1.9.3). The page token is the
last key of the page before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from collections.abc import Set as AbstractSet
from heapq import nsmallest
from typing import Any, Final, TypeVar

from firedoor.broker.entry import parse_selectors
from firedoor.broker.errors import InvalidRequest
from firedoor.certs import Selector
from firedoor.wire import types

T = TypeVar("T")
E = TypeVar("E")
B = TypeVar("B", bound=Sized)

# SelectorMatch and FederatesWithMatch have the same behaviours. SUBSET: what the candidate has is among what was given.
_BEHAVIOURS: Final[dict[int, Callable[[AbstractSet[Any], AbstractSet[Any]], bool]]] = {
    types.SelectorMatch.MATCH_EXACT: lambda has, given: has == given,
    types.SelectorMatch.MATCH_SUBSET: lambda has, given: has <= given,
    types.SelectorMatch.MATCH_SUPERSET: lambda has, given: has >= given,
    types.SelectorMatch.MATCH_ANY: lambda has, given: bool(has & given),
}


def matches(behaviour: int, has: AbstractSet[E], given: AbstractSet[E]) -> bool:
    """Compare two sets as SPIRE's datastore does. Raise InvalidRequest for a behaviour that nobody knows."""
    if behaviour not in _BEHAVIOURS:
        raise InvalidRequest("malformed filter: unknown match behavior")
    # SUBSET of nothing would match whatever has nothing; SPIRE finds candidates by what they have.
    return bool(has) and _BEHAVIOURS[behaviour](has, given)


def filter_selectors(match: types.SelectorMatch) -> frozenset[Selector]:
    """Read a filter's selectors. Raise InvalidRequest."""
    if not match.selectors:
        raise InvalidRequest("malformed selectors filter: empty selector set")
    try:
        return parse_selectors(match.selectors)
    except InvalidRequest as error:
        raise InvalidRequest(f"malformed selectors filter: {error}") from None


def batch(items: B, most: int) -> B:
    """Return the items of a batch, unless there are more than `most`. Raise InvalidRequest."""
    if len(items) > most:
        raise InvalidRequest(f"a batch has at most {most} items")
    return items


def page(items: Iterable[T], key: Callable[[T], str], size: int, token: str) -> tuple[list[T], str]:
    """Return the items of one page in the order of their keys, and the token of the next; `size` <= 0 means all."""
    after = [item for item in items if key(item) > token]
    if size <= 0 or size >= len(after):
        return sorted(after, key=key), ""
    found = nsmallest(size, after, key=key)
    return found, key(found[-1])
