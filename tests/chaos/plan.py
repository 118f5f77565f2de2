# SPDX-License-Identifier: Apache-2.0
"""Which fault begins when, on whom, and how long it lasts. Pure: the same seed gives the same plan."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Seconds that a fault lasts.
SHORTEST, LONGEST = 1.0, 6.0


@dataclass(frozen=True, slots=True)
class Step:
    """One fault."""

    at: float
    kind: str
    whom: str
    lasts: float

    def __str__(self) -> str:
        return f"{self.at:6.1f} s  {self.kind:20} {self.whom:12} for {self.lasts:.1f} s"


def make_plan(seed: int, seconds: float, count: int, kinds: Mapping[str, Sequence[str]]) -> tuple[Step, ...]:
    """Choose `count` faults within a time. `kinds`: whom each kind can befall.

    Kinds come as cards from a shuffled deck, so that none stays away for long.
    """
    chance = random.Random(seed)
    names = sorted(kinds)
    deck: list[str] = []
    steps = []
    for at in sorted(chance.uniform(0, seconds) for _ in range(count)):
        if not deck:
            deck = names.copy()
            chance.shuffle(deck)
        kind = deck.pop()
        steps.append(Step(at, kind, chance.choice(kinds[kind]), chance.uniform(SHORTEST, LONGEST)))
    return tuple(steps)
