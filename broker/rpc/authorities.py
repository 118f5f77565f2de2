# SPDX-License-Identifier: Apache-2.0
"""Our AuthorityAdmin service: the broker's authorities, and their rotation."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, get_args

from firedoor.broker.authority_kinds import upstream_id
from firedoor.broker.db.signed_rows import count_signed
from firedoor.broker.errors import InvalidRequest
from firedoor.broker.rotation_order import Order, Report
from firedoor.certs import Stage, Status
from firedoor.certs.authority import Kind
from firedoor.wire import admin_pb2

if TYPE_CHECKING:
    from firedoor.broker.authority import Manager
    from firedoor.broker.rotation import Rotations
    from firedoor.broker.rpc.gate import Call
    from firedoor.broker.state import State
    from firedoor.mtls import Caller

MAX_MISSING: Final = 1000
# A stage may be told to wait for a week.
_MAX_SECONDS: Final = 7 * 86400
# Whoever watches is asked again who they are so often.
WATCH_SECONDS: Final = 30.0
_KINDS: Final[Mapping[str, Kind]] = {kind: kind for kind in get_args(Kind)}


class AuthorityAdminService:
    """`firedoor.admin.v1.AuthorityAdmin`."""

    def __init__(self, state: State, managers: Mapping[Kind, Manager[Any]], rotations: Rotations) -> None:
        self._state, self._managers, self._rotations = state, managers, rotations

    async def ListAuthorities(
        self, _request: admin_pb2.ListAuthoritiesRequest, _: Call
    ) -> admin_pb2.ListAuthoritiesResponse:
        """Show the authorities in their slots, and the rotations."""
        now = self._state.clock.now()
        live = await self._state.database.read(lambda connection: count_signed(connection, now))
        found = [
            admin_pb2.Authority(
                kind=kind,
                slot=one.slot,
                authority_id=one.authority_id,
                status=one.status.value,
                issued_at=one.issued_at,
                not_after=one.not_after,
                upstream_authority_id=upstream_id(one),
                live_svids=live.get(one.authority_id, 0),
                key_lost=manager.is_lost(one.authority_id) and one.status is not Status.REVOKED,
            )
            for kind, manager in self._managers.items()
            for one in (manager.slots.current, manager.slots.other)
            if one is not None
        ]
        return admin_pb2.ListAuthoritiesResponse(authorities=found, rotations=_shown(self._rotations.reports))

    async def StartRotation(
        self, request: admin_pb2.StartRotationRequest, call: Call
    ) -> admin_pb2.StartRotationResponse:
        """Start or join the rotations of some kinds: of all of them, or of none."""
        kinds, order = _kinds(request.kinds), _order(request, who(call.caller))
        call.audit.update(event="rotate", kinds=kinds, dry_run=request.dry_run, force=order.force)
        call.audit["emergency"] = order.emergency
        if request.dry_run:
            reports = {kind: await self._rotations.preview(kind, order) for kind in kinds}
            return admin_pb2.StartRotationResponse(rotations=_shown(reports))
        for kind in kinds:
            self._rotations.check(kind, order)
        started = {kind: await self._rotations.start(kind, order) for kind in kinds}
        call.audit["joined"] = joined = [kind for kind, (_, under_way) in started.items() if under_way]
        reports = {kind: report for kind, (report, _) in started.items()}
        return admin_pb2.StartRotationResponse(rotations=_shown(reports), joined=joined)

    async def WatchRotations(
        self, _request: admin_pb2.WatchRotationsRequest, _: Call
    ) -> AsyncIterator[admin_pb2.WatchRotationsResponse]:
        """Show the rotations now, after each change and every second, for a while."""
        watched = self._rotations.watch()
        with contextlib.suppress(TimeoutError):
            async with contextlib.aclosing(watched), asyncio.timeout(WATCH_SECONDS):
                async for reports in watched:
                    yield admin_pb2.WatchRotationsResponse(rotations=_shown(reports))

    async def AbortRotation(
        self, request: admin_pb2.AbortRotationRequest, call: Call
    ) -> admin_pb2.AbortRotationResponse:
        """End rotations where they stand."""
        kinds = _kinds(request.kinds)
        call.audit.update(event="abort_rotation", kinds=kinds)
        reports = {kind: await self._rotations.abort(kind, who(call.caller)) for kind in kinds}
        return admin_pb2.AbortRotationResponse(rotations=_shown(reports))


def who(caller: Caller) -> str:
    """Return who calls, as a rotation keeps it."""
    return f"uid {caller.uid}" if caller.transport == "unix" else caller.spiffe_id or "nobody"


def _kinds(given: Iterable[str]) -> list[Kind]:
    found = [_KINDS[name] for name in dict.fromkeys(given) if name in _KINDS]
    if not found or len(found) != len(set(given)):
        raise InvalidRequest(f"kinds are one or more of {', '.join(_KINDS)}")
    return found


def _order(request: admin_pb2.StartRotationRequest, by: str) -> Order:
    if not all(0 <= seconds <= _MAX_SECONDS for seconds in (request.patience, request.drain)):
        raise InvalidRequest(f"patience and drain are seconds, up to {_MAX_SECONDS}")
    order = Order(by, force=request.force, patience=request.patience or None, emergency=request.emergency)
    return replace(order, drain=request.drain) if request.HasField("drain") else order


def _shown(reports: Mapping[Kind, Report]) -> list[admin_pb2.Rotation]:
    return [_message(report) for report in reports.values()]


def _message(report: Report) -> admin_pb2.Rotation:
    rotation, missing = report.rotation, report.missing
    if rotation.stage in (Stage.DONE, Stage.ABORTED):
        missing = ()
    return admin_pb2.Rotation(
        kind=rotation.kind,
        stage=rotation.stage.value,
        by=rotation.by,
        started_at=rotation.started_at,
        since=rotation.since,
        old_authority_id=rotation.old,
        new_authority_id=rotation.new,
        force=rotation.force,
        patience=rotation.patience,
        emergency=rotation.emergency,
        missing=[admin_pb2.MissingFollower(who=m.who, why=m.why, until=m.until) for m in missing[:MAX_MISSING]],
        missing_count=len(missing),
        asked_count=report.of,
        over=rotation.over,
        over_count=rotation.over_count,
        reason=rotation.reason,
        trouble=report.trouble,
    )
