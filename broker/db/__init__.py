# SPDX-License-Identifier: Apache-2.0
"""The broker's database: its tables, its migrations, and one writer that groups commits."""

from firedoor.broker.db.engine import Database
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

__all__ = [
    "METADATA",
    "Database",
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
    "policy_documents",
    "revocations",
]
