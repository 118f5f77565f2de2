# SPDX-License-Identifier: Apache-2.0
"""What can wait is spread over as long as the server says; nothing else waits, and nothing waits for ever."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firedoor.broker.spread import LONGEST_MS, spread_ms
from firedoor.sidecar.spread import LONGEST_SECONDS, TAINT_SECONDS, Spread

NOW = 1_800_000_000.0


def spread(told: int | None, seed: int = 1) -> Spread:
    made = Spread(random.Random(seed).uniform)
    made.take(told)
    return made


def test_a_thousand_sidecars_are_spread_over_the_whole() -> None:
    delays = sorted(spread(4000, seed).delay() for seed in range(1000))
    assert delays[0] >= 0
    assert delays[-1] <= 4
    tenths = [sum(tenth * 0.4 <= one < (tenth + 1) * 0.4 for one in delays) for tenth in range(10)]
    assert min(tenths) > 50


@pytest.mark.parametrize(
    ("told", "most", "most_after_taint"),
    [
        (None, 0, TAINT_SECONDS),
        (0, 0, 0),
        (300, 0.3, 0.3),
        (5000, 5, TAINT_SECONDS),
        (4_000_000_000, LONGEST_SECONDS, TAINT_SECONDS),
    ],
)
def test_how_long_at_most(told: int | None, most: float, most_after_taint: float) -> None:
    made = spread(told)
    # Drawn often: near the end of what may be, and never past it.
    drawn, after_taint = max(made.delay() for _ in range(500)), max(made.taint_delay() for _ in range(500))
    assert most * 0.9 <= drawn <= most
    assert most_after_taint * 0.9 <= after_taint <= most_after_taint
    assert made.milliseconds == int(most * 1000)


def test_each_waits_once_and_all_together() -> None:
    made = spread(5000)
    assert made.waiting(["a", "b"], [], NOW) == {"a", "b"}
    (due,) = set(made.next_due())
    # Further news does not put it off.
    assert made.waiting(["a", "b", "c"], [], due - 0.01) >= {"a", "b"}
    assert made.waiting(["a", "b", "c"], [], due).isdisjoint({"a", "b"})
    # It was replaced, and changes again.
    made.waiting([], [], due)
    assert list(made.next_due()) == []
    assert made.waiting(["a"], [], due + 10) == {"a"}


def test_a_taint_waits_less() -> None:
    made = spread(5000)
    made.waiting(["a"], ["b"], NOW)
    assert sorted(made.next_due())[0] <= NOW + TAINT_SECONDS


def test_an_emergency_ends_all_waiting() -> None:
    made = spread(5000)
    assert made.waiting(["a"], ["b"], NOW)
    made.take(0)
    assert made.waiting(["a"], ["b"], NOW) == set()


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.floats(0, 2)), max_size=40),
    st.one_of(st.none(), st.integers(0, 20_000)),
)
def test_nothing_waits_longer_than_it_may(steps: list[tuple[str, bool, float]], told: int | None) -> None:
    made, now = spread(told), NOW
    since: dict[str, float] = {}
    for name, fresh, passed in steps:
        now += passed
        if fresh:
            since.pop(name, None)
        else:
            since.setdefault(name, now)
        waiting = made.waiting(list(since), [], now)
        assert waiting <= since.keys()
        assert all(now <= since[one] + min((told or 0) / 1000, LONGEST_SECONDS) for one in waiting)


@pytest.mark.parametrize(
    ("listening", "urgent", "expected"),
    [
        (0, False, 0),
        (1, False, 0),
        (100, False, 50),
        (10_000, False, 5000),
        (10**7, False, LONGEST_MS),
        (10_000, True, 0),
    ],
)
def test_what_a_broker_says(listening: int, urgent: bool, expected: int) -> None:
    assert spread_ms(listening, urgent=urgent) == expected
