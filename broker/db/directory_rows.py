# SPDX-License-Identifier: Apache-2.0
"""Services that were derived from a cluster's objects: jobs for `Database`."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from sqlalchemy import Connection, delete, insert, select

from firedoor.broker.db.schema import directory
from firedoor.segments.directory import Derived

# What the database calls the rows.
KIND: Final = directory.name
MAX_SOURCE: Final = 255
# IDs that one query names; SQLite's older versions take 999 values.
_IDS: Final = 500


def load_directory(connection: Connection, names: Collection[str] | None = None) -> dict[str, Derived]:
    """Return all services by name, or those of these names that are there."""
    if names is None:
        found = list(connection.execute(select(directory)))
    else:
        wanted = sorted(names)
        found = [
            row
            for at in range(0, len(wanted), _IDS)
            for row in connection.execute(select(directory).where(directory.c.id.in_(wanted[at : at + _IDS])))
        ]
    return {row.id: Derived(row.id, row.source, row.service) for row in found}


def put_directory(connection: Connection, put: Iterable[Derived], gone: Iterable[str]) -> None:
    """Write services in place of those of their names, and delete others."""
    rows = [{"id": one.name, "source": one.source[:MAX_SOURCE], "service": one.data} for one in put]
    removed = [*gone, *(row["id"] for row in rows)]
    for at in range(0, len(removed), _IDS):
        connection.execute(delete(directory).where(directory.c.id.in_(removed[at : at + _IDS])))
    if rows:
        connection.execute(insert(directory), rows)
