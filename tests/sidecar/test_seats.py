# SPDX-License-Identifier: Apache-2.0
"""How many streams one caller may have, and all together."""

from contextlib import ExitStack

import pytest

from firedoor.sidecar.errors import TooMany
from firedoor.sidecar.seats import CALLERS, FEW, IN_ALL, INSPECTING, INSPECTING_IN_ALL, Seats, inspecting


def take(held: ExitStack, seats: Seats, who: object, most: int = 10**6) -> int:
    """Open streams of one caller until it is refused; return how many it got."""
    for got in range(most):
        try:
            held.enter_context(seats.one_of(who))
        except TooMany:
            return got
    return most


def test_one_caller() -> None:
    seats = Seats(3, "streams", "close some")
    with ExitStack() as held:
        assert (take(held, seats, "a"), take(held, seats, "b"), len(seats)) == (3, 3, 6)
        with pytest.raises(TooMany, match=r"^3 streams are open already; close some$"):
            held.enter_context(seats.one_of("a"))
    assert len(seats) == 0
    with seats.one_of("a"):
        assert len(seats) == 1


def test_the_last_tenth_is_for_those_with_few() -> None:
    """Callers that take all they may leave some to everybody else, and there is an end to it."""
    seats = Seats(100, "streams", "close some", 1000)
    with ExitStack() as held:
        got = [take(held, seats, number) for number in range(12)]
        assert got == [100] * 9 + [FEW] * 3
        # As many callers as a kubelet runs pods, or users without end: the sum stays.
        others = [take(held, seats, number) for number in range(100, 200)]
        assert others[:9] == [FEW] * 9
        assert len(seats) == 1000
        with pytest.raises(TooMany, match=r"^1000 streams of all callers are open already; "):
            held.enter_context(seats.one_of("new"))


def test_the_sum_follows_what_one_may_have() -> None:
    for each, in_all in ((1, IN_ALL), (IN_ALL, IN_ALL * CALLERS)):
        seats = Seats(each, "streams", "close some")
        with ExitStack() as held:
            for number in range(CALLERS - 1):
                assert take(held, seats, number) == each
            assert take(held, seats, CALLERS) == min(each, FEW)
            assert len(seats) < in_all


def test_health_and_reflection() -> None:
    seats = inspecting()
    with ExitStack() as held:
        assert take(held, seats, 0) == INSPECTING
        assert sum(take(held, seats, number) for number in range(1, 300)) == INSPECTING_IN_ALL - INSPECTING
