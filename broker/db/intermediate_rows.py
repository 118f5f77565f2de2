# SPDX-License-Identifier: Apache-2.0
"""The CAs that authorities below us were given, and the keys that they published: jobs for `Database`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select

from firedoor.broker.db.schema import downstream_keys, intermediates, issued


@dataclass(frozen=True, slots=True)
class Intermediate:
    """One CA. Hex is lower-case; times are Unix seconds."""

    serial: str
    # SHA-256 over the subjectPublicKeyInfo.
    key_sha256: str
    # Empty for a CA of our own, below an authority upstream.
    entry_id: str
    # Which authority signed it.
    authority_id: str
    issued_at: int
    not_after: int


@dataclass(frozen=True, slots=True)
class DownstreamKey:
    """One key for tokens, of the kind "jwt" or "wit". The key itself is in our bundle."""

    key_id: str
    kind: str
    entry_id: str
    agent_id: str
    published_at: int


@dataclass(frozen=True, slots=True)
class Holder:
    """Through which entry and agent a certificate was issued."""

    entry_id: str
    agent_id: str


def load_intermediates(connection: Connection) -> dict[str, Intermediate]:
    """Return all, by serial number."""
    columns = [intermediates.c[name] for name in Intermediate.__slots__]
    return {row.serial: Intermediate(*row) for row in connection.execute(select(*columns))}


def insert_intermediate(connection: Connection, made: Intermediate, dropped: Sequence[str]) -> None:
    """Add one, and delete those with the serial numbers given."""
    connection.execute(insert(intermediates), {name: getattr(made, name) for name in Intermediate.__slots__})
    connection.execute(delete(intermediates).where(intermediates.c.serial.in_(dropped)))


def prune_intermediates(connection: Connection, now: int) -> None:
    """Delete what has expired."""
    connection.execute(delete(intermediates).where(intermediates.c.not_after <= now))


def load_downstream_keys(connection: Connection) -> dict[str, DownstreamKey]:
    """Return all, by key ID."""
    columns = [downstream_keys.c[name] for name in DownstreamKey.__slots__]
    return {row.key_id: DownstreamKey(*row) for row in connection.execute(select(*columns))}


def insert_downstream_key(connection: Connection, made: DownstreamKey) -> None:
    """Add one."""
    connection.execute(insert(downstream_keys), {name: getattr(made, name) for name in DownstreamKey.__slots__})


def delete_downstream_keys(connection: Connection, key_ids: Collection[str]) -> None:
    """Delete those with these IDs."""
    connection.execute(delete(downstream_keys).where(downstream_keys.c.key_id.in_(key_ids)))


def holder_of(connection: Connection, serial: str) -> Holder | None:
    """Say through what a certificate was issued that lives and has not been pruned."""
    found = connection.execute(select(issued.c.entry_id, issued.c.agent_id).where(issued.c.serial == serial))
    row = found.one_or_none()
    return Holder(row.entry_id, row.agent_id) if row is not None else None
