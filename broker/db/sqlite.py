# SPDX-License-Identifier: Apache-2.0
"""SQLite: one file with a log beside it, private to the broker's user."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from firedoor.broker.errors import DatabaseError
from firedoor.broker.files import make_private_file

# Another process (a backup) may hold the lock for a moment.
_BUSY_MS: Final = 5000
URLS: Final = "write sqlite:////path/to/file or postgresql://user@host/database"


def read_url(url: str) -> URL:
    """Read a URL. Raise DatabaseError."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise DatabaseError(f"the database URL cannot be read; {URLS}") from None
    if parsed.get_backend_name() != "sqlite":
        raise DatabaseError(f"{parsed.get_backend_name()} is not supported; {URLS}")
    if not parsed.database or parsed.database == ":memory:":
        raise DatabaseError("the database URL names no file; write sqlite:////path/to/file")
    return parsed


def open_engine(url: str, connections: int) -> Engine:
    """Return the engine for a file that is there afterwards. Raise DatabaseError or StorageError."""
    parsed = read_url(url)
    make_private_file(parsed.database or "")
    # A connection a thread, kept: opening a file for each read costs more than the read.
    engine = create_engine(parsed, poolclass=QueuePool, pool_size=connections, max_overflow=1)
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", _on_begin)
    return engine


def sentence(error: BaseException) -> BaseException:
    """Turn a driver's error into a sentence; leave ours as they are."""
    if not isinstance(error, SQLAlchemyError):
        return error
    text = str(getattr(error, "orig", None) or error)
    if "disk is full" in text:
        return DatabaseError("the database cannot be written: the disk is full; nothing was changed")
    if "readonly" in text:
        return DatabaseError("the database cannot be written: it is read-only; nothing was changed")
    if "malformed" in text or "not a database" in text:
        return DatabaseError("the database file is damaged; restore it from a backup")
    if "unable to open" in text:
        return DatabaseError("the database file cannot be opened; check its folder's owner and mode")
    if "locked" in text:
        return DatabaseError("the database is locked by another process; nothing was changed")
    return DatabaseError(f"the database failed ({type(error).__name__}); nothing was changed")


def _on_connect(connection: Any, _record: object) -> None:
    # The driver's own idea of when a transaction begins breaks savepoints; see _on_begin.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
    cursor.execute("PRAGMA journal_mode=WAL")
    # An acknowledged write outlives a power cut.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _on_begin(connection: Connection) -> None:
    # A writer that begins as a reader can find the lock taken when it is too late to wait.
    reads = connection.get_execution_options().get("reads", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
