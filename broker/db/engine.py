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

This is SQLite, for one broker; shared.py makes of it PostgreSQL, for several.
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

from sqlalchemy import Connection, Engine, Insert
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from firedoor.broker.db import sqlite
from firedoor.broker.db.appender import Appender, Row

T = TypeVar("T")
_log = logging.getLogger("firedoor.broker.db")

# More jobs in one commit save nothing measurable and make the first one wait.
_GROUP: Final = 64
READERS: Final = 2
# How long rows wait for others that come at the same time, when the last ones had company: until none came for so long,
_GATHER_SECONDS: Final = 0.002
# and no longer than this, or until there is a group.
_GATHER_MOST_SECONDS: Final = 0.01

# Reads the rows of one kind that others changed, those with the keys given or all, and returns what brings memory up
# to them; the first runs on the writer's thread, the second on the event loop.
Reader = Callable[[Connection, frozenset[str] | None], Callable[[], None]]


@dataclass(frozen=True, slots=True)
class Basis:
    """What a job was decided by: kinds of rows, as they were after a change of other brokers."""

    kinds: frozenset[str] = frozenset()
    known: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done on the writer's thread, and who waits for it."""

    run: Callable[[Connection], Any]
    apply: Callable[[Any], None] | None
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    # Of an append; `run` does the same for it alone.
    rows: Sequence[Row] = ()
    into: Insert | None = None
    basis: Basis = Basis()
    # Nothing to do but to learn what others changed.
    look: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended."""

    job: Job
    value: Any = None
    error: BaseException | None = None


class Database:
    """The broker's database. `write` and `read` may be called from the event loop only."""

    # Which of several brokers this is; empty for the only one.
    broker_id = ""

    def __init__(self, url: str) -> None:
        self._engine = self._open(url)
        # By the kind of rows; see `watch`.
        self._watched: dict[str, Reader] = {}
        self._read_engine = self._engine.execution_options(reads=True)
        self._jobs: queue.SimpleQueue[list[Job] | None] = queue.SimpleQueue()
        # Of the event loop: rows that wait for company, and how many went together the last time.
        self._gathered: list[Job] = []
        self._together = 1
        # The writer thread's own.
        self._appender = Appender(self._engine)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="db-read")
        self._writer = threading.Thread(target=self._write_loop, name="db-write", daemon=True)
        self._writer.start()

    @property
    def engine(self) -> Engine:
        """The engine, for migrations at start."""
        return self._engine

    def _open(self, url: str) -> Engine:
        """Return the engine. Raise DatabaseError."""
        return sqlite.open_engine(url, READERS + 2)

    # --- what several brokers need ------------------------------------------------------------------------------

    @property
    def leads(self) -> bool:
        """Whether this broker does what one of them should do: clear away, fetch."""
        return True

    @property
    def usurped(self) -> bool:
        """Whether another broker has this one's ID, so that this one must end."""
        return False

    @property
    def trouble(self) -> str:
        """Why what is in memory may be old; empty when it is not."""
        return ""

    def basis(self, *_kinds: str) -> Basis:
        """Return what to give `write` with what is decided now, by rows of these kinds in memory."""
        return Basis()

    async def join(self) -> None:
        """Become one of the brokers on this database, after the schema is there. Raise DatabaseError."""

    async def others(self) -> list[str]:
        """Return the IDs of the other brokers that are there now. Raise DatabaseError."""
        return []

    async def catch_up(self) -> None:
        """Return when memory has what others had committed before. Raise DatabaseError."""

    def watch(self, kind: str, reader: Reader) -> None:
        """Have a function called for rows of a kind that other brokers changed; it stays for good."""
        self._watched[kind] = reader

    # --- jobs ---------------------------------------------------------------------------------------------------

    async def write(
        self,
        run: Callable[[Connection], T],
        apply: Callable[[T], None] | None = None,
        basis: Basis | None = None,
    ) -> T:
        """Run a job and return its value once it is committed and synced. Raise what it raised, or DatabaseError.

        `basis`: raise Stale, and run nothing, when another broker changed meanwhile what this was decided by. Memory
        has it when Stale is raised: decide anew.
        """
        loop = asyncio.get_running_loop()
        job = Job(run, apply, loop.create_future(), loop, basis=basis or Basis())
        self._jobs.put([job])
        value: T = await asyncio.shield(job.future)
        return value

    async def append(self, into: Insert, rows: Sequence[Row]) -> None:
        """Insert rows and return once they are committed and synced. Raise DatabaseError: none of them is there."""
        loop = asyncio.get_running_loop()
        job = Job(lambda connection: _insert(connection, into, rows), None, loop.create_future(), loop, rows, into)
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

    def _clear(self, error: BaseException) -> BaseException:
        """Turn a driver's error into a sentence; leave ours as they are."""
        return sqlite.sentence(error)

    def _read(self, run: Callable[[Connection], T]) -> T:
        try:
            with self._read_engine.connect() as connection:
                return run(connection)
        except SQLAlchemyError as error:
            raise self._clear(error) from error

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

    def _next_group(self) -> tuple[list[Job], bool]:
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

    def _commit(self, group: Sequence[Job]) -> list[Outcome]:
        """Commit all jobs together; when the shared transaction is lost, each alone."""
        try:
            with self._engine.begin() as connection:
                if len(group) == 1:
                    return [Outcome(group[0], value=group[0].run(connection))]
                return [in_savepoint(connection, job) for job in group]
        except BaseException as error:  # noqa: BLE001 - the writer must outlive every job
            if len(group) == 1:
                return [Outcome(group[0], error=self._clear(error))]
        return [outcome for job in group for outcome in self._commit([job])]

    def _append(self, group: Sequence[Job]) -> list[Outcome]:
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
        return [Outcome(job) for job in group]

    def _deliver(self, outcomes: list[Outcome]) -> None:
        try:
            outcomes[0].job.loop.call_soon_threadsafe(_hand_out, outcomes)
        except RuntimeError:
            _log.debug("the event loop is gone; %d answers have nobody to go to", len(outcomes))


def _insert(connection: Connection, into: Insert, rows: Sequence[Row]) -> None:
    if rows:
        connection.execute(into, rows)


def in_savepoint(connection: Connection, job: Job) -> Outcome:
    """Run a job; one that raises undoes only itself. Raise what took the whole transaction with it."""
    savepoint = connection.begin_nested()
    try:
        value = job.run(connection)
    except Exception as error:
        if isinstance(error, DBAPIError) and not isinstance(error, IntegrityError):
            # A full disk may have taken the whole transaction with it.
            raise
        savepoint.rollback()
        return Outcome(job, error=sqlite.sentence(error))
    savepoint.commit()
    return Outcome(job, value=value)


def _hand_out(outcomes: list[Outcome]) -> None:
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


__all__ = ["Basis", "Database", "Job", "Outcome", "Reader", "in_savepoint"]
