# SPDX-License-Identifier: Apache-2.0
"""How long to wait before the next try."""

import random
from collections.abc import Callable

FIRST_SECONDS = 0.5
FACTOR = 1.6
LONGEST_SECONDS = 30.0
JITTER = 0.25
# Before something expires there is always another try, but not a busy loop.
SHORTEST_SECONDS = 0.2


class Backoff:
    """Waits grow from one failure to the next, with jitter, and never past what expires meanwhile."""

    def __init__(
        self, longest: float = LONGEST_SECONDS, uniform: Callable[[float, float], float] = random.uniform
    ) -> None:
        self._longest, self._uniform = longest, uniform
        self._next = FIRST_SECONDS

    def failed(self, expires_in: float | None = None) -> float:
        """Return the seconds to wait after a failure; `expires_in`: what is retried is worthless after that."""
        wait = self._next * self._uniform(1 - JITTER, 1 + JITTER)
        self._next = min(self._next * FACTOR, self._longest)
        if expires_in is not None and expires_in > 0:
            wait = min(wait, expires_in / 2)
        return max(wait, SHORTEST_SECONDS)

    def reset(self) -> None:
        """Begin anew after a success."""
        self._next = FIRST_SECONDS
