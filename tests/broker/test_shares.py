# SPDX-License-Identifier: Apache-2.0
"""Shares of namespaces: however objects come and go, none has more, and who was there first stays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firedoor.broker.kubernetes import shares
from firedoor.broker.kubernetes.mirror import Mirror, identified
from firedoor.broker.kubernetes.pods import Pod
from firedoor.broker.kubernetes.shares import Shares
from firedoor.cluster.errors import ObjectsUnreadable
from tests.broker.test_registrar import look, pod, registrar, rule

MOST = 3


def thing(key: str, namespace: str, value: int = 0) -> dict[str, Any]:
    return {"metadata": {"uid": key, "namespace": namespace}, "x": value}


class Seen:
    """A mirror of things, and what it told."""

    def __init__(self, most: int = 100) -> None:
        self.left_out: dict[str, str] = {}
        self.known: dict[str, int] = {}
        self.mirror: Mirror[int] = Mirror("things", most, identified, self._read, self._changed, self._shares())

    def _shares(self) -> Shares:
        def told(key: str, namespace: str, left_out: bool) -> None:
            assert left_out == (key not in self.left_out)
            if left_out:
                self.left_out[key] = namespace
            else:
                assert self.left_out.pop(key) == namespace

        return Shares("things", MOST, told)

    @staticmethod
    def _read(seen: Mapping[str, Any]) -> int | None:
        return seen["x"] if seen["x"] >= 0 else None

    def _changed(self, key: str, old: int | None, new: int | None) -> None:
        assert self.known.get(key) == old
        if new is None:
            self.known.pop(key)
        else:
            self.known[key] = new

    def listed(self, things: list[dict[str, Any]], size: int = 2) -> None:
        self.mirror.begin()
        for at in range(0, len(things), size):
            self.mirror.page(things[at : at + size])
        self.mirror.end()


def test_a_namespace_has_no_more_than_its_share() -> None:
    seen = Seen(most=8)
    # More of one namespace than there may be of all.
    seen.listed([*(thing(f"a{number}", "a") for number in range(20)), thing("b1", "b"), thing("b2", "b")])
    assert sorted(seen.known) == ["a0", "a1", "a2", "b1", "b2"]
    assert set(seen.left_out) == {f"a{number}" for number in range(3, 20)}
    # Who was there first stays, whatever the list's order.
    seen.listed([thing("a9", "a"), thing("a3", "a"), thing("a2", "a", 5), thing("a0", "a"), thing("b2", "b")])
    assert seen.known == {"a0": 0, "a2": 5, "a9": 0, "b2": 0}
    assert set(seen.left_out) == {"a3"}
    # What is left out can go, and can end.
    for key in ("a5", "a6"):
        seen.mirror.put(thing(key, "a"))
    seen.mirror.drop(thing("a5", "a"))
    seen.mirror.put(thing("a6", "a", -1))
    assert set(seen.left_out) == {"a3"}


def test_who_waits_is_next_when_one_of_the_share_goes() -> None:
    seen = Seen()
    seen.listed([*(thing(f"a{number}", "a") for number in range(6)), thing("b0", "b")])
    seen.mirror.put(thing("a6", "a"))
    # As it was seen last.
    seen.mirror.put(thing("a4", "a", 7))
    seen.mirror.drop(thing("b0", "b"))
    assert sorted(seen.known) == ["a0", "a1", "a2"]
    for gone, (key, value) in {"a0": ("a3", 0), "a1": ("a4", 7), "a4": ("a5", 0), "a2": ("a6", 0)}.items():
        seen.mirror.put(thing(gone, "a", -1))
        assert seen.known[key] == value
    assert (sorted(seen.known), seen.left_out) == (["a3", "a5", "a6"], {})
    # Those that a list leaves out stand behind those that it had no room for.
    seen.listed([thing(f"a{number}", "a") for number in range(9)])
    assert set(seen.left_out) == {"a0", "a1", "a2", "a4", "a7", "a8"}
    for number, key in ((3, "a0"), (5, "a1"), (6, "a2"), (0, "a4")):
        seen.mirror.drop(thing(f"a{number}", "a"))
        assert key in seen.known


def test_of_a_line_without_end_the_rest_waits_for_its_next_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "MOST_IN_LINE", 2)
    seen = Seen()
    seen.listed([thing(f"a{number}", "a") for number in range(8)])
    for number in range(3):
        seen.mirror.drop(thing(f"a{number}", "a"))
    assert (sorted(seen.known), sorted(seen.left_out)) == (["a3", "a4"], ["a5", "a6", "a7"])
    seen.mirror.put(thing("a7", "a"))
    assert (sorted(seen.known), sorted(seen.left_out)) == (["a3", "a4", "a7"], ["a5", "a6"])


@pytest.mark.parametrize("how", ["listed", "list backwards", "one by one"])
def test_whoever_fills_the_line_leaves_room_in_it(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(shares, "MOST_IN_LINE", 4)
    seen = Seen()
    things = [*(thing(f"a{number}", "a") for number in range(20)), *(thing(f"b{number}", "b") for number in range(6))]
    if how == "one by one":
        for one in things:
            seen.mirror.put(one)
    else:
        seen.listed(things if how == "listed" else [*things[20:], *things[:20]])
    for namespace in "ab":
        for number in range(3):
            seen.mirror.drop(thing(f"{namespace}{number}", namespace))
    # Two places in line each, of those that came first.
    assert sorted(seen.known) == ["a3", "a4", "b3", "b4"]
    # Where nobody else waits, the whole line is one namespace's.
    for number in range(20):
        seen.mirror.put(thing(f"c{number}", "c"))
    for number in range(5):
        seen.mirror.drop(thing(f"c{number}", "c"))
    assert sorted(key for key in seen.known if key[0] == "c") == ["c5", "c6"]


def test_namespaces_together_are_bounded_as_before() -> None:
    seen = Seen(most=4)
    with pytest.raises(ObjectsUnreadable, match="more than 4 things"):
        seen.listed([thing(f"{space}{number}", space) for space in "abc" for number in range(2)])


STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "end", "drop", "list"]), st.integers(0, 9), st.sampled_from(["a", "b"])),
    max_size=40,
)


@given(STEPS)
def test_whatever_comes_each_is_kept_or_left_out(steps: list[tuple[str, int, str]]) -> None:
    seen, there = Seen(), dict[str, str]()
    for step, number, namespace in steps:
        key = f"{namespace}{number}"
        if step == "list":
            # In another order each time.
            keys = sorted(there, key=lambda one: (int(one[1:]) + number) % 10)
            seen.listed([thing(one, there[one]) for one in keys])
        elif step == "put":
            there[key] = namespace
            seen.mirror.put(thing(key, namespace))
        else:
            there.pop(key, None)
            how = seen.mirror.drop if step == "drop" else seen.mirror.put
            how(thing(key, namespace, -1))
        assert seen.known.keys() | seen.left_out.keys() == there.keys()
        assert not seen.known.keys() & seen.left_out.keys()
        assert all(count <= MOST for count in Counter(there[one] for one in seen.known).values())
        assert seen.mirror.records == seen.known
        # Nobody waits where there is room.
        assert {seen.left_out[one][0] for one in seen.left_out} <= {
            space for space, count in Counter(there[one] for one in seen.known).items() if count == MOST
        }


def test_a_pod_that_is_left_out_is_not_gone() -> None:
    """What another broker issued for it is revoked when its entry goes: it runs."""
    made = registrar(rule("x", id="spiffe://{td}/{ns}/{pod}"))
    made.pod_changed("uid-1", None, pod(1))
    look(made)
    claim = made.by_rule["WorkloadIdentity", "x"]["uid-1"]
    assert claim.entry is not None
    last: Pod = made.pods["uid-1"]
    made.pod_changed("uid-1", last, None)
    assert made.is_over(claim.entry)
    made.left_out_changed("uid-1", "a", left_out=True)
    assert not made.is_over(claim.entry)


def test_each_rule_says_that_a_namespace_has_too_many() -> None:
    chosen = rule("x", namespaceSelector={"matchLabels": {"name": "a"}})
    made = registrar(chosen, rule("y", namespaceSelector={"matchLabels": {"name": "b"}}))
    look(made)
    made.dirty_rules.clear()
    made.left_out_changed("uid-1", "a", left_out=True)
    assert made.dirty_rules == made.rules.keys()
    assert [made.crowd(one) for one in made.rules.values()] == ["a", ""]
    made.dirty_rules.clear()
    made.left_out_changed("uid-2", "a", left_out=True)
    made.left_out_changed("uid-1", "a", left_out=False)
    # It does as before: whoever makes pods without end makes no work for statuses.
    assert not made.dirty_rules
    made.left_out_changed("uid-2", "a", left_out=False)
    assert made.dirty_rules == made.rules.keys()
    assert not made.crowd(chosen)
