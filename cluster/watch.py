# SPDX-License-Identifier: Apache-2.0
"""One kind of a cluster's objects: listed once, then watched.

What was seen last counts while the API server is away. A kind that cannot be listed is no empty kind: `listed` says
whether it was, once.

A watch whose other end is gone without a word looks like one that has nothing to say. The API server says where it is
about once a minute (a bookmark); when it says nothing for longer, the watch is made anew from where it was.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Final, Protocol, final
from urllib.parse import quote

from firedoor.cluster.api import MAX_OBJECT, ClusterApi
from firedoor.cluster.errors import AnswerTooLong, ClusterUnavailable, Gone, ObjectsUnreadable
from firedoor.cluster.objects import Event, Page, Seen

_log = logging.getLogger(__name__)
# Objects a page: each has a megabyte and a half at most, and seldom more than some kilobytes.
_PAGE: Final = 100
# Where somebody has made them so large that a page is too long, fewer are asked for, down to one.
_MAX_PAGE: Final = 2 * MAX_OBJECT
_FEWER: Final = 4
# What one list may come to, or it is taken for one without end: Kubernetes itself is made for 150,000 pods, and what
# sinks take is less. Pages count only when they promise more and hold less than was asked for, even nothing, which the
# API allows (`limit` of its ListOptions): how many full ones there are is a matter of how large the objects are.
_MOST_OBJECTS: Final = 1_000_000
_MOST_SHORT: Final = 10_000
# How long one watch lasts; the API server ends it, and the next goes on from there.
_WATCH_SECONDS: Final = 240
# Two bookmarks that did not come, and some. kube-apiserver has one a minute (bookmarkFrequency in its cacher.go), which
# the API does not promise: a server that has just started leaves out the first. Another watch costs one request.
_SILENT_SECONDS: Final = 150.0
_FIRST_WAIT: Final = 0.5
_LONGEST_WAIT: Final = 5.0
# Of a wait, either way: those who lost a server together do not come back together.
_JITTER: Final = 0.25


class Sink(Protocol):
    """Where what is seen goes. Each method may raise ObjectsUnreadable: then all are looked at again, after a while.

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
        self,
        api: ClusterApi,
        path: str,
        kind: str,
        what: str,
        sink: Sink,
        *,
        absent: str = "",
        most: int = _PAGE,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Follow `path`, such as `/api/v1/pods` or `/api/v1/pods?labelSelector=a`, of a kind such as `Pod`.

        `what`: the objects, in a word. `absent`: the sentence when the cluster does not know such objects. `most`:
        how many the sink takes at once.
        """
        self._api, self._kind, self.what, self._sink, self._most = api, kind, what, sink, most
        self._absent = absent or f"the cluster has no {what}"
        self._path = path + ("&" if "?" in path else "?")
        self._uniform = uniform
        self.listed = asyncio.Event()
        # Set once the first list has come, or could not.
        self.told = asyncio.Event()
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
                if await self._follow():
                    wait = _FIRST_WAIT
            except Gone:
                # We were away for too long to be told what changed: all is looked at anew.
                self._version = ""
            except ClusterUnavailable as error:
                self._ill(str(error))
            except ObjectsUnreadable as error:
                # What came is not what was asked for: nothing of it is relied upon.
                self._version = ""
                self._ill(self._api.said(str(error)))
            await asyncio.sleep(wait * self._uniform(1 - _JITTER, 1 + _JITTER))
            wait = min(2 * wait, _LONGEST_WAIT)

    async def _list(self) -> None:
        self._sink.begin()
        more, most, pages, short, count = "", self._most, 0, 0, 0
        while True:
            try:
                answer = await self._api.get(f"{self._path}limit={most}{more}", _MAX_PAGE)
            except AnswerTooLong:
                if most == 1:
                    raise
                most = max(1, most // _FEWER)
                continue
            if answer is None:
                raise ObjectsUnreadable(self._absent)
            page = Page.read(answer, self._kind)
            pages, count = pages + 1, count + len(page.items)
            short += bool(page.more) and len(page.items) < most
            if count > _MOST_OBJECTS or short > _MOST_SHORT:
                raise ObjectsUnreadable(f"its list of {self.what} has no end: {pages} pages held {count} objects")
            most = min(self._most, most * 2)
            self._sink.page(page.items)
            if not page.more:
                break
            more = f"&continue={quote(page.more, safe='')}"
        self._sink.end()
        self._version = page.version
        self._well()
        self.listed.set()

    async def _follow(self) -> bool:
        """Watch until the API server ends it, or falls silent; say whether anything came."""
        asked = f"{self._path}watch=1&allowWatchBookmarks=true&timeoutSeconds={_WATCH_SECONDS}"
        path = f"{asked}&resourceVersion={quote(self._version, safe='')}"
        came = False
        async with aclosing(self._api.watch(path, _SILENT_SECONDS, self._well)) as events:
            async for found in events:
                event = Event.read(found)
                match event.what:
                    case "ADDED" | "MODIFIED":
                        self._sink.put(event.seen)
                    case "DELETED":
                        self._sink.drop(event.seen)
                self._version = event.version
                came = True
        return came

    def _well(self) -> None:
        if self.trouble:
            _log.info("%s are seen again", self.what)
        self.trouble = ""
        self.told.set()

    def _ill(self, why: str) -> None:
        if self.trouble != why:
            _log.warning("%s cannot be followed, what was seen last counts: %s", self.what, why)
        self.trouble = why
        self.told.set()
