# SPDX-License-Identifier: Apache-2.0
"""What is in a backup: a manifest, then its members in the manifest's order, with the size and digest of each.

A name is one of a few forms and never a path of anybody's choosing; sizes are bounded before a member is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

from firedoor.broker.errors import BackupError
from firedoor.certs.strict_json import refuse_constant, unique_members

FORMAT: Final = 1
DATABASE: Final = "broker.db"
BROKER_ID: Final = "broker-id"
_KEY: Final = re.compile(r"keys/[A-Za-z0-9_-]{1,64}\.pem")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_LENGTH_BYTES: Final = 4
_MAX_MANIFEST: Final = 256 * 1024
_MAX_MEMBERS: Final = 256
MAX_SMALL: Final = 64 * 1024
# A broker's database has some hundred bytes for each certificate that lives.
MAX_DATABASE: Final = 256 * 2**30


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a backup: its name below the data directory, its length in bytes, its digest in hex."""

    name: str
    size: int
    sha256: str

    @property
    def is_key(self) -> bool:
        """Whether it is an authority's key."""
        return bool(_KEY.fullmatch(self.name))

    def check(self) -> None:
        """Raise BackupError unless a broker's data directory has such a file, of such a size."""
        known = self.is_key or self.name in (DATABASE, BROKER_ID)
        most = MAX_DATABASE if self.name == DATABASE else MAX_SMALL
        if not known or not 0 < self.size <= most or not _SHA256.fullmatch(self.sha256):
            raise BackupError("the backup holds what no backup of a broker holds")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup says of itself."""

    trust_domain: str
    # Unix seconds.
    made_at: int
    firedoor: str
    # "sqlite": the database is in it. "postgresql": its own tools keep that.
    database: str
    # Where keys were: "disk", and they are in it, or elsewhere.
    key_manager: str
    # The state that the database was in; empty without the database.
    generation: str
    members: tuple[Member, ...]

    def to_bytes(self) -> bytes:
        """Write it with its length before it."""
        text = json.dumps({"format": FORMAT, **asdict(self)}).encode()
        return len(text).to_bytes(_LENGTH_BYTES, "big") + text

    @property
    def keys(self) -> int:
        """How many keys there are."""
        return sum(member.is_key for member in self.members)

    @property
    def has_database(self) -> bool:
        """Whether the database is among the members."""
        return any(member.name == DATABASE for member in self.members)


def read_manifest(read: Callable[[int], bytes]) -> Manifest:
    """Read the manifest from what reads exactly so many bytes. Raise BackupError."""
    length = int.from_bytes(read(_LENGTH_BYTES), "big")
    if not 0 < length <= _MAX_MANIFEST:
        raise BackupError("the backup's manifest is damaged")
    try:
        found = json.loads(read(length), object_pairs_hook=unique_members, parse_constant=refuse_constant)
        if type(found["format"]) is int and found["format"] > FORMAT:
            raise BackupError("the backup was made by a newer firedoor; restore it with that one")
        manifest = _manifest(found)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BackupError("the backup's manifest is damaged") from None
    names = [member.name for member in manifest.members]
    if len(names) > _MAX_MEMBERS or len(set(names)) != len(names):
        raise BackupError("the backup holds what no backup of a broker holds")
    for member in manifest.members:
        member.check()
    if manifest.has_database != (manifest.database == "sqlite"):
        raise BackupError("the backup holds what no backup of a broker holds")
    return manifest


def _manifest(found: Any) -> Manifest:
    names = {"format", *Manifest.__slots__}
    if set(found) != names or found["format"] != FORMAT or found["database"] not in ("sqlite", "postgresql"):
        raise ValueError("manifest")
    texts = {name: _text(found[name]) for name in names - {"format", "made_at", "members"}}
    members = tuple(Member(_text(one["name"]), _whole(one["size"]), _text(one["sha256"])) for one in found["members"])
    return Manifest(made_at=_whole(found["made_at"]), members=members, **texts)


def _text(value: object) -> str:
    # It is shown to people: nothing that a terminal would take for a command.
    if not isinstance(value, str) or len(value) > 255 or not value.isprintable():
        raise ValueError("text")
    return value


def _whole(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**53:
        raise ValueError("number")
    return value
