# SPDX-License-Identifier: Apache-2.0
"""Brokers of two versions on one database: the newer one changes the schema, and the older one runs on meanwhile.

There is no later version yet: a step that only adds, as steps do, stands for what it would bring.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import shutil
from pathlib import Path

import pytest
from sqlalchemy import text

from firedoor.broker import broker as broker_module
from firedoor.broker.db import migrate as migrate_module
from firedoor.broker.errors import DatabaseError
from tests.broker.harness import POLICY, RunningBroker, running
from tests.postgres import Server
from tests.waiting import async_until

USER = ["unix:user:registry"]
STEP = """\
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "9999", "{before}", None, None


def upgrade() -> None:
    op.add_column("entries", sa.Column("later", sa.String(length=64), nullable=False, server_default=""))
    op.add_column("agents", sa.Column("later", sa.BigInteger(), nullable=True))
    op.create_index("ix_entries_later", "entries", ["later"])
    op.create_table("later", sa.Column("id", sa.BigInteger(), nullable=False), sa.PrimaryKeyConstraint("id"))
    op.execute("UPDATE entries SET later = 'x'")
"""
# r0005 made a table anew before there could be two brokers.
ONLY_ADDS = re.compile(r"\b(?:op|batch)\.(drop|alter|rename)\w*")
LONE = "r0005_several_brokers.py"


def scripts() -> list[Path]:
    return sorted((migrate_module.SCRIPTS / "versions").glob("r*.py"))


def test_steps_only_add() -> None:
    found = {path.name: ONLY_ADDS.findall(path.read_text()) for path in scripts()}
    assert {name for name, said in found.items() if said} == {LONE}
    later = [path.name for path in scripts() if path.name > LONE]
    assert later, "what older brokers must run on with"


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """The steps of a version that has one more."""
    place = tmp_path / "migrations"
    shutil.copytree(migrate_module.SCRIPTS, place, ignore=shutil.ignore_patterns("__pycache__"))
    (last,) = re.findall(r'^revision = "(\d+)"', scripts()[-1].read_text(), re.M)
    (place / "versions/r9999_later.py").write_text(STEP.format(before=last))
    return place


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The sidecars that a newcomer waits for are not there."""
    monkeypatch.setattr(broker_module, "NEWCOMER_WAITS", 0.0)
    return monkeypatch


async def signs(broker: RunningBroker, number: str) -> None:
    """Have a node attest, an entry made and a certificate signed."""
    agent = await broker.attest()
    made = await broker.entry(f"/segment/registry/{number}", agent.path, USER)
    (result,) = await agent.sign(made.id)
    assert result.status.code == 0, result.status.message


async def test_an_older_broker_runs_on(
    tmp_path: Path, postgres: Server, newer: Path, at_once: pytest.MonkeyPatch
) -> None:
    url, password_file = postgres.database()
    how = {"database": url, "database_password_file": str(password_file), "rate_limits_attestation_burst": "10000"}
    for name in ("old", "new", "late"):
        (tmp_path / name).mkdir()
    async with running(tmp_path / "old", None, **how) as old:
        await old.apply(POLICY)
        numbers, stopping, done = itertools.count(), asyncio.Event(), 0

        async def work() -> None:
            """Go on all the while: a step has whoever writes wait, and nobody fail."""
            nonlocal done
            while not stopping.is_set():
                await signs(old, f"w{next(numbers)}")
                done += 1

        workers = [asyncio.create_task(work()) for _ in range(3)]
        await async_until(lambda: done >= 3 or any(one.done() for one in workers))
        at_once.setattr(migrate_module, "SCRIPTS", newer)
        async with running(tmp_path / "new", None, **how) as new:
            with new.broker.database.engine.connect() as connection:
                assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == "9999"
                assert connection.execute(text("SELECT count(*) FROM entries WHERE later = 'x'")).scalar()
            before = done
            await async_until(lambda: done >= before + 3 or any(one.done() for one in workers))
            stopping.set()
            await asyncio.gather(*workers)
            # Each has what the other one writes, the old one without knowing the columns.
            for here, there in ((old, new), (new, old)):
                agent = await here.attest()
                made = await here.entry(f"/segment/registry/x{next(numbers)}", agent.path, USER)
                await async_until(lambda there=there, made=made: there.broker.state.entries.get(made.id) is not None)
            # An older one that is started now would not know what it reads, and says so.
            at_once.undo()
            with pytest.raises(DatabaseError, match="written by a newer firedoor"):
                async with running(tmp_path / "late", None, **how):
                    pass
            await signs(old, "last")
