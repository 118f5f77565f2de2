# SPDX-License-Identifier: Apache-2.0
"""A few threads that wait for a device, so that the event loop never does.

Not an executor: Python waits for an executor's threads at its end, and a call into a device may never return. A caller
waits so long and no longer; a thread that hangs is one fewer, and when all hang the next callers wait in vain, until
the device lets go of them. What waits is bounded too.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, TypeVar

T = TypeVar("T")
THREADS: Final = 8
# Each is a call of a client that waits, a batch of 1000 at most: whoever comes later is better told so at once.
MOST_WAITING: Final = 4096


class PoolFull(Exception):
    """So many wait already."""


@dataclass(slots=True, eq=False)
class _Job:
    """What is to be done, who waits, and since when it is being done, by the monotonic clock."""

    run: Callable[[], Any]
    future: asyncio.Future[Any]
    began: float = 0.0


class Pool:
    """Threads that are made as they are needed. `run` is called on one event loop."""

    def __init__(self, threads: int = THREADS, most: int = MOST_WAITING) -> None:
        self._most, self._limit = most, threads
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        # Jobs that wait or run, and how many were done.
        self._busy, self._finished = 0, 0

    async def run(self, job: Callable[[], T], seconds: float) -> T:
        """Run a job on a thread. Raise what it raises, or PoolFull.

        Raise TimeoutError when it takes longer, or when it waits for so long and nothing before it is done either.
        """
        if self._busy >= self._most:
            raise PoolFull
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._busy += 1
        if self._busy > len(self._threads) < self._limit:
            thread = threading.Thread(target=self._work, name="keys", daemon=True)
            self._threads.append(thread)
            thread.start()
        put = _Job(job, future)
        self._jobs.put(put)
        try:
            await self._wait(put, seconds)
            return future.result()
        finally:
            future.cancel()

    async def _wait(self, job: _Job, seconds: float) -> None:
        left = seconds
        while True:
            before = self._finished
            done, _ = await asyncio.wait([job.future], timeout=left)
            if done:
                return
            left = job.began + seconds - monotonic() if job.began else seconds
            if left <= 0 or (not job.began and self._finished == before):
                raise TimeoutError

    def close(self) -> None:
        """Let threads end that wait for a job; one that hangs ends with the process."""
        for _ in self._threads:
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, value, error = job.future, None, None
            try:
                # Nobody waits for what was given up on before it began.
                if not future.cancelled():
                    job.began = monotonic()
                    value = job.run()
            except BaseException as raised:  # noqa: BLE001 - whoever waits gets it
                error = raised
            try:
                future.get_loop().call_soon_threadsafe(self._done, future, value, error)
            except RuntimeError:
                # The loop is closed: nobody waits any more.
                return

    def _done(self, future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
        self._busy -= 1
        self._finished += 1
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)
