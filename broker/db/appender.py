# SPDX-License-Identifier: Apache-2.0
"""Rows that are only ever added, by as few calls of the driver as there can be.

The driver gives the interpreter's lock up for every row of an `executemany`, and each time it waits for the event loop
to give it back. One statement with many rows waits once, and is a transaction of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import Dialect, Engine, Insert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import PoolProxiedConnection

Row = Mapping[str, Any]

# How many rows a statement has at most: SQLite takes 32,766 values, and every length is a statement to be kept.
_ROWS: Final = 64


class Appender:
    """Inserts rows whose columns are all given, and of types that the driver takes as they are. For one thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # Kept open: taking a connection out of the pool costs as much as the insert.
        self._connection: PoolProxiedConnection | None = None

    def insert(self, rows: Mapping[Insert, Sequence[Row]]) -> None:
        """Insert all and sync, or none. Raise whatever the driver raises; the next call begins anew."""
        parts = [
            _statement(into, self._engine.dialect, given[start : start + _ROWS])
            for into, given in rows.items()
            for start in range(0, len(given), _ROWS)
        ]
        try:
            if self._connection is None:
                self._connection = self._engine.raw_connection()
            # A cursor that is left open keeps its transaction, and the lock, beyond the end of its connection.
            with contextlib.closing(self._connection.cursor()) as cursor:
                if len(parts) > 1:
                    parts = [("BEGIN IMMEDIATE", []), *parts, ("COMMIT", [])]
                for part in parts:
                    cursor.execute(*part)
        except BaseException:
            self._drop()
            raise

    def close(self) -> None:
        """Give the connection back."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _drop(self) -> None:
        """Close a connection that may be broken, with whatever was begun on it."""
        broken, self._connection = self._connection, None
        if broken is not None:
            with contextlib.suppress(SQLAlchemyError):
                broken.invalidate()
            broken.close()


def _statement(into: Insert, dialect: Dialect, rows: Sequence[Row]) -> tuple[str, list[Any]]:
    """Return a statement that inserts these rows, and its values."""
    columns = into.table.columns.keys()
    return _text(into, dialect, len(rows)), [row[column] for row in rows for column in columns]


@lru_cache(maxsize=4 * _ROWS)
def _text(into: Insert, dialect: Dialect, count: int) -> str:
    blank: dict[str, Any] = dict.fromkeys(into.table.columns.keys())
    return str(into.values([blank] * count).compile(dialect=dialect))
