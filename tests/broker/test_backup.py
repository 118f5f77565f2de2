# SPDX-License-Identifier: Apache-2.0
"""A broker is backed up while it runs, and restored elsewhere: what is the same afterwards, and what is refused."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import stat
from pathlib import Path

import grpc
import pytest

from firedoor.broker import backup, config
from firedoor.broker.backup import back_up
from firedoor.broker.backup_manifest import Manifest
from firedoor.broker.config import Config
from firedoor.broker.errors import BackupError, BrokerError, DatabaseError, StorageError
from firedoor.broker.restore import is_encrypted, restore
from firedoor.certs import KeyType, generate_key
from tests.broker.harness import AgentClient, RunningBroker, code_of, flags, running
from tests.postgres import Server

PASSPHRASE = b"correct horse"
USER = ("unix:user:registry",)


def at(folder: Path, **more: str) -> Config:
    return config.load(None, {}, flags(folder, **more))


async def backed_up(broker: RunningBroker, file: Path, passphrase: bytes | None = None) -> Manifest:
    return await asyncio.to_thread(back_up, broker.broker.config, file, passphrase)


def refused(config: Config, file: Path, passphrase: bytes | None = None, *, replace: bool = False) -> str:
    """Return what a restore is refused with, and see that it has left nothing."""
    place = config.data_dir
    before = sorted(place.parent.rglob("*"))
    with pytest.raises(BrokerError) as error:
        restore(config, file, passphrase, replace=replace)
    assert sorted(place.parent.rglob("*")) == before
    return str(error.value)


async def renewed(agent: AgentClient) -> None:
    key = generate_key(KeyType.EC_P256)
    agent.use(await agent.renew(key), key)
    assert await agent.entries() == []


async def code(agent: AgentClient) -> str:
    try:
        await agent.entries()
    except grpc.aio.AioRpcError as error:
        return code_of(error)
    return "OK"


async def test_a_restored_broker_is_the_one_that_was_backed_up(folder: Path) -> None:
    file, elsewhere = folder / "backup", folder / "other"
    elsewhere.mkdir()
    async with running(folder) as broker:
        agent = await broker.attest()
        token = await broker.token()
        made = await broker.entry("/segment/registry/x", agent.path, USER)
        made_at = await backed_up(broker, file, PASSPHRASE)
        ids = {kind: one.active().authority_id for kind, one in broker.broker.managers.items()}
        reached = broker.broker.state.generation
        assert not list(broker.broker.config.data_dir.glob(".backup*"))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert is_encrypted(file)
    assert (made_at.keys, made_at.has_database) == (3, True)
    done = restore(at(elsewhere), file, PASSPHRASE, replace=False)
    assert (done.manifest, done.before) == (made_at, None)
    assert all(stat.S_IMODE(one.stat().st_mode) & 0o077 == 0 for one in (elsewhere / "data").rglob("*"))
    async with running(elsewhere) as broker:
        assert {kind: one.active().authority_id for kind, one in broker.broker.managers.items()} == ids
        assert [one.id for one in broker.broker.state.entries] == [made.id]
        assert broker.broker.state.generation.epoch > reached.epoch
        (record,) = [record for record in broker.audit() if record.get("event") == "new_epoch"]
        assert record["restored"] == made_at.generation
        # A token that may have been used since lets nobody in.
        with pytest.raises(grpc.aio.AioRpcError, match="token"):
            await broker.attest(token)
    # Once is enough.
    async with running(elsewhere) as broker:
        assert len([record for record in broker.audit() if record.get("event") == "new_epoch"]) == 1


async def test_agents_that_renewed_since_the_backup_go_on(folder: Path) -> None:
    file = folder / "backup"
    async with running(folder) as broker:
        agent, banned, still = await broker.attest(), await broker.attest(), await broker.attest()
        first, first_key = agent.svid, agent.key
        await backed_up(broker, file)
        # Issue times are whole seconds.
        await asyncio.sleep(1.1)
        await renewed(agent)
        await renewed(banned)
        second, second_key = agent.svid, agent.key
        await asyncio.sleep(1.1)
        await renewed(agent)
        third, third_key = agent.svid, agent.key
        since = await broker.attest()
        assert None not in (first, second, third, banned.svid, since.svid, still.svid)
    restore(at(folder), file, None, replace=True)
    async with running(folder) as broker:
        await broker.ban(banned.id)
        clients = []
        for svid, key in ((still.svid, still.key), (third, third_key), (second, second_key), (first, first_key)):
            client = broker.client()
            client.use(svid, key)
            clients.append(client)
        # The latest counts, and those before it no longer do, whether the database knows them or not.
        assert [await code(one) for one in clients] == ["OK", "OK", "PERMISSION_DENIED", "PERMISSION_DENIED"]
        assert await code(clients[1]) == "OK"
        for lost in (banned, since):
            client = broker.client()
            client.use(lost.svid, lost.key)  # type: ignore[arg-type]
            assert await code(client) == "PERMISSION_DENIED"
        # It renews as ever.
        await renewed(clients[1])
        assert await code(clients[1]) == "OK"


async def test_without_a_restore_an_unknown_certificate_stays_unknown(folder: Path) -> None:
    async with running(folder) as broker:
        agent = await broker.attest()
        first, key = agent.svid, agent.key
        await renewed(agent)
        assert first is not None
        client = broker.client()
        client.use(first, key)
        assert await code(client) == "PERMISSION_DENIED"


async def test_backups_while_authorities_turn_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever moment it is of, keys and database belong together."""
    # Nobody else rotates without a pause.
    monkeypatch.setattr(backup, "_TRIES", 100)
    async with running(folder) as broker:
        manager = broker.broker.jwt_authority

        async def turn() -> None:
            for _ in range(6):
                made = await manager.prepare()
                await manager.activate(made.authority_id)

        turning = asyncio.create_task(turn())
        count = 0
        while not turning.done() or count < 2:
            await backed_up(broker, folder / f"backup-{count}")
            count += 1
        await turning
    for number in range(count):
        elsewhere = folder / f"other-{number}"
        elsewhere.mkdir()
        restore(at(elsewhere), folder / f"backup-{number}", None, replace=False)


