# SPDX-License-Identifier: Apache-2.0
"""Break-glass: emergency access that one person asks for and another one approves, for a while.

    asked for ──approve (somebody else)──▶ approved ──take (who asked, once)──▶ open ──time, or end──▶ ended
        └───────────── 15 minutes ─────────────┴──▶ lapsed

What is taken is an X.509-SVID of its own, `/segment/<segment>/grant/<id>`, that no entry gives and nothing renews. Its
TTL has a cap. When its time is over it is revoked too: the segment at the other end may let streams outlive the SVIDs
that opened them, and these may not.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection

from firedoor.broker.db.grant_rows import (
    ENDED_BY_TIME,
    Grant,
    approve_grant,
    count_waiting,
    end_grant,
    insert_grant,
    load_grant,
    load_grants,
    prune_grants,
    run_out,
    take_grant,
)
from firedoor.broker.db.rows import Revoked, insert_issued, put_revocations
from firedoor.broker.errors import BrokerError, Conflict, InvalidRequest, NotAuthorized, NotFound, RateLimited
from firedoor.broker.issuing import authorize_breakglass
from firedoor.certs import SpiffeId, SubjectKey, X509Svid

if TYPE_CHECKING:
    from firedoor.broker.audit import Audit
    from firedoor.broker.issuing import Signer
    from firedoor.broker.policy import PolicyKeeper
    from firedoor.broker.state import State

_log = logging.getLogger("firedoor.broker.breakglass")
REASON: Final = "breakglass_ended"
# How long something waits to be approved, and then to be taken, in seconds.
PATIENCE: Final = 900
_LOOK_SECONDS: Final = 1.0
_MAX_WAITING: Final = 100
_MAX_REASON: Final = 1024
# No stream outlives its SVID by more (docs/policy.md), so that the revocation counts for all.
_LONGEST_STREAM: Final = 31 * 86400
_KEPT: Final = 90 * 86400
_CHANGED: Final = "this grant was changed by somebody else meanwhile; look at it again"


def state_of(grant: Grant, now: int) -> str:
    """Say how far a grant is."""
    if grant.ended_at or 0 < grant.ends_at <= now:
        return "ended"
    if grant.issued_at:
        return "open"
    since = grant.approved_at or grant.requested_at
    if since + PATIENCE <= now:
        return "lapsed"
    return "approved" if grant.approved_at else "waiting"


class BreakGlass:
    """Grants. `cap` is the longest TTL, in seconds."""

    def __init__(self, state: State, policy: PolicyKeeper, signer: Signer, audit: Audit, cap: int) -> None:
        self._state, self._policy, self._signer, self._audit, self._cap = state, policy, signer, audit, cap

    async def request(self, who: SpiffeId, reason: str, ttl: int, segment: str) -> Grant:
        """Ask for access. Raise InvalidRequest, NotAdmitted, PolicyUnavailable or RateLimited."""
        if not reason.strip() or len(reason) > _MAX_REASON:
            raise InvalidRequest(f"a reason must be given, of at most {_MAX_REASON} characters")
        if not 0 < ttl <= self._cap:
            raise InvalidRequest(f"the TTL is not within 1 s and {self._cap} s, the broker's breakglass_ttl")
        now, grant_id = self._state.clock.now(), secrets.token_hex(16)
        made = Grant(grant_id, segment or self._only_segment(), str(who), reason, ttl, now)
        authorize_breakglass(self._state, self._policy, self._spiffe_id(made), ttl)

        def run(connection: Connection) -> None:
            if count_waiting(connection, now - PATIENCE) >= _MAX_WAITING:
                raise RateLimited(f"{_MAX_WAITING} requests wait to be approved; end some")
            insert_grant(connection, made)

        await self._state.database.write(run)
        _log.warning("break-glass: %s asks for access to segment %s (grant %s)", who, made.segment, made.id)
        return made

    async def approve(self, who: SpiffeId, grant_id: str) -> Grant:
        """Approve what another one asked for. Raise NotFound, NotAuthorized or Conflict."""
        now = self._state.clock.now()

        def run(connection: Connection) -> Grant:
            done = approve_grant(connection, grant_id, str(who), now, now - PATIENCE)
            if done is None:
                check_approvable(load_grant(connection, grant_id), who, now)
                raise Conflict(_CHANGED)
            return done

        done: Grant = await self._state.database.write(run)
        _log.warning("break-glass: %s approves grant %s of %s", who, done.id, done.requester)
        return done

    async def take(self, who: SpiffeId, grant_id: str, key: SubjectKey) -> tuple[Grant, X509Svid]:
        """Issue what was approved, once. Raise NotFound, NotAuthorized, Conflict, NotAdmitted or AuthorityError."""
        now = self._state.clock.now()
        found = await self._state.database.read(lambda connection: load_grant(connection, grant_id))
        asked = check_takable(found, who, now)
        proof = authorize_breakglass(self._state, self._policy, self._spiffe_id(asked), asked.ttl)
        svid = await self._signer.sign(proof, key)
        row = self._signer.issued_row(proof, svid)

        def run(connection: Connection) -> Grant:
            times = now, svid.not_after
            done = take_grant(connection, grant_id, str(who), svid.serial, times, now - PATIENCE)
            if done is None:
                check_takable(load_grant(connection, grant_id), who, now)
                raise Conflict(_CHANGED)
            insert_issued(connection, [row])
            return done

        done: Grant = await self._state.database.write(run)
        # The policy may have changed while this was written.
        authorize_breakglass(self._state, self._policy, self._spiffe_id(done), done.ttl)
        _log.warning("break-glass: %s has access to segment %s until %d", who, done.segment, done.ends_at)
        return done, svid

    async def end(self, by: str, grant_id: str) -> Grant:
        """End a grant, and revoke what was issued by it. Raise NotFound or Conflict."""
        now = self._state.clock.now()

        def run(connection: Connection) -> tuple[Grant, list[Revoked]]:
            done = end_grant(connection, grant_id, by, now)
            if done is None:
                if load_grant(connection, grant_id) is None:
                    raise NotFound("there is no such grant")
                raise Conflict("this grant has ended already")
            if not done.serial:
                return done, []
            one = Revoked("serial", done.serial, 0, REASON, max(now, done.ends_at) + _LONGEST_STREAM)
            return done, put_revocations(connection, [one])

        done, _ = await self._state.change(run, lambda made: self._state.revoked(made[1]))
        _log.warning("break-glass: grant %s of %s ends", done.id, done.requester)
        return done

    async def list(self) -> list[Grant]:
        """Return all grants of the last months, the latest first."""
        return await self._state.database.read(load_grants)

    async def run(self) -> None:
        """End what runs out, until cancelled. On its own: it asks the database each second, which may take its time."""
        failing = False
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                await self.tick()
                failing = False
            except BrokerError as error:
                if not failing:
                    _log.error("grants that run out are not revoked: %s", error)
                failing = True

    async def tick(self) -> None:
        """End what has run out. Raise DatabaseError."""
        now = self._state.clock.now()
        ending = await self._state.database.read(lambda connection: run_out(connection, now))
        for grant_id in ending:
            try:
                done = await self.end(ENDED_BY_TIME, grant_id)
            except Conflict:
                continue
            self._audit.event("breakglass_ended", grant=done.id, requester=done.requester, ended_by=ENDED_BY_TIME)
        if ending:
            await self._state.database.write(lambda connection: prune_grants(connection, now - _KEPT))

    def _only_segment(self) -> str:
        policy = self._policy.current.policy
        found = [one.name for one in policy.segments if one.admission.breakglass] if policy else []
        if not found:
            raise InvalidRequest("no segment is for break-glass; one would have to say `admission: {breakglass: true}`")
        if len(found) > 1:
            raise InvalidRequest(f"several segments are for break-glass, name one of them: {', '.join(found)}")
        return found[0]

    def _spiffe_id(self, grant: Grant) -> SpiffeId:
        return self._state.trust_domain.with_path(f"/segment/{grant.segment}/grant/{grant.id}")


def check_approvable(grant: Grant | None, who: SpiffeId, now: int) -> Grant:
    """Return a grant that this person may approve now. Raise NotFound, NotAuthorized or Conflict."""
    if grant is None:
        raise NotFound("there is no such grant")
    if grant.requester == str(who):
        raise NotAuthorized("whoever asks for access cannot approve it: another person must")
    if (state := state_of(grant, now)) != "waiting":
        raise Conflict(f"this grant is {state}")
    return grant


def check_takable(grant: Grant | None, who: SpiffeId, now: int) -> Grant:
    """Return a grant whose SVID this person may take now. Raise NotFound, NotAuthorized or Conflict."""
    if grant is None:
        raise NotFound("there is no such grant")
    if grant.requester != str(who):
        raise NotAuthorized("only who asked for access can take it")
    if (state := state_of(grant, now)) != "approved":
        raise Conflict("nobody has approved this grant yet" if state == "waiting" else f"this grant is {state}")
    return grant
