# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL: how it is reached, which locks brokers take there, and what its errors mean.

A transaction that changes what brokers keep in memory takes one lock first and holds it to its end. So brokers write
one after the other, as with SQLite: whatever a job looks up stays true until its commit, no two transactions wait for
each other, and changes are numbered in the order of their commits. Rows of what was issued are added under the same
lock, shared: many at once, but none beside a transaction that looks for what to revoke.

A URL has no password: command lines and environments are read by others. It is in a file of its own, read again for
each connection, or where libpq looks for it (PGPASSFILE).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from firedoor.broker.db.sqlite import URLS
from firedoor.broker.errors import ConfigError, DatabaseError
from firedoor.broker.files import OPEN_TO_OTHERS

if TYPE_CHECKING:
    import psycopg

# "firedoor" in ASCII: the lock of whoever writes, and the spaces of the locks below.
WRITE_LOCK: Final = 0x66697265646F6F72
LEADER_SPACE: Final = 0x66697265
BROKER_SPACE: Final = 0x646F6F72
# The channel on which commits are told; the triggers of the schema write to it.
CHANNEL: Final = "firedoor_changes"
# A session that holds the lock and says nothing more is ended, so that nobody waits for a broker that is stopped or
# unreachable; whoever waits for the lock waits a little longer. Milliseconds.
_SETTINGS: Final = {
    "idle_in_transaction_session_timeout": 10_000,
    "lock_timeout": 15_000,
    "statement_timeout": 30_000,
    # The server's own, in seconds: the locks of a host that is gone are free soon.
    "tcp_keepalives_idle": 5,
    "tcp_keepalives_interval": 3,
    "tcp_keepalives_count": 3,
}
# libpq's, in seconds but for the last: a peer that is gone is noticed within about 15 s.
_CONNECT: Final = {
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "keepalives_interval": "3",
    "keepalives_count": "3",
    "tcp_user_timeout": "15000",
    "application_name": "firedoor-broker",
    # Of several hosts the one that takes writes.
    "target_session_attrs": "read-write",
}
# SQLSTATE: too many connections, the server shuts down, crashed or starts, an idle session or a standby was ended.
_LOST: Final = frozenset({"53300", "57P01", "57P02", "57P03", "57P05", "25P03", "25006"})
_REFUSALS: Final = {
    "authentication failed": "the database refuses the user or the password",
    "no password supplied": "the database asks for a password: name its file with database_password_file",
    "no pg_hba.conf entry": "the database does not let this user, host or way of encryption in (pg_hba.conf)",
    "certificate": "the database's certificate, or ours, is refused: look at sslmode, sslrootcert and sslcert",
    "does not support SSL": "the database server does not speak TLS, and sslmode asks for it",
    "does not exist": "the database server has no database, or no role, of that name",
}
_READERS_ONLY: Final = "reads"
_SHARED: Final = "shared"


def is_postgres(url: str) -> bool:
    """Say whether a URL is of this kind."""
    return url.startswith(("postgresql:", "postgresql+", "postgres:"))


