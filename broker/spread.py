# SPDX-License-Identifier: Apache-2.0
"""Over how long sidecars spread what all of them do at once: ask for other SVIDs, come back to a broker. Pure."""

from typing import Final

# What a broker comfortably serves a second, and the longest that anybody waits.
A_SECOND: Final = 2_000
LONGEST_MS: Final = 5_000


def spread_ms(listening: int, *, urgent: bool) -> int:
    """Return the milliseconds for so many sidecars: a few are not held up at all, nor is anybody in an emergency."""
    return 0 if urgent else min(LONGEST_MS, listening * 1000 // A_SECOND)
