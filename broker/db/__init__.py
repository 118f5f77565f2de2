# SPDX-License-Identifier: Apache-2.0
"""The broker's database: its tables, its migrations, and one writer that groups commits."""

from __future__ import annotations

from pathlib import Path

from firedoor.broker.db.engine import Basis, Database
from firedoor.broker.db.postgres import is_postgres
from firedoor.broker.db.schema import (
    METADATA,
    agent_selectors,
    agents,
    authorities,
    bundles,
    entries,
    entry_dns_names,
    entry_federates,
    entry_selectors,
    generation,
    issued,
    join_tokens,
    policy_documents,
    revocations,
)
from firedoor.broker.db.shared import SharedDatabase


def open_database(url: str, password_file: Path | None = None, broker_id: str = "") -> Database:
    """Open what a URL names; several brokers may share PostgreSQL. Raise DatabaseError, StorageError or ConfigError."""
    return SharedDatabase(url, password_file, broker_id) if is_postgres(url) else Database(url)


__all__ = [
    "METADATA",
    "Basis",
    "Database",
    "SharedDatabase",
    "agent_selectors",
    "agents",
    "authorities",
    "bundles",
    "entries",
    "entry_dns_names",
    "entry_federates",
    "entry_selectors",
    "generation",
    "issued",
    "join_tokens",
    "open_database",
    "policy_documents",
    "revocations",
]
