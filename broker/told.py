# SPDX-License-Identifier: Apache-2.0
"""What a sidecar was told, and what of it it says that it runs: what a delta can be built upon. Pure.

A delta is built upon what the sidecar has said in a Hello or an Ack, never upon what it was sent: an update that waits
is replaced by the next one, and so are two of them by one.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from firedoor.broker.db.rows import Generation
from firedoor.broker.views import Shared, View, Viewer
from firedoor.certs import TrustDomain

# Views that a sidecar was told after the one that it runs, and viewers. Whoever is further behind is sent all of it.
MAX_VIEWS: Final = 16
MAX_VIEWERS: Final = 32


class Told:
    """What one sidecar was told since what it runs."""

    def __init__(self) -> None:
        # The latest view, whether it took it or not.
        self.view: View | None = None
        # The latest update was a delta.
        self.by_delta = False
        self._views: dict[bytes, View] = {}
        self._running: tuple[Generation, bytes] | None = None

    def runs(self, generation: Generation | None, view_hash: bytes) -> None:
        """Take what it says that it runs."""
        self._running = (generation, view_hash) if generation is not None and view_hash else None
        if view_hash in self._views:
            # What it was told before that is nothing to build upon any more.
            for earlier in list(self._views):
                if earlier == view_hash:
                    break
                del self._views[earlier]

    def refused(self) -> bool:
        """Take it that it did not take the latest update; say whether it might take all of it."""
        self._running, by_delta = None, self.by_delta
        self.by_delta = False
        return by_delta

    def base(self, view: View) -> tuple[Generation, View] | None:
        """Return what an update to this view can be built upon."""
        if self._running is None:
            return None
        generation, running = self._running
        found = view if view.view_hash == running else self._views.get(running)
        return None if found is None else (generation, found)

    def told(self, view: View, *, by_delta: bool) -> None:
        """Take what it is told now."""
        self.view, self.by_delta = view, by_delta
        # The latest counts: it may have had the same long ago.
        self._views.pop(view.view_hash, None)
        self._views[view.view_hash] = view
        if len(self._views) > MAX_VIEWS:
            running = self._running[1] if self._running else b""
            del self._views[next(one for one in self._views if one != running)]


class Viewers:
    """The present viewer and those of before."""

    def __init__(self, trust_domain: TrustDomain) -> None:
        self._trust_domain = trust_domain
        self._recent: OrderedDict[int, Viewer] = OrderedDict()
        self.present: Viewer | None = None

    def of(self, shared: Shared) -> Viewer:
        """Return the viewer of this: the one before, if nothing of it changed."""
        if self.present is None or not self.present.shared.same(shared):
            self.present = Viewer(self._trust_domain, shared, self.present)
            self._recent[self.present.number] = self.present
            if len(self._recent) > MAX_VIEWERS:
                self._recent.popitem(last=False)
        return self.present

    def by_number(self, number: int) -> Viewer | None:
        """Return a viewer of before, if it is still there."""
        return self._recent.get(number)
