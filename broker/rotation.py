# SPDX-License-Identifier: Apache-2.0
"""Rotates authorities: each step when everybody has followed the one before, as certs/rotation.py orders them.

The broker drives; whoever asked only watches. Where a rotation stands is written in the transaction of each step, so
that one which a broker left goes on when it is back. It waits for who is missing for ever, unless it was told to go on
without them after a time; over whom it went on is kept and audited.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection

from firedoor.broker.authority import Beside
from firedoor.broker.db.entry_rows import next_revision
from firedoor.broker.db.rows import load_journal, put_journal
from firedoor.broker.errors import BrokerError, Conflict, NotFound
from firedoor.broker.followers import OTHERS, TOKENS, Followers, Looked, News
from firedoor.broker.keys.keyring import SIGN_SECONDS
from firedoor.broker.rotation_order import Order, Report, Settings
from firedoor.certs import Authority, CertsError, Rotation, Stage, Status, Step

if TYPE_CHECKING:
    from firedoor.broker.audit import Audit
    from firedoor.broker.authority import Manager
    from firedoor.broker.metrics import Metrics
    from firedoor.broker.state import State
    from firedoor.certs.authority import Kind

_log = logging.getLogger("firedoor.broker.rotation")
# How often a rotation under way is looked at; a tenth of the time at most goes into looking.
_LOOK_EVERY: Final = 0.2
_SHARE: Final = 9
# How often the schedule is looked at, and how soon after a failure a rotation is tried again.
_SCHEDULE_EVERY: Final = 1.0
_TELL_EVERY: Final = 1.0
_RETRY: Final = 10.0
# Issue times are whole seconds, and what was signed as the next authority took over is written a moment later.
_SETTLED: Final = 2
# Entries whose holders are called for another SVID at once, and the pause after them: signing must not become a herd's.
_CALLED: Final = 500
_CALL_PAUSE: Final = 1.0
SCHEDULE: Final = "schedule"


class Rotations:
    """The rotations of one broker, at most one of a kind at a time. `run` drives them until cancelled."""

    def __init__(
        self,
        state: State,
        managers: Mapping[Kind, Manager[Any]],
        followers: Followers,
        audit: Audit,
        metrics: Metrics,
        settings: Settings,
    ) -> None:
        self._state, self._managers, self._followers = state, managers, followers
        self._audit, self._metrics, self._settings = audit, metrics, settings
        self._reports: dict[Kind, Report] = {}
        self._locks: dict[Kind, asyncio.Lock] = {kind: asyncio.Lock() for kind in managers}
        # What of a stage is not in the journal, because it is found again after a restart.
        self._news: dict[Kind, News] = {}
        self._called: set[tuple[Kind, str]] = set()
        self._quiet: dict[Kind, float] = {}
        self._again: dict[Kind, float] = {}
        self._wake, self._changed, self._ended = asyncio.Event(), asyncio.Event(), False
        # Which authorities may have signed tokens that this process knows nothing of, and when it began.
        self._found: dict[Kind, str] = {}
        self._began = 0

    async def load(self) -> None:
        """Go on from the journal, at start, once the authorities are there."""
        self._began = self._state.clock.now()
        for kind, manager in self._managers.items():
            self._found[kind] = manager.slots.current.authority_id if manager.slots.current else ""
            name = _journal(kind)
            read = partial(load_journal, kind=name, broker_id=self._state.database.broker_id)
            text = await self._state.database.read(read)
            if text is not None:
                self._reports[kind] = Report(Rotation.from_json(text))

    @property
    def reports(self) -> Mapping[Kind, Report]:
        """The rotation of each kind that is under way, or was last."""
        return self._reports

    def urgent(self) -> bool:
        """Say whether an emergency is under way."""
        found = (report.rotation for report in self._reports.values())
        return any(one.emergency and not one.stage.ended for one in found)

    def stop(self) -> None:
        """Let go of whoever watches: the broker stops."""
        self._ended = True
        self._changed.set()

    async def watch(self) -> AsyncGenerator[Mapping[Kind, Report]]:
        """Yield the reports now, after each change, and every second: whoever watches looks at the time then."""
        while not self._ended:
            changed = self._changed
            yield dict(self._reports)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TELL_EVERY):
                    await changed.wait()

    # --- what is asked for --------------------------------------------------------------------------------------

    async def start(self, kind: Kind, order: Order) -> tuple[Report, bool]:
        """Start a rotation, or join the one under way; say whether it was joined. Raise Conflict."""
        async with self._locks[kind]:
            present = self._reports.get(kind)
            if present is not None and not present.rotation.stage.ended:
                self.check(kind, order)
                changed = order.of(present.rotation)
                if changed != present.rotation:
                    await self._put(changed, f"rotation_{'emergency' if order.emergency else 'forced'}", by=order.by)
                self._again.pop(kind, None)
                self._wake.set()
                return self._reports[kind], True
            rotation = self.planned(kind, order)
            self._forget(kind)
            await self._put(rotation, "rotation_started")
            self._wake.set()
            return self._reports[kind], False

    def planned(self, kind: Kind, order: Order) -> Rotation:
        """Return the rotation that would begin now. Raise Conflict, or AuthorityError when nothing signs."""
        self.check(kind, order)
        at, old, others = self._state.clock.now(), self._managers[kind].active().authority_id, self._settings.others
        made = Rotation(kind, Stage.PREPARE, order.by, at, at, old, drain=order.drain, others=others)
        if (lost := self._managers[kind].left_behind) is not None:
            # It was replaced when its key was lost: what is left to do is to take it out.
            until = self._found_until(kind, lost) if kind != "x509" else 0
            made = replace(made, stage=Stage.REISSUE, old=lost.authority_id, new=old, tokens_until=until)
        return order.of(made)

    def check(self, kind: Kind, order: Order) -> None:
        """Refuse what cannot be done here. Raise Conflict."""
        if order.emergency and not self._settings.retires(kind):
            raise Conflict(
                f"the {kind} authority is below one upstream, and what that vouches for cannot be taken back here: "
                "rotate the one upstream, then taint and revoke its root (spire-server upstreamauthority)"
            )
        report, other = self._reports.get(kind), self._managers[kind].slots.other
        under_way = report is not None and not report.rotation.stage.ended
        if other is not None and other.status is Status.TAINTED and not (order.emergency or under_way):
            raise Conflict(
                f"authority {other.authority_id} is tainted and not revoked; revoke it before another takes its place"
            )

    async def preview(self, kind: Kind, order: Order) -> Report:
        """Say what a rotation would wait for now, and change nothing. Raise Conflict."""
        rotation = self.planned(kind, order)
        looked = await self._followers.without_news(self._present())
        if kind == "x509":
            looked = looked.and_also(await self._followers.minted(rotation))
        return Report(rotation, looked.missing, looked.of)

    async def abort(self, kind: Kind, by: str) -> Report:
        """End a rotation where it stands: what was done is not undone. Raise NotFound, or AuthorityError (certs)."""
        async with self._locks[kind]:
            present = self._reports.get(kind)
            if present is None or present.rotation.stage.ended:
                raise NotFound(f"no {kind} rotation is under way")
            await self._put(self._after(present.rotation, Step.ABORT, reason=f"aborted by {by}"), "rotation_aborted")
            return self._reports[kind]

    # --- what goes on by itself ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Drive what is under way, and start what the schedule says, until cancelled."""
        while True:
            started = time.monotonic()
            for kind in self._managers:
                await self._guarded(kind)
            took = time.monotonic() - started
            busy = any(not report.rotation.stage.ended for report in self._reports.values())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(_LOOK_EVERY, took * _SHARE) if busy else _SCHEDULE_EVERY):
                    await self._wake.wait()
            self._wake.clear()

    async def _guarded(self, kind: Kind) -> None:
        """Go on with one kind; what fails is said, and tried again later."""
        if time.monotonic() < self._again.get(kind, 0.0):
            return
        try:
            await self._start_if_due(kind)
            async with self._locks[kind]:
                await self._go_on(kind)
        except (BrokerError, CertsError) as error:
            self._again[kind] = time.monotonic() + _RETRY
            _log.error("the rotation of the %s authority: %s", kind, error)
            if (report := self._reports.get(kind)) is not None:
                self._tell(replace(report, trouble=str(error)))

    async def _start_if_due(self, kind: Kind) -> None:
        every, report = self._settings.schedule.get(kind), self._reports.get(kind)
        if every is None or (report is not None and not report.rotation.stage.ended):
            return
        if self._managers[kind].keys.trouble or self._managers[kind].slots.current is None:
            return
        if self._managers[kind].active().issued_at + every <= self._state.clock.now():
            await self.start(kind, Order(SCHEDULE))

    async def _go_on(self, kind: Kind) -> None:
        """Take the next step if nobody is missing."""
        report = self._reports.get(kind)
        if report is None or report.rotation.stage.ended:
            return
        rotation = self._noticed(report.rotation)
        if rotation.stage is Stage.PREPARE:
            await self._prepare(rotation)
            return
        if rotation is not report.rotation:
            await self._put(rotation, f"rotation_{'lost' if rotation.stage.ended else 'noticed'}")
            return
        looked = await self._look(rotation)
        self._tell(Report(rotation, looked.missing, looked.of))
        if looked.missing and not rotation.impatient(self._state.clock.now()):
            self._quiet.pop(kind, None)
            return
        if not self._settled(rotation):
            return
        await self._step(rotation.gone_over(tuple(one.who for one in looked.missing)))

    def _noticed(self, rotation: Rotation) -> Rotation:
        """Return the rotation after what the clock, or the LocalAuthority API, did to its authorities."""
        slots = self._managers[rotation.kind].slots
        current = slots.current.authority_id if slots.current else ""
        other = slots.other.authority_id if slots.other else ""
        match rotation.stage:
            case Stage.PREPARE if current == rotation.old:
                return rotation
            case Stage.SPREAD if (current, other) == (rotation.old, rotation.new):
                return rotation
            case Stage.SPREAD if current == rotation.new:
                return self._after(rotation, Step.ACTIVATE)
            case Stage.REISSUE | Stage.RETIRE if (current, other) == (rotation.new, rotation.old):
                status = slots.other.status if slots.other else None
                if rotation.stage is Stage.REISSUE and status is Status.TAINTED:
                    return self._after(rotation, Step.TAINT)
                if rotation.stage is Stage.RETIRE and status is Status.REVOKED:
                    return self._after(rotation, Step.REVOKE)
                if status in (Status.OLD, Status.TAINTED):
                    return rotation
        return self._after(rotation, Step.LOSE, reason="its authorities were replaced by something else")

    async def _look(self, rotation: Rotation) -> Looked:
        """Return whom the present stage waits for."""
        kind, at = rotation.kind, self._state.clock.now()
        if rotation.stage is Stage.REISSUE:
            return await self._look_at_svids(rotation, at)
        looked = await self._followers.without_news(self._news.setdefault(kind, self._present()))
        if rotation.stage is Stage.SPREAD:
            end = rotation.since + rotation.others
            return looked.and_also(Looked.until(OTHERS, "may not have fetched the bundle yet", end, at))
        if kind == "x509":
            looked = looked.and_also(await self._followers.not_reissued(rotation, agents=True))
        return looked

    async def _look_at_svids(self, rotation: Rotation, at: int) -> Looked:
        """Return who is not re-issued yet. An emergency waits for them after the taint, which calls them too."""
        if rotation.emergency:
            return Looked((), 0)
        if rotation.kind != "x509":
            return Looked.until(TOKENS, "that the old key signed are valid", self._tokens_until(rotation), at)
        await self._call_for(rotation)
        return await self._followers.not_reissued(rotation, agents=False)

    def _present(self) -> News:
        own = self._state.bundles[self._state.trust_domain]
        return News(self._state.generation, own.sequence)

    def _tokens_until(self, rotation: Rotation) -> int:
        """Return from when on no token is valid that the old key signed."""
        kind, slots = rotation.kind, self._managers[rotation.kind].slots
        old = next((one for one in (slots.current, slots.other) if one and one.authority_id == rotation.old), None)
        until = max(rotation.tokens_until, self._managers[kind].signed_until(rotation.old))
        if old is not None and self._found.get(kind) == rotation.old:
            until = max(until, self._found_until(kind, old))
        return until

    def _found_until(self, kind: Kind, old: Authority) -> int:
        """Return from when on no token is valid that an earlier process signed; they are not known one by one."""
        longest = old.not_after if self._settings.mints() else self._began + self._settings.longest(kind)
        return min(old.not_after, longest)

    async def _call_for(self, rotation: Rotation) -> None:
        """Have holders fetch other SVIDs, once: their entries get another revision."""
        if (rotation.kind, rotation.new) in self._called:
            return
        behind = await self._followers.entries_behind(rotation)
        for start in range(0, len(behind), _CALLED):
            part = behind[start : start + _CALLED]
            await self._state.change(partial(next_revision, entry_ids=part), self._state.next_revision)
            if len(behind) > start + _CALLED:
                await asyncio.sleep(_CALL_PAUSE)
        self._called.add((rotation.kind, rotation.new))

    def _settled(self, rotation: Rotation) -> bool:
        """Say whether what was begun with the old authority's certificates has ended: signing them, and requests."""
        if rotation.kind != "x509":
            return True
        if rotation.stage is Stage.REISSUE:
            keys = self._managers[rotation.kind].keys
            settled = rotation.since + _SETTLED + (SIGN_SECONDS if keys.in_flight else 0)
            return rotation.emergency or self._state.clock.now() >= settled
        return (
            rotation.stage is not Stage.RETIRE
            or time.monotonic() >= self._quiet.setdefault(rotation.kind, time.monotonic()) + rotation.drain
        )

    # --- steps --------------------------------------------------------------------------------------------------

    async def _prepare(self, rotation: Rotation) -> None:
        """Make the next authority. One that is prepared already will do, but in an emergency."""
        manager = self._managers[rotation.kind]
        other = manager.slots.other
        if other is not None and other.status is Status.PREPARED and not rotation.emergency:
            await self._put(self._after(rotation, Step.PREPARE, new=other.authority_id), "rotation_prepared")
            return
        await manager.prepare(
            lambda made: self._beside(self._after(rotation, Step.PREPARE, new=made.authority_id)),
            distrust=rotation.emergency,
        )
        self._stepped("rotation_prepared", rotation.kind)

    async def _step(self, rotation: Rotation) -> None:
        """Take the step that the stage waited for."""
        manager, kind = self._managers[rotation.kind], rotation.kind
        if rotation.stage is Stage.SPREAD:
            until = self._tokens_until(rotation) if kind != "x509" else 0
            after = self._after(rotation, Step.ACTIVATE, tokens_until=until)
            await manager.activate(rotation.new, self._with(after))
            if self._reports[kind].rotation.stage is Stage.REISSUE:
                # Else its key is gone, and another authority was prepared; the next look notices.
                await self._settings.refresh()
                self._stepped("rotation_activated", kind)
        elif rotation.stage is Stage.REISSUE and not self._settings.retires(kind):
            await self._put(self._after(rotation, Step.FINISH), "rotation_done")
        elif rotation.stage is Stage.REISSUE:
            await manager.taint(rotation.old, self._with(self._after(rotation, Step.TAINT)))
            self._stepped("rotation_tainted", kind)
        else:
            await manager.revoke(rotation.old, self._with(self._after(rotation, Step.REVOKE)))
            self._stepped("rotation_done", kind)

    def _after(self, rotation: Rotation, step: Step, **changes: Any) -> Rotation:
        return rotation.after(step, self._state.clock.now(), **changes)

    def _with(self, after: Rotation) -> Callable[[Authority], Beside]:
        return lambda _: self._beside(after)

    def _beside(self, after: Rotation) -> Beside:
        """Return what a step writes and remembers with what it does to the authorities."""

        def write(connection: Connection) -> None:
            put_journal(connection, _journal(after.kind), after.to_json(), self._state.database.broker_id)

        return Beside(write, lambda: self._entered(after))

    async def _put(self, after: Rotation, event: str, **fields: Any) -> None:
        """Commit a change that touches no authority."""
        written = self._beside(after)
        await self._state.database.write(written.write, lambda _: written.then())
        self._stepped(event, after.kind, **fields)

    def _entered(self, after: Rotation) -> None:
        """Remember where a rotation stands."""
        before = self._reports.get(after.kind)
        if before is None or before.rotation.stage is not after.stage:
            self._news.pop(after.kind, None)
            self._quiet.pop(after.kind, None)
        self._tell(Report(after))

    def _forget(self, kind: Kind) -> None:
        self._again.pop(kind, None)
        self._called = {one for one in self._called if one[0] != kind}

    def _tell(self, report: Report) -> None:
        kind = report.rotation.kind
        self._metrics.rotation_missing.labels(kind).set(len(report.missing))
        if self._reports.get(kind) != report:
            self._reports[kind] = report
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    def _stepped(self, event: str, kind: Kind, **fields: Any) -> None:
        """Audit and log a step, and look at the next one at once."""
        rotation = self._reports[kind].rotation
        _log.info("%s rotation: %s (%s)", kind, rotation.stage.value, event)
        told: dict[str, Any] = {
            "by": rotation.by,
            "kind": kind,
            "stage": rotation.stage.value,
            "emergency": rotation.emergency,
        }
        told |= {"old_authority_id": rotation.old, "new_authority_id": rotation.new, "force": rotation.force}
        told |= {"over": list(rotation.over), "over_count": rotation.over_count, "reason": rotation.reason}
        self._wake.set()
        self._audit.event(event, **{**told, **fields})


def _journal(kind: Kind) -> str:
    """Return the name of a rotation's record, beside the journal of its authorities."""
    return f"{kind}-rotation"
