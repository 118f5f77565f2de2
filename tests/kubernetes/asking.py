# SPDX-License-Identifier: Apache-2.0
"""How tests wait for what a cluster, or a broker that runs in their own process, says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tests.waiting import async_until

# Seconds: more than elsewhere, because a whole cluster runs beside.
PATIENCE = 90.0


async def until_answer(ask: Callable[[], Any], right: Callable[[Any], object], what: str) -> Any:
    """Ask until the answer is right, and return it. `ask` may block."""
    return await async_until(lambda: asyncio.to_thread(ask), what, when=right, seconds=PATIENCE)


async def until_here(ask: Callable[[], Any], holds: Callable[[Any], object], what: str) -> Any:
    """Ask on this loop: what a broker of this process holds changes nowhere else, and cannot be read beside it."""
    return await async_until(ask, what, when=holds)
