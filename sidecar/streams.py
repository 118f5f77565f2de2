# SPDX-License-Identifier: Apache-2.0
"""Streams of full state: an answer at once, and another one at every change that changes it.

A stream ends when whoever it is about does. One caller or client has so many at once and no more.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable
from typing import Protocol, TypeVar, cast

from firedoor.certs import Selector
from firedoor.sidecar.config import STREAMS
from firedoor.sidecar.demand import Subscription
from firedoor.sidecar.errors import Incomplete, NotReady, WorkloadGone
from firedoor.sidecar.holder import Holder
from firedoor.sidecar.seats import Seats

T = TypeVar("T")
Selectors = frozenset[Selector]
# What is told about a workload with these selectors. What it wants of the subscription is held while the stream lasts.
Answer = Callable[[Selectors, Subscription], Awaitable[T]]

# An entry that was just made has its SVID within this time, or the server is away.
PENDING_SECONDS = 5.0


class Subject(Protocol):
    """The workload that a stream is about."""

    @property
    def ended(self) -> asyncio.Event | None:
        """Set when it has ended; None where the stream's own connection ends with it."""

    async def attest(self) -> Selectors:
        """Return its selectors. Raise SidecarError."""


class Streams:
    """Runs the streams of one API."""

    def __init__(self, holder: Holder, most: int = STREAMS) -> None:
        self._holder = holder
        self._seats = Seats(most, "streams", "close some, or raise max_streams")

    def __len__(self) -> int:
        return len(self._seats)

    async def run(
        self,
        who: Hashable,
        subject: Subject,
        answer: Answer[T],
        due: Callable[[], float | None] = lambda: None,
    ) -> AsyncGenerator[T, None]:
        """Yield answers to `who`; `due` says in how many seconds one changes by itself. Raise SidecarError."""
        with self._seats.one_of(who), self._holder.demand.subscription() as wanted:
            last: T | None = None
            while True:
                changed = self._holder.changed
                selectors = await subject.attest()
                response = await self._next(lambda told: answer(told, wanted), selectors, first=last is None)
                if response != last:
                    yield response
                    last = response
                await _first_of(due(), changed, subject.ended)
                if subject.ended is not None and subject.ended.is_set():
                    raise WorkloadGone("the process has ended")

    async def _next(self, answer: Callable[[Selectors], Awaitable[T]], selectors: Selectors, *, first: bool) -> T:
        if first:
            return await patiently(self._holder, lambda: answer(selectors))
        try:
            return await answer(selectors)
        except Incomplete as found:
            return cast(T, found.partial)


async def patiently(holder: Holder, ask: Callable[[], Awaitable[T]]) -> T:
    """Answer now, or wait a moment for what is being issued. Raise NotReady when nothing comes."""
    end = asyncio.get_running_loop().time() + PENDING_SECONDS
    while True:
        changed = holder.changed
        try:
            return await ask()
        except NotReady as pending:
            try:
                async with asyncio.timeout_at(end):
                    await changed.wait()
            except TimeoutError:
                if isinstance(pending, Incomplete):
                    return cast(T, pending.partial)
                raise pending from None


async def _first_of(seconds: float | None, *events: asyncio.Event | None) -> None:
    """Wait until one of them is set, or so long."""
    waiting = [asyncio.ensure_future(event.wait()) for event in events if event is not None]
    try:
        await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in waiting:
            one.cancel()
