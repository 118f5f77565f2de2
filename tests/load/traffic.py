# SPDX-License-Identifier: Apache-2.0
"""An open-loop load generator: requests leave at fixed times, whatever became of those before, and none is retried.

Only where a machine is too slow for the rate, so that hundreds are out, do others leave later.

with Traffic() as traffic:
    load = traffic.start("keep-alive", 300, request)   # `request(number)` raises when it failed
    ...
    load.stop()                                        # waits for the answers that are out
assert load.failures == []
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Self, TypeVar

T = TypeVar("T")

# One request. A machine that has other work too is slow at times; whoever waits so long has failed.
PATIENCE = 20.0
# So many requests of a kind that are out at once would only wait for each other.
MOST_OUT = 200
SHORTLY = 0.01


@dataclass(frozen=True)
class Failure:
    """A request that failed: when it left, in Unix seconds, and how it ended."""

    left: float
    after: float
    why: str


class Load:
    """One kind of request at a fixed rate."""

    def __init__(self, name: str, rate: float, request: Callable[[int], Awaitable[object]]) -> None:
        self.name, self.rate, self._request = name, rate, request
        self.sent = self.answered = 0
        self.failures: list[Failure] = []
        self.slowest = 0.0
        self.began = time.monotonic()
        self.lasted = 0.0
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Send until `end`; return when every answer is there."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        async with asyncio.TaskGroup() as tasks:
            while not self._ended.is_set():
                due = start + self.sent / self.rate
                if (wait := due - loop.time()) > 0:
                    await asyncio.sleep(wait)
                while self.sent - self.answered - len(self.failures) >= MOST_OUT and not self._ended.is_set():
                    start += SHORTLY
                    await asyncio.sleep(SHORTLY)
                tasks.create_task(self._one(self.sent))
                self.sent += 1
            self.lasted = loop.time() - start

    async def end(self) -> None:
        """Send nothing more."""
        self._ended.set()

    async def _one(self, number: int) -> None:
        left, start = time.time(), time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE):
                await self._request(number)
        except (OSError, EOFError, ValueError) as error:
            self.failures.append(Failure(left, time.monotonic() - start, f"{type(error).__name__}: {error}"))
        else:
            self.answered += 1
            self.slowest = max(self.slowest, time.monotonic() - start)

    def __str__(self) -> str:
        failed = f"{len(self.failures)} failed, the first {self.failures[0]}" if self.failures else "none failed"
        return (
            f"{self.name}: {self.sent} sent in {self.lasted:.1f} s, {self.answered} answered, {failed}; "
            f"slowest {self.slowest * 1000:.0f} ms"
        )


class Running:
    """A load under way."""

    def __init__(self, traffic: Traffic, load: Load) -> None:
        self.load, self._traffic = load, traffic
        self._done = traffic.submit(load.run())

    def stop(self) -> Load:
        """Send nothing more, wait for what is out, and return what came of it."""
        self._traffic.call(self.load.end())
        self._done.result(PATIENCE * 2)
        return self.load


class Traffic:
    """An event loop on a thread of its own, for loads and the programs that they talk to.

    `enter` is called on the thread first: what a socket is, and whose, may depend on it.
    """

    def __init__(self, enter: Callable[[], object] | None = None) -> None:
        self._loop = asyncio.new_event_loop()
        self._enter = enter
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._running: list[Running] = []

    def _run(self) -> None:
        if self._enter:
            self._enter()
        self._loop.run_forever()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.call(self._cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()

    async def _cancel_all(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin something on the loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something on the loop and return its result."""
        return self.submit(work).result(PATIENCE * 2)

    def start(self, name: str, rate: float, request: Callable[[int], Awaitable[object]]) -> Running:
        """Begin a load."""
        self._running.append(Running(self, Load(name, rate, request)))
        return self._running[-1]

    def stop(self) -> None:
        """Stop every load."""
        while self._running:
            self._running.pop().stop()
