# SPDX-License-Identifier: Apache-2.0
"""What is going on, on stderr, so that stdout holds the tables alone."""

import sys
import time

_STARTED = time.monotonic()


def say(what: str) -> None:
    """Print a line with the seconds since the start."""
    print(f"[{time.monotonic() - _STARTED:5.0f} s] {what}", file=sys.stderr, flush=True)
