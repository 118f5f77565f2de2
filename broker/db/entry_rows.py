# SPDX-License-Identifier: Apache-2.0
"""Entries in the database: jobs for `Database`, each on a connection inside a transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, delete, insert, select, true, update
from sqlalchemy.exc import IntegrityError

from firedoor.broker.db.schema import (
    bundles,
    entries,
    entry_dns_names,
    entry_federates,
    entry_segments,
    entry_selectors,
)
from firedoor.broker.entry import Attributes, Entry
from firedoor.broker.errors import AlreadyExists, InvalidRequest, NotFound
from firedoor.certs import Selector, SpiffeId, TrustDomain

_PARTS = (entry_selectors, entry_dns_names, entry_federates, entry_segments)


def load_entries(connection: Connection, ids: Collection[str] | None = None) -> list[Entry]:
    """Return all entries, or those of these IDs that are there."""

    def wanted(column: ColumnElement[str]) -> ColumnElement[bool]:
        return true() if ids is None else column.in_(ids)

    selectors: dict[str, list[Selector]] = defaultdict(list)
    for row in connection.execute(select(entry_selectors).where(wanted(entry_selectors.c.entry_id))):
        selectors[row.entry_id].append(Selector.of(row.type, row.value))
    names: dict[str, list[str]] = defaultdict(list)
    of_names = select(entry_dns_names).where(wanted(entry_dns_names.c.entry_id))
    for row in connection.execute(of_names.order_by(entry_dns_names.c.position)):
        names[row.entry_id].append(row.name)
    federates: dict[str, list[TrustDomain]] = defaultdict(list)
    of_federates = select(entry_federates).where(wanted(entry_federates.c.entry_id))
    for row in connection.execute(of_federates.order_by(entry_federates.c.trust_domain)):
        federates[row.entry_id].append(TrustDomain.parse(row.trust_domain))
    segments: dict[str, list[str]] = defaultdict(list)
    of_segments = select(entry_segments).where(wanted(entry_segments.c.entry_id))
    for row in connection.execute(of_segments.order_by(entry_segments.c.segment)):
        segments[row.entry_id].append(row.segment)
    return [
        replace(_entry(row, selectors[row.id], names[row.id], federates[row.id]), segments=tuple(segments[row.id]))
        for row in connection.execute(select(entries).where(wanted(entries.c.id)))
    ]


def insert_entry(connection: Connection, entry: Entry) -> None:
    """Add an entry. Raise AlreadyExists or InvalidRequest."""
    _check_bundles(connection, entry)
    if connection.scalar(select(entries.c.id).where(entries.c.id == entry.id)) is not None:
        raise AlreadyExists("entry ID already exists")
    try:
        with connection.begin_nested():
            connection.execute(insert(entries).values(_row(entry)))
    except IntegrityError:
        raise AlreadyExists("similar entry already exists") from None
    _insert_parts(connection, entry)


def insert_entries(connection: Connection, made: Sequence[Entry]) -> dict[str, str]:
    """Add entries, many by one statement; return the IDs of those that are not added, each with a sentence."""
    ids, like = [one.id for one in made], [one.similarity for one in made]
    known = set(connection.scalars(select(entries.c.id).where(entries.c.id.in_(ids))))
    similar = set(connection.scalars(select(entries.c.similarity).where(entries.c.similarity.in_(like))))
    held = set(connection.scalars(select(bundles.c.trust_domain)))
    refused: dict[str, str] = {}
    for one in made:
        if one.id in known or one.similarity in similar:
            refused[one.id] = "an entry with this ID, parent and selectors is there already, made by hand"
        elif missing := [td.id for td in one.federates_with if td.name not in held]:
            refused[one.id] = _no_bundle(missing[0])
    if fresh := [one for one in made if one.id not in refused]:
        connection.execute(insert(entries), [_row(one) for one in fresh])
        _insert_parts(connection, *fresh)
    return refused


def update_entry(connection: Connection, entry: Entry) -> None:
    """Replace an entry whose revision is one below the given one. Raise NotFound when it is not."""
    _check_bundles(connection, entry)
    where = (entries.c.id == entry.id) & (entries.c.revision_number == entry.revision_number - 1)
    try:
        with connection.begin_nested():
            found = connection.execute(update(entries).where(where).values(_row(entry))).rowcount
    except IntegrityError:
        raise AlreadyExists("similar entry already exists") from None
    if found != 1:
        raise NotFound("entry not found")
    for table in _PARTS:
        connection.execute(delete(table).where(table.c.entry_id == entry.id))
    _insert_parts(connection, entry)


def update_entries(connection: Connection, changed: Sequence[Entry]) -> dict[str, str]:
    """Replace entries, many by one statement; return the IDs of those that are not replaced, each with a sentence.

    Each keeps its SPIFFE ID, parent and selectors, and its revision is one below the given one.
    """
    ids = [one.id for one in changed]
    columns = (entries.c.id, entries.c.similarity, entries.c.revision_number)
    found = connection.execute(select(*columns).where(entries.c.id.in_(ids)).with_for_update())
    known = {row.id: (row.similarity, row.revision_number) for row in found}
    held = set(connection.scalars(select(bundles.c.trust_domain)))
    refused: dict[str, str] = {}
    for one in changed:
        if known.get(one.id) != (one.similarity, one.revision_number - 1):
            refused[one.id] = "the entry was changed meanwhile"
        elif missing := [td.id for td in one.federates_with if td.name not in held]:
            refused[one.id] = _no_bundle(missing[0])
    if due := [one for one in changed if one.id not in refused]:
        rows = [{**_row(one), "which": one.id} for one in due]
        connection.execute(update(entries).where(entries.c.id == bindparam("which")), rows)
        for table in _PARTS:
            connection.execute(delete(table).where(table.c.entry_id.in_([one.id for one in due])))
        _insert_parts(connection, *due)
    return refused


def next_revision(connection: Connection, entry_ids: Iterable[str]) -> list[str]:
    """Give entries a new revision without another change; return the IDs of those that are there."""
    statement = update(entries).values(revision_number=entries.c.revision_number + 1).returning(entries.c.id)
    found = (connection.scalar(statement.where(entries.c.id == entry_id)) for entry_id in entry_ids)
    return [entry_id for entry_id in found if entry_id is not None]


def delete_entry(connection: Connection, entry_id: str) -> None:
    """Delete an entry. Raise NotFound."""
    if connection.execute(delete(entries).where(entries.c.id == entry_id)).rowcount != 1:
        raise NotFound("entry not found")


def delete_entries(connection: Connection, entry_ids: Sequence[str]) -> None:
    """Delete entries, those of them that are there."""
    connection.execute(delete(entries).where(entries.c.id.in_(entry_ids)))


def delete_expired_entries(connection: Connection, now: int) -> list[str]:
    """Delete the entries that are past their end and return their IDs."""
    where = (entries.c.expires_at > 0) & (entries.c.expires_at <= now)
    return list(connection.scalars(delete(entries).where(where).returning(entries.c.id)))


def _check_bundles(connection: Connection, entry: Entry) -> None:
    for trust_domain in entry.federates_with:
        where = bundles.c.trust_domain == trust_domain.name
        if connection.scalar(select(bundles.c.trust_domain).where(where)) is None:
            raise InvalidRequest(_no_bundle(trust_domain.id))


def _no_bundle(trust_domain_id: SpiffeId) -> str:
    return f'unable to find federated bundle "{trust_domain_id}"'


def _insert_parts(connection: Connection, *made: Entry) -> None:
    rows: Iterable[tuple[Any, Callable[[Entry], list[dict[str, Any]]]]] = (
        (entry_selectors, lambda one: [{"type": s.type, "value": s.value} for s in sorted(one.selectors)]),
        (entry_dns_names, lambda one: [{"position": i, "name": name} for i, name in enumerate(one.dns_names)]),
        (entry_federates, lambda one: [{"trust_domain": td.name} for td in one.federates_with]),
        (entry_segments, lambda one: [{"segment": name} for name in one.segments]),
    )
    for table, parts in rows:
        if values := [{"entry_id": one.id, **part} for one in made for part in parts(one)]:
            connection.execute(insert(table), values)


def _row(entry: Entry) -> dict[str, Any]:
    attributes = entry.attributes or Attributes()
    return {
        "id": entry.id,
        "similarity": entry.similarity,
        "spiffe_id": str(entry.spiffe_id),
        "parent_id": str(entry.parent_id),
        "x509_svid_ttl": entry.x509_svid_ttl,
        "jwt_svid_ttl": entry.jwt_svid_ttl,
        "admin": entry.admin,
        "downstream": entry.downstream,
        "store_svid": entry.store_svid,
        "has_attributes": entry.attributes is not None,
        "disable_x509_svid_prefetch": attributes.disable_x509_svid_prefetch,
        "jwt_svid_include_jti": attributes.jwt_svid_include_jti,
        "hint": entry.hint,
        "expires_at": entry.expires_at,
        "revision_number": entry.revision_number,
        "created_at": entry.created_at,
        "origin": entry.origin,
    }


def _entry(row: Any, selectors: list[Selector], names: list[str], federates: list[TrustDomain]) -> Entry:
    return Entry(
        id=row.id,
        spiffe_id=SpiffeId.parse(row.spiffe_id),
        parent_id=SpiffeId.parse(row.parent_id),
        selectors=frozenset(selectors),
        x509_svid_ttl=row.x509_svid_ttl,
        jwt_svid_ttl=row.jwt_svid_ttl,
        federates_with=tuple(federates),
        dns_names=tuple(names),
        admin=row.admin,
        downstream=row.downstream,
        store_svid=row.store_svid,
        hint=row.hint,
        expires_at=row.expires_at,
        revision_number=row.revision_number,
        created_at=row.created_at,
        attributes=Attributes(row.disable_x509_svid_prefetch, row.jwt_svid_include_jti) if row.has_attributes else None,
        origin=row.origin,
    )
