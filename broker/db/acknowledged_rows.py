# SPDX-License-Identifier: Apache-2.0
"""The generations that sidecars acknowledged, shared between brokers. Jobs for `SharedDatabase`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sqlalchemy import Connection, select, text

from firedoor.broker.db.rows import Generation
from firedoor.broker.db.schema import acknowledged

# An agent that was evicted meanwhile has no row. A sidecar never goes back, so that the latest news count.
_PUT: Final = text(
    "INSERT INTO acknowledged (agent_id, epoch, number) SELECT id, :epoch, :number FROM agents WHERE id = :agent_id "
    "ON CONFLICT (agent_id) DO UPDATE SET epoch = excluded.epoch, number = excluded.number "
    "WHERE (acknowledged.epoch, acknowledged.number) < (excluded.epoch, excluded.number)"
)


def put_acknowledged(connection: Connection, made: Mapping[str, Generation]) -> None:
    """Write down what agents acknowledged."""
    rows = [{"agent_id": agent_id, "epoch": one.epoch, "number": one.number} for agent_id, one in made.items()]
    if rows:
        connection.execute(_PUT, rows)


def load_acknowledged(connection: Connection) -> dict[str, Generation]:
    """Return what agents acknowledged, at any broker."""
    return {row.agent_id: Generation(row.epoch, row.number) for row in connection.execute(select(acknowledged))}
