# SPDX-License-Identifier: Apache-2.0
"""What a watch shows, kept as small records by key; whoever asked is told which of them changed.

An object that cannot be read stays out, with a line in the log: one that somebody wrote wrongly must not hide the rest.
So does what a namespace has beyond its share, until there is room.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar, final

from firedoor.broker.kubernetes.shares import MOST_KEYS, Line, Shares
from firedoor.cluster.errors import ObjectsUnreadable
from firedoor.cluster.objects import Seen, metadata, text

R = TypeVar("R")
_log = logging.getLogger("firedoor.broker.kubernetes")
Changed = Callable[[str, R | None, R | None], None]


@final
class Mirror(Generic[R]):
    """The objects of one kind. It is a `Sink`.

    `read` makes a record of an object, None when it is not wanted; it raises ValueError. `changed` is called with a
    key, what was and what is; both must be quick. `shares`: how many a namespace may have, where that is bounded.
    """

    def __init__(
        self,
        what: str,
        most: int,
        key: Callable[[Seen], str],
        read: Callable[[Seen], R | None],
        changed: Changed[R],
        shares: Shares | None = None,
    ) -> None:
        self._what, self._most, self._key, self._read, self._changed = what, most, key, read, changed
        self._shares = shares
        self.records: dict[str, R] = {}
        self._listing: dict[str, R] = {}
        # Of a list, what is new: how many by namespace, and by key the namespaces of those that may find room, and that
        # certainly find none; with as many records of these as may stand in line.
        self._new: Counter[str] = Counter()
        self._waiting: dict[str, str] = {}
        self._beyond: dict[str, str] = {}
        self._behind: Line[R] = Line()
        # What is left out, and next when there is room.
        self._line: Line[R] = Line()

    def begin(self) -> None:
        """Begin a list."""
        self._listing, self._new, self._waiting, self._beyond, self._behind = {}, Counter(), {}, {}, Line()

    def page(self, items: Sequence[Seen]) -> None:
        """Take some objects of a list. Raise ObjectsUnreadable."""
        for item in items:
            key, record = self._made(item)
            if record is not None and not self._is_beyond(key, _namespace(item), record):
                self._listing[key] = record
        self._check(len(self._listing))

    def _is_beyond(self, key: str, namespace: str, record: R) -> bool:
        """Say whether so many of its namespace have been listed that there is no room, whoever else is gone."""
        if self._shares is None or self._shares.has(key):
            return False
        self._new[namespace] += 1
        if self._new[namespace] <= self._shares.most:
            self._waiting[key] = namespace
            return False
        if len(self._beyond) < MOST_KEYS:
            self._beyond[key] = namespace
        self._behind.put(key, namespace, record)
        return True

    def end(self) -> None:
        """Put what was listed in the place of what was seen before."""
        if self._shares is not None:
            self._share_out(self._shares)
        before, self.records, self._listing = self.records, self._listing, {}
        for key in before.keys() - self.records.keys():
            self._changed(key, before[key], None)
        for key, record in self.records.items():
            if (old := before.get(key)) != record:
                self._changed(key, old, record)

    def _share_out(self, shares: Shares) -> None:
        """Leave room first for those who were there before."""
        shares.keep_only(self._listing.keys() | self._beyond.keys())
        listed, self._listing, self._line = self._listing, {}, Line()
        for key, record in listed.items():
            namespace = self._waiting.get(key, "")
            if shares.take(key, namespace):
                self._listing[key] = record
            else:
                self._line.put(key, namespace, record)
        for key, namespace in self._beyond.items():
            shares.take(key, namespace)
        for key, namespace, record in self._behind.all():
            self._line.put(key, namespace, record)
        self._waiting, self._beyond, self._behind = {}, {}, Line()

    def put(self, seen: Seen) -> None:
        """Take one object. Raise ObjectsUnreadable."""
        key, record = self._made(seen)
        old = self.records.get(key)
        if record is None:
            self._gone(seen, key)
            return
        if self._shares is not None and not self._shares.take(key, _namespace(seen)):
            self._line.put(key, _namespace(seen), record)
            return
        self._line.forget(key, _namespace(seen))
        self._check(len(self.records) + (old is None))
        self.records[key] = record
        if old != record:
            self._changed(key, old, record)

    def drop(self, seen: Seen) -> None:
        """Take one object away. Raise ObjectsUnreadable."""
        self._gone(seen, self._keyed(seen))

    def _gone(self, seen: Seen, key: str) -> None:
        """Take one away, and the next of its namespace in its place."""
        namespace, old = _namespace(seen), self.records.pop(key, None)
        self._line.forget(key, namespace)
        if self._shares is not None:
            self._shares.forget(key)
        if old is not None:
            self._changed(key, old, None)
        while self._shares is not None and self._shares.has_room(namespace) and (found := self._line.next(namespace)):
            following, record = found
            self._shares.take(following, namespace)
            self.records[following] = record
            self._changed(following, None, record)

    def _made(self, seen: Seen) -> tuple[str, R | None]:
        key = self._keyed(seen)
        try:
            return key, self._read(seen)
        except ValueError as error:
            _log.warning("one of the %s is left out: %s", self._what, error)
            return key, None

    def _keyed(self, seen: Seen) -> str:
        key = self._key(seen)
        if not key:
            raise ObjectsUnreadable(f"it showed one of the {self._what} without a name")
        return key

    def _check(self, count: int) -> None:
        if count > self._most:
            raise ObjectsUnreadable(f"there are more than {self._most} {self._what}")


def _namespace(seen: Seen) -> str:
    return text(metadata(seen).get("namespace"))


def named(seen: Seen) -> str:
    """Return the key of what has a name and no namespace."""
    return text(metadata(seen).get("name"))


def identified(seen: Seen) -> str:
    """Return the key of what is another when it is made again under its name."""
    return text(metadata(seen).get("uid"))


_MAX_NAME: Final = 253


def short(value: object) -> str:
    """Return what a message may show of something that somebody wrote."""
    shown = str(value)
    return shown if len(shown) <= _MAX_NAME else shown[: _MAX_NAME - 1] + "…"
