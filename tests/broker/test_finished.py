# SPDX-License-Identifier: Apache-2.0
"""What was begun is finished, whoever goes away, and the next waits for it."""

from __future__ import annotations

import asyncio

import pytest

from firedoor.broker.finished import OneByOne, finished
from tests.waiting import async_until


class Work:
    """Steps that are seen, one of which waits until it may go on."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.on = asyncio.Event()

    async def slow(self) -> str:
        self.seen.append("slow begins")
        await self.on.wait()
        self.seen.append("slow ends")
        return "slow"

    async def quick(self) -> str:
        self.seen.append("quick")
        return "quick"

    async def wrong(self) -> str:
        await self.on.wait()
        raise ValueError("wrong")


async def turns() -> None:
    """Let whoever can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize("times", [1, 2])
async def test_the_next_waits_for_one_whose_caller_is_gone(times: int) -> None:
    work, one_by_one = Work(), OneByOne()
    first = asyncio.create_task(one_by_one.run(work.slow))
    await async_until(lambda: bool(work.seen))
    for _ in range(times):
        first.cancel()
        await turns()
    second = asyncio.create_task(one_by_one.run(work.quick))
    await turns()
    assert work.seen == ["slow begins"]
    assert not first.done()
    work.on.set()
    assert await second == "quick"
    assert work.seen == ["slow begins", "slow ends", "quick"]
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_what_is_cancelled_before_its_turn_is_not_begun() -> None:
    work, one_by_one = Work(), OneByOne()
    first = asyncio.create_task(one_by_one.run(work.slow))
    await async_until(lambda: bool(work.seen))
    second = asyncio.create_task(one_by_one.run(work.quick))
    await turns()
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    work.on.set()
    assert await first == "slow"
    assert work.seen == ["slow begins", "slow ends"]


async def test_what_goes_wrong_is_raised_and_holds_up_nobody() -> None:
    work, one_by_one = Work(), OneByOne()
    work.on.set()
    with pytest.raises(ValueError, match="wrong"):
        await one_by_one.run(work.wrong)
    assert await one_by_one.run(work.quick) == "quick"


async def test_whoever_is_cancelled_hears_that_and_not_what_went_wrong() -> None:
    work = Work()
    task = asyncio.create_task(finished(work.wrong()))
    await turns()
    task.cancel()
    await turns()
    work.on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
