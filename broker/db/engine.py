# SPDX-License-Identifier: Apache-2.0
"""One writer thread that groups commits, and a few readers.

A job is a function of a connection. Jobs that wait together share one transaction, each inside a savepoint of its own,
so that one synced commit (about 130 µs here) is paid by all of them; a job that raises undoes only itself. A job may be
run again when the transaction that it shared was lost, so it touches nothing but the connection. What it returns is
handed out after the commit only: whoever has an answer has it for good.

`apply` runs on the event loop in commit order, also when the one who asked has gone away in the meantime: memory never
falls behind what is committed.

`append` is for rows that nothing else depends on, those of what was issued: the rows of all who wait go in by one
statement, after the jobs that waited with them. While several ask at once, the first waits for the others as long as
they keep coming, a few milliseconds at most, as PostgreSQL's commit_delay has it: a commit costs more processor time
than signing does, most of it in threads that hand the interpreter's lock to each other.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine, Insert, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from firedoor.broker.db.appender import Appender, Row
from firedoor.broker.errors import DatabaseError
from firedoor.broker.files import make_private_file

T = TypeVar("T")
_log = logging.getLogger("firedoor.broker.db")

# More jobs in one commit save nothing measurable and make the first one wait.
_GROUP: Final = 64
_READERS: Final = 2
# How long rows wait for others that come at the same time, when the last ones had company: until none came for so long,
_GATHER_SECONDS: Final = 0.002
# and no longer than this, or until there is a group.
_GATHER_MOST_SECONDS: Final = 0.01
# Another process (a backup) may hold the lock for a moment.
_BUSY_MS: Final = 5000


@dataclass(frozen=True, slots=True)
class _Job:
    run: Callable[[Connection], Any]
    apply: Callable[[Any], None] | None
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    # Of an append; `run` does the same for it alone.
    rows: Sequence[Row] = ()
    into: Insert | None = None


@dataclass(frozen=True, slots=True)
class _Outcome:
    job: _Job
    value: Any = None
    error: BaseException | None = None


class Database:
    """The broker's database. `write` and `read` may be called from the event loop only."""

    def __init__(self, url: str) -> None:
        self._engine = _engine(url)
        self._read_engine = self._engine.execution_options(reads=True)
        self._jobs: queue.SimpleQueue[list[_Job] | None] = queue.SimpleQueue()
        # Of the event loop: rows that wait for company, and how many went together the last time.
        self._gathered: list[_Job] = []
        self._together = 1
        # The writer thread's own.
        self._appender = Appender(self._engine)
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="db-read")
        self._writer = threading.Thread(target=self._write_loop, name="db-write", daemon=True)
        self._writer.start()

    @property
    def engine(self) -> Engine:
        """The engine, for migrations at start."""
        return self._engine

    async def write(self, run: Callable[[Connection], T], apply: Callable[[T], None] | None = None) -> T:
        """Run a job and return its value once it is committed and synced. Raise what it raised, or DatabaseError."""
        loop = asyncio.get_running_loop()
        job = _Job(run, apply, loop.create_future(), loop)
        self._jobs.put([job])
        value: T = await asyncio.shield(job.future)
        return value

    async def append(self, into: Insert, rows: Sequence[Row]) -> None:
        """Insert rows and return once they are committed and synced. Raise DatabaseError: none of them is there."""
        loop = asyncio.get_running_loop()
        job = _Job(lambda connection: _insert(connection, into, rows), None, loop.create_future(), loop, rows, into)
        self._gathered.append(job)
        if len(self._gathered) == 1:
            if self._together > 1:
                self._gather(loop, 1, loop.time() + _GATHER_MOST_SECONDS)
            else:
                loop.call_soon(self._flush)
        # Cancelled, it is not waited for; the rows are written all the same.
        await job.future

    def _gather(self, loop: asyncio.AbstractEventLoop, seen: int, until: float) -> None:
        """Hand the gathered rows to the writer once nobody joins them any more."""

        def look() -> None:
            found = len(self._gathered)
            if seen < found < _GROUP and loop.time() < until:
                self._gather(loop, found, until)
            else:
                self._flush()

        loop.call_later(_GATHER_SECONDS, look)

    def _flush(self) -> None:
        """Hand the gathered rows to the writer."""
        jobs, self._gathered = self._gathered, []
        self._together = len(jobs)
        self._jobs.put(jobs)

    async def read(self, run: Callable[[Connection], T]) -> T:
        """Run a job that only reads. Raise what it raised, or DatabaseError."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, run)

    def close(self) -> None:
        """Finish what waits and close. Blocks until the writer is done."""
        self._flush()
        self._jobs.put(None)
        self._writer.join()
        self._readers.shutdown()
        self._engine.dispose()

    def _read(self, run: Callable[[Connection], T]) -> T:
        try:
            with self._read_engine.connect() as connection:
                return run(connection)
        except SQLAlchemyError as error:
            raise _clear(error) from error

    def _write_loop(self) -> None:
        while True:
            group, last = self._next_group()
            if jobs := [job for job in group if job.into is None]:
                self._deliver(self._commit(jobs))
            if appends := [job for job in group if job.into is not None]:
                self._deliver(self._append(appends))
            if last:
                break
        self._appender.close()

    def _next_group(self) -> tuple[list[_Job], bool]:
        jobs = self._jobs.get()
        if jobs is None:
            return [], True
        group = list(jobs)
        while len(group) < _GROUP:
            try:
                jobs = self._jobs.get_nowait()
            except queue.Empty:
                break
            if jobs is None:
                return group, True
            group += jobs
        return group, False

    def _commit(self, group: Sequence[_Job]) -> list[_Outcome]:
        """Commit all jobs together; when the shared transaction is lost, each alone."""
        try:
            with self._engine.begin() as connection:
                if len(group) == 1:
                    return [_Outcome(group[0], value=group[0].run(connection))]
                return [_in_savepoint(connection, job) for job in group]
        except BaseException as error:  # noqa: BLE001 - the writer must outlive every job
            if len(group) == 1:
                return [_Outcome(group[0], error=_clear(error))]
        return [outcome for job in group for outcome in self._commit([job])]

    def _append(self, group: Sequence[_Job]) -> list[_Outcome]:
        """Insert the rows of all together; when that fails, those of each alone."""
        by_statement: dict[Insert, list[Row]] = {}
        for job in group:
            if job.into is not None:
                by_statement.setdefault(job.into, []).extend(job.rows)
        try:
            self._appender.insert(by_statement)
        except Exception as error:  # noqa: BLE001 - each job is told what happened to its own
            _log.debug("rows could not be inserted together: %s", error)
            return [outcome for job in group for outcome in self._commit([job])]
        return [_Outcome(job) for job in group]

    def _deliver(self, outcomes: list[_Outcome]) -> None:
        try:
            outcomes[0].job.loop.call_soon_threadsafe(_hand_out, outcomes)
        except RuntimeError:
            _log.debug("the event loop is gone; %d answers have nobody to go to", len(outcomes))


def _insert(connection: Connection, into: Insert, rows: Sequence[Row]) -> None:
    if rows:
        connection.execute(into, rows)


def _in_savepoint(connection: Connection, job: _Job) -> _Outcome:
    savepoint = connection.begin_nested()
    try:
        value = job.run(connection)
    except Exception as error:
        if isinstance(error, DBAPIError) and not isinstance(error, IntegrityError):
            # A full disk may have taken the whole transaction with it.
            raise
        savepoint.rollback()
        return _Outcome(job, error=_clear(error))
    savepoint.commit()
    return _Outcome(job, value=value)


def _hand_out(outcomes: list[_Outcome]) -> None:
    for outcome in outcomes:
        future, error = outcome.job.future, outcome.error
        if error is None and outcome.job.apply is not None:
            try:
                outcome.job.apply(outcome.value)
            except Exception as failure:  # noqa: BLE001 - one broken view must not keep the others from their answers
                _log.exception("a committed change could not be applied in memory")
                error = failure
        if future.done():
            continue
        if error is None:
            future.set_result(outcome.value)
        else:
            future.set_exception(error)
            future.exception()  # Nobody may be waiting any more: not a warning.


def _clear(error: BaseException) -> BaseException:
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


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise DatabaseError("the database URL cannot be read; write sqlite:////path/to/file") from None
    if parsed.get_backend_name() != "sqlite":
        raise DatabaseError(f"{parsed.get_backend_name()} is not supported; write sqlite:////path/to/file")
    if not parsed.database or parsed.database == ":memory:":
        raise DatabaseError("the database URL names no file; write sqlite:////path/to/file")
    make_private_file(parsed.database)
    # A connection a thread, kept: opening a file for each read costs more than the read.
    engine = create_engine(parsed, poolclass=QueuePool, pool_size=_READERS + 2, max_overflow=1)
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", _on_begin)
    return engine


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


__all__ = ["Database"]