def read_url(url: str) -> URL:
    """Read a URL. Raise DatabaseError; what it says names neither password nor URL."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise DatabaseError(f"the database URL cannot be read; {URLS}") from None
    if parsed.drivername not in ("postgresql", "postgresql+psycopg"):
        raise DatabaseError(f"{parsed.drivername} is not supported; {URLS}")
    if parsed.password or "password" in parsed.query:
        raise DatabaseError(
            "the database URL has a password in it, which others can read: write it to a file and name that with "
            "database_password_file, or use PGPASSFILE"
        )
    if not parsed.database and "service" not in parsed.query:
        raise DatabaseError(f"the database URL names no database; {URLS}")
    return parsed.set(drivername="postgresql+psycopg")


def read_password(path: Path) -> str:
    """Read the password: the file without the newline at its end. Raise ConfigError."""
    try:
        if path.stat().st_mode & OPEN_TO_OTHERS:
            raise ConfigError(f"database_password_file: {path} is open to others; make it 0600")
        password = path.read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise ConfigError(f"database_password_file: {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"database_password_file: {path} is not UTF-8 text") from error
    if not password:
        raise ConfigError(f"database_password_file: {path} is empty")
    return password


def open_engine(url: str, password_file: Path | None, connections: int) -> Engine:
    """Return an engine whose transactions take the lock, unless their connection's options say otherwise.

    `reads=True`: no lock, and one snapshot for the whole transaction. `shared=True`: the lock, shared.
    """
    parsed = read_url(url)
    if password_file is not None:
        read_password(password_file)
    try:
        engine = create_engine(parsed, pool_size=connections, max_overflow=2, isolation_level="READ COMMITTED")
    except ModuleNotFoundError:
        raise DatabaseError("PostgreSQL needs more of firedoor: pip install 'firedoor[postgres]'") from None

    def on_connect(_dialect: Any, _record: Any, _args: Any, given: dict[str, Any]) -> None:
        given.update(parameters(given, password_file))

    event.listen(engine, "do_connect", on_connect)
    event.listen(engine, "begin", _on_begin)
    return engine


def parameters(given: Mapping[str, Any], password_file: Path | None) -> dict[str, Any]:
    """Return what a connection is made with: what the URL says, and ours where it says nothing."""
    settings = " ".join(f"-c {name}={value}" for name, value in _SETTINGS.items())
    made = {**_CONNECT, **given, "options": f"{settings} {given.get('options', '')}".strip()}
    if password_file is not None:
        made["password"] = read_password(password_file)
    return made


def connector(engine: Engine, password_file: Path | None) -> Callable[[], psycopg.Connection[Any]]:
    """Return what makes a connection beside the engine's: one that is kept, without transactions."""
    import psycopg

    def connect() -> psycopg.Connection[Any]:
        args, given = engine.dialect.create_connect_args(engine.url)
        named = {"application_name": "firedoor-broker listening", **given}
        return psycopg.connect(*args, **{**parameters(named, password_file), "autocommit": True})

    return connect


def _on_begin(connection: Connection) -> None:
    options = connection.get_execution_options()
    if options.get(_READERS_ONLY, False):
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        return
    how = "_shared" if options.get(_SHARED, False) else ""
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock{how}({WRITE_LOCK})")


def is_lost(error: BaseException) -> bool:
    """Say whether the database went away in the middle: what was being done may be done, or not."""
    if not isinstance(error, DBAPIError):
        return False
    state = getattr(error.orig, "sqlstate", None)
    # Without a state it is the connection itself that failed.
    no_answer = state is None and type(error.orig).__name__ in ("OperationalError", "ConnectionTimeout")
    return error.connection_invalidated or no_answer or (state or "") in _LOST or (state or "").startswith("08")


def sentence(error: BaseException) -> BaseException:
    """Turn a driver's error into a sentence; leave ours as they are."""
    if not isinstance(error, SQLAlchemyError):
        return error
    state = getattr(getattr(error, "orig", None), "sqlstate", None) or ""
    if not state:
        # Why there is no connection is in libpq's words alone, which hold no password; they are not repeated.
        words = str(getattr(error, "orig", ""))
        for part, said in _REFUSALS.items():
            if part in words:
                return DatabaseError(said)
    if is_lost(error):
        return DatabaseError("the database does not answer; nothing was changed")
    if state == "55P03":
        return DatabaseError("another broker holds the database's lock for too long; nothing was changed")
    if state == "57014":
        return DatabaseError("the database took too long; nothing was changed")
    if state.startswith("53"):
        return DatabaseError("the database is out of memory, disk or connections; nothing was changed")
    if state.startswith("28"):
        return DatabaseError("the database refuses the user or the password")
    if state == "3D000":
        return DatabaseError("the database server has no database of that name")
    if state == "42501":
        return DatabaseError("the database's user may not do that: it must own the schema's tables")
    return DatabaseError(f"the database failed ({type(error).__name__} {state}); nothing was changed")
