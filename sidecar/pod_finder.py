# SPDX-License-Identifier: Apache-2.0
"""Finds the pod of a container, with patience: a program may ask before its kubelet has said that its container runs.

Patience has bounds, or a container that nobody knows could make a sidecar ask and ask. All who ask about one container
wait together, for so many looks; after that the container is remembered as unknown for a while, in which questions
about it are answered from what is known already.
"""

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from firedoor.sidecar.errors import CallerRefused, NotReady
from firedoor.sidecar.pod_cgroup import PodContainer
from firedoor.sidecar.pod_objects import Container, Pod, find_container
from firedoor.sidecar.pod_source import PodSource

# SPIRE's.
LOOKS: Final = 60
PAUSE_SECONDS: Final = 0.5
# What is known of a running container may be so old: its labels may have changed since.
_KNOWN_SECONDS: Final = 1.0
_UNKNOWN_SECONDS: Final = 30.0
# A node has fewer containers; what is forgotten is looked for once more.
_MAX_UNKNOWN: Final = 4096
Found = tuple[Pod, Container]


class PodFinder:
    """Looks containers up; `close` when done."""

    def __init__(
        self,
        source: PodSource,
        *,
        looks: int = LOOKS,
        pause: float = PAUSE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.source = source
        self._looks, self._pause, self._clock = looks, pause, clock
        self._looking: asyncio.Task[None] | None = None
        self._searches: dict[PodContainer, asyncio.Task[Found]] = {}
        # Until when each is not looked for again.
        self._unknown: OrderedDict[PodContainer, float] = OrderedDict()

    async def container(self, seen: PodContainer) -> Found:
        """Return the pod and the container that a cgroup names.

        Raise NotReady while nobody knows them, and CallerRefused for a container that was put into a running pod.
        """
        unknown = self._unknown.get(seen, 0.0) > self._clock()
        pods = await self.source.pods(_UNKNOWN_SECONDS if unknown else _KNOWN_SECONDS)
        if (found := find_container(pods, seen)) is not None:
            return found
        if any(seen.container_id in pod.ephemeral for pod in pods):
            raise CallerRefused("the container was put into its pod while that ran: what is in it is not the pod's own")
        if unknown:
            raise _nobody_knows()
        search = self._searches.get(seen)
        if search is None:
            search = self._searches[seen] = asyncio.create_task(self._search(seen))
            search.add_done_callback(lambda done: self._end_of_search(seen, done))
        # Whoever goes away does not end it for the others.
        return await asyncio.shield(search)

    def look(self) -> None:
        """Ask which pods there are, unless they can be told; `source.trouble` says whether they can."""
        if self.source.trouble and (self._looking is None or self._looking.done()):
            self._looking = asyncio.create_task(self._look())

    async def _look(self) -> None:
        with contextlib.suppress(NotReady):
            await self.source.pods(0)

    async def close(self) -> None:
        """End every search, and close the source."""
        searches: list[asyncio.Task[Any]] = [*self._searches.values(), *([self._looking] if self._looking else [])]
        for one in searches:
            one.cancel()
        await asyncio.gather(*searches, return_exceptions=True)
        await self.source.close()

    def _end_of_search(self, seen: PodContainer, done: "asyncio.Task[Found]") -> None:
        self._searches.pop(seen, None)
        # Nobody may be waiting for its error any more.
        if not done.cancelled():
            done.exception()

    async def _search(self, seen: PodContainer) -> Found:
        for _ in range(self._looks - 1):
            await asyncio.sleep(self._pause)
            if (found := find_container(await self.source.pods(self._pause / 2), seen)) is not None:
                return found
        self._unknown[seen] = self._clock() + _UNKNOWN_SECONDS
        self._unknown.move_to_end(seen)
        while len(self._unknown) > _MAX_UNKNOWN:
            self._unknown.popitem(last=False)
        raise _nobody_knows()


def _nobody_knows() -> NotReady:
    return NotReady("the calling process runs in a container that no pod of this node is known to have")
