# SPDX-License-Identifier: Apache-2.0
"""Policy edits do not promote old certificates.

A certificate that was issued under one policy may mean more under the next one than was checked when it was signed.
So an edit that lets IDs into a segment, or changes what a segment asks for, comes into force together with a
revocation of what was issued for those IDs before. Until then the holders are re-issued: their entries get a new
revision, which tells a sidecar (and a SPIRE agent) to fetch another certificate, and each signature in between is
admitted by both policies.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection

from firedoor.broker.db.entry_rows import next_revision
from firedoor.broker.db.rows import Issued, Live, Revoked, issued_after, issued_before, issued_since
from firedoor.broker.errors import BrokerError, Starting
from firedoor.certs import CertsError, IdPattern, SpiffeId

if TYPE_CHECKING:
    from firedoor.broker.push import Listening
    from firedoor.broker.state import State

_log = logging.getLogger("firedoor.broker.policy")
REASON: Final = "reissue_needed"
# How long an edit waits for all holders.
PATIENCE: Final = 60.0
_LOOK_EVERY: Final = 0.1
_EARLY: Final = 0.02


@dataclass(frozen=True, slots=True)
class Old:
    """What lives and was issued before `before` for IDs that an edit promotes. `holders`: (agent ID, entry ID)."""

    before: int
    revocations: tuple[Revoked, ...]
    holders: frozenset[tuple[str, str]]
    patterns: tuple[IdPattern, ...]


class Reissuer:
    """Finds old certificates, and waits until their holders have others."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._listening: Mapping[SpiffeId, Listening] = {}
        self.patience = PATIENCE
        # Edits that must not come later than one that waits.
        self.urgent = 0
        self._ended = False

    def follow(self, listening: Mapping[SpiffeId, Listening]) -> None:
        """Say where acknowledgements are kept."""
        self._listening = listening

    def stop(self) -> None:
        """End the present wait and its edit: the broker stops."""
        self._ended = True

    async def old(self, patterns: Sequence[IdPattern]) -> Old | None:
        """Return what lives and is promoted by an edit as of now, None when nothing is.

        IDs of other trust domains are left out: nobody here admitted them, and nobody here can issue them anew.
        """
        own = [pattern for pattern in patterns if pattern.trust_domain == self._state.trust_domain]
        if not own:
            return None
        now = self._state.clock.now()
        # What is signed in this very second may have been signed under the policy of before.
        rows = await self._state.database.read(lambda connection: issued_before(connection, now + 1, now))
        return await asyncio.to_thread(_old, own, rows, now + 1)

    async def replaced(self, old: Old, admitted: Callable[[SpiffeId, str], object], *, wait: bool) -> None:
        """Have the holders re-issued, and return when all are, when time is up, or at once without `wait`.

        `admitted` raises BrokerError for a holder that gets nothing more. Raise Starting when the broker stops.
        """
        # Issue times are whole seconds; a timer may be a little early.
        await asyncio.sleep(max(0, old.before - self._state.clock.now()) + _EARLY)
        lacking = {holder for holder in old.holders if _entitled(admitted, *holder)}
        if not wait or not lacking:
            return
        await self._call_for({entry_id for _, entry_id in lacking})
        deadline = time.monotonic() + self.patience
        while not self.urgent and time.monotonic() < deadline:
            if self._ended:
                raise Starting("the broker is stopping; the policy was not changed")
            fresh = await self._fresh(old, lacking)
            lacking = {one for one in lacking if not self._has_other(old, fresh, *one) and _entitled(admitted, *one)}
            if not lacking:
                return
            await asyncio.sleep(_LOOK_EVERY)
        agents = sorted({agent_id for agent_id, _ in lacking})
        _log.warning("%d agents still use SVIDs that end with this edit", len(agents))

    async def admitted(self, old: Old, admitted: Callable[[SpiffeId, str], object]) -> frozenset[tuple[str, str]]:
        """Return which holders of what was issued since then both policies admit; only other brokers need it.

        Each broker asks both policies at a signature while its own edit waits. The others ask the one in force alone.
        """
        if not self._state.database.broker_id:
            return frozenset()
        rows = await self._state.database.read(lambda connection: issued_after(connection, old.before))
        holders = {(row.agent_id, row.entry_id) for row in rows if _promoted(old, row)}
        return frozenset(holder for holder in holders if _entitled(admitted, *holder))

    def unasked(self, connection: Connection, old: Old, admitted: frozenset[tuple[str, str]]) -> list[Revoked]:
        """Return revocations of what other brokers signed since then for holders that are not admitted.

        Inside the transaction of the edit, beside which nothing is issued.
        """
        if not self._state.database.broker_id:
            return []
        return [
            Revoked("serial", row.serial, 0, REASON, row.not_after)
            for row in issued_after(connection, old.before)
            if row.entry_id and _promoted(old, row) and (row.agent_id, row.entry_id) not in admitted
        ]

    async def _call_for(self, entry_ids: Iterable[str]) -> None:
        """Give entries a new revision: whoever serves them fetches another SVID."""
        await self._state.change(
            lambda connection: next_revision(connection, entry_ids), lambda found: self._state.next_revision(found)
        )

    async def _fresh(self, old: Old, lacking: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
        """Return who was issued another one, asked only while somebody lacks it who tells us nothing."""
        if all(self._told(*one) for one in lacking):
            return set()
        return await self._state.database.read(lambda connection: issued_since(connection, old.before))

    def _told(self, agent_id: str, entry_id: str) -> int:
        """Return when the SVID was issued that a sidecar says it runs on, 0 when it says nothing."""
        one = self._listening.get(SpiffeId.parse(agent_id))
        return one.issued.get(entry_id, 0) if one else 0

    def _has_other(self, old: Old, fresh: set[tuple[str, str]], agent_id: str, entry_id: str) -> bool:
        told = self._told(agent_id, entry_id)
        # An agent without our stream, or of a version that does not say, uses what it was issued.
        return told >= old.before if told else (agent_id, entry_id) in fresh


def _old(patterns: Sequence[IdPattern], rows: Sequence[Live], before: int) -> Old | None:
    by_id: dict[str, list[Live]] = {}
    for row in rows:
        by_id.setdefault(row.spiffe_id, []).append(row)
    ends: dict[IdPattern, int] = {}
    holders: set[tuple[str, str]] = set()
    for text, found in by_id.items():
        spiffe_id = SpiffeId.parse(text)
        matching = [pattern for pattern in patterns if pattern.matches(spiffe_id)]
        for pattern in matching:
            ends[pattern] = max(ends.get(pattern, 0), *(row.not_after for row in found))
        if matching:
            holders.update((row.agent_id, row.entry_id) for row in found if row.entry_id)
    if not ends:
        return None
    revocations = (Revoked("pattern", str(pattern), before, REASON, end) for pattern, end in sorted(ends.items()))
    return Old(before, tuple(revocations), frozenset(holders), tuple(patterns))


def _promoted(old: Old, row: Issued) -> bool:
    spiffe_id = SpiffeId.parse(row.spiffe_id)
    return any(pattern.matches(spiffe_id) for pattern in old.patterns)


def _entitled(admitted: Callable[[SpiffeId, str], object], agent_id: str, entry_id: str) -> bool:
    try:
        admitted(SpiffeId.parse(agent_id), entry_id)
    except (BrokerError, CertsError):
        return False
    return True
