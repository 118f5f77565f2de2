# SPDX-License-Identifier: Apache-2.0
"""What brokers on one PostgreSQL database leave for each other: changes, and who is there. Jobs for `SharedDatabase`.

Triggers write a row into `changes` for whatever is committed to a table that brokers keep in memory, whoever does it
(migrations/versions/r0005_several_brokers.py). Numbers grow in the order of commits, with gaps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import BigInteger, ColumnElement, Connection, delete, extract, func, insert, select, update

from firedoor.broker.db.schema import brokers, changes

# Whoever has so much to catch up with reads everything.
_MANY: Final = 5000
# How long changes stay, in seconds. Whoever has not looked for as long must read everything.
KEPT: Final = 3600
# How long ago a broker was seen that counts as alive, in seconds.
_ALIVE: Final = 15


@dataclass(frozen=True, slots=True)
class Changed:
    """What was committed since: by kind the keys, None for all of them, and the number of the last change of each."""

    upto: int
    keys: dict[str, frozenset[str] | None]
    last: dict[str, int]


def last_change(connection: Connection) -> int:
    """Return the number of the last change, 0 when there was none."""
    return connection.scalar(select(func.max(changes.c.id))) or 0


def changes_since(connection: Connection, known: int) -> Changed | None:
    """Return what was committed after a change, None when nothing was."""
    number = func.max(changes.c.id)
    columns = (changes.c.kind, changes.c.key, number)
    found = connection.execute(select(*columns).where(changes.c.id > known).group_by(*columns[:2])).all()
    if not found:
        return None
    keys: dict[str, set[str]] = {}
    last: dict[str, int] = {}
    for kind, key, number_found in found:
        keys.setdefault(kind, set()).add(key)
        last[kind] = max(last.get(kind, 0), number_found)
    few = {kind: frozenset(some) if len(some) <= _MANY else None for kind, some in keys.items()}
    return Changed(max(last.values()), few, last)


def prune_changes(connection: Connection) -> None:
    """Forget changes that everybody had the time to see; never the last one, which is where newcomers begin."""
    old = (changes.c.made_at < _now() - KEPT) & (changes.c.id < select(func.max(changes.c.id)).scalar_subquery())
    connection.execute(delete(changes).where(old))
    connection.execute(delete(brokers).where(brokers.c.seen_at < _now() - 30 * 86400))


def put_broker(connection: Connection, broker_id: str, host: str) -> None:
    """Write down that a broker is there."""
    values = {"host": host[:255], "seen_at": _now(), "committed": ""}
    if connection.execute(update(brokers).where(brokers.c.id == broker_id).values(values)).rowcount == 0:
        connection.execute(insert(brokers).values(id=broker_id, **values))


def put_mark(connection: Connection, broker_id: str, mark: str) -> None:
    """Leave a mark that is there once this transaction is committed, and only then."""
    statement = update(brokers).where(brokers.c.id == broker_id).values(committed=mark, seen_at=_now())
    if connection.execute(statement).rowcount == 0:
        # Somebody deleted the row; without it no answer that is lost could be found out.
        connection.execute(insert(brokers).values(id=broker_id, host="", seen_at=_now(), committed=mark))


def has_mark(connection: Connection, broker_id: str, mark: str) -> bool:
    """Say whether the transaction that left this mark was committed."""
    return connection.scalar(select(brokers.c.committed).where(brokers.c.id == broker_id)) == mark


def others_alive(connection: Connection, broker_id: str) -> list[str]:
    """Return the IDs of the other brokers that were there a moment ago."""
    where = (brokers.c.id != broker_id) & (brokers.c.seen_at > _now() - _ALIVE)
    return list(connection.scalars(select(brokers.c.id).where(where).order_by(brokers.c.id)))


def _now() -> ColumnElement[int]:
    """The database's clock: brokers' own may differ."""
    return func.floor(extract("epoch", func.clock_timestamp()), type_=BigInteger)
