# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL below the broker: lost answers, lost connections, URLs, passwords, the ID of a broker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, insert, select

from firedoor.broker.db import SharedDatabase, bundles, listen, open_database
from firedoor.broker.db import postgres as postgres_module
from firedoor.broker.db.agent_rows import insert_token, spend_token
from firedoor.broker.db.migrate import migrate
from firedoor.broker.db.rows import bump, load_generation
from firedoor.broker.errors import BrokerError, DatabaseError, InvalidRequest, Stale
from tests.postgres import Server

Open = Callable[[str], Any]


@pytest.fixture
async def opened(postgres: Server) -> AsyncIterator[Open]:
    """Open the same database as one broker or another."""
    url, password_file = postgres.database()
    found: list[SharedDatabase] = []

    async def open_one(broker_id: str) -> SharedDatabase:
        one = open_database(url, password_file, broker_id)
        assert isinstance(one, SharedDatabase)
        found.append(one)
        await asyncio.to_thread(migrate, one.engine)
        await one.join()
        await one.write(lambda connection: load_generation(connection, 100))
        return one

    yield open_one
    for one in found:
        one.close()


def put(name: str) -> Any:
    row = {"trust_domain": name, "jwks": b"{}", "tainted": ""}
    return lambda connection: connection.execute(insert(bundles).values(row)) and name


class LosingCommits:
    """Breaks the connection right after COMMIT or right before it, so that no answer comes."""

    def __init__(self, database: SharedDatabase, *, committed: bool) -> None:
        self.left = 1
        self._dialect, self._committed = database.engine.dialect, committed
        self._real = self._dialect.do_commit
        self._dialect.do_commit = self._commit  # type: ignore[method-assign]

    def _commit(self, connection: Any) -> None:
        if not self.left:
            return self._real(connection)
        self.left -= 1
        if self._committed:
            self._real(connection)
        connection.dbapi_connection.close()
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    def stop(self) -> None:
        self._dialect.do_commit = self._real  # type: ignore[method-assign]


@pytest.mark.parametrize("committed", [True, False])
async def test_an_answer_that_is_lost_is_found_out(opened: Open, committed: bool) -> None:
    one = await opened("b1")
    await one.write(lambda c: insert_token(c, "t", 5))
    runs: list[int] = []

    def spend(connection: Connection) -> int:
        runs.append(1)
        return spend_token(connection, b"t")

    losing = LosingCommits(one, committed=committed)
    applied: list[int] = []
    assert await one.write(spend, applied.append) == 5
    losing.stop()
    assert (len(runs), applied) == (1 if committed else 2, [5])
    # It is spent, once and for all.
    with pytest.raises(InvalidRequest):
        await one.write(lambda c: spend_token(c, b"t"))


async def test_rows_whose_answer_is_lost_are_there_once(opened: Open) -> None:
    one = await opened("b1")
    row = {"trust_domain": "a", "jwks": b"{}", "tainted": ""}
    losing = LosingCommits(one, committed=True)
    await one.append(insert(bundles), [row])
    losing.stop()
    assert await one.read(lambda c: list(c.scalars(select(bundles.c.trust_domain)))) == ["a"]


async def test_what_others_committed_comes_first_and_in_order(opened: Open) -> None:
    one, two = await opened("b1"), await opened("b2")
    seen: list[str] = []

    def reader(connection: Connection, _: object) -> Callable[[], None]:
        names = sorted(connection.scalars(select(bundles.c.trust_domain)))
        return lambda: seen.append("others: " + " ".join(names))

    one.watch("bundles", reader)
    await two.write(put("a"))
    await one.write(put("b"), lambda _: seen.append("own: b"))
    assert seen[0] == "others: a"
    assert seen[-1] == "own: b" or seen[-1] == "others: a b"
    assert "own: b" in seen
    # Its own it does not read again.
    await one.catch_up()
    assert not [text for text in seen if text == "others: a b"]


