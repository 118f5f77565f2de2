# SPDX-License-Identifier: Apache-2.0
"""`firedoor broker backup` and `restore`: one file with what a broker cannot be without."""

import argparse
import getpass
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firedoor.cli.daemon import broker_config, usage_error
from firedoor.cli.errors import Refused, UsageError
from firedoor.cli.exits import Exit
from firedoor.cli.output import show, show_json, when
from firedoor.cli.parsing import Group
from firedoor.cli.progress import waiting

if TYPE_CHECKING:
    from firedoor.broker.backup_manifest import Manifest
    from firedoor.broker.config import Config

BACKUP_EXAMPLE = """\
$ firedoor broker backup /srv/backup/broker.firedoor --config broker.yaml --backup-passphrase-file passphrase"""
RESTORE_EXAMPLE = """\
$ firedoor broker restore /srv/backup/broker.firedoor --config broker.yaml --backup-passphrase-file passphrase
$ firedoor broker run --config broker.yaml"""
_MAX_PASSPHRASE_FILE = 4096
# Reading by everybody, writing by anybody but its owner.
_OPEN = 0o027


def configure(words: Group) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """Declare both, without the keys of the configuration."""
    backup = words.leaf("backup", "write database and keys to one file; the broker may run", BACKUP_EXAMPLE, run_backup)
    summary = "put a backup in the place of a broker's data directory"
    restore = words.leaf("restore", summary, RESTORE_EXAMPLE, run_restore)
    for leaf in (backup, restore):
        leaf.add_argument("file", metavar="FILE", help="the backup")
        leaf.add_argument(
            "--backup-passphrase-file", metavar="PATH", help="what the backup is encrypted with; asked for otherwise"
        )
    backup.add_argument("--unencrypted", action="store_true", help="do not encrypt it: whoever reads it can be anybody")
    restore.add_argument(
        "--replace", action="store_true", help="also where there is a broker; its directory gets another name"
    )
    return backup, restore


def run_backup(options: argparse.Namespace) -> int:
    """Write a backup."""
    from firedoor.broker.backup import back_up

    config = broker_config(options)
    if options.unencrypted and options.backup_passphrase_file:
        raise UsageError("--unencrypted and --backup-passphrase-file are two answers to one question")
    passphrase = None if options.unencrypted else _passphrase(options, new=True)
    with _told(), waiting("backing up"):
        made = back_up(config, Path(options.file), passphrase)
    if options.output == "json":
        show_json({"file": options.file, "encrypted": passphrase is not None, **_as_json(made)})
        return Exit.DONE
    lines = [f"backed up {config.data_dir} to {options.file}: {_contents(made)}"]
    show("\n".join([*lines, *_left_out(made, config)]))
    return Exit.DONE


def run_restore(options: argparse.Namespace) -> int:
    """Restore one."""
    from firedoor.broker.restore import is_encrypted, restore

    config, source = broker_config(options), Path(options.file)
    with _told():
        encrypted = is_encrypted(source)
    passphrase = _passphrase(options, new=False) if encrypted else None
    with _told(), waiting("restoring"):
        done = restore(config, source, passphrase, replace=options.replace)
    made = done.manifest
    if options.output == "json":
        show_json({"data_dir": str(config.data_dir), "before": str(done.before or ""), **_as_json(made)})
        return Exit.DONE
    lines = [f"restored {config.data_dir} from a backup of {when(made.made_at)}: {_contents(made)}"]
    if done.before is not None:
        lines.append(f"what was there is in {done.before}; its audit log too")
    show("\n".join([*lines, *_left_out(made, config), *_lost(made)]))
    return Exit.DONE


def _contents(made: "Manifest") -> str:
    database = f"the database at generation {made.generation}" if made.has_database else "no database"
    return f"{database}, {made.keys} keys"


def _left_out(made: "Manifest", config: "Config") -> list[str]:
    """Say what a person must keep, or restore, in another way."""
    lines = []
    if not made.has_database:
        lines.append("the database is PostgreSQL's to keep: pg_dump, and psql to restore it")
    if made.key_manager != "disk":
        where = "in memory, and end with the process" if made.key_manager == "memory" else f"in {made.key_manager}"
        lines.append(f"keys are {where}: they are not in the backup")
    if made.key_manager != config.key_manager:
        lines.append(f"the configuration says key_manager: {config.key_manager}; it was {made.key_manager}")
    return lines


def _lost(made: "Manifest") -> list[str]:
    since = when(made.made_at)
    return [
        "the broker begins a new epoch at its next start, and its sidecars follow it; do not start the old one again",
        f"since {since}, and lost: entries, agents, bans, revocations, break-glass, policy in the database; the audit "
        "log of that time says which",
        "agents that attested since must attest again; join tokens end",
        f"SVIDs issued since {since} are valid, and unknown by serial number: `firedoor svid revoke` by ID, pattern or "
        "segment reaches those too, and `firedoor authority rotate --emergency` all of them",
    ]


def _as_json(made: "Manifest") -> dict[str, Any]:
    return {
        "trust_domain": made.trust_domain,
        "made_at": when(made.made_at),
        "firedoor": made.firedoor,
        "database": made.database,
        "generation": made.generation,
        "key_manager": made.key_manager,
        "keys": made.keys,
        "bytes": sum(member.size for member in made.members),
    }


def _passphrase(options: argparse.Namespace, *, new: bool) -> bytes:
    """Return the passphrase: from the file, or asked for, twice for a new one."""
    if options.backup_passphrase_file:
        return _from_file(options.backup_passphrase_file)
    if not sys.stdin.isatty():
        other = ", or --unencrypted" if new else ""
        raise UsageError(f"nobody is there to be asked for a passphrase: give --backup-passphrase-file{other}")
    given = getpass.getpass("passphrase of the backup: ")
    if new and getpass.getpass("once more: ") != given:
        raise UsageError("the two are not the same")
    if not given:
        raise UsageError("the passphrase is empty")
    return given.encode()


def _from_file(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            if os.fstat(file.fileno()).st_mode & _OPEN:
                raise UsageError(f"{path} is open to others; make it 0600")
            found = file.read(_MAX_PASSPHRASE_FILE).rstrip(b"\r\n")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if not found:
        raise UsageError(f"{path} is empty")
    return found


@contextmanager
def _told() -> Iterator[None]:
    """Turn the broker's errors into ours."""
    from firedoor.broker.errors import BrokerError, ConfigError
    from firedoor.certs import CertsError

    try:
        yield
    except ConfigError as error:
        raise usage_error(error.findings) from None
    except (BrokerError, CertsError) as error:
        raise Refused(str(error)) from None
