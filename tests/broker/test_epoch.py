# SPDX-License-Identifier: Apache-2.0
"""A restored database starts a new epoch; a restart, however rough, does not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from firedoor.broker.db.rows import Generation
from firedoor.broker.epoch import Mark
from tests.broker.harness import RunningBroker, running
from tests.broker.test_control import Stream
from tests.broker.test_issuing import USER


def database(folder: Path) -> Path:
    return folder / "data" / "broker.db"


def generation(broker: RunningBroker) -> Generation:
    return broker.broker.state.generation


async def test_a_restart_goes_on_in_its_epoch(folder: Path) -> None:
    async with running(folder) as broker:
        before = generation(broker)
    async with running(folder) as broker:
        assert generation(broker).epoch == before.epoch
        assert generation(broker) >= before
        assert not [record for record in broker.audit() if record.get("event") == "new_epoch"]


async def test_a_restored_database_starts_an_epoch_and_sidecars_follow(folder: Path) -> None:
    async with running(folder) as broker:
        agent = await broker.attest()
        key, svid = agent.key, agent.svid
        assert svid is not None
        backup = generation(broker)
    shutil.copy(database(folder), folder / "backup")
    async with running(folder) as broker:
        await broker.entry("/segment/registry/x", svid.id.path, USER)
        reached = generation(broker)
    assert reached.epoch == backup.epoch
    shutil.copy(folder / "backup", database(folder))
    async with running(folder) as broker:
        found = generation(broker)
        assert found.epoch > reached.epoch
        assert found.number <= reached.number
        (record,) = [record for record in broker.audit() if record.get("event") == "new_epoch"]
        assert (record["restored"], record["seen"]) == (str(backup), str(reached))
        again = broker.client()
        again.use(svid, key)
        update = await Stream(again).next()
        assert (update.generation.epoch, update.generation.number) == (found.epoch, found.number)
    # Once is enough.
    async with running(folder) as broker:
        assert generation(broker).epoch == found.epoch


@pytest.mark.parametrize("content", [None, b"", b"1.2\n", b"\xff" * 42])
async def test_a_database_without_its_mark_starts_an_epoch(folder: Path, content: bytes | None) -> None:
    async with running(folder) as broker:
        before = generation(broker)
    mark = folder / "data" / "generation"
    mark.unlink()
    if content is not None:
        mark.write_bytes(content)
    async with running(folder) as broker:
        assert generation(broker).epoch > before.epoch


def test_the_mark_holds_the_last_that_was_written(tmp_path: Path) -> None:
    mark = Mark(tmp_path / "generation")
    assert mark.read() is None
    for made in (Generation(1, 2), Generation(2**63, 3), Generation(4, 2**63)):
        mark.write(made)
        assert mark.read() == made
    mark.close()
