# SPDX-License-Identifier: Apache-2.0
"""How many streams are open at once: of one caller, and of all together.

Memory bounds the sum. So that a few callers that take all they may shut out nobody, its last tenth is for callers that
have next to none.

>>> seats = Seats(2, "streams", "close some")
>>> with seats.one_of("a"), seats.one_of("a"), seats.one_of("b"):
...     len(seats)
3
"""

from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from firedoor.sidecar.errors import TooMany

# Of all callers: ten callers' worth, or as much where one may have fewer than SPIRE's default of 1000. A stream takes
# about 40 KiB of this process.
IN_ALL = 10_000
CALLERS = 10
# What a caller may have of the last tenth. It is enough for 125 callers: a kubelet runs 110 pods unless told otherwise.
FEW = 8
# Of health and reflection: a program needs one, and each costs as much as any other.
INSPECTING = 64
INSPECTING_IN_ALL = 1_000


class Seats:
    """Counts streams."""

    def __init__(self, each: int, word: str, advice: str, in_all: int | None = None) -> None:
        self._each, self._word, self._advice = each, word, advice
        self._in_all = max(IN_ALL, CALLERS * each) if in_all is None else in_all
        self._all_but_kept = self._in_all - self._in_all // 10
        self._open: Counter[Hashable] = Counter()
        self._total = 0

    def __len__(self) -> int:
        return self._total

    @contextmanager
    def one_of(self, who: Hashable) -> Iterator[None]:
        """Count a stream of `who` while the context is open. Raise TooMany."""
        self._check(self._open[who])
        self._open[who] += 1
        self._total += 1
        try:
            yield
        finally:
            self._total -= 1
            self._open[who] -= 1
            if not self._open[who]:
                del self._open[who]

    def _check(self, theirs: int) -> None:
        if theirs >= self._each:
            raise TooMany(f"{self._each} {self._word} are open already; {self._advice}")
        if self._total >= (self._in_all if theirs < FEW else self._all_but_kept):
            raise TooMany(f"{self._total} {self._word} of all callers are open already; wait until some are closed")


def inspecting() -> Seats:
    """Return the places of streams of health and reflection on a socket that is everybody's."""
    return Seats(INSPECTING, "streams of health and reflection", "close some", INSPECTING_IN_ALL)
