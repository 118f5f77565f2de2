# SPDX-License-Identifier: Apache-2.0
"""When the garbage collector walks through everything: not while a policy is compiled.

Compiling runs on a thread, and yet everybody waited: a full collection holds the interpreter's lock, whichever thread
it began on, for as long as there are objects. With 5,000 flows that was 0.1 to 0.4 s of processor time (more on a busy
machine), four or five times for each compilation, and nobody was answered meanwhile. It finds nothing: what a policy is
made of has no cycles, and is freed with the last reference to it.

    with quiet():           # young objects are collected all the while
        compile_documents(documents, loader)

In a process whose `settle` was called, what is there afterwards is not walked through again.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator
from typing import Final

# Collections of the middle generation before a full one: so many never come while somebody compiles.
_NEVER: Final = 1_000_000_000


class Collector:
    """The collector of this process. Its functions may be called on any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._quiet = 0
        self._thresholds = gc.get_threshold()
        self._settled = False

    def settle(self) -> None:
        """Collect, and take it that what is left stays. For a process that is a broker and nothing else."""
        with self._lock:
            self._settled = True
            gc.collect()
            gc.freeze()

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Have no full collection begin by itself, on any thread."""
        with self._lock:
            self._quiet += 1
            if self._quiet == 1:
                self._thresholds = gc.get_threshold()
                if self._settled:
                    # What came since the last time is little; garbage of it would be kept for good.
                    gc.collect()
                gc.set_threshold(*self._thresholds[:2], _NEVER)
        try:
            yield
        finally:
            with self._lock:
                self._quiet -= 1
                if self._quiet == 0:
                    if self._settled:
                        gc.freeze()
                    gc.set_threshold(*self._thresholds)


_process: Final = Collector()
settle = _process.settle
quiet = _process.quiet
