# SPDX-License-Identifier: Apache-2.0
"""What a watch shows, kept as small records by key; whoever asked is told which of them changed.

An object that cannot be read stays out, with a line in the log: one that somebody wrote wrongly must not hide the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar, final

from firedoor.cluster.errors import ObjectsUnreadable
from firedoor.cluster.objects import Seen

R = TypeVar("R")
_log = logging.getLogger("firedoor.broker.kubernetes")
Changed = Callable[[str, R | None, R | None], None]


@final
class Mirror(Generic[R]):
    """The objects of one kind. It is a `Sink`.

    `read` makes a record of an object, None when it is not wanted; it raises ValueError. `changed` is called with a
    key, what was and what is; both must be quick.
    """

    def __init__(
        self, what: str, most: int, key: Callable[[Seen], str], read: Callable[[Seen], R | None], changed: Changed[R]
    ) -> None:
        self._what, self._most, self._key, self._read, self._changed = what, most, key, read, changed
        self.records: dict[str, R] = {}
        self._listing: dict[str, R] = {}

    def begin(self) -> None:
        """Begin a list."""
        self._listing = {}

    def page(self, items: Sequence[Seen]) -> None:
        """Take some objects of a list. Raise ObjectsUnreadable."""
        for item in items:
            key, record = self._made(item)
            if record is not None:
                self._listing[key] = record
        self._check(len(self._listing))

    def end(self) -> None:
        """Put what was listed in the place of what was seen before."""
        before, self.records, self._listing = self.records, self._listing, {}
        for key in before.keys() - self.records.keys():
            self._changed(key, before[key], None)
        for key, record in self.records.items():
            if (old := before.get(key)) != record:
                self._changed(key, old, record)

    def put(self, seen: Seen) -> None:
        """Take one object. Raise ObjectsUnreadable."""
        key, record = self._made(seen)
        old = self.records.get(key)
        if record is None:
            self.records.pop(key, None)
        else:
            self._check(len(self.records) + (old is None))
            self.records[key] = record
        if old != record:
            self._changed(key, old, record)

    def drop(self, seen: Seen) -> None:
        """Take one object away. Raise ObjectsUnreadable."""
        key = self._keyed(seen)
        old = self.records.pop(key, None)
        if old is not None:
            self._changed(key, old, None)

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


def metadata(seen: Seen) -> Mapping[str, Any]:
    """Return an object's metadata, empty when it has none."""
    return mapping(seen.get("metadata"))


def mapping(value: object) -> Mapping[str, Any]:
    """Take a mapping for what it is, and anything else for an empty one."""
    return value if isinstance(value, dict) else {}


def text(value: object) -> str:
    """Take a text for what it is, and anything else for an empty one."""
    return value if isinstance(value, str) else ""


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
