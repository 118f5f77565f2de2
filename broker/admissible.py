# SPDX-License-Identifier: Apache-2.0
"""Which of an agent's entries could be signed for now: what an agent that polls is told of.

SPIRE's agents give a workload nothing at all while one of the entries that match it has no SVID. An entry that its
segment does not admit on that node would so keep a workload from every other identity. It is left out instead, and the
log names it; the check at each signature stays what it is.

Computed once for each state of entries and policy, and looked up after that: agents ask every few seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from firedoor.broker.authorized import Entitlement
from firedoor.broker.entry import Entry
from firedoor.certs import SpiffeId
from firedoor.segments import PolicySet, Refused, check_admission

if TYPE_CHECKING:
    from firedoor.broker.policy import PolicyKeeper
    from firedoor.broker.state import State

_log = logging.getLogger("firedoor.broker.entries")
# How many of an agent's entries a line of the log names.
_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was computed, and from what: both are values that are replaced when they change."""

    entitlement: Entitlement
    asked: tuple[PolicySet | None, ...]
    entries: tuple[Entry, ...]
    left_out: frozenset[str]


class Admissible:
    """The admissible entries of each agent."""

    def __init__(self, state: State, policy: PolicyKeeper) -> None:
        self._state, self._policy = state, policy
        self._seen: dict[SpiffeId, _Seen] = {}

    def entries(self, agent_id: SpiffeId) -> tuple[Entry, ...]:
        """Return the entries by ID. Raise AgentNotAttested."""
        entitlement, asked = self._state.entitlement(agent_id), self._policy.asked
        seen = self._seen.get(agent_id)
        if seen is not None and seen.entitlement is entitlement and _same(seen.asked, asked):
            return seen.entries
        made = _compute(entitlement, asked, seen)
        if made.left_out - (seen.left_out if seen else frozenset()):
            _say(agent_id, made.left_out)
        if len(self._seen) > 2 * len(self._state.agents) + 100:
            self._seen = {one: kept for one, kept in self._seen.items() if one in self._state.agents}
        self._seen[agent_id] = made
        return made.entries


def _same(before: tuple[PolicySet | None, ...], now: tuple[PolicySet | None, ...]) -> bool:
    return len(before) == len(now) and all(one is other for one, other in zip(before, now, strict=True))


def _compute(entitlement: Entitlement, asked: tuple[PolicySet | None, ...], seen: _Seen | None) -> _Seen:
    """Check every entry, but for those that were admitted before and are what they were."""
    known: Mapping[str, Entry] = {}
    if seen is not None and _same(seen.asked, asked) and seen.entitlement.node_selectors == entitlement.node_selectors:
        known = {entry.id: entry for entry in seen.entries}
    told, left_out = [], set()
    for entry_id in sorted(entitlement.workloads):
        entry = entitlement.workloads[entry_id]
        if known.get(entry_id) is entry or _admitted(entry, entitlement, asked):
            told.append(entry)
        else:
            left_out.add(entry_id)
    return _Seen(entitlement, asked, tuple(told), frozenset(left_out))


def _admitted(entry: Entry, entitlement: Entitlement, asked: tuple[PolicySet | None, ...]) -> bool:
    for policy in asked:
        # Without segments nothing is signed for anybody, which the refusal of a signature says better.
        if policy is None:
            continue
        try:
            check_admission(policy, entry.spiffe_id, entry=entry.selectors, node=entitlement.node_selectors)
        except Refused:
            return False
    return True


def _say(agent_id: SpiffeId, left_out: frozenset[str]) -> None:
    names = ", ".join(sorted(left_out)[:_NAMED]) + (", ..." if len(left_out) > _NAMED else "")
    _log.warning(
        "%s is not told of %d entries: their segments do not admit them on that node (%s)",
        agent_id,
        len(left_out),
        names,
    )
