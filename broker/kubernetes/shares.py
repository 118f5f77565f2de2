# SPDX-License-Identifier: Apache-2.0
"""How many objects of one kind a namespace may have, so that those of one leave room for the others'. Pure.

Who was there first stays, and of what is left out the first is next when there is room. As much of that as a `Line`
holds is there at once; the rest is known by its key alone, and looked at again when it changes, and with the next list.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Generic, TypeVar, final

_log = logging.getLogger("firedoor.broker.kubernetes")
# Keys that are remembered of what is left out; Kubernetes itself is made for fewer pods.
MOST_KEYS: Final = 200_000
# Records that are kept of it, of all namespaces together: a tenth of what is kept of pods in all. Those that fill it
# leave room for the others' in it too.
MOST_IN_LINE: Final = 20_000
R = TypeVar("R")


@final
class Shares:
    """The shares of namespaces in what is kept. `told`: a key, its namespace, and whether it is left out now."""

    def __init__(self, what: str, most: int, told: Callable[[str, str, bool], None]) -> None:
        self.most = most
        self._what, self._told = what, told
        self._kept: dict[str, str] = {}
        self._counts: Counter[str] = Counter()
        self._left_out: dict[str, str] = {}
        self._out: Counter[str] = Counter()

    def has(self, key: str) -> bool:
        """Say whether one is kept."""
        return key in self._kept

    def take(self, key: str, namespace: str) -> bool:
        """Have one kept, if it is already or there is room; say whether it is."""
        if key in self._kept:
            return True
        if self.has_room(namespace):
            self._back(key)
            self._kept[key] = namespace
            self._counts[namespace] += 1
            return True
        if key not in self._left_out and len(self._left_out) < MOST_KEYS:
            if not self._out[namespace]:
                _log.warning(
                    "namespace %s has more than %d %s: those beyond are left out", namespace, self.most, self._what
                )
            self._left_out[key] = namespace
            self._out[namespace] += 1
            self._told(key, namespace, True)
        return False

    def has_room(self, namespace: str) -> bool:
        """Say whether one more would be kept."""
        return self._counts[namespace] < self.most

    def forget(self, key: str) -> None:
        """Take one away, kept or left out."""
        namespace = self._kept.pop(key, None)
        if namespace is not None:
            _less(self._counts, namespace)
        self._back(key)

    def keep_only(self, keys: Iterable[str]) -> None:
        """Take all others away."""
        there = set(keys)
        for key in [key for key in (*self._kept, *self._left_out) if key not in there]:
            self.forget(key)

    def _back(self, key: str) -> None:
        namespace = self._left_out.pop(key, None)
        if namespace is not None:
            _less(self._out, namespace)
            self._told(key, namespace, False)


@final
class Line(Generic[R]):
    """What waits for room, by namespace, in the order in which it came; no more than MOST_IN_LINE in all.

    When it is full, the newest of the longest line gives way to one whose own is shorter.
    """

    def __init__(self) -> None:
        self._records: dict[str, dict[str, R]] = {}
        self._count = 0

    def put(self, key: str, namespace: str, record: R) -> None:
        """Have one wait, or take what is new of one that does; nothing when all is full and its line has its part."""
        line = self._records.get(namespace, {})
        if key not in line and self._count >= MOST_IN_LINE and not self._gives_way(len(line) + 1):
            return
        self._count += key not in line
        line[key] = record
        self._records[namespace] = line

    def _gives_way(self, length: int) -> bool:
        """Take the newest of the longest line away, if that is longer than `length`; say whether it was.

        Whoever stands in line has a full share, so that these namespaces are few.
        """
        longest: dict[str, R] = max(self._records.values(), key=len, default={})
        if len(longest) <= length:
            return False
        longest.popitem()
        self._count -= 1
        return True

    def all(self) -> Iterator[tuple[str, str, R]]:
        """Yield key, namespace and record of each, those of a namespace in their order."""
        for namespace, line in self._records.items():
            for key, record in line.items():
                yield key, namespace, record

    def forget(self, key: str, namespace: str) -> None:
        """Take one away, if it waits."""
        line = self._records.get(namespace, {})
        if line.pop(key, None) is not None:
            self._count -= 1
            if not line:
                del self._records[namespace]

    def next(self, namespace: str) -> tuple[str, R] | None:
        """Take the one away that came first."""
        line = self._records.get(namespace)
        if not line:
            return None
        key = next(iter(line))
        record = line[key]
        self.forget(key, namespace)
        return key, record


def _less(counts: Counter[str], namespace: str) -> None:
    counts[namespace] -= 1
    if not counts[namespace]:
        del counts[namespace]
