# SPDX-License-Identifier: Apache-2.0
"""The objects of one kind as a watch shows them, each as what is read of it and no more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, final

from firedoor.cluster.errors import ObjectsUnreadable
from firedoor.cluster.objects import Seen

T = TypeVar("T")


@final
class Kept(Generic[T]):
    """A `Sink`. `read` returns an object's key and what is kept of it, None for nothing. Raises ObjectsUnreadable."""

    def __init__(
        self, read: Callable[[Seen], tuple[str, T | None]], changed: Callable[[], None], what: str, most: int
    ) -> None:
        """`changed` is called after each change, and must be quick; `most`: how many objects are kept."""
        self._read, self._changed, self._what, self._most = read, changed, what, most
        # None before they were listed.
        self.seen: dict[str, T] | None = None
        self._listing: dict[str, T] = {}

    def begin(self) -> None:
        """Begin a list."""
        self._listing = {}

    def page(self, items: Sequence[Seen]) -> None:
        """Take some objects of a list. Raise ObjectsUnreadable."""
        self._listing.update((key, one) for key, one in map(self._read, items) if one is not None)
        self._check(self._listing)

    def end(self) -> None:
        """Put what was listed in the place of what was seen before."""
        self.seen = self._listing
        self._changed()

    def put(self, seen: Seen) -> None:
        """Take one object, new or changed. Raise ObjectsUnreadable."""
        key, one = self._read(seen)
        if self.seen is None:
            self.seen = {}
        if one is None:
            self.seen.pop(key, None)
        else:
            self.seen[key] = one
        self._check(self.seen)
        self._changed()

    def drop(self, seen: Seen) -> None:
        """Take one object away. Raise ObjectsUnreadable."""
        key, _ = self._read(seen)
        if self.seen is not None:
            self.seen.pop(key, None)
        self._changed()

    def _check(self, those: dict[str, T]) -> None:
        if len(those) > self._most:
            raise ObjectsUnreadable(f"there are more than {self._most} {self._what}")
