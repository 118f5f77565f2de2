# SPDX-License-Identifier: Apache-2.0
"""Federation relationships in the database: jobs for `Database`."""

from __future__ import annotations

from sqlalchemy import Connection, delete, insert, select, update

from firedoor.broker.db.schema import federation_relationships as table
from firedoor.broker.errors import AlreadyExists, NotFound
from firedoor.broker.relationship import Relationship
from firedoor.certs import SpiffeId, TrustDomain


def load_relationships(connection: Connection) -> dict[TrustDomain, Relationship]:
    """Return all relationships."""
    found = {}
    for row in connection.execute(select(table)):
        trust_domain = TrustDomain.parse(row.trust_domain)
        endpoint_id = SpiffeId.parse(row.endpoint_id) if row.endpoint_id else None
        found[trust_domain] = Relationship(trust_domain, row.url, endpoint_id, origin=row.origin)
    return found


def insert_relationship(connection: Connection, one: Relationship) -> None:
    """Add a relationship. Raise AlreadyExists."""
    known = select(table.c.trust_domain).where(table.c.trust_domain == one.trust_domain.name)
    if connection.scalar(known) is not None:
        raise AlreadyExists("federation relationship already exists")
    connection.execute(insert(table).values(trust_domain=one.trust_domain.name, **_values(one)))


def update_relationship(connection: Connection, one: Relationship) -> None:
    """Replace a relationship. Raise NotFound."""
    statement = update(table).where(table.c.trust_domain == one.trust_domain.name).values(_values(one))
    if connection.execute(statement).rowcount != 1:
        raise NotFound("federation relationship not found")


def delete_relationship(connection: Connection, trust_domain: TrustDomain) -> None:
    """Delete a relationship; the bundle stays. Raise NotFound."""
    if connection.execute(delete(table).where(table.c.trust_domain == trust_domain.name)).rowcount != 1:
        raise NotFound("federation relationship not found")


def _values(one: Relationship) -> dict[str, str]:
    return {"url": one.url, "endpoint_id": str(one.endpoint_id or ""), "origin": one.origin}
