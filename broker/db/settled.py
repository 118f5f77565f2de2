# SPDX-License-Identifier: Apache-2.0
"""Decide again when another broker came first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from firedoor.broker.errors import Stale

T = TypeVar("T")
# Brokers do not change the same thing at the same time so often.
_ATTEMPTS: Final = 10


async def settled(attempt: Callable[[], Awaitable[T]]) -> T:
    """Return what an attempt returns; one that ends as Stale is made again. Raise Stale after some."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return await attempt()
        except Stale:
            continue
    return await attempt()
