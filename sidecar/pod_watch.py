# SPDX-License-Identifier: Apache-2.0
"""The pods of a node as the API server has them: listed once, then watched, while the sidecar runs.

What was seen last counts while the API server is away: the kernel says in which container a process runs, and no other
container ever has its ID.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from firedoor.sidecar.errors import NotReady
from firedoor.sidecar.pod_objects import MAX_PODS, Pod, PodUnreadable, pod_of, read_pods
from firedoor.sidecar.pod_source import GONE, NOT_KNOWN, Forgotten, JsonObject, PodClient

log = logging.getLogger(__name__)

# How long one watch lasts; the API server ends it, and the next goes on from there.
_WATCH_SECONDS: Final = 240
_FIRST_WAIT: Final = 0.5
_LONGEST_WAIT: Final = 5.0


class WatchedPods:
    """Follows them from the first question on. `close` when done."""

    def __init__(self, client: PodClient) -> None:
        self._client = client
        self._pods: dict[str, Pod] = {}
        self._listed = False
        # Set once the first list has come, or could not.
        self._told = asyncio.Event()
        self._following: asyncio.Task[None] | None = None
        # Why they cannot be followed just now; nothing when they can.
        self._trouble = ""
        # Where the next watch goes on; nothing, and all are listed.
        self._version = ""

    @property
    def trouble(self) -> str:
        """Why they cannot be told; nothing when they can, if only as they were."""
        return "" if self._listed else self._trouble or NOT_KNOWN

    async def pods(self, _: float) -> Sequence[Pod]:
        """Return them as they are, by what the API server said last. Raise NotReady when it never said anything."""
        if self._following is None or self._following.done():
            self._following = asyncio.create_task(self._follow())
        await self._told.wait()
        if not self._listed:
            raise NotReady(self._trouble)
        return tuple(self._pods.values())

    async def close(self) -> None:
        """Follow them no more."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        await self._client.close()

    async def _follow(self) -> None:
        wait = _FIRST_WAIT
        while True:
            try:
                if not self._version:
                    await self._list()
                self._well()
                if await self._watch():
                    # It said something, so the next may be asked at once.
                    wait = _FIRST_WAIT
                    continue
            except Forgotten:
                # We were away for too long to be told what changed: all is looked at anew.
                self._version = ""
            except NotReady as error:
                self._ill(str(error))
            except PodUnreadable as error:
                # What came is not what was asked for: nothing of it is relied upon.
                self._version = ""
                self._ill(str(self._client.unavailable(str(error))))
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)

    async def _list(self) -> None:
        answer = await self._client.list()
        pods = await asyncio.to_thread(read_pods, answer, self._client.access.node)
        self._version = _version(answer)
        self._pods = {one.uid: one for one in pods}
        self._listed = True
        self._told.set()

    async def _watch(self) -> bool:
        """Watch until the API server ends it; say whether anything came."""
        came = False
        async for event in self._client.watch(self._version, _WATCH_SECONDS):
            self._event(event)
            came = True
        return came

    def _event(self, event: JsonObject) -> None:
        what, seen = event.get("type"), event.get("object")
        if not isinstance(seen, dict):
            raise PodUnreadable("an event without an object")
        if what == "ERROR":
            if seen.get("code") == GONE:
                raise Forgotten
            raise PodUnreadable("the watch ended with an error")
        version, uid = _version(seen), str((seen.get("metadata") or {}).get("uid"))
        if what != "BOOKMARK":
            found = pod_of(seen, self._client.access.node) if what != "DELETED" else None
            self._pods.pop(uid, None)
            if found is not None and len(self._pods) < MAX_PODS:
                self._pods[found.uid] = found
        self._version = version

    def _well(self) -> None:
        if self._trouble:
            log.info("pods are seen again")
        self._trouble = ""

    def _ill(self, why: str) -> None:
        if self._trouble != why:
            log.warning("pods cannot be followed, what was seen last counts", extra={"reason": why})
        self._trouble = why
        self._told.set()


def _version(found: JsonObject) -> str:
    metadata = found.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("resourceVersion"), str):
        raise PodUnreadable("an answer without a version")
    return str(metadata["resourceVersion"])
