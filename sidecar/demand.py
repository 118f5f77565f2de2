# SPDX-License-Identifier: Apache-2.0
"""Which X.509-SVIDs a sidecar holds: those of all its entries while they are few, else those that somebody uses. Pure.

Those of listeners, and those that an open stream hands out, are held however many they are. Up to a cap there follow
those that were handed out last, those that are held, and any others that may be fetched before somebody asks.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain

from firedoor.certs import SpiffeId
from firedoor.sidecar.config import CACHE
from firedoor.sidecar.view import View


class Demand:
    """Counts who uses what. `wake` is called when somebody begins to use an SVID that may be lacking."""

    def __init__(self, most: int = CACHE, pinned: Collection[SpiffeId] = ()) -> None:
        self._most, self._pinned = most, pinned
        self.wake: Callable[[], None] = lambda: None
        self._wanted: Counter[str] = Counter()
        # What was wanted once and is not now, the latest last.
        self._used: OrderedDict[str, None] = OrderedDict()

    @contextmanager
    def subscription(self) -> Iterator["Subscription"]:
        """Open a subscription; what it wants is wanted until it is closed."""
        made = Subscription(self)
        try:
            yield made
        finally:
            made.want(())

    def chosen(self, view: View, held: Iterable[str]) -> dict[str, None]:
        """Return the IDs of the entries whose SVIDs are to be held, the most wanted first."""
        entries = view.entries
        found = {one: None for one in self._wanted if one in entries}
        for spiffe_id in self._pinned:
            found |= dict.fromkeys(entry.id for entry in view.giving(spiffe_id))
        for one in chain(reversed(self._used), held, entries):
            if len(found) >= self._most:
                break
            if one in entries and entries[one].prefetch:
                found[one] = None
        return found

    def add(self, entry_id: str) -> None:
        """Count one more who wants it."""
        self._wanted[entry_id] += 1
        self._used.pop(entry_id, None)

    def drop(self, entry_id: str) -> None:
        """Count one fewer."""
        self._wanted[entry_id] -= 1
        if self._wanted[entry_id] == 0:
            del self._wanted[entry_id]
            self._used[entry_id] = None
            while len(self._used) > self._most:
                self._used.popitem(last=False)


class Subscription:
    """What one stream wants."""

    def __init__(self, demand: Demand) -> None:
        self._demand = demand
        self._wanted: frozenset[str] = frozenset()

    def want(self, entry_ids: Iterable[str]) -> None:
        """Want these, and no others any more."""
        fresh = frozenset(entry_ids)
        added, dropped = fresh - self._wanted, self._wanted - fresh
        for one in added:
            self._demand.add(one)
        for one in dropped:
            self._demand.drop(one)
        self._wanted = fresh
        if added:
            self._demand.wake()
