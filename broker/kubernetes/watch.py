# SPDX-License-Identifier: Apache-2.0
"""One kind of a cluster's objects: listed once, then watched, for as long as a broker runs.

What was seen last counts while the API server is away. A kind that cannot be listed is no empty kind: `listed` says
whether it was, once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol, final
from urllib.parse import quote

from firedoor.broker.errors import AnswerTooLong, ClusterUnavailable, ConfigError, Gone
from firedoor.broker.kubernetes.api import MAX_OBJECT, ClusterApi

_log = logging.getLogger("firedoor.broker.kubernetes")
# Objects a page: each has a megabyte and a half at most, and seldom more than some kilobytes.
_PAGE: Final = 100
# Where somebody has made them so large that a page is too long, fewer are asked for, down to one.
_MAX_PAGE: Final = 2 * MAX_OBJECT
_FEWER: Final = 4
# How long one watch lasts; the API server ends it, and the next goes on from there.
_WATCH_SECONDS: Final = 240
_GONE: Final = 410
_FIRST_WAIT: Final = 0.5
_LONGEST_WAIT: Final = 5.0
Seen = Mapping[str, Any]


class Sink(Protocol):
    """Where what is seen goes. Each method may raise ConfigError: then all objects are looked at again, after a while.

    `begin`, `page` for each page and `end` come in this order; a list that breaks off has no `end`, and another begins.
    """

    def begin(self) -> None:
        """Begin a list."""

    def page(self, items: Sequence[Seen]) -> None:
        """Take some objects of a list."""

    def end(self) -> None:
        """Put what was listed in the place of all that was seen before."""

    def put(self, seen: Seen) -> None:
        """Take one object, new or changed."""

    def drop(self, seen: Seen) -> None:
        """Take one object away, shown as it was last."""


@final
class Watch:
    """Follows all objects at one path. `run` until cancelled."""

    def __init__(
        self, api: ClusterApi, path: str, what: str, sink: Sink, *, absent: str = "", most: int = _PAGE
    ) -> None:
        """Follow `path`, such as `/api/v1/pods` or `/api/v1/pods?labelSelector=a`.

        `what`: the objects, in a word. `absent`: the sentence when the cluster does not know such objects. `most`:
        how many the sink takes at once.
        """
        self._api, self.what, self._sink, self._most = api, what, sink, most
        self._absent = absent or f"the cluster has no {what}"
        self._path = path + ("&" if "?" in path else "?")
        self.listed = asyncio.Event()
        # Why they cannot be followed just now; nothing when they can.
        self.trouble = ""
        # Where the next watch goes on; nothing, and all are listed.
        self._version = ""

    @property
    def current(self) -> bool:
        """Say whether they were listed, and are followed since as far as is known."""
        return bool(self._version) and not self.trouble

    async def run(self) -> None:
        """Follow them."""
        wait = _FIRST_WAIT
        while True:
            try:
                if not self._version:
                    await self._list()
                self._well()
                if await self._follow():
                    # It said something, so the next may be asked at once.
                    wait = _FIRST_WAIT
                    continue
            except Gone:
                # We were away for too long to be told what changed: all is looked at anew.
                self._version = ""
            except ClusterUnavailable as error:
                self._ill(str(error))
            except ConfigError as error:
                # What came is not what was asked for: nothing of it is relied upon.
                self._version = ""
                self._ill(str(error))
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)

    async def _list(self) -> None:
        self._sink.begin()
        more, most = "", self._most
        while True:
            try:
                page = await self._api.get(f"{self._path}limit={most}{more}", _MAX_PAGE)
            except AnswerTooLong:
                if most == 1:
                    raise
                most = max(1, most // _FEWER)
                continue
            most = min(self._most, most * 2)
            if page is None:
                raise ConfigError(self._absent)
            metadata, items = page.get("metadata"), page.get("items")
            if not isinstance(metadata, dict) or not isinstance(items, list):
                raise ConfigError(f"the API server listed no {self.what}")
            if not all(isinstance(item, dict) for item in items):
                raise ConfigError(f"the API server listed {self.what} that are no objects")
            self._sink.page(items)
            if not metadata.get("continue"):
                break
            more = f"&continue={quote(str(metadata['continue']))}"
        self._sink.end()
        self._version = str(metadata.get("resourceVersion") or "")
        self.listed.set()

    async def _follow(self) -> bool:
        """Watch until the API server ends it; say whether anything came."""
        asked = f"{self._path}watch=1&allowWatchBookmarks=true&timeoutSeconds={_WATCH_SECONDS}"
        came = False
        async for event in self._api.watch(f"{asked}&resourceVersion={quote(self._version)}", _WATCH_SECONDS):
            self._event(event)
            came = True
        return came

    def _event(self, event: Seen) -> None:
        what, seen = event.get("type"), event.get("object")
        if not isinstance(seen, dict):
            raise ConfigError("the API server sent an event without an object")
        if what == "ERROR":
            if seen.get("code") == _GONE:
                raise Gone("the API server has forgotten where the watch was to go on")
            raise ConfigError(f"the API server ended the watch of {self.what}")
        metadata = seen.get("metadata")
        if not isinstance(metadata, dict) or not metadata.get("resourceVersion"):
            raise ConfigError("the API server sent an event without a version")
        match what:
            case "ADDED" | "MODIFIED":
                self._sink.put(seen)
            case "DELETED":
                self._sink.drop(seen)
        self._version = str(metadata["resourceVersion"])

    def _well(self) -> None:
        if self.trouble:
            _log.info("%s are seen again", self.what)
        self.trouble = ""

    def _ill(self, why: str) -> None:
        if self.trouble != why:
            _log.warning("%s cannot be followed, what was seen last counts: %s", self.what, why)
        self.trouble = why
