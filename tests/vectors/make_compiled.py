# SPDX-License-Identifier: Apache-2.0
"""The decision tables that the policies in tests/vectors/policy/compiled compile to; written by `generate.py compiled`.

They are taken from the compiler, so a change of them is for a person to read: all brokers and sidecars know a policy by
these hashes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import json_format

from firedoor.certs import TrustDomain
from firedoor.segments import Document, compile_table, load, table_bytes, table_hash

FOLDER = Path(__file__).parent / "policy" / "compiled"
TRUST_DOMAIN = TrustDomain.parse("corp.example")


def compiled(source: Path) -> dict[str, Any]:
    """Return the table of one policy, its bytes in hex and their SHA-256."""
    table = compile_table(load([Document(source.name, source.read_text())], TRUST_DOMAIN))
    return {
        "sha256": str(table_hash(table)),
        "bytes": table_bytes(table).hex(),
        "table": json_format.MessageToDict(table),
    }


def all_compiled() -> dict[str, dict[str, Any]]:
    """Return them by the name of the file that holds them."""
    return {source.stem: compiled(source) for source in sorted(FOLDER.glob("*.yaml"))}
