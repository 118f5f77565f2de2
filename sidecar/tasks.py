# SPDX-License-Identifier: Apache-2.0
"""Jobs that run together."""

import asyncio
from collections.abc import Awaitable


async def until_first(*jobs: Awaitable[object]) -> None:
    """Run all until one ends or raises, cancel the others, and raise what the one raised."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for task, result in zip(tasks, results, strict=True):
        if task in done and isinstance(result, BaseException):
            raise result
