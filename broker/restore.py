# SPDX-License-Identifier: Apache-2.0
"""Puts a backup in a data directory's place: all of it, once it was checked, or nothing.

Everything is written to a folder beside the data directory, looked at there as the broker will look at it, and renamed.
What was there before keeps another name. The broker begins a new epoch when it starts (epoch.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from firedoor.broker import files
from firedoor.broker.backup import check_database, check_keys, database_path, key_manager
from firedoor.broker.backup_file import PIECE, Reader, read_header
from firedoor.broker.backup_manifest import DATABASE, Manifest, Member, read_manifest
from firedoor.broker.config import Config
from firedoor.broker.db import migrate, postgres
from firedoor.broker.epoch import RESTORED
from firedoor.broker.errors import BackupError, DatabaseError, StorageError
from firedoor.broker.files import FileStore

_PRIVATE: Final = 0o700
# What must be free beside what is written.
_SPARE_BYTES: Final = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Restored:
    """What was restored, and where what was there before is now; None when there was nothing."""

    manifest: Manifest
    before: Path | None


def is_encrypted(source: Path) -> bool:
    """Say whether a backup asks for a passphrase. Raise BackupError."""
    with _opened(source) as descriptor, os.fdopen(os.dup(descriptor), "rb") as file:
        return read_header(file).encrypted


def restore(config: Config, source: Path, passphrase: bytes | None, *, replace: bool) -> Restored:
    """Restore a backup. Raise BackupError, StorageError, DatabaseError or ConfigError, and change nothing."""
    folder = config.data_dir
    outside = _database_outside(config)
    for place in filter(None, (folder, outside)):
        _check_place(place, replace=replace)
    with contextlib.ExitStack() as stack:
        if (folder / "lock").exists():
            stack.callback(os.close, files.lock(folder / "lock"))
        made = _staging(folder)
        stack.callback(shutil.rmtree, made, ignore_errors=True)
        manifest = _unpack(config, source, passphrase, made)
        _check(config, manifest, made)
        _settle(folder, made)
        before = _exchange(folder, made, outside if manifest.has_database else None)
    return Restored(manifest, before)


def _database_outside(config: Config) -> Path | None:
    """Return where the SQLite database is, when that is not in the data directory."""
    if postgres.is_postgres(config.database):
        return None
    path = database_path(config)
    if path.parent.resolve() == config.data_dir.resolve() and path.name == DATABASE:
        return None
    if config.data_dir.resolve() in path.resolve().parents:
        raise BackupError(f"the database {path} has a name of its own in the data directory: move it out of it first")
    return path


def _check_place(place: Path, *, replace: bool) -> None:
    taken = any(place.iterdir()) if place.is_dir() else place.exists()
    if taken and not replace:
        raise BackupError(f"{place} is not empty; --replace restores all the same, and keeps it under another name")
    if place.is_mount():
        raise BackupError(f"{place} is a mount point, which cannot be replaced whole: choose a --data-dir below it")


def _staging(folder: Path) -> Path:
    made = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}")
    try:
        made.mkdir(_PRIVATE, parents=True)
    except OSError as error:
        raise StorageError(f"the folder {made} cannot be made: {error.strerror}") from error
    return made


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[int]:
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise BackupError(f"the backup {source} cannot be read: {error.strerror}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _unpack(config: Config, source: Path, passphrase: bytes | None, made: Path) -> Manifest:
    """Write every member into a folder, with its digest checked. Raise BackupError or StorageError."""
    with _opened(source) as descriptor, os.fdopen(os.dup(descriptor), "rb") as file:
        header = read_header(file)
        reader = Reader(file, header, passphrase if header.encrypted else None)
        manifest = read_manifest(reader.read)
        _check_manifest(config, manifest, made)
        try:
            for member in manifest.members:
                _write_member(reader, member, made / member.name)
        except OSError as error:
            raise StorageError(f"{made} cannot be written: {error.strerror}") from error
        reader.finish()
    return manifest


def _check_manifest(config: Config, manifest: Manifest, made: Path) -> None:
    if manifest.trust_domain != config.trust_domain.name:
        raise BackupError(f"the backup is of trust domain {manifest.trust_domain}, not of {config.trust_domain}")
    shared = postgres.is_postgres(config.database)
    if shared == manifest.has_database:
        had, has = ("SQLite", "PostgreSQL") if shared else ("PostgreSQL", "SQLite")
        raise BackupError(f"the backup is of a broker on {had}, and the configuration names {has}: look at `database`")
    needed = sum(member.size for member in manifest.members) + _SPARE_BYTES
    if shutil.disk_usage(made).free < needed:
        raise BackupError(f"the disk of {made.parent} has no room for {needed} bytes")


def _write_member(reader: Reader, member: Member, path: Path) -> None:
    path.parent.mkdir(_PRIVATE, exist_ok=True)
    digest, left = hashlib.sha256(), member.size
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600), "wb") as file:
        while left:
            piece = reader.read(min(left, PIECE))
            digest.update(piece)
            file.write(piece)
            left -= len(piece)
        file.flush()
        os.fsync(file.fileno())
    if digest.hexdigest() != member.sha256:
        raise BackupError(f"{member.name} in the backup is damaged")


def _check(config: Config, manifest: Manifest, made: Path) -> None:
    """Look at what was unpacked as the broker will. Raise BackupError, DatabaseError or ConfigError."""
    if not manifest.has_database:
        # The database may be restored after the keys; what does not belong together is said when the broker starts.
        return
    engine = create_engine(f"sqlite:///{made / DATABASE}", poolclass=NullPool)
    try:
        _check_whole(engine)
        check_database(engine, config, "")
        if manifest.key_manager == "disk":
            check_keys(engine, "", key_manager(config, FileStore(made / "keys")))
    finally:
        engine.dispose()


def _check_whole(engine: Engine) -> None:
    try:
        with engine.connect() as connection:
            if connection.exec_driver_sql("PRAGMA quick_check(1)").scalar() != "ok":
                raise BackupError("the database in the backup is damaged")
            revision = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    except SQLAlchemyError as error:
        raise BackupError("the database in the backup is damaged") from error
    known = {one.revision for one in ScriptDirectory(str(migrate.SCRIPTS)).walk_revisions()}
    if revision not in known:
        raise DatabaseError("the database in the backup was written by a newer firedoor; restore it with that one")


def _settle(folder: Path, made: Path) -> None:
    """Leave the note that begins an epoch, give all to whom the directory belongs, and have it on the disk."""
    files.replace(made / "generation", RESTORED)
    owner = folder.stat() if folder.exists() else made.stat()
    try:
        for path in [made, *made.rglob("*")]:
            if owner.st_uid != os.geteuid():
                os.chown(path, owner.st_uid, owner.st_gid)
            if path.is_dir():
                files.sync_folder(path)
    except OSError as error:
        raise StorageError(f"{made} cannot be given to uid {owner.st_uid}: {error.strerror}") from error


def _exchange(folder: Path, made: Path, database: Path | None) -> Path | None:
    """Put the folder in its place, and the database in its own when that is elsewhere."""
    kept = f"before-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(2)}"
    before = folder.with_name(f"{folder.name}.{kept}") if folder.is_dir() and any(folder.iterdir()) else None
    try:
        if database is not None:
            _exchange_database(database, made / DATABASE, kept)
        if before is not None:
            folder.rename(before)
        try:
            made.rename(folder)
        except OSError:
            if before is not None:
                before.rename(folder)
            raise
        files.sync_folder(folder.parent)
    except OSError as error:
        raise StorageError(f"{folder} cannot be replaced: {error.strerror}") from error
    return before


def _exchange_database(place: Path, made: Path, kept: str) -> None:
    """Put a database in its place; what was there keeps another name, with its log."""
    content = place.with_name(f".{place.name}.{kept}")
    shutil.copyfile(made, content)
    content.chmod(0o600)
    for suffix in ("", "-wal", "-shm"):
        old = place.with_name(place.name + suffix)
        if old.exists():
            old.rename(place.with_name(f"{place.name}.{kept}{suffix}"))
    content.rename(place)
    made.unlink()
    files.sync_folder(place.parent)
