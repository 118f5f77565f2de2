# SPDX-License-Identifier: Apache-2.0
"""The one writer: commits are grouped, failures stay with their own, and a broken disk is said."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, func, insert, select, text

from firedoor.broker.db import METADATA, Database, bundles, engine, generation, open_database
from firedoor.broker.db.agent_rows import insert_token, spend_token
from firedoor.broker.db.migrate import migrate
from firedoor.broker.db.rows import Generation, bump, load_generation
from firedoor.broker.errors import DatabaseError, InvalidRequest, StorageError


def row(name: str) -> dict[str, Any]:
    return {"trust_domain": name, "jwks": b"{}", "tainted": ""}


def put(name: str) -> Any:
    return lambda connection: connection.execute(insert(bundles).values(row(name))) and name


@pytest.fixture(params=["sqlite", "postgresql"])
async def database(folder: Path, request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    if request.param == "sqlite":
        found = open_database(f"sqlite:///{folder}/x.db")
    else:
        found = open_database(*request.getfixturevalue("postgres").database(), "b1")
    migrate(found.engine)
    await found.join()
    yield found
    found.close()


async def count(database: Database) -> int:
    return await database.read(lambda c: c.scalar(select(func.count()).select_from(bundles)) or 0)


async def test_the_steps_make_what_the_code_expects(database: Database) -> None:
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


async def test_migrating_twice_is_nothing_and_a_newer_schema_is_refused(database: Database) -> None:
    migrate(database.engine)
    await database.write(lambda c: c.execute(text("update alembic_version set version_num = '9999'")) and None)
    with pytest.raises(DatabaseError, match="newer"):
        migrate(database.engine)


async def test_jobs_that_wait_share_a_commit_and_keep_their_order(database: Database) -> None:
    applied: list[str] = []
    names = [f"n{i}" for i in range(200)]
    results = await asyncio.gather(*(database.write(put(name), applied.append) for name in names))
    assert results == names
    assert applied == names
    assert await count(database) == 200


async def test_a_job_that_fails_undoes_only_itself(database: Database) -> None:
    def half(connection: Connection) -> None:
        connection.execute(insert(bundles).values(row("half")))
        raise InvalidRequest("changed my mind")

    results = await asyncio.gather(
        database.write(put("a")),
        database.write(half),
        database.write(put("a")),
        database.write(put("b")),
        return_exceptions=True,
    )
    assert results[0] == "a"
    assert isinstance(results[1], InvalidRequest)
    assert isinstance(results[2], DatabaseError)
    assert results[3] == "b"
    assert await database.read(lambda c: sorted(c.scalars(select(bundles.c.trust_domain)))) == ["a", "b"]


async def test_rows_of_all_who_wait_go_together_and_a_bad_one_alone(database: Database) -> None:
    into = insert(bundles)
    await asyncio.gather(*(database.append(into, [row(f"n{i}"), row(f"m{i}")]) for i in range(100)))
    assert await count(database) == 200
    results = await asyncio.gather(
        database.append(into, [row("a")]),
        database.append(into, [row("b"), row("n1")]),
        database.append(into, [row("c")]),
        database.append(into, []),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [type(None), DatabaseError, type(None), type(None)]
    names = await database.read(lambda c: set(c.scalars(select(bundles.c.trust_domain))))
    assert {"a", "c"} <= names
    assert "b" not in names
    # The connection that saw the fault is another one now.
    await database.append(into, [row("d")])
    assert await count(database) == 203


async def test_many_rows_are_all_there_or_none(database: Database) -> None:
    """More than one statement takes."""
    into, many = insert(bundles), [row(f"n{i}") for i in range(200)]
    with pytest.raises(DatabaseError):
        await database.append(into, [*many, row("n0")])
    assert await count(database) == 0
    await database.append(into, many)
    assert await count(database) == 200


async def test_rows_wait_for_company_only_when_there_was_some(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_GATHER_SECONDS", 3600.0)
    into = insert(bundles)
    for i in range(3):
        await database.append(into, [row(f"alone{i}")])
    await asyncio.gather(*(database.append(into, [row(f"n{i}")]) for i in range(3)))
    waiting = asyncio.create_task(database.append(into, [row("late")]))
    await database.write(put("another"))
    assert not waiting.done()
    # Closing leaves nobody behind.
    database.close()
    await waiting


async def test_what_was_appended_is_there_when_the_caller_is_gone(database: Database) -> None:
    task = asyncio.create_task(database.append(insert(bundles), [row("a")]))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await database.append(insert(bundles), [row("b")])
    assert await count(database) == 2


async def test_memory_follows_the_commit_when_the_caller_is_gone(database: Database) -> None:
    applied: list[str] = []
    task = asyncio.create_task(database.write(put("a"), applied.append))
    await asyncio.sleep(0)
    task.cancel()
    await database.write(put("b"), applied.append)
    assert applied == ["a", "b"]
    assert await count(database) == 2


async def test_a_token_is_spent_once(database: Database) -> None:
    await database.write(lambda c: insert_token(c, "t", 5))
    spend = lambda c: spend_token(c, b"t")  # noqa: E731
    results = await asyncio.gather(*(database.write(spend) for _ in range(20)), return_exceptions=True)
    assert [r for r in results if not isinstance(r, Exception)] == [5]
    assert all(isinstance(r, InvalidRequest) for r in results if isinstance(r, Exception))


async def test_generations_only_grow(database: Database) -> None:
    first = await database.write(lambda c: load_generation(c, 100))
    assert first == Generation(100, 1)
    grown = await asyncio.gather(*(database.write(bump) for _ in range(10)))
    assert grown == [Generation(100, number) for number in range(2, 12)]
    assert await database.write(lambda c: load_generation(c, 999)) == Generation(100, 11)
    assert await database.read(lambda c: c.scalar(select(func.count()).select_from(generation))) == 1


async def test_the_files_are_private(folder: Path) -> None:
    database = Database(f"sqlite:///{folder}/x.db")
    migrate(database.engine)
    await database.write(put("a"))
    modes = await asyncio.to_thread(lambda: {file.name: file.stat().st_mode & 0o777 for file in folder.glob("x.db*")})
    assert set(modes.values()) == {0o600}, modes
    database.close()


async def test_a_damaged_file_is_said(folder: Path) -> None:
    (folder / "x.db").write_bytes(b"this is not a database" * 100)
    found = Database(f"sqlite:///{folder}/x.db")
    with pytest.raises(DatabaseError):
        migrate(found.engine)
    found.close()


@pytest.mark.parametrize("url", ["", "nonsense", "postgresql://x/y", "sqlite://", "sqlite:///:memory:"])
def test_urls_that_are_not_served(url: str) -> None:
    with pytest.raises(DatabaseError):
        Database(url)


def test_a_folder_that_is_missing_is_said(folder: Path) -> None:
    with pytest.raises(StorageError):
        Database(f"sqlite:///{folder}/no/such/x.db")


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[None]:
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", path], capture_output=True).returncode:
        pytest.skip("needs root to mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def put_large(name: str) -> Callable[[Connection], None]:
    def run(connection: Connection) -> None:
        connection.execute(insert(bundles).values({**row(name), "jwks": b"x" * 20_000}))

    return run


async def test_a_full_disk_refuses_writes_and_serves_reads(folder: Path) -> None:
    with small_disk(folder / "disk"):
        found = Database(f"sqlite:///{folder}/disk/x.db")
        try:
            await on_a_full_disk(found)
        finally:
            found.close()


async def on_a_full_disk(found: Database) -> None:
    migrate(found.engine)
    await found.write(put("kept"))
    error = None
    for i in range(1000):
        try:
            await found.write(put_large(f"n{i}"))
        except DatabaseError as full:
            error = full
            break
    assert "disk is full" in str(error)
    before = await count(found)
    assert before > 1
    results = await asyncio.gather(*(found.write(put_large(f"m{i}")) for i in range(3)), return_exceptions=True)
    assert all(isinstance(result, DatabaseError) for result in results)
    # Nothing half-written, and reading goes on.
    assert await count(found) == before
