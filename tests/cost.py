# SPDX-License-Identifier: Apache-2.0
"""How much may be computed: for what must be refused before it costs anything."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator


@contextlib.contextmanager
def costs_less_than(seconds: float) -> Iterator[None]:
    """Check that this thread computes for less than so long. What waits, or what Python collects, is not counted."""
    gc.disable()
    began = time.thread_time()
    try:
        yield
        used = time.thread_time() - began
    finally:
        gc.enable()
    assert used < seconds, f"it computed for {used:.3f} s"
