# SPDX-License-Identifier: Apache-2.0
"""Which entries an agent is entitled to. Pure: an index in memory, no database and no clock.

An agent is entitled to every entry below itself and below its node aliases: first those whose parent is one of them,
then those whose parent is the SPIFFE ID of an entry already found, as deep as it goes. A cycle ends where it began.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from firedoor.broker.entry import Entry, is_node_alias
from firedoor.certs import Selector, SpiffeId

# Selectors of this type come from the broker alone; no attestor may make them.
BROKER_TYPE: Final = "spire_agent"
# Steps of which it is known what they touched.
_HISTORY: Final = 16


@dataclass(frozen=True, slots=True)
class Entitlement:
    """What an agent is entitled to, without node aliases. `valid_until` 0: for as long as the index stays."""

    workloads: MappingProxyType[str, Entry]
    aliases: frozenset[SpiffeId]
    # What the broker itself attested for the node: the attestor's selectors, its ID and its aliases.
    node_selectors: frozenset[Selector]
    valid_until: int
    number: int = field(default_factory=itertools.count().__next__, compare=False)
    # The numbers of those that it came from, the latest last, and which entries were touched next.
    history: tuple[tuple[int, frozenset[str]], ...] = field(default=(), compare=False)

    def touched_since(self, other: Entitlement) -> frozenset[str] | None:
        """Return which entries may differ from another one's; None when that is not known."""
        found: frozenset[str] = frozenset()
        if other.number == self.number:
            return found
        for number, touched in reversed(self.history):
            found |= touched
            if number == other.number:
                return found
        return None

    def with_changes(self, changes: Mapping[str, Entry | None]) -> Entitlement:
        """Return the same with some entries as they are now, None for those that are gone."""
        workloads = self.workloads.copy()
        for entry_id, entry in changes.items():
            if entry is None:
                workloads.pop(entry_id, None)
            else:
                workloads[entry_id] = entry
        history = (*self.history[1 - _HISTORY :], (self.number, frozenset(changes)))
        return Entitlement(
            MappingProxyType(workloads), self.aliases, self.node_selectors, self.valid_until, history=history
        )


class EntryIndex:
    """All entries, found by ID, by parent and by SPIFFE ID. `changed` is called with what was and what is now."""

    def __init__(
        self,
        server: SpiffeId,
        entries: Iterable[Entry] = (),
        is_privileged: Callable[[Entry], bool] = lambda _: False,
    ) -> None:
        self._server, self._is_privileged = server, is_privileged
        self._by_id: dict[str, Entry] = {}
        self._by_parent: dict[SpiffeId, dict[str, Entry]] = {}
        self._by_spiffe_id: dict[SpiffeId, dict[str, Entry]] = {}
        # Those that name nodes.
        self._aliases: set[str] = set()
        # Those whose ID opens more than a workload's does.
        self._privileged: set[str] = set()
        self.changed: Callable[[Entry | None, Entry | None], None] = lambda _old, _new: None
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
        old = self._take(entry.id)
        self._by_id[entry.id] = entry
        self._by_parent.setdefault(entry.parent_id, {})[entry.id] = entry
        self._by_spiffe_id.setdefault(entry.spiffe_id, {})[entry.id] = entry
        if is_node_alias(entry):
            self._aliases.add(entry.id)
        if self._is_privileged(entry):
            self._privileged.add(entry.id)
        self.changed(old, entry)

    def remove(self, entry_id: str) -> None:
        """Take an entry out, if it is there."""
        old = self._take(entry_id)
        if old is not None:
            self.changed(old, None)

    def _take(self, entry_id: str) -> Entry | None:
        entry = self._by_id.pop(entry_id, None)
        if entry is None:
            return None
        for index, key in ((self._by_parent, entry.parent_id), (self._by_spiffe_id, entry.spiffe_id)):
            index[key].pop(entry_id)
            if not index[key]:
                del index[key]
        self._aliases.discard(entry_id)
        self._privileged.discard(entry_id)
        return entry

    def is_leaf(self, entry: Entry) -> bool:
        """Say whether an entry gives its holders itself and nothing else, for as long as it stays."""
        alias = entry.parent_id == self._server or is_node_alias(entry)
        return not (alias or entry.expires_at or entry.spiffe_id in self._by_parent)

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

    def leading_to_privilege(self) -> set[SpiffeId]:
        """Return the IDs of privileged entries, and every ID from which a walk downwards comes to one."""
        found: set[SpiffeId] = set()
        for entry_id in self._privileged:
            found |= self.above(self._by_id[entry_id].spiffe_id)
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
        # What became of entries since then that touch nothing else, by agent and ID.
        self._later: dict[SpiffeId, dict[str, Entry | None]] = {}
        # Who has a node alias.
        self._named: dict[SpiffeId, set[SpiffeId]] = {}
        index.changed = self._changed

    def of(self, agent_id: SpiffeId, attested: frozenset[Selector], now: int) -> Entitlement:
        """Return what an agent with these attested selectors is entitled to."""
        held = self._held.get(agent_id)
        if held is not None and held[0] == attested and not 0 < held[1].valid_until <= now:
            return self._with_later(agent_id, *held)
        self.forget(agent_id)
        made = self._index.entitlement(agent_id, attested, now)
        self._held[agent_id] = attested, made
        for alias in made.aliases:
            self._named.setdefault(alias, set()).add(agent_id)
        return made

    def forget(self, agent_id: SpiffeId) -> None:
        """Compute an agent's anew the next time, if it is still there."""
        held = self._held.pop(agent_id, None)
        self._later.pop(agent_id, None)
        for alias in held[1].aliases if held else ():
            agents = self._named[alias]
            agents.discard(agent_id)
            if not agents:
                del self._named[alias]

    def _with_later(self, agent_id: SpiffeId, attested: frozenset[Selector], made: Entitlement) -> Entitlement:
        later = self._later.pop(agent_id, None)
        if later is None:
            return made
        made = made.with_changes(later)
        self._held[agent_id] = attested, made
        return made

    def _changed(self, old: Entry | None, new: Entry | None) -> None:
        """Forget whatever one of the two may be a part of, or note what became of it where it is no more than that."""
        if not self._held:
            return
        parents = {one.parent_id for one in (old, new) if one is not None}
        if self._server in parents:
            # It may name any node.
            self._held.clear()
            self._later.clear()
            self._named.clear()
            return
        noted = self._note(old, new) if len(parents) == 1 else frozenset()
        for parent_id in parents:
            for one in self._index.above(parent_id):
                for agent_id in {one, *self._named.get(one, ())} - noted:
                    self.forget(agent_id)

    def _note(self, old: Entry | None, new: Entry | None) -> frozenset[SpiffeId]:
        """Note what became of an entry for those whom it is directly below, if it is a leaf; return who they are."""
        entry = new or old
        if entry is None or not all(self._index.is_leaf(one) for one in (old, new) if one is not None):
            return frozenset()
        parent = entry.parent_id
        agents = frozenset(one for one in (parent, *self._named.get(parent, ())) if one in self._held)
        for agent_id in agents:
            self._later.setdefault(agent_id, {})[entry.id] = new
        return agents


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
