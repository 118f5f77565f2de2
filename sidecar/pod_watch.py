# SPDX-License-Identifier: Apache-2.0
"""The pods of a node as the API server has them: listed once, then watched, while the sidecar runs.

What was seen last counts while the API server is away: the kernel says in which container a process runs, and no other
container ever has its ID.
"""

import asyncio
from collections.abc import Sequence
from typing import final

from firedoor.cluster.errors import ObjectsUnreadable
from firedoor.cluster.objects import Seen
from firedoor.cluster.watch import Watch
from firedoor.sidecar.errors import NotReady
from firedoor.sidecar.pod_access import PodAccess
from firedoor.sidecar.pod_objects import MAX_PODS, Pod, pod_of
from firedoor.sidecar.pod_source import NOT_KNOWN


class WatchedPods:
    """Follows them from the first question on. `close` when done."""

    def __init__(self, access: PodAccess) -> None:
        self._seen, self._api = _Pods(access.node), access.api()
        self._watch = Watch(self._api, access.path, "Pod", "pods", self._seen)
        self._following: asyncio.Task[None] | None = None

    @property
    def trouble(self) -> str:
        """Why they cannot be told; nothing when they can, if only as they were."""
        return "" if self._watch.listed.is_set() else self._watch.trouble or NOT_KNOWN

    async def pods(self, _: float) -> Sequence[Pod]:
        """Return them as they are, by what the API server said last. Raise NotReady when it never said anything."""
        if self._following is None or self._following.done():
            self._following = asyncio.create_task(self._watch.run())
        await self._watch.told.wait()
        if not self._watch.listed.is_set():
            raise NotReady(self._watch.trouble)
        return tuple(self._seen.pods.values())

    async def close(self) -> None:
        """Follow them no more."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        await self._api.close()


@final
class _Pods:
    """Those that can be read, by UID. It is a `Sink`."""

    def __init__(self, node: str) -> None:
        self._node = node
        self.pods: dict[str, Pod] = {}
        self._listing: dict[str, Pod] = {}

    def begin(self) -> None:
        self._listing = {}

    def page(self, items: Sequence[Seen]) -> None:
        for item in items:
            if (found := pod_of(item, self._node)) is not None:
                self._listing[found.uid] = found
        if len(self._listing) > MAX_PODS:
            raise ObjectsUnreadable(f"it has more than {MAX_PODS} pods")

    def end(self) -> None:
        self.pods, self._listing = self._listing, {}

    def put(self, seen: Seen) -> None:
        self.drop(seen)
        found = pod_of(seen, self._node)
        if found is not None and len(self.pods) < MAX_PODS:
            self.pods[found.uid] = found

    def drop(self, seen: Seen) -> None:
        self.pods.pop(str(seen["metadata"].get("uid")), None)
