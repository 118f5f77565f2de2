# SPDX-License-Identifier: Apache-2.0
"""Waiting a random while where all sidecars would ask the server at once. Pure but for what it is given.

Only what can wait does: an identity that is missing, revoked or about to expire is asked for at once.
"""

import random
from collections.abc import Callable, Iterable
from typing import Final

# The longest that a server is obeyed.
LONGEST_SECONDS: Final = 10.0
# After a taint, which a revocation follows soon: no longer than this, and so long where the server does not say.
TAINT_SECONDS: Final = 1.0


class Spread:
    """How long to wait. `told` are the server's milliseconds, None when it does not say."""

    def __init__(self, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._uniform = uniform
        self._told: float | None = None
        # When to ask for what can wait, by entry ID.
        self._due: dict[str, float] = {}

    def take(self, told: int | None) -> None:
        """Take what the latest update says; what waits already waits no longer than that from now on."""
        self._told = None if told is None else min(told / 1000, LONGEST_SECONDS)
        if not self._told:
            self._due.clear()

    @property
    def milliseconds(self) -> int:
        """Return over how long to come back to a server that is gone."""
        return int((self._told or 0) * 1000)

    def delay(self) -> float:
        """Return the seconds to wait before something that every sidecar does now."""
        return self._uniform(0, self._told) if self._told else 0.0

    def taint_delay(self) -> float:
        """Return the seconds to wait before a certificate is replaced whose authority was tainted."""
        longest = TAINT_SECONDS if self._told is None else min(self._told, TAINT_SECONDS)
        return self._uniform(0, longest) if longest else 0.0

    def waiting(self, changed: Iterable[str], tainted: Iterable[str], now: float) -> set[str]:
        """Return which entries are not to be asked for yet, of those whose SVID still serves."""
        due: dict[str, float] = {}
        for entry_ids, draw in ((changed, self.delay), (tainted, self.taint_delay)):
            # One draw for all: they are asked for together.
            drawn: float | None = None
            for entry_id in entry_ids:
                if entry_id in self._due:
                    due[entry_id] = self._due[entry_id]
                    continue
                drawn = now + draw() if drawn is None else drawn
                due[entry_id] = drawn
        self._due = due
        return {entry_id for entry_id, when in due.items() if when > now}

    def next_due(self) -> Iterable[float]:
        """Return when something is to be asked for."""
        return self._due.values()
