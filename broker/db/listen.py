# SPDX-License-Identifier: Apache-2.0
"""A connection of its own to PostgreSQL: it hears of commits, and holds what a broker holds for as long as it lives.

Two locks of the session: the broker's own ID, so that two that were copied from one another do not both sign with one
journal, and that of the leader, which one of all brokers has. Both go with the session. While the connection is away
the changes are looked for every second all the same, and once more when it is back: no commit is missed.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from firedoor.broker.db.postgres import BROKER_SPACE, CHANNEL, LEADER_SPACE
from firedoor.broker.errors import ConfigError, DatabaseError

if TYPE_CHECKING:
    import psycopg

_log = logging.getLogger("firedoor.broker.db")
# How often changes are looked for when nobody says that there are any.
_EVERY: Final = 1.0
_SEEN: Final = "UPDATE brokers SET seen_at = floor(extract(epoch FROM clock_timestamp())) WHERE id = %s"
# How long the session of a broker that was killed may live on at the server.
_PATIENCE: Final = 20.0


class Listener:
    """Calls `heard` for every commit of another broker, and every second. `begin`, then `stop` once."""

    def __init__(
        self, connect: Callable[[], psycopg.Connection[Any]], broker_id: str, heard: Callable[[], None]
    ) -> None:
        self._connect, self._broker_id, self._heard = connect, broker_id, heard
        self._stopped = threading.Event()
        # Readable once it is to stop.
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._first: psycopg.Connection[Any] | None = None
        self._thread = threading.Thread(target=self._run, name="db-listen", daemon=True)
        # Why nothing is heard, as it was last logged; empty while something is.
        self._told = ""
        self.leads = False
        # Another broker has the ID, and keeps it.
        self.usurped = False

    def begin(self) -> None:
        """Connect and take the broker's ID, then go on in a thread. Raise DatabaseError."""
        import psycopg

        try:
            self._first = self._connect()
            self._take_id(self._first)
        except psycopg.Error as error:
            raise DatabaseError("the database does not answer; nothing was changed") from error
        self._thread.start()

    def stop(self) -> None:
        """Close the connection. Blocks until that is done."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        os.eventfd_write(self._wake, 1)
        if self._thread.is_alive():
            self._thread.join()
        elif self._first is not None:
            self._first.close()
        os.close(self._wake)

    def _take_id(self, connection: psycopg.Connection[Any]) -> None:
        """Take the lock of this broker's ID. Raise DatabaseError when another one has it, and keeps it."""
        deadline = time.monotonic() + _PATIENCE
        while not self._lock(connection, BROKER_SPACE, self._broker_id):
            if self._stopped.wait(0.2):
                raise DatabaseError("the broker stops")
            self._heard()
            if time.monotonic() > deadline:
                self.usurped = True
                raise DatabaseError(
                    f"another broker on this database has the ID {self._broker_id}: its data directory was copied. "
                    "Delete `broker-id` and `keys` in one of the two"
                )

    def _lock(self, connection: psycopg.Connection[Any], space: int, name: str) -> bool:
        row = connection.execute("SELECT pg_try_advisory_lock(%s, hashtext(%s))", (space, name)).fetchone()
        return bool(row and row[0])

    def _run(self) -> None:
        connection, self._first = self._first, None
        while not self._stopped.is_set():
            try:
                if connection is None:
                    connection = self._connect()
                    self._take_id(connection)
                self._listen(connection)
            except Exception as error:  # noqa: BLE001 - without this thread nothing would be heard any more
                self._tell(_reason(error))
            self.leads = False
            if connection is not None:
                connection.close()
                connection = None
            self._heard()
            self._stopped.wait(_EVERY)

    def _tell(self, reason: str) -> None:
        """Log why nothing is heard, and that once: it is tried every second."""
        if reason != self._told:
            _log.warning("not listening for what other brokers change: %s", reason)
        self._told = reason

    def _listen(self, connection: psycopg.Connection[Any]) -> None:
        connection.execute(f"LISTEN {CHANNEL}")
        self._told = ""
        ready = select.poll()
        ready.register(connection.fileno(), select.POLLIN)
        ready.register(self._wake, select.POLLIN)
        said = 0.0
        while not self._stopped.is_set():
            if time.monotonic() - said >= _EVERY:
                said = time.monotonic()
                connection.execute(_SEEN, (self._broker_id,))
                self.leads = self.leads or self._lock(connection, LEADER_SPACE, "leader")
            # Whatever the answers brought along, and what came before it listened, was not heard.
            self._heard()
            ready.poll(1000 * _EVERY)
            for _ in connection.notifies(timeout=0):
                pass


def _reason(error: Exception) -> str:
    """Say what happened, in words that hold no secret: a driver's may repeat what a connection was made with."""
    return str(error) if isinstance(error, (DatabaseError, ConfigError)) else type(error).__name__
