# SPDX-License-Identifier: Apache-2.0
"""Time that does not go back: the later of the wall clock and the last time seen plus the monotonic time since."""

import time
from collections.abc import Callable

# A larger step is somebody's doing, and logged.
NOTABLE_STEP_SECONDS = 300


# By so much more than the monotonic clock the wall clock runs on when a machine was suspended, and not by adjustment.
NOTABLE_LEAP_SECONDS = 5.0


class Leaps:
    """Notices that a machine was suspended, or its clock set ahead: timers know nothing of that time."""

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._wall, self._monotonic = wall, monotonic
        self._ahead = wall() - monotonic()

    def since(self) -> float:
        """Return by how many seconds the wall clock leapt since the last call; 0 for what is not notable."""
        before, self._ahead = self._ahead, self._wall() - self._monotonic()
        leap = self._ahead - before
        return leap if leap > NOTABLE_LEAP_SECONDS else 0.0


class Clock:
    """Tells the time in Unix seconds. `stepped_back` is called with the seconds of each step that is notable."""

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        stepped_back: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._wall, self._monotonic, self._stepped_back = wall, monotonic, stepped_back
        self._seen, self._at = wall(), monotonic()
        self._behind = False

    def now(self) -> float:
        """Return the time."""
        wall, at = self._wall(), self._monotonic()
        expected = self._seen + max(0.0, at - self._at)
        behind = expected - wall > NOTABLE_STEP_SECONDS
        if behind and not self._behind:
            self._stepped_back(expected - wall)
        self._behind = behind
        self._seen, self._at = max(wall, expected), at
        return self._seen