async def test_what_is_not_restored(folder: Path, tmp_path: Path) -> None:
    file, place = tmp_path / "backup", tmp_path / "place"
    place.mkdir()
    async with running(folder) as broker:
        await backed_up(broker, file, PASSPHRASE)
        assert "another broker runs" in refused(broker.broker.config, file, PASSPHRASE, replace=True)
    text = file.read_bytes()
    assert "passphrase is wrong" in refused(at(place), file, b"other")
    assert "is encrypted" in refused(at(place), file)
    assert "cannot be read" in refused(at(place), tmp_path / "none")
    file.write_bytes(text[:-20])
    assert "damaged" in refused(at(place), file, PASSPHRASE)
    file.write_bytes(text)
    assert "of trust domain example.org" in refused(at(place, trust_domain="other.org"), file, PASSPHRASE)
    postgres = at(place, database="postgresql://firedoor@/none")
    assert "the configuration names PostgreSQL" in refused(postgres, file, PASSPHRASE)
    (place / "data").mkdir()
    (place / "data/file").write_text("somebody's")
    assert "--replace" in refused(at(place), file, PASSPHRASE)
    done = restore(at(place), file, PASSPHRASE, replace=True)
    assert done.before is not None
    assert (done.before / "file").read_text() == "somebody's"
    # An empty folder is no broker.
    shutil.rmtree(place / "data")
    (place / "data").mkdir()
    assert restore(at(place), file, PASSPHRASE, replace=False).before is None


