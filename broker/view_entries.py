# SPDX-License-Identifier: Apache-2.0
"""The entries of a view, encoded, in pages: a change of one is the work of its page. Pure.

The pages, and the hash that is made of theirs, are those of `firedoor.wire.views`: both ends compute it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Final, Self, final

from firedoor.broker.authorized import Entitlement
from firedoor.broker.entry import Entry
from firedoor.broker.view_parts import encode_field, put_field, removed_field
from firedoor.certs import TrustDomain
from firedoor.segments import Part
from firedoor.wire import control_pb2
from firedoor.wire.views import page_of, pages_hash, sha256

_NOBODY: Final[frozenset[TrustDomain]] = frozenset()
_ENTRIES: Final = control_pb2.Part.ENTRIES_FIELD_NUMBER


@final
@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """An entry in an agent's view: encoded, as a field of Entries, and what its ID brings of the policy."""

    entry: Entry
    encoded: bytes
    # Of the message alone.
    digest: bytes
    part: Part


@final
@dataclass(frozen=True, slots=True, eq=False)
class Page:
    """Some entries, in the order of their IDs, with their hash and what they need of what is shared."""

    items: tuple[Shown, ...]
    digest: bytes
    federated: frozenset[TrustDomain]
    # Entries of one segment share one object.
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, items: Iterable[Shown]) -> Page:
        """Make a page of entries in any order."""
        found = tuple(sorted(items, key=lambda one: one.entry.id))
        federated = frozenset(td for one in found for td in one.entry.federates_with) or _NOBODY
        parts = {id(one.part): one.part for one in found}
        return cls(found, sha256(b"".join(one.digest for one in found)), federated, tuple(parts.values()))


@final
@dataclass(frozen=True, slots=True, eq=False)
class ShownEntries:
    """All entries of a view."""

    pages: Mapping[int, Page]
    digest: bytes

    @classmethod
    def of(cls, pages: Mapping[int, Page]) -> Self:
        """Make it of pages in any order."""
        found = {number: pages[number] for number in sorted(pages)}
        return cls(found, pages_hash((number, page.digest) for number, page in found.items()))

    @property
    def needs(self) -> tuple[frozenset[TrustDomain], Part]:
        """Return the trust domains that they federate with, and what they need of the policy."""
        federated = _NOBODY.union(*{page.federated for page in self.pages.values()})
        parts = {id(part): part for page in self.pages.values() for part in page.parts}
        return federated, reduce(or_, parts.values(), Part())

    @property
    def size(self) -> int:
        """Return how many bytes they are."""
        return sum(len(one.encoded) for one in self._all())

    def _all(self) -> Iterator[Shown]:
        return (one for page in self.pages.values() for one in page.items)

    def encoded(self) -> bytes:
        """Return the field of an Update with all of them, in the order of their IDs."""
        content = b"".join(one.encoded for one in sorted(self._all(), key=lambda one: one.entry.id))
        return encode_field(control_pb2.Update.PARTS_FIELD_NUMBER, encode_field(_ENTRIES, content))

    def since(self, before: ShownEntries) -> bytes:
        """Return the fields of a Delta that make these entries of those."""
        put: list[bytes] = []
        gone: list[str] = []
        for number in self.pages.keys() | before.pages.keys():
            now, old = self.pages.get(number), before.pages.get(number)
            if now is not old:
                _differ(now, old, put, gone)
        keys = control_pb2.Keys.ENTRIES_FIELD_NUMBER
        removed = removed_field(encode_field(keys, entry_id.encode()) for entry_id in gone)
        return (put_field(_ENTRIES, b"".join(put)) if put else b"") + removed

    def now(
        self,
        entitlement: Entitlement,
        before: Entitlement | None,
        show: Callable[[Entry], Shown],
    ) -> ShownEntries:
        """Return them as an agent's entitlement has them now; `before` is what these were made of, if that is known."""
        touched = entitlement.touched_since(before) if before is not None else None
        workloads = entitlement.workloads
        by_page: dict[int, dict[str, Entry | None]] = {}
        for entry_id in self._differing(workloads) if touched is None else touched:
            by_page.setdefault(page_of(entry_id), {})[entry_id] = workloads.get(entry_id)
        pages = dict(self.pages)
        for number, changes in by_page.items():
            _change(pages, number, changes, show)
        return ShownEntries.of(pages) if by_page else self

    def _differing(self, workloads: Mapping[str, Entry]) -> list[str]:
        known = {one.entry.id: one.entry for one in self._all()}
        gone = [entry_id for entry_id in known if entry_id not in workloads]
        return gone + [entry_id for entry_id, entry in workloads.items() if known.get(entry_id) is not entry]


NONE: Final = ShownEntries.of({})


def _change(
    pages: dict[int, Page], number: int, changes: Mapping[str, Entry | None], show: Callable[[Entry], Shown]
) -> None:
    page = pages.pop(number, None)
    kept = {one.entry.id: one for one in page.items} if page else {}
    for entry_id, entry in changes.items():
        old = kept.pop(entry_id, None)
        if entry is not None:
            kept[entry_id] = old if old is not None and old.entry is entry else show(entry)
    if kept:
        pages[number] = Page.of(kept.values())


def _differ(now: Page | None, old: Page | None, put: list[bytes], gone: list[str]) -> None:
    """Add what one page has that another one had not, and what it has no more."""
    before = {one.entry.id: one for one in old.items} if old else {}
    for one in now.items if now else ():
        was = before.pop(one.entry.id, None)
        if was is None or (was is not one and was.encoded != one.encoded):
            put.append(one.encoded)
    gone += before
