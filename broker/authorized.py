# SPDX-License-Identifier: Apache-2.0
"""Which entries an agent is entitled to. Pure: an index in memory, no database and no clock.

An agent is entitled to every entry below itself and below its node aliases: first those whose parent is one of them,
then those whose parent is the SPIFFE ID of an entry already found, as deep as it goes. A cycle ends where it began.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from firedoor.broker.entry import Entry, is_node_alias
from firedoor.certs import Selector, SpiffeId

# Selectors of this type come from the broker alone; no attestor may make them.
BROKER_TYPE: Final = "spire_agent"


@dataclass(frozen=True, slots=True)
class Entitlement:
    """What an agent is entitled to, without node aliases. `valid_until` 0: for as long as the index stays."""

    workloads: Mapping[str, Entry]
    aliases: frozenset[SpiffeId]
    # What the broker itself attested for the node: the attestor's selectors, its ID and its aliases.
    node_selectors: frozenset[Selector]
    valid_until: int


class EntryIndex:
    """All entries, found by ID, by parent and by SPIFFE ID. `changed` is called with the parent of what changes."""

    def __init__(self, server: SpiffeId, entries: Iterable[Entry] = ()) -> None:
        self._server = server
        self._by_id: dict[str, Entry] = {}
        self._by_parent: dict[SpiffeId, dict[str, Entry]] = {}
        self._by_spiffe_id: dict[SpiffeId, dict[str, Entry]] = {}
        # Those that name nodes.
        self._aliases: set[str] = set()
        self.changed: Callable[[SpiffeId], None] = lambda _: None
        for entry in entries:
            self.put(entry)

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._by_id.values())

    def get(self, entry_id: str) -> Entry | None:
        """Return an entry by its ID."""
        return self._by_id.get(entry_id)

    def with_spiffe_id(self, spiffe_id: SpiffeId) -> Iterable[Entry]:
        """Return the entries that give this SPIFFE ID."""
        return self._by_spiffe_id.get(spiffe_id, {}).values()

    def with_parent(self, parent_id: SpiffeId) -> Iterable[Entry]:
        """Return the entries directly below an ID."""
        return self._by_parent.get(parent_id, {}).values()

    def put(self, entry: Entry) -> None:
        """Add an entry, or replace the one of the same ID."""
        self.remove(entry.id)
        self._by_id[entry.id] = entry
        self._by_parent.setdefault(entry.parent_id, {})[entry.id] = entry
        self._by_spiffe_id.setdefault(entry.spiffe_id, {})[entry.id] = entry
        if is_node_alias(entry):
            self._aliases.add(entry.id)
        self.changed(entry.parent_id)

    def remove(self, entry_id: str) -> None:
        """Take an entry out, if it is there."""
        entry = self._by_id.pop(entry_id, None)
        if entry is None:
            return
        for index, key in ((self._by_parent, entry.parent_id), (self._by_spiffe_id, entry.spiffe_id)):
            index[key].pop(entry_id)
            if not index[key]:
                del index[key]
        self._aliases.discard(entry_id)
        self.changed(entry.parent_id)

    def above(self, spiffe_id: SpiffeId) -> set[SpiffeId]:
        """Return an ID and every one from which a walk downwards comes to it."""
        found: set[SpiffeId] = set()
        left = [spiffe_id]
        while left:
            one = left.pop()
            if one not in found:
                found.add(one)
                left += [entry.parent_id for entry in self.with_spiffe_id(one)]
        return found

    def entitlement(self, agent_id: SpiffeId, attested: frozenset[Selector], now: int) -> Entitlement:
        """Compute what an agent with these attested selectors is entitled to."""
        node = frozenset(s for s in attested if s.type != BROKER_TYPE) | {Selector.of(BROKER_TYPE, f"id:{agent_id}")}
        live = _Live(now)
        # An alias is named by other entries' parent_id, and by admission rules as spire_agent:alias:<ID>.
        named = [entry for entry in live(self.with_parent(self._server)) if entry.selectors <= node]
        aliases = {entry.spiffe_id for entry in named}
        workloads: dict[str, Entry] = {}
        seen: set[SpiffeId] = set()
        parents = [agent_id, *sorted(aliases)]
        while parents:
            parent = parents.pop()
            if parent in seen:
                continue
            seen.add(parent)
            for entry in live(self.with_parent(parent)):
                if entry.id not in self._aliases:
                    workloads[entry.id] = entry
                elif entry.parent_id == agent_id:
                    aliases.add(entry.spiffe_id)
                if entry.spiffe_id in self._by_parent:
                    parents.append(entry.spiffe_id)
        node |= {Selector.of(BROKER_TYPE, f"alias:{alias}") for alias in aliases}
        return Entitlement(MappingProxyType(workloads), frozenset(aliases), node, live.until)


class Entitlements:
    """Every agent's entitlement, the same object until something changes that it was computed from."""

    def __init__(self, index: EntryIndex, server: SpiffeId) -> None:
        self._index, self._server = index, server
        self._held: dict[SpiffeId, tuple[frozenset[Selector], Entitlement]] = {}
        # Who has a node alias.
        self._named: dict[SpiffeId, set[SpiffeId]] = {}
        index.changed = self._changed

    def of(self, agent_id: SpiffeId, attested: frozenset[Selector], now: int) -> Entitlement:
        """Return what an agent with these attested selectors is entitled to."""
        held = self._held.get(agent_id)
        if held is not None and held[0] == attested and not 0 < held[1].valid_until <= now:
            return held[1]
        self.forget(agent_id)
        made = self._index.entitlement(agent_id, attested, now)
        self._held[agent_id] = attested, made
        for alias in made.aliases:
            self._named.setdefault(alias, set()).add(agent_id)
        return made

    def forget(self, agent_id: SpiffeId) -> None:
        """Compute an agent's anew the next time, if it is still there."""
        held = self._held.pop(agent_id, None)
        for alias in held[1].aliases if held else ():
            agents = self._named[alias]
            agents.discard(agent_id)
            if not agents:
                del self._named[alias]

    def _changed(self, parent_id: SpiffeId) -> None:
        """Forget whatever an entry below this parent may be a part of."""
        if not self._held:
            return
        if parent_id == self._server:
            # It may name any node.
            self._held.clear()
            self._named.clear()
            return
        for one in self._index.above(parent_id):
            for agent_id in (one, *self._named.get(one, ())):
                self.forget(agent_id)


class _Live:
    """Leaves expired entries out and remembers when the next one expires."""

    def __init__(self, now: int) -> None:
        self._now = now
        self.until = 0

    def __call__(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        for entry in entries:
            if entry.expired(self._now):
                continue
            if entry.expires_at and (not self.until or entry.expires_at < self.until):
                self.until = entry.expires_at
            yield entry