async def test_what_was_decided_by_old_rows_is_not_done(opened: Open) -> None:
    one, two = await opened("b1"), await opened("b2")
    basis = one.basis("bundles")
    await two.write(put("a"))
    with pytest.raises(Stale):
        await one.write(put("b"), basis=basis)
    await one.write(put("b"), basis=one.basis("bundles"))
    # Other kinds do not matter.
    basis = one.basis("entries")
    await two.write(put("c"))
    await one.write(put("d"), basis=basis)


async def test_generations_are_one_sequence(opened: Open) -> None:
    databases = [await opened(name) for name in ("b1", "b2", "b3")]
    made = await asyncio.gather(*(one.write(bump) for _ in range(20) for one in databases))
    assert sorted(one.number for one in made) == list(range(2, 62))


async def test_two_with_one_id_are_refused(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "_PATIENCE", 0.3)
    await opened("b1")
    with pytest.raises(DatabaseError, match="data directory was copied"):
        await opened("b1")


async def test_the_password_is_in_no_message(
    postgres: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    url, _ = postgres.database()
    wrong = tmp_path / "password"
    wrong.touch(mode=0o600)
    wrong.write_text("hunter2-and-more\n")
    one = open_database(url, wrong, "b1")
    with pytest.raises(DatabaseError, match="refuses the user or the password") as failed:
        await asyncio.to_thread(migrate, one.engine)
    one.close()
    assert "hunter2" not in str(failed.value) + caplog.text + repr(one.engine)


async def test_a_password_file_for_all_is_refused(postgres: Server, tmp_path: Path) -> None:
    url, _ = postgres.database()
    open_to_all = tmp_path / "password"
    open_to_all.write_text("x")
    open_to_all.chmod(0o644)
    with pytest.raises(BrokerError, match="0600"):
        open_database(url, open_to_all, "b1")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://u:secret@h/d", "has a password in it"),
        ("postgresql://u@h/d?password=secret", "has a password in it"),
        ("postgresql+asyncpg://u@h/d", "not supported"),
        ("postgres://u@h/d", "not supported"),
        ("postgresql://u@h", "names no database"),
    ],
    ids=["password", "password as a parameter", "another driver", "an old name", "no database"],
)
def test_urls_that_are_refused(url: str, says: str) -> None:
    with pytest.raises(DatabaseError, match=says) as refused:
        open_database(url)
    assert "secret" not in str(refused.value)


def test_what_the_url_says_goes_to_libpq_and_ours_beside_it() -> None:
    url = "postgresql://u@h/d?sslmode=verify-full&sslrootcert=/ca.pem&connect_timeout=2&options=-c%20search_path%3Dfd"
    engine = postgres_module.open_engine(url, None, 1)
    _, given = engine.dialect.create_connect_args(engine.url)
    made = postgres_module.parameters(given, None)
    assert (made["sslmode"], made["sslrootcert"], made["connect_timeout"]) == ("verify-full", "/ca.pem", "2")
    assert made["target_session_attrs"] == "read-write"
    assert made["options"].startswith("-c idle_in_transaction_session_timeout=10000 ")
    assert made["options"].endswith(" -c search_path=fd")


def test_a_server_that_is_not_there_is_said(tmp_path: Path) -> None:
    one = open_database(f"postgresql://u@/d?host={tmp_path}")
    with pytest.raises(DatabaseError, match="does not answer"):
        migrate(one.engine)
    one.close()


def test_old_statements_work_on_the_present_schema(postgres: Server) -> None:
    """A broker of the version before runs on after a newer one has brought the schema up to date."""
    url, password_file = postgres.database()
    one = open_database(url, password_file, "b1")
    migrate(one.engine)
    with one.engine.begin() as connection:
        # What version 0004 wrote: no broker's ID beside a journal.
        connection.exec_driver_sql("INSERT INTO authorities (kind, journal) VALUES ('x509', 'j')")
        connection.exec_driver_sql("UPDATE authorities SET journal = 'k' WHERE kind = 'x509'")
    one.close()
