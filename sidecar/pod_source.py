# SPDX-License-Identifier: Apache-2.0
"""Which pods are on this node: whoever says it, and the kubelet, which is asked anew each time.

No more is read than the pods of a node can have.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from firedoor.cluster.errors import ClusterUnavailable
from firedoor.sidecar.errors import NotReady
from firedoor.sidecar.pod_access import PodAccess
from firedoor.sidecar.pod_objects import Pod, PodUnreadable, read_pods

log = logging.getLogger(__name__)

# A kubelet has no pages. Hundreds of pods with all that the API lets them have are rare; they are some ten KiB each.
_MAX_ANSWER: Final = 32 * 1024 * 1024
# A kubelet is restarted within a minute; labels may have changed since.
_AWAY_SECONDS: Final = 300.0
NOT_KNOWN: Final = "which pods are on this node is not known yet"


class PodSource(Protocol):
    """Says which pods are on this node."""

    @property
    def trouble(self) -> str:
        """Why they cannot be told; nothing when they can."""

    async def pods(self, max_age: float) -> Sequence[Pod]:
        """Return them as they were at most so many seconds ago, if they can be asked for. Raise NotReady."""

    async def close(self) -> None:
        """Close what is open."""


class ListedPods:
    """Lists them when somebody asks; once for all who ask meanwhile.

    What was seen last counts for some minutes while nobody answers: no other container ever has the ID of one that was
    in it, and a kubelet that is restarted takes no identity from anybody.
    """

    def __init__(self, access: PodAccess, clock: Callable[[], float] = time.monotonic) -> None:
        self._node, self._path, self._clock = access.node, access.path, clock
        self._api = access.api()
        self._asking: asyncio.Task[Sequence[Pod]] | None = None
        self._seen: Sequence[Pod] = ()
        # When that was asked for, by the monotonic clock.
        self._seen_at: float | None = None
        self.trouble = NOT_KNOWN

    async def pods(self, max_age: float) -> Sequence[Pod]:
        """Return them as they were at most so many seconds ago, if they can be asked for. Raise NotReady."""
        if self._younger_than(max_age):
            return self._seen
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
            # Nobody may be waiting for its error any more.
            self._asking.add_done_callback(lambda done: done.cancelled() or done.exception())
        # Whoever goes away does not end it for the others.
        try:
            return await asyncio.shield(self._asking)
        except NotReady:
            if not self._younger_than(_AWAY_SECONDS):
                raise
            return self._seen

    def _younger_than(self, seconds: float) -> bool:
        return self._seen_at is not None and self._clock() - self._seen_at <= seconds

    async def close(self) -> None:
        """Close what is open."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        await self._api.close()

    async def _ask(self) -> Sequence[Pod]:
        asked_at = self._clock()
        try:
            self._seen = await self._list()
        except NotReady as error:
            if str(error) != self.trouble:
                log.warning("pods cannot be told", extra={"reason": str(error)})
            self.trouble = str(error)
            raise
        self._seen_at, self.trouble = asked_at, ""
        return self._seen

    async def _list(self) -> Sequence[Pod]:
        try:
            answer = await self._api.get(self._path, _MAX_ANSWER)
            if answer is None:
                raise PodUnreadable("it answers 404")
            return await asyncio.to_thread(read_pods, answer, self._node)
        except ClusterUnavailable as error:
            raise NotReady(str(error)) from None
        except PodUnreadable as error:
            raise NotReady(self._api.said(str(error))) from None
