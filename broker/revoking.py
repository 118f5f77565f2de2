# SPDX-License-Identifier: Apache-2.0
"""Revoking what was issued, by ID, segment, agent or serial number.

A pattern names what was issued before a time, in whole seconds: the second of the revocation ends with it, and what is
signed within that second afterwards bears the next one (`State.issue_time`), which another revocation ends in its turn.
So nothing of before lives on, and nobody entitled waits. What a broker with a clock ahead of ours issued goes by serial
number. In the same transaction the entries get a new revision, which tells agents that know no revocation to fetch
another SVID, or are deleted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection

from firedoor.broker.db.entry_rows import delete_entry, next_revision
from firedoor.broker.db.rows import (
    Live,
    Revoked,
    issued_after,
    issued_before,
    issued_by_serial,
    latest_issued_before,
    put_revocations,
    revoke_issued,
)
from firedoor.broker.entry import MAX_TTL, Entry
from firedoor.broker.errors import InvalidRequest, NotFound
from firedoor.certs import IdPattern, SpiffeId

if TYPE_CHECKING:
    from firedoor.broker.state import State

# What sidecars say in their records; who did it and why is in the audit log.
REASON: Final = "revoked_by_administrator"
# Later than anything is issued.
_EVER: Final = 2**40


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be revoked: one of the three."""

    patterns: tuple[IdPattern, ...] = ()
    agent_id: SpiffeId | None = None
    serial: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """What a revocation ends: how many live certificates, and the entries that they came by."""

    svids: int
    entries: tuple[Entry, ...]
    revocations: tuple[Revoked, ...] = ()


async def look(state: State, target: Target) -> Found:
    """Return what revoking this would end. Raise NotFound or InvalidRequest."""
    now = state.clock.now()
    rows = await state.database.read(lambda connection: _rows(connection, state, target, now))
    named = {row.entry_id for row in rows}
    # What lives as a token alone has no row.
    by_pattern = (e for e in state.entries if any(one.matches(e.spiffe_id) for one in target.patterns))
    entries = {entry.id: entry for entry in (*by_pattern, *filter(None, map(state.entries.get, named)))}
    if not rows and not entries:
        raise NotFound("nothing that lives was issued for this, and no entry names it")
    return Found(sum(row.count for row in rows), tuple(sorted(entries.values(), key=lambda one: one.id)))


async def revoke(state: State, target: Target, *, entries: Sequence[Entry], delete: bool) -> list[Revoked]:
    """Revoke, with the entries deleted or bumped; return what is revoked now."""
    now = state.clock.now()
    ids = [entry.id for entry in entries]

    def run(connection: Connection) -> tuple[list[Revoked], list[str]]:
        made = _revoke(connection, state, target, now)
        if not delete:
            return made, next_revision(connection, ids)
        for entry_id in ids:
            delete_entry(connection, entry_id)
        return made, []

    def apply(done: tuple[list[Revoked], list[str]]) -> None:
        state.revoked(done[0])
        state.next_revision(done[1])
        for entry_id in ids if delete else ():
            state.entries.remove(entry_id)

    made, _ = await state.change(run, apply)
    return made


def _rows(connection: Connection, state: State, target: Target, now: int) -> list[Live]:
    if target.serial:
        return _one(connection, state, target.serial, now)
    rows = issued_before(connection, _EVER, now)
    if target.agent_id is not None:
        return [row for row in rows if row.agent_id == str(target.agent_id) and row.entry_id]
    return [row for row in rows if any(one.matches(SpiffeId.parse(row.spiffe_id)) for one in target.patterns)]


def _one(connection: Connection, state: State, serial: str, now: int) -> list[Live]:
    row = issued_by_serial(connection, serial, now)
    if row is None:
        raise NotFound("no certificate that lives has this serial number")
    if serial in state.intermediates:
        raise InvalidRequest("this is the CA of a server below the broker: `firedoor authority downstream revoke`")
    if row.agent_id and not row.entry_id:
        raise InvalidRequest(f"this is the own certificate of {row.agent_id}: ban or evict the agent")
    return [row]


def _revoke(connection: Connection, state: State, target: Target, now: int) -> list[Revoked]:
    if target.agent_id is not None:
        return revoke_issued(connection, "agent_id", str(target.agent_id), REASON, now)
    if target.serial:
        (row,) = _one(connection, state, target.serial, now)
        return put_revocations(connection, [Revoked("serial", target.serial, 0, REASON, row.not_after)])
    rows = _rows(connection, state, target, now)
    ends = max([_last_token(state, now), *(row.not_after for row in rows)])
    before = max(now, latest_issued_before(connection)) + 1
    made = [Revoked("pattern", str(one), before, REASON, ends) for one in target.patterns]
    return put_revocations(connection, [*made, *_of_later(connection, target, before, now)])


def _of_later(connection: Connection, target: Target, since: int, now: int) -> list[Revoked]:
    """Revoke by serial what a broker issued whose clock is ahead of ours: no time that we could name is after it."""
    return [
        Revoked("serial", row.serial, 0, REASON, row.not_after)
        for row in issued_after(connection, since)
        if row.not_after > now and any(one.matches(SpiffeId.parse(row.spiffe_id)) for one in target.patterns)
    ]


def _last_token(state: State, now: int) -> int:
    """Return when the last token ends that may be about: with the last key that signs any."""
    bundle = state.bundles.get(state.trust_domain)
    keys = (*bundle.jwt_keys, *bundle.wit_keys) if bundle else ()
    return max((key.expires_at or now + MAX_TTL for key in keys), default=now)


def members(patterns: Iterable[IdPattern], state: State) -> tuple[IdPattern, ...]:
    """Return the patterns of our own trust domain: nothing else was issued here."""
    return tuple(one for one in patterns if one.trust_domain == state.trust_domain)
