# SPDX-License-Identifier: Apache-2.0
"""One database for several brokers: what others commit comes into this one's memory, in the order of all commits.

The writer's thread alone moves forward in the changes, so that there is one order. A transaction of ours first reads,
under the lock, what others committed since; that is applied to memory before anything of its own is. So a generation
never comes into memory without all that was committed before it, and a job whose error says "not found" finds memory
up to date. Between transactions it looks when the listener (listen.py) hears of a commit, and every second.

A connection may be lost after COMMIT was sent and before the answer came. Every transaction leaves a mark, by which
this broker finds out under the lock whether it was committed; if not, it is done again. What is used up once is used
up once: nothing is done twice, and nobody is told that nothing happened when something did.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine, Insert
from sqlalchemy.dialects import postgresql

from firedoor.broker.db import postgres
from firedoor.broker.db.appender import Row
from firedoor.broker.db.change_rows import (
    Changed,
    changes_since,
    has_mark,
    last_change,
    others_alive,
    put_broker,
    put_mark,
)
from firedoor.broker.db.engine import READERS, Basis, Database, Job, Outcome, in_savepoint
from firedoor.broker.db.listen import Listener
from firedoor.broker.errors import BrokerError, DatabaseError, Stale

T = TypeVar("T")
_log = logging.getLogger("firedoor.broker.db")
# How long to wait before each further try while the database is away; longer than a restart of a small one takes.
_WAITS: Final = (0.05, 0.2, 0.5, 1.0, 2.0)
# After so many seconds without an answer what is in memory may be old, and nothing is issued by it.
SILENCE: Final = 5.0
# Whoever was away for longer reads everything: changes are kept for an hour only (change_rows.py).
_LONG_AWAY: Final = 1800.0


@dataclass(frozen=True, slots=True)
class _Sent:
    """A transaction whose COMMIT was sent and not answered."""

    mark: str
    outcomes: list[Outcome]


class SharedDatabase(Database):
    """A PostgreSQL database with this broker among those on it. `join` before the first `write`."""

    def __init__(self, url: str, password_file: Path | None, broker_id: str) -> None:
        self.broker_id, self._password_file = broker_id, password_file
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listener: Listener | None = None
        # Of the writer's thread: up to where changes are read, None before the first job; and by kind the last change
        # that another broker made.
        self._read_upto: int | None = None
        self._foreign: dict[str, int] = {}
        # Whether the last try reached the database: while it is away nobody waits for it twice.
        self._away = False
        # Of the event loop: up to where memory is, and whether a look is under way.
        self._applied = 0
        self._looking = False
        # By the monotonic clock.
        self._heard = time.monotonic()
        self._why = ""
        super().__init__(url)
        self._sharing = self._engine.execution_options(shared=True)

    def _open(self, url: str) -> Engine:
        # The writer, rows that are appended, and the readers.
        return postgres.open_engine(url, self._password_file, READERS + 2)

    def _clear(self, error: BaseException) -> BaseException:
        return postgres.sentence(error)

    def _read(self, run: Callable[[Connection], T]) -> T:
        try:
            return super()._read(run)
        except DatabaseError as error:
            # Connections that were kept over a restart of the server are all broken, and all replaced at once.
            if error.__cause__ is not None and postgres.is_lost(error.__cause__):
                return super()._read(run)
            raise

    @property
    def leads(self) -> bool:
        """Whether this broker holds the lock of the one that clears away."""
        return self._listener is not None and self._listener.leads

    @property
    def usurped(self) -> bool:
        """Whether another broker has this one's ID, so that this one must end."""
        return self._listener is not None and self._listener.usurped

    @property
    def trouble(self) -> str:
        """Why what is in memory may be old; empty when it is not."""
        silent = time.monotonic() - self._heard
        if silent < SILENCE:
            return ""
        return self._why or f"the database has not answered for {int(silent)} s"

    def basis(self, *kinds: str) -> Basis:
        """Return what to give `write` with what is decided now, by rows of these kinds in memory."""
        return Basis(frozenset(kinds), self._applied)

    async def join(self) -> None:
        """Take this broker's place among the others. Raise DatabaseError, also when another one has its ID."""
        self._loop = asyncio.get_running_loop()
        connect = postgres.connector(self._engine, self._password_file)
        self._listener = Listener(connect, self.broker_id, self._heard_of_one)
        # The ID first: the row of another broker that has it must stay as it is.
        await asyncio.to_thread(self._listener.begin)
        await asyncio.to_thread(self._put_broker)

    def _put_broker(self) -> None:
        try:
            with self._engine.begin() as connection:
                put_broker(connection, self.broker_id, socket.gethostname())
        except Exception as error:
            raise self._clear(error) from error

    async def others(self) -> list[str]:
        """Return the IDs of the other brokers that are there now. Raise DatabaseError."""
        return await self.read(lambda connection: others_alive(connection, self.broker_id))

    def close(self) -> None:
        """Finish what waits, leave, and close. Blocks until the writer is done."""
        if self._listener is not None:
            self._listener.stop()
        super().close()

    # --- learning what others did -------------------------------------------------------------------------------

    def _heard_of_one(self) -> None:
        """Have somebody look. Called by the listener's thread."""
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(self._look)
            except RuntimeError:
                _log.debug("the event loop is gone")

    def _look(self) -> None:
        # A look that has not begun yet will see it too; one that has may not.
        if not self._looking and self._loop is not None:
            self._looking = True
            self._jobs.put([self._new_look(self._loop)])

    def _new_look(self, loop: asyncio.AbstractEventLoop) -> Job:
        return Job(_nothing, None, loop.create_future(), loop, look=True)

    async def catch_up(self) -> None:
        """Return when memory has what others had committed before. Raise DatabaseError."""
        job = self._new_look(asyncio.get_running_loop())
        self._jobs.put([job])
        await asyncio.shield(job.future)

    def _catch(self, connection: Connection) -> list[Outcome]:
        """Read what others changed; what that does to memory is the first outcome."""
        if self._read_upto is None:
            return []
        known = self._read_upto
        changed = changes_since(connection, known)
        last = changed.upto if changed is not None else last_change(connection)
        if last < known or time.monotonic() - self._heard > _LONG_AWAY:
            # The database was put back to what it once was; or what happened is not kept any more.
            everything: dict[str, frozenset[str] | None] = dict.fromkeys(self._watched)
            changed = Changed(last, everything, dict.fromkeys(self._watched, last))
        if changed is None:
            return []
        # The generation comes last: who is told of it looks at the rest.
        kinds = sorted(changed.keys.keys() & self._watched.keys(), key=lambda kind: (kind == "generation", kind))
        applies = [self._watched[kind](connection, changed.keys[kind]) for kind in kinds]
        self._read_upto = changed.upto
        self._foreign.update(changed.last)
        return [Outcome(self._note(self._applier(applies, changed.upto)))]

    def _note(self, apply: Callable[[Any], None]) -> Job:
        """Return a job that nobody waits for and that is done: what is left of it is what it does to memory."""
        assert self._loop is not None  # noqa: S101 - `join` comes first
        return Job(_nothing, apply, self._loop.create_future(), self._loop)

    def _applier(self, applies: Sequence[Callable[[], None]], upto: int) -> Callable[[Any], None]:
        def apply(_: Any) -> None:
            try:
                for one in applies:
                    one()
            finally:
                self._applied = upto

        return apply

    # --- the writer's thread ------------------------------------------------------------------------------------

    def _tries(self) -> Iterator[None]:
        """Yield for each try to reach the database; only one while it is known to be away."""
        yield
        if not self._away:
            for wait in _WAITS:
                time.sleep(wait)
                yield

    def _reached(self) -> None:
        if self._away:
            _log.warning("the database answers again")
        self._away, self._heard, self._why = False, time.monotonic(), ""

    def _lost(self, error: BaseException) -> None:
        if not self._away:
            _log.error("the database does not answer; bundles are served on, nothing is issued or changed")
        self._away = True
        _log.debug("the database is away: %s", type(error).__name__)

    def _commit(self, group: Sequence[Job]) -> list[Outcome]:
        """Commit all jobs together. A job may run again; none is committed twice."""
        looks, jobs = [job for job in group if job.look], [job for job in group if not job.look]
        if looks and self._loop is not None:
            # From here on another look sees what this one does not. The loop may be gone.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._looked)
        if not jobs:
            return self._look_only(looks)
        sent: _Sent | None = None
        last: BaseException | None = None
        for _ in self._tries():
            try:
                outcomes = self._transaction(jobs, sent)
            except _CommitLost as lost:
                sent, last = lost.sent, lost.error
            except BaseException as error:  # noqa: BLE001 - the writer must outlive every job
                if postgres.is_lost(error):
                    last = error
                    continue
                return self._apart(group, error)
            else:
                self._reached()
                return [*outcomes, *(Outcome(look) for look in looks)]
        assert last is not None  # noqa: S101 - there was a try, and it did not succeed
        self._lost(last)
        return [Outcome(job, error=_unknown() if sent is not None else self._clear(last)) for job in group]

    def _transaction(self, jobs: Sequence[Job], before: _Sent | None) -> list[Outcome]:
        """Do what others did, then the jobs; or find that `before`, of which nobody said so, was committed."""
        sent: _Sent | None = None
        upto = self._read_upto
        try:
            with self._engine.begin() as connection:
                if before is not None and has_mark(connection, self.broker_id, before.mark):
                    # What it changed is read again with what others did before and since: the rows are right.
                    return [*before.outcomes, *self._catch(connection)]
                caught = self._catch(connection)
                outcomes = [self._run(connection, job) for job in jobs]
                mark = secrets.token_hex(16)
                put_mark(connection, self.broker_id, mark)
                last = last_change(connection)
                sent = _Sent(mark, outcomes)
            self._read_upto = last
            return [*caught, *outcomes, Outcome(self._note(self._applier((), last)))]
        except BaseException as error:
            self._read_upto = upto
            if sent is not None and postgres.is_lost(error):
                raise _CommitLost(sent, error) from error
            raise

    def _run(self, connection: Connection, job: Job) -> Outcome:
        if any(self._foreign.get(kind, 0) > job.basis.known for kind in job.basis.kinds):
            return Outcome(job, error=Stale("another broker changed it at the same time; try again"))
        return in_savepoint(connection, job)

    def _apart(self, group: Sequence[Job], error: BaseException) -> list[Outcome]:
        """After a fault that took the whole transaction with it: each job alone, so that each has its own."""
        if len(group) == 1:
            self._why = str(self._clear(error)) if isinstance(self._clear(error), BrokerError) else ""
            return [Outcome(group[0], error=self._clear(error))]
        return [outcome for job in group for outcome in self._commit([job])]

    def _look_only(self, looks: Sequence[Job]) -> list[Outcome]:
        """Learn what others did, without the lock."""
        upto = self._read_upto
        try:
            caught = self._caught_up()
        except Exception as error:  # noqa: BLE001 - the writer must outlive every look
            self._read_upto = upto
            if postgres.is_lost(error):
                self._lost(error)
            else:
                self._why = str(self._clear(error))
                _log.error("what other brokers changed cannot be read: %s", self._why)
            return [Outcome(look, error=self._clear(error)) for look in looks]
        self._reached()
        return [*caught, *(Outcome(look) for look in looks)]

    def _looked(self) -> None:
        self._looking = False

    def _caught_up(self) -> list[Outcome]:
        upto = self._read_upto
        for last in (False, True):
            try:
                with self._read_engine.connect() as connection:
                    return self._catch(connection)
            except Exception as error:
                self._read_upto = upto
                # Connections that were kept over a restart of the server are all broken, and all replaced at once.
                if last or not postgres.is_lost(error):
                    raise
        raise AssertionError

    def _append(self, group: Sequence[Job]) -> list[Outcome]:
        """Insert the rows of all together. Whoever gets an answer finds in memory what was committed before."""
        again = False
        last: BaseException | None = None
        for _ in self._tries():
            try:
                latest = self._insert_all(group, again=again)
            except Exception as error:  # noqa: BLE001 - each job is told what happened to its own
                if postgres.is_lost(error):
                    # Perhaps they are there already: their serial numbers are random, so that the same are the same.
                    last, again = error, True
                    continue
                if len(group) == 1:
                    return [Outcome(group[0], error=self._clear(error))]
                return [outcome for job in group for outcome in self._append([job])]
            outcomes = [Outcome(job) for job in group]
            if self._read_upto is None or latest <= self._read_upto:
                self._reached()
                return outcomes
            # Whom it is for may have been banned by another broker in the meantime.
            looked = self._look_only([])
            if self._read_upto < latest:
                unread = DatabaseError("what other brokers changed cannot be read; nothing is issued")
                return [Outcome(job, error=unread) for job in group]
            return [*looked, *outcomes]
        assert last is not None  # noqa: S101 - there was a try, and it did not succeed
        self._lost(last)
        return [Outcome(job, error=self._clear(last)) for job in group]

    def _insert_all(self, group: Sequence[Job], *, again: bool) -> int:
        by_statement: dict[Insert, list[Row]] = {}
        for job in group:
            if job.into is not None and job.rows:
                by_statement.setdefault(job.into, []).extend(job.rows)
        with self._sharing.begin() as connection:
            for into, rows in by_statement.items():
                statement: Any = into
                if again:
                    statement = postgresql.insert(into.table).on_conflict_do_nothing()
                connection.execute(statement, rows)
            return last_change(connection)


class _CommitLost(Exception):
    """COMMIT was sent, and the answer did not come."""

    def __init__(self, sent: _Sent, error: BaseException) -> None:
        super().__init__()
        self.sent, self.error = sent, error


def _unknown() -> DatabaseError:
    return DatabaseError("the database went away while it wrote; whether the change was made is not known yet: look")


def _nothing(_: Connection) -> None:
    """Do nothing."""
