# SPDX-License-Identifier: Apache-2.0
"""Entries straight into the SQLite database of a spire-server that is stopped, as copies of one that it wrote itself.

Through its API they take it long: before it makes an entry it looks for a similar one, and that query reads every entry
below the same parent and every one with the same selector (`lookupSimilarEntry` in pkg/server/datastore/sqlstore of
SPIRE 1.15.3). A hundred thousand below one agent are half an hour or more of one core.
"""

import sqlite3
import uuid
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from bench.processes import Failed


def copy(database: Path, entry_id: str, spiffe_ids: Sequence[str]) -> list[str]:
    """Write every row of an entry once more for each SPIFFE ID; return the copies' entry IDs. Raise Failed.

    Its columns are taken as they are, whatever they are. DNS names and federated trust domains are not copied.
    """
    ids = [str(uuid.uuid4()) for _ in spiffe_ids]
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.row_factory = sqlite3.Row
        (entry,) = _rows(connection, "registered_entries", "entry_id", entry_id)
        events = _rows(connection, "registered_entries_events", "entry_id", entry_id)[:1]
        selectors = _rows(connection, "selectors", "registered_entry_id", entry["id"])
        (last,) = connection.execute("SELECT max(id) FROM registered_entries").fetchone()
        for row, (made, spiffe_id) in enumerate(zip(ids, spiffe_ids, strict=True), last + 1):
            _insert(connection, "registered_entries", {**entry, "id": row, "entry_id": made, "spiffe_id": spiffe_id})
            for selector in selectors:
                _insert(connection, "selectors", {**selector, "id": None, "registered_entry_id": row})
            for event in events:
                _insert(connection, "registered_entries_events", {**event, "id": None, "entry_id": made})
    return ids


def _rows(connection: sqlite3.Connection, table: str, column: str, value: object) -> list[Mapping[str, object]]:
    found = connection.execute(f'SELECT * FROM "{table}" WHERE "{column}" = ? ORDER BY id', (value,)).fetchall()
    if not found:
        raise Failed(f"spire-server's table {table} has no row of the entry that is to be copied")
    return [dict(row) for row in found]


def _insert(connection: sqlite3.Connection, table: str, row: Mapping[str, object]) -> None:
    names = ", ".join(f'"{name}"' for name in row)
    places = ", ".join("?" * len(row))
    connection.execute(f'INSERT INTO "{table}" ({names}) VALUES ({places})', tuple(row.values()))
