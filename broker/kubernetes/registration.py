# SPDX-License-Identifier: Apache-2.0
"""Keeps the entries of a cluster's pods as its objects say: made with the pod, gone with it.

Every broker sees the cluster; the one that holds the Lease writes. Nothing is written before all kinds were listed
once: what could not be listed is no empty list. Changes that come together are one transaction and one generation.

An entry is made where its segment could admit it, and taken away where it could not; the check at each signature stays
what it is. Entries that were made by hand are never touched. When an entry goes, what was issued through it is revoked,
unless its pod went first: then whoever had the keys is gone too.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, final

from sqlalchemy import Connection

from firedoor.broker.db.entry_rows import delete_entries, insert_entries, update_entries
from firedoor.broker.db.rows import Revoked, revoke_issued
from firedoor.broker.errors import BrokerError
from firedoor.broker.kubernetes.admits import Admits
from firedoor.broker.kubernetes.registrar import Registrar, origin_prefix

if TYPE_CHECKING:
    from firedoor.broker.audit import Audit
    from firedoor.broker.entry import Entry
    from firedoor.broker.kubernetes.lease import Lease
    from firedoor.broker.metrics import Metrics
    from firedoor.broker.policy import PolicyKeeper
    from firedoor.broker.state import State
    from firedoor.cluster.watch import Watch

_log = logging.getLogger("firedoor.broker.registration")
# Seconds that changes wait for others, and after which somebody looks when nothing changed.
_GATHER: Final = 0.05
_IDLE: Final = 1.0
# Seconds between looks at what was refused, and at everything.
_AGAIN: Final = 5.0
_EVERYTHING: Final = 60.0
# How many times as long as a look took we rest, at most; each generation goes to so many sidecars a second.
_RESTS: Final = 2
_LONGEST_REST: Final = 2.0
_SIDECARS_A_SECOND: Final = 5000
# Entries of one transaction, and pods that are looked at before other calls get a turn.
_BATCH: Final = 500
_SLICE: Final = 50
_BY_HAND: Final = "an entry of this name is there already, made by hand"
# Refused entries that a look names in the log.
_NAMED: Final = 5


@dataclass(slots=True)
class _Plan:
    """What one transaction does."""

    made: list[Entry] = field(default_factory=list)
    changed: list[Entry] = field(default_factory=list)
    gone: list[Entry] = field(default_factory=list)
    # Of those that go, the IDs of those whose pod did not go first.
    withdrawn: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.made or self.changed or self.gone)


@dataclass(frozen=True, slots=True)
class _Done:
    """What became of it: entries as they are, IDs of those that are gone, what was refused and why."""

    put: tuple[Entry, ...]
    gone: tuple[str, ...]
    refused: dict[str, str]
    revoked: tuple[Revoked, ...]


@final
class Registration:
    """The entries of one cluster. `run` until cancelled."""

    def __init__(
        self,
        registrar: Registrar,
        cluster: str,
        watches: list[Watch],
        lease: Lease,
        state: State,
        policy: PolicyKeeper,
        audit: Audit,
        metrics: Metrics,
        listening: Callable[[], int] = lambda: 0,
    ) -> None:
        self.registrar, self.watches, self._lease = registrar, watches, lease
        self._state, self._policy, self._audit, self._metrics = state, policy, audit, metrics
        self._listening = listening
        self._prefix = origin_prefix(cluster)
        self._admits = Admits(state, policy)
        self._wake = asyncio.Event()
        # Why claimed entries are not there, by ID.
        self.refused: dict[str, str] = {}
        # The policy that everything was looked at with, and when.
        self._looked: tuple[object, float] | None = None
        self._retry = 0.0
        self._trouble = ""
        # What the log has said is refused.
        self._said: set[str] = set()

    def changed(self) -> None:
        """Have somebody look; called after whatever the registrar is told."""
        self._wake.set()

    @property
    def leads(self) -> bool:
        """Say whether this broker writes, and knows enough to do it.

        To begin with it knows what is there just now: another broker wrote entries of pods that this one, when it was
        told nothing for a while, would take for gone.
        """
        enough = all(watch.listed.is_set() if self._looked else watch.current for watch in self.watches)
        return self._lease.held and enough

    async def run(self) -> None:
        """Look whenever something changed."""
        while True:
            await self._changes()
            if not self.leads:
                # Somebody else writes meanwhile.
                self._looked = None
                self._metrics.registrations_refused.set(0)
                self._metrics.pods_left_out.set(0)
                continue
            try:
                began = time.monotonic()
                wrote = await self._look()
                self._trouble = ""
                await asyncio.sleep(self._rest(time.monotonic() - began, wrote=wrote))
            except BrokerError as error:
                if str(error) != self._trouble:
                    _log.warning("entries of pods cannot be kept as they should be: %s", error)
                self._trouble = str(error)

    def _rest(self, took: float, *, wrote: bool) -> float:
        """Return how long what changes next has to wait, in seconds: who relabels pods without end holds up nobody."""
        return min(_RESTS * took, _LONGEST_REST) + (self._listening() / _SIDECARS_A_SECOND if wrote else 0)

    async def _changes(self) -> None:
        """Wait for changes, and a moment for those that come with them."""
        try:
            async with asyncio.timeout(_IDLE):
                await self._wake.wait()
        except TimeoutError:
            return
        await asyncio.sleep(_GATHER)
        self._wake.clear()

    async def _look(self) -> bool:
        """Bring entries up to what is claimed; say whether any was written. Raise BrokerError."""
        registrar, wrote = self.registrar, False
        await self._widen()
        waiting = list(registrar.dirty_pods)
        for at in range(0, len(waiting), _SLICE):
            registrar.look(waiting[at : at + _SLICE])
            await asyncio.sleep(0)
        due = sorted(registrar.dirty_entries)
        for at in range(0, len(due), _BATCH):
            if not self._lease.held:
                # What is left is due when it is ours again; somebody else may write by then.
                return wrote
            wrote |= await self._batch(due[at : at + _BATCH])
            await asyncio.sleep(0)
        self._tell()
        return wrote

    def _tell(self) -> None:
        """Say in the log which entries are refused now that were not: not each has an object that could say so."""
        fresh = sorted(self.refused.keys() - self._said)
        for entry_id in fresh[:_NAMED]:
            claim = self.registrar.desired(entry_id)
            if claim is not None and claim.entry is not None:
                _log.warning("no entry of %s is made: %s", claim.entry.origin, self.refused[entry_id])
        if len(fresh) > _NAMED:
            _log.warning("nor are %d more entries", len(fresh) - _NAMED)
        self._said = set(self.refused)
        self._metrics.registrations_refused.set(len(self._said))
        self._metrics.pods_left_out.set(len(self.registrar.left_out))

    async def _widen(self) -> None:
        """Look at everything at first, with another policy, and now and then; and again at what was refused."""
        now, policy = time.monotonic(), self._policy.current
        dirty = self.registrar.dirty_entries
        if self._looked is None:
            await self._state.database.catch_up()
            # Another broker may have written their statuses.
            self.registrar.dirty_rules |= self.registrar.rules.keys()
        if self._looked is None or self._looked[0] is not policy or now - self._looked[1] > _EVERYTHING:
            self._looked = (policy, now)
            dirty |= self.registrar.everything() | {entry.id for entry in self._ours()}
        elif self.refused and now > self._retry:
            dirty |= self.refused.keys()
            self._retry = now + _AGAIN

    def _ours(self) -> Iterator[Entry]:
        return (entry for entry in self._state.entries if entry.origin.startswith(self._prefix))

    async def _batch(self, ids: Sequence[str]) -> bool:
        before = {entry_id: self.refused.get(entry_id) for entry_id in ids}
        plan = self._planned(ids)
        self.registrar.dirty_entries.difference_update(ids)
        if plan:
            try:
                done = await self._state.change(self._writes(plan), self._applied, bumps=_bumps)
            except BrokerError:
                self.registrar.dirty_entries.update(ids)
                raise
            self.refused |= done.refused
            self._note(plan, done)
        touched = {one.id for one in (*plan.made, *plan.changed, *plan.gone)}
        # Where nothing came of it, nobody has to count again.
        self.registrar.settled(
            entry_id for entry_id in ids if entry_id in touched or self.refused.get(entry_id) != before[entry_id]
        )
        return bool(plan)

    def _planned(self, ids: Sequence[str]) -> _Plan:
        plan, now = _Plan(), self._state.clock.now()
        for entry_id in ids:
            claim, have = self.registrar.desired(entry_id), self._state.entries.get(entry_id)
            self.refused.pop(entry_id, None)
            wanted = claim.entry if claim is not None else None
            if claim is not None and (why := self._admits.refusal(claim)):
                self.refused[entry_id], wanted = why, None
            if wanted is None:
                if have is not None and have.origin.startswith(self._prefix):
                    plan.gone.append(have)
                    if not self.registrar.is_over(have):
                        plan.withdrawn.add(entry_id)
            elif have is None:
                plan.made.append(replace(wanted, created_at=now))
            elif not have.origin.startswith(self._prefix):
                self.refused[entry_id] = _BY_HAND
            elif _differ(have, wanted):
                revision = have.revision_number + 1
                plan.changed.append(replace(wanted, created_at=have.created_at, revision_number=revision))
        return plan

    def _writes(self, plan: _Plan) -> Callable[[Connection], _Done]:
        now = self._state.clock.now()

        def run(connection: Connection) -> _Done:
            refused = insert_entries(connection, plan.made) if plan.made else {}
            if plan.changed:
                refused |= update_entries(connection, plan.changed)
            revoked: list[Revoked] = []
            if plan.gone:
                delete_entries(connection, [one.id for one in plan.gone])
            for entry_id in sorted(plan.withdrawn):
                revoked += revoke_issued(connection, "entry_id", entry_id, "entry_deleted", now)
            put = tuple(one for one in (*plan.made, *plan.changed) if one.id not in refused)
            return _Done(put, tuple(one.id for one in plan.gone), refused, tuple(revoked))

        return run

    def _applied(self, done: _Done) -> None:
        for entry in done.put:
            self._state.entries.put(entry)
        for entry_id in done.gone:
            self._state.entries.remove(entry_id)
        self._state.revoked(done.revoked)

    def _note(self, plan: _Plan, done: _Done) -> None:
        put = {one.id for one in done.put}
        events = (("entry_made", plan.made), ("entry_changed", plan.changed), ("entry_deleted", plan.gone))
        self._audit.write(
            *(
                {"type": "audit", "event": event, **_noted(one)}
                for event, some in events
                for one in some
                if one.id in put or event == "entry_deleted"
            )
        )


def _bumps(done: _Done) -> bool:
    return bool(done.put or done.gone)


def _differ(have: Entry, wanted: Entry) -> bool:
    return replace(have, created_at=0, revision_number=0) != wanted


def _noted(entry: Entry) -> dict[str, Any]:
    return {
        "entry_id": entry.id,
        "spiffe_id": str(entry.spiffe_id),
        "parent_id": str(entry.parent_id),
        "origin": entry.origin,
    }
