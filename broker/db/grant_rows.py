# SPDX-License-Identifier: Apache-2.0
"""The table of break-glass grants. Jobs for `Database`; each step is one statement that only one caller can win."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, update

from firedoor.broker.db.schema import grants

ENDED_BY_TIME = "time"
ENDED_BY_RESTORE = "restore"


@dataclass(frozen=True, slots=True)
class Grant:
    """What somebody asked for, with what became of it. Times are Unix seconds; 0 and empty: not yet."""

    id: str
    segment: str
    requester: str
    reason: str
    # Seconds from the moment at which the SVID is issued.
    ttl: int
    requested_at: int
    approver: str = ""
    approved_at: int = 0
    serial: str = ""
    issued_at: int = 0
    ends_at: int = 0
    ended_by: str = ""
    ended_at: int = 0


_COLUMNS = tuple(grants.c[name] for name in Grant.__slots__)


def insert_grant(connection: Connection, grant: Grant) -> None:
    """Write down what somebody asks for."""
    connection.execute(insert(grants).values({name: getattr(grant, name) for name in Grant.__slots__}))


def load_grant(connection: Connection, grant_id: str) -> Grant | None:
    """Return one grant."""
    row = connection.execute(select(*_COLUMNS).where(grants.c.id == grant_id)).one_or_none()
    return Grant(*row) if row else None


def load_grants(connection: Connection) -> list[Grant]:
    """Return all, the latest first."""
    return [Grant(*row) for row in connection.execute(select(*_COLUMNS).order_by(grants.c.requested_at.desc()))]


def count_waiting(connection: Connection, since: int) -> int:
    """Count those that were asked for since a time and that nobody has approved or ended."""
    where = (grants.c.requested_at > since) & (grants.c.approved_at == 0) & (grants.c.ended_at == 0)
    return connection.scalar(select(func.count()).select_from(grants).where(where)) or 0


def approve_grant(connection: Connection, grant_id: str, approver: str, now: int, since: int) -> Grant | None:
    """Approve one that was asked for since a time, by somebody else, and that waits. None: it is not so."""
    where = (grants.c.approved_at == 0) & (grants.c.requester != approver) & (grants.c.requested_at > since)
    return _change(connection, grant_id, where, approver=approver, approved_at=now)


def take_grant(
    connection: Connection, grant_id: str, requester: str, serial: str, times: tuple[int, int], since: int
) -> Grant | None:
    """Take what was approved since a time, once. `times`: from when and until when. None: it is not so."""
    where = (grants.c.issued_at == 0) & (grants.c.requester == requester) & (grants.c.approved_at > since)
    return _change(connection, grant_id, where, serial=serial, issued_at=times[0], ends_at=times[1])


def end_grant(connection: Connection, grant_id: str, by: str, now: int) -> Grant | None:
    """End one, however far it is. None: it has ended, or there is none."""
    return _change(connection, grant_id, None, ended_by=by, ended_at=now)


def end_untaken(connection: Connection, now: int) -> int:
    """End those that nobody has taken, in a database that was restored: which of them were taken since is not known."""
    where = (grants.c.ended_at == 0) & (grants.c.issued_at == 0)
    return int(connection.execute(update(grants).where(where).values(ended_by=ENDED_BY_RESTORE, ended_at=now)).rowcount)


def run_out(connection: Connection, now: int) -> list[str]:
    """Return the IDs of those whose time is over and that nobody has ended."""
    where = (grants.c.ended_at == 0) & (grants.c.ends_at > 0) & (grants.c.ends_at <= now)
    return list(connection.scalars(select(grants.c.id).where(where)))


def prune_grants(connection: Connection, before: int) -> None:
    """Forget those that were asked for before a time, and live no more."""
    live = (grants.c.ended_at == 0) & (grants.c.ends_at > 0)
    connection.execute(delete(grants).where((grants.c.requested_at < before) & ~live))


def _change(
    connection: Connection, grant_id: str, where: ColumnElement[bool] | None, **values: str | int
) -> Grant | None:
    found = (grants.c.id == grant_id) & (grants.c.ended_at == 0)
    statement = update(grants).where(found if where is None else found & where).values(**values)
    row = connection.execute(statement.returning(*_COLUMNS)).one_or_none()
    return Grant(*row) if row else None
