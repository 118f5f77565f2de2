# SPDX-License-Identifier: Apache-2.0
"""Backs a broker up, while it runs or not: its database, the keys of its authorities, its ID.

The database is copied by SQLite's own means, in one step that keeps nobody from writing. Keys are written before the
database names them: what was copied is looked at, and copied again while a rotation was under way in between.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Final

from sqlalchemy import Engine, create_engine, inspect, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from firedoor import __version__
from firedoor.broker import files
from firedoor.broker.backup_file import PIECE, Writer
from firedoor.broker.backup_manifest import BROKER_ID, DATABASE, Manifest, Member
from firedoor.broker.config import Config, read_passphrase
from firedoor.broker.db import authorities, bundles, postgres, sqlite
from firedoor.broker.db.rows import present_generation
from firedoor.broker.errors import BackupError
from firedoor.certs import (
    Authority,
    AuthoritySlots,
    CertsError,
    DiskKeyManager,
    KeyManager,
    Status,
    public_key_der,
)
from firedoor.certs.authority import key_id
from firedoor.certs.certificate import read_certificate
from firedoor.certs.keys import KeyStore

# A rotation replaces a key and commits that within moments.
_TRIES: Final = 10
_PAUSE: Final = 0.5
_MAX_KEY: Final = 64 * 1024


class _UnderWay(BackupError):
    """A key is not that of the authority that the database names: perhaps a rotation has replaced it just now."""


def back_up(config: Config, target: Path, passphrase: bytes | None) -> Manifest:
    """Write a backup; `passphrase` None: not encrypted. Raise BackupError, StorageError, DatabaseError or ConfigError.

    What stands at `target` is replaced once the new backup is whole.
    """
    if not config.data_dir.is_dir():
        raise BackupError(f"there is no broker in {config.data_dir}; name its --data-dir, or its --config")
    with _scratch(config) as scratch:
        for left in reversed(range(_TRIES)):
            try:
                manifest, contents = _collect(config, scratch)
                break
            except _UnderWay:
                if not left:
                    raise
                time.sleep(_PAUSE)
        _write(target, manifest, contents, scratch, passphrase)
    return manifest


@contextlib.contextmanager
def _scratch(config: Config) -> Iterator[Path]:
    """Make a private folder for the copy, on the disk that the database is on."""
    try:
        with tempfile.TemporaryDirectory(prefix=".backup-", dir=config.data_dir) as name:
            yield Path(name)
    except OSError as error:
        raise BackupError(f"the backup cannot be made in {config.data_dir}: {error.strerror}") from error


def _collect(config: Config, scratch: Path) -> tuple[Manifest, dict[str, bytes]]:
    """Copy what belongs into a backup. Raise BackupError when keys and database do not belong together."""
    shared = postgres.is_postgres(config.database)
    contents: dict[str, bytes] = {}
    if shared or not isinstance(config.key_manager, str):
        # A device knows the keys by it.
        contents[BROKER_ID] = _small(config.data_dir / "broker-id")
    if not shared:
        copy_database(database_path(config), scratch / DATABASE)
    if config.key_manager == "disk":
        contents |= {f"keys/{path.name}": _small(path) for path in sorted((config.data_dir / "keys").glob("*.pem"))}
    engine = postgres.open_engine(config.database, config.database_password_file, 1) if shared else _open(scratch)
    broker_id = contents[BROKER_ID].decode("ascii", "replace").strip() if shared else ""
    generation = check_database(engine, config, broker_id)
    if config.key_manager == "disk":
        check_keys(engine, broker_id, key_manager(config, _Copied(contents)))
    engine.dispose()
    members = [] if shared else [_member_of_file(scratch / DATABASE)]
    members += [Member(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in contents.items()]
    kind, version = "postgresql" if shared else "sqlite", __version__
    made = Manifest(
        config.trust_domain.name,
        int(time.time()),
        version,
        kind,
        config.key_manager if isinstance(config.key_manager, str) else config.key_manager.name,
        "" if shared else generation,
        tuple(members),
    )
    return made, contents


def _open(folder: Path) -> Engine:
    return create_engine(f"sqlite:///{folder / DATABASE}", poolclass=NullPool)


def copy_database(source: Path, target: Path) -> None:
    """Copy an SQLite database as it is at one moment, into a file without a log beside it. Raise BackupError."""
    if not source.is_file():
        raise BackupError(f"there is no database {source}; has this broker ever run?")
    files.make_private_file(str(target))
    try:
        with (
            contextlib.closing(sqlite3.connect(source, timeout=30)) as found,
            contextlib.closing(sqlite3.connect(target, isolation_level=None)) as copy,
        ):
            found.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.Error as error:
        raise BackupError(f"the database {source} cannot be copied: {error}") from error


def database_path(config: Config) -> Path:
    """Return where the SQLite database is."""
    return Path(sqlite.read_url(config.database).database or "")


def key_manager(config: Config, store: KeyStore) -> KeyManager:
    """Return what reads stored keys with the passphrase of the configuration. Raise ConfigError."""
    passphrase = read_passphrase(config.key_passphrase_file) if config.key_passphrase_file else None
    return DiskKeyManager(store, passphrase)


class _Copied:
    """The keys that go into the backup, whoever their files belong to: root backs up what another user runs."""

    def __init__(self, contents: Mapping[str, bytes]) -> None:
        self._contents = contents

    def load(self, name: str) -> bytes | None:
        return self._contents.get(f"keys/{name}")

    def replace(self, name: str, data: bytes) -> None:
        raise BackupError("a backup changes no key")

    def delete(self, name: str) -> None:
        raise BackupError("a backup changes no key")


def check_database(engine: Engine, config: Config, broker_id: str) -> str:
    """Return a database's generation. Raise BackupError unless it is this broker's."""
    try:
        with engine.connect() as connection:
            if not inspect(connection).has_table("generation"):
                raise BackupError("the database is no broker's")
            names = set(connection.scalars(select(bundles.c.trust_domain)))
            known = connection.scalar(select(authorities.c.kind).where(authorities.c.broker_id == broker_id).limit(1))
            if config.trust_domain.name not in names or known is None:
                raise BackupError(f"the database is not that of this broker of {config.trust_domain}")
            return str(present_generation(connection))
    except SQLAlchemyError as error:
        raise BackupError("the database cannot be read: it is damaged, or does not answer") from error


def check_keys(engine: Engine, broker_id: str, keys: KeyManager) -> None:
    """Raise BackupError unless the key of each authority that signs, or is about to, is there and can be read."""
    where = authorities.c.broker_id == broker_id
    with engine.connect() as connection:
        rows = connection.execute(select(authorities.c.kind, authorities.c.journal).where(where)).all()
    for row in rows:
        if row.kind not in ("x509", "jwt", "wit"):
            continue
        slots = AuthoritySlots.from_json(row.journal)
        for one in (slots.current, slots.other):
            if one is not None and one.status in (Status.ACTIVE, Status.PREPARED):
                _check_key(one, keys)


def _check_key(authority: Authority, keys: KeyManager) -> None:
    what = f"the key of {authority.kind} authority {authority.authority_id} ({key_id(authority.kind, authority.slot)})"
    try:
        found = public_key_der(keys.get(authority.key_id).public_key())
    except CertsError as error:
        raise _UnderWay(f"{what} cannot be read: {error}") from None
    public = authority.public
    if authority.kind == "x509":
        public = public_key_der(read_certificate(public).raw.public_key())  # type: ignore[arg-type]
    if found != public:
        raise _UnderWay(f"{what} is another authority's")


def _small(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_KEY + 1)
    except OSError as error:
        raise BackupError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > _MAX_KEY:
        raise BackupError(f"{path} is too long to be what it should be")
    return data


def _member_of_file(path: Path) -> Member:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Member(path.name, path.stat().st_size, digest)


def _write(
    target: Path, manifest: Manifest, contents: dict[str, bytes], scratch: Path, passphrase: bytes | None
) -> None:
    """Write the file beside its place, and put it there once it is on the disk."""
    beside = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                _fill(Writer(file, passphrase, secrets.token_bytes), manifest, contents, scratch)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(target)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        files.sync_folder(target.parent)
    except OSError as error:
        raise BackupError(f"the backup {target} cannot be written: {error.strerror}") from error


def _fill(writer: Writer, manifest: Manifest, contents: dict[str, bytes], scratch: Path) -> None:
    writer.write(manifest.to_bytes())
    for member in manifest.members:
        if member.name in contents:
            writer.write(contents[member.name])
            continue
        with (scratch / member.name).open("rb") as file:
            for piece in _pieces(file):
                writer.write(piece)
    writer.finish()


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(PIECE):
        yield piece
