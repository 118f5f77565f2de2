# SPDX-License-Identifier: Apache-2.0
"""How tests wait: for a condition, never for a time.

until(lambda: world.app.accepted == 2, "the second connection")
await async_until(broker.rules, "the new rule", when=lambda rules: len(rules) == 2)

A wait that ran out has an error of its own, so that what came too late on a busy machine is told from a wrong answer.
"""

from __future__ import annotations

import asyncio
import inspect
import linecache
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")

# Seconds. Nobody waits for them where things work; a whole test may take 300 (pyproject.toml). Clients that tests make
# have the same.
PATIENCE = 60.0
# As short as an SVID or a window of time is that something has to begin in, seconds: a machine may stall meanwhile.
SHORT = 20
# Seconds between two looks.
PAUSE = 0.02


class NotInTime(TimeoutError):
    """What was waited for did not come true."""


def until(
    ask: Callable[[], T],
    what: str = "",
    *,
    when: Callable[[T], object] = bool,
    state: Callable[[], object] | None = None,
    seconds: float = PATIENCE,
) -> T:
    """Ask until the answer is right, and return it. `what` is what is waited for, `state` tells how things are."""
    end = time.monotonic() + seconds
    while not when(found := ask()):
        if time.monotonic() > end:
            raise _not_in_time(seconds, what or _line(ask), found if state is None else state())
        time.sleep(PAUSE)
    return found


async def async_until(
    ask: Callable[[], Awaitable[T] | T],
    what: str = "",
    *,
    when: Callable[[T], object] = bool,
    state: Callable[[], object] | None = None,
    seconds: float = PATIENCE,
) -> T:
    """Do the same where others must run meanwhile. What `ask` returns is awaited if it can be."""
    end = time.monotonic() + seconds
    while not when(found := await _answer(ask())):
        if time.monotonic() > end:
            raise _not_in_time(seconds, what or _line(ask), found if state is None else state())
        await asyncio.sleep(PAUSE)
    return found


async def _answer(given: Awaitable[T] | T) -> T:
    return await given if inspect.isawaitable(given) else given


def _not_in_time(seconds: float, what: str, found: object) -> NotInTime:
    return NotInTime(f"not within {seconds:.0f} s: {what}; it is {found}")


def _line(ask: Any) -> str:
    """Return the line where a condition is written."""
    code = getattr(ask, "__code__", None)
    return linecache.getline(code.co_filename, code.co_firstlineno).strip() if code else repr(ask)
