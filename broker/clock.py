# SPDX-License-Identifier: Apache-2.0
"""The time: the later of the wall clock, and the last time seen plus the monotonic time since.

A wall clock that is set back never takes the broker back with it. A step back of more than five minutes is logged, and
nothing is issued until the wall clock has caught up: some clock is wrong, and a certificate says when it was made.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from firedoor.broker.errors import AuthorityError

_log = logging.getLogger("firedoor.broker.clock")
MAX_STEP_BACK: Final = 300.0


class Clock:
    """Tells Unix seconds. `wall` and `monotonic` are arguments for tests."""

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._wall, self._monotonic = wall, monotonic
        self._last, self._mark = wall(), monotonic()
        self._behind = False

    def now(self) -> int:
        """Return the present Unix time; it never goes back."""
        wall, mark = self._wall(), self._monotonic()
        steady = self._last + (mark - self._mark)
        behind = steady - wall > MAX_STEP_BACK
        if behind and not self._behind:
            _log.error("the clock was set back by %d s; nothing is issued until it has caught up", steady - wall)
        if self._behind and not behind:
            _log.warning("the clock has caught up; issuing again")
        self._behind = behind
        self._last, self._mark = max(wall, steady), mark
        return int(self._last)

    def now_for_issuing(self) -> int:
        """Return the present Unix time. Raise AuthorityError while the wall clock lags behind what was seen."""
        now = self.now()
        if self._behind:
            raise AuthorityError(
                "the broker's clock was set back by more than five minutes; nothing is issued until it caught up"
            )
        return now
