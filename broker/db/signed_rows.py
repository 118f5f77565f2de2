# SPDX-License-Identifier: Apache-2.0
"""What one authority signed and still lives, by who holds it: jobs for `Database`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, exists, func, select

from firedoor.broker.db.schema import issued, revocations

# SPIFFE ID, entry ID, agent ID; the last two are empty where nobody of that kind stands behind a certificate.
Holder = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Signed:
    """What lives of one authority: who holds it until when, and who was issued something else since."""

    # Unix seconds.
    old: dict[Holder, int]
    new: frozenset[Holder]
    # Serial numbers, lower-case hex, of the agents' own certificates by the old one.
    agents: frozenset[str]


def signed_by(connection: Connection, old: str, now: int) -> Signed:
    """Return what lives of an authority. What is revoked by its serial number is left out."""
    holder = (issued.c.spiffe_id, issued.c.entry_id, issued.c.agent_id)
    live = _live(now)
    of_old, times = live & (issued.c.authority_id == old), (func.max(issued.c.issued_at), func.max(issued.c.not_after))
    held = {(r[0], r[1], r[2]): (r[3], r[4]) for r in _grouped(connection, holder, times, of_old)}
    others = _grouped(connection, holder, times, live & (issued.c.authority_id != old))
    # What was issued last is what is used; another broker's authority may have signed it.
    new = {(r[0], r[1], r[2]) for r in others if (r[0], r[1], r[2]) in held and r[3] >= held[r[0], r[1], r[2]][0]}
    agents = of_old & (issued.c.entry_id == "") & (issued.c.agent_id != "")
    serials = connection.scalars(select(issued.c.serial).where(agents))
    return Signed({key: until for key, (_, until) in held.items()}, frozenset(new), frozenset(serials))


def _live(now: int) -> ColumnElement[bool]:
    """Select what has not expired and is not revoked by its serial number."""
    revoked = exists().where((revocations.c.kind == "serial") & (revocations.c.value == issued.c.serial))
    return (issued.c.not_after > now) & ~revoked


def _grouped(connection: Connection, holder: Any, times: Any, where: ColumnElement[bool]) -> Iterable[Any]:
    return connection.execute(select(*holder, *times).where(where).group_by(*holder))


def certificates_by_agent(connection: Connection, now: int) -> list[tuple[str, bool, int]]:
    """Return until when each agent itself (True), and the workloads behind it (False), have certificates."""
    where = _live(now) & (issued.c.agent_id != "")
    by = (issued.c.agent_id, issued.c.entry_id == "")
    found = connection.execute(select(*by, func.max(issued.c.not_after)).where(where).group_by(*by))
    return [(row[0], bool(row[1]), row[2]) for row in found]


def count_signed(connection: Connection, now: int) -> dict[str, int]:
    """Return how many certificates of each authority live."""
    found = select(issued.c.authority_id, func.count()).where(issued.c.not_after > now).group_by(issued.c.authority_id)
    return {row[0]: row[1] for row in connection.execute(found)}