async def test_a_database_of_a_newer_firedoor_is_not_restored(folder: Path) -> None:
    async with running(folder):
        pass
    with contextlib.closing(sqlite3.connect(folder / "data/broker.db", isolation_level=None)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'later'")
    back_up(at(folder), folder / "backup", None)
    (folder / "other").mkdir()
    with pytest.raises(DatabaseError, match="newer firedoor"):
        restore(at(folder / "other"), folder / "backup", None, replace=False)
    assert not list((folder / "other").iterdir())


async def test_encrypted_keys_stay_encrypted(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the keys\n")
    async with running(folder, key_passphrase_file=str(secret)) as broker:
        await backed_up(broker, folder / "backup")
    place = tmp_path / "place"
    place.mkdir()
    assert b"BEGIN ENCRYPTED" in (folder / "backup").read_bytes()
    assert "cannot be read" in refused(at(place), folder / "backup")
    restore(at(place, key_passphrase_file=str(secret)), folder / "backup", None, replace=False)
    async with running(place, key_passphrase_file=str(secret)):
        pass


async def test_what_is_not_backed_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup, "_PAUSE", 0)
    file = folder / "backup"
    with pytest.raises(BackupError, match="there is no broker in"):
        back_up(at(folder), file, None)
    (folder / "data").mkdir(mode=0o700)
    with pytest.raises(BackupError, match="has this broker ever run"):
        back_up(at(folder), file, None)
    async with running(folder) as broker:
        file.write_bytes(b"the one before")
        with pytest.raises(BackupError, match=r"not that of this broker of other\.org"):
            back_up(at(folder, trust_domain="other.org"), file, None)
        key = broker.broker.config.data_dir / "keys/JWT-Signer-A.pem"
        kept = key.read_bytes()
        key.unlink()
        with pytest.raises(BackupError, match=r"JWT-Signer-A.*cannot be read"):
            back_up(at(folder), file, None)
        key.write_bytes((key.parent / "WIT-Signer-A.pem").read_bytes())
        key.chmod(0o600)
        with pytest.raises(BackupError, match="is another authority's"):
            back_up(at(folder), file, None)
        key.write_bytes(kept)
        with pytest.raises(BackupError, match="cannot be written"):
            back_up(at(folder), folder / "no/such/place", None)
        assert file.read_bytes() == b"the one before"
        back_up(at(folder), file, None)
    assert not [name for name in os.listdir(folder) if "backup." in name]  # noqa: PTH208
    file.write_bytes(b"x" * 1000)
    with pytest.raises(BackupError, match="no backup"):
        is_encrypted(file)


async def test_keys_in_memory_are_not_in_it(folder: Path) -> None:
    async with running(folder, key_manager="memory") as broker:
        made = await backed_up(broker, folder / "backup")
        before = broker.broker.authority.active().authority_id
    assert (made.keys, made.key_manager) == (0, "memory")
    restore(at(folder, key_manager="memory"), folder / "backup", None, replace=True)
    async with running(folder, key_manager="memory") as broker:
        assert broker.broker.authority.active().authority_id != before


async def test_a_database_elsewhere_goes_back_there(folder: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/elsewhere.db"
    async with running(folder, database=url) as broker:
        await backed_up(broker, folder / "backup")
        await broker.entry("/segment/registry/x", "/spire/agent/x", USER)
    with pytest.raises(BackupError, match="--replace"):
        restore(at(folder, database=url), folder / "backup", None, replace=False)
    restore(at(folder, database=url), folder / "backup", None, replace=True)
    assert not (folder / "data/broker.db").exists()
    assert [name for name in os.listdir(tmp_path) if name.startswith("elsewhere.db.before-")]  # noqa: PTH208
    async with running(folder, database=url) as broker:
        assert len(list(broker.broker.state.entries)) == 0


async def test_postgresql_keeps_its_own_database(folder: Path, postgres: Server) -> None:
    url, password_file = postgres.database()
    more = {"database": url, "database_password_file": str(password_file)}
    async with running(folder, **more) as broker:
        made = await backed_up(broker, folder / "backup")
        ids = {kind: one.active().authority_id for kind, one in broker.broker.managers.items()}
        epoch = broker.broker.state.generation.epoch
    assert (made.has_database, made.keys, made.generation) == (False, 3, "")
    with pytest.raises(BackupError, match="the configuration names SQLite"):
        restore(at(folder), folder / "backup", None, replace=True)
    shutil.rmtree(folder / "data")
    restore(at(folder, **more), folder / "backup", None, replace=False)
    async with running(folder, **more) as broker:
        assert {kind: one.active().authority_id for kind, one in broker.broker.managers.items()} == ids
        assert broker.broker.state.generation.epoch > epoch


def test_a_folder_that_cannot_be_written(folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises((BackupError, StorageError)):
        restore(at(folder / "file"), folder / "file", None, replace=False)
