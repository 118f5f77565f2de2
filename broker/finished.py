# SPDX-License-Identifier: Apache-2.0
"""What was begun is finished, though who asked for it may have gone away.

A commit goes on when whoever waits for it is cancelled (`Database.write`). Whoever looks at memory after that, and
before the commit is in it, decides by what is no longer so.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar, final

T = TypeVar("T")


async def finished(work: Awaitable[T]) -> T:
    """Wait for work to its end also when cancelled meanwhile; then raise what it raised, or CancelledError."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            # Whoever is impatient cancels again.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        # Looked at, so that nobody warns of an error that nobody is left to hear.
        _ = task.cancelled() or task.exception()
        raise


@final
class OneByOne:
    """Lets what looks and then changes be done by one at a time, each to its end."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do work when it is its turn. Raise what it raises; it must not wait for another turn here.

        Cancelled before its turn, it is not begun; after, it is finished, and the next waits for it.
        """
        async with self._lock:
            return await finished(work())
