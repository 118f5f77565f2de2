# SPDX-License-Identifier: Apache-2.0
"""Objects that many ask for at the same time, read once a second: a node, when all its pods start."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Final, final

from firedoor.cluster.api import ClusterApi

# Seconds that an object is as good as fresh.
_FRESH: Final = 1.0
_MOST: Final = 1024
_Answer = asyncio.Task[Mapping[str, Any] | None]


@final
class Recent:
    """Reads of one cluster's objects."""

    def __init__(self, api: ClusterApi) -> None:
        self._api = api
        self._answers: dict[str, tuple[float, _Answer]] = {}

    async def get(self, path: str) -> Mapping[str, Any] | None:
        """Return an object as it was a second ago or later, None when there is none. Raise ClusterUnavailable."""
        now, known = time.monotonic(), self._answers.get(path)
        if known is None or now - known[0] > _FRESH or _failed(known[1]):
            self._forget(now)
            known = now, asyncio.create_task(self._api.get(path))
            self._answers[path] = known
        # Who asked first may give up; others wait for the same.
        return await asyncio.shield(known[1])

    def _forget(self, now: float) -> None:
        """Drop what is old: an object may have megabytes, and whoever writes in a namespace can make many."""
        if len(self._answers) >= _MOST:
            self._answers.clear()
        self._answers = {path: one for path, one in self._answers.items() if now - one[0] <= _FRESH}


def _failed(answer: _Answer) -> bool:
    return answer.done() and (answer.cancelled() or answer.exception() is not None)
