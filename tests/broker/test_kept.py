# SPDX-License-Identifier: Apache-2.0
"""What is kept of a cluster's objects of one kind."""

from __future__ import annotations

from typing import Any

import pytest

from firedoor.broker.kubernetes.kept import Kept
from firedoor.cluster.errors import ObjectsUnreadable


def one(name: str, value: int = 0) -> dict[str, Any]:
    return {"metadata": {"name": name}, "value": value}


def make(most: int = 3) -> tuple[Kept[int], list[int]]:
    calls: list[int] = []
    kept: Kept[int] = Kept(lambda seen: (seen["metadata"]["name"], seen["value"]), lambda: calls.append(1), "x", most)
    return kept, calls


def test_a_list_counts_once_it_has_ended() -> None:
    kept, calls = make()
    kept.begin()
    kept.page([one("a", 1)])
    assert (kept.seen, calls) == (None, [])
    kept.page([one("b", 2)])
    kept.end()
    assert (kept.seen, calls) == ({"a": 1, "b": 2}, [1])
    # One that breaks off changes nothing.
    kept.begin()
    kept.page([one("c")])
    assert kept.seen == {"a": 1, "b": 2}
    kept.begin()
    kept.end()
    assert kept.seen == {}


def test_changes() -> None:
    kept, calls = make()
    kept.begin()
    kept.end()
    kept.put(one("a", 1))
    kept.put(one("a", 2))
    kept.drop(one("b"))
    assert kept.seen == {"a": 2}
    kept.drop(one("a"))
    assert (kept.seen, len(calls)) == ({}, 5)


def test_what_nothing_is_kept_of_does_not_count() -> None:
    kept: Kept[int] = Kept(lambda seen: (seen["metadata"]["name"], seen["value"] or None), lambda: None, "x", 2)
    kept.begin()
    kept.page([one("a"), one("b"), one("c"), one("d", 1)])
    kept.end()
    assert kept.seen == {"d": 1}
    for number in range(4):
        kept.put(one(str(number)))
    kept.put(one("d"))
    assert kept.seen == {}


def test_more_than_can_be_is_refused() -> None:
    kept, _ = make(most=2)
    kept.begin()
    with pytest.raises(ObjectsUnreadable, match="there are more than 2 x"):
        kept.page([one("a"), one("b"), one("c")])
