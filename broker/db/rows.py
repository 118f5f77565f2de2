# SPDX-License-Identifier: Apache-2.0
"""The smaller tables: generation, bundles, authorities, what was issued, revocations, policy. Jobs for `Database`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import quote

from sqlalchemy import Connection, delete, func, insert, select, update

from firedoor.broker.db.schema import authorities, bundles, generation, issued, policy_documents, revocations
from firedoor.broker.errors import Conflict, NotFound
from firedoor.certs import JwtKey, TrustBundle, TrustDomain, X509Root
from firedoor.segments import Document


@dataclass(frozen=True, order=True, slots=True)
class Generation:
    """A state of everything that the broker publishes. A restore from a backup starts a new epoch."""

    epoch: int
    number: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.number}"


def load_generation(connection: Connection, now: int) -> Generation:
    """Return the present generation; a new database begins an epoch that no older one can have had."""
    row = connection.execute(select(generation.c.epoch, generation.c.number)).one_or_none()
    if row is None:
        connection.execute(insert(generation).values(id=1, epoch=now, number=1))
        return Generation(now, 1)
    return Generation(row.epoch, row.number)


def present_generation(connection: Connection) -> Generation:
    """Return the present generation of a database that has one."""
    row = connection.execute(select(generation.c.epoch, generation.c.number)).one()
    return Generation(row.epoch, row.number)


def bump(connection: Connection) -> Generation:
    """Go to the next generation, in the transaction of the change that it stands for."""
    statement = update(generation).values(number=generation.c.number + 1)
    row = connection.execute(statement.returning(generation.c.epoch, generation.c.number)).one()
    return Generation(row.epoch, row.number)


def begin_epoch(connection: Connection, now: int) -> Generation:
    """Start a later epoch than any before, at the next number."""
    row = present_generation(connection)
    begun = Generation(max(row.epoch + 1, now), row.number + 1)
    connection.execute(update(generation).values(epoch=begun.epoch, number=begun.number))
    return begun


# --- bundles ----------------------------------------------------------------------------------------------------


def load_bundles(connection: Connection) -> dict[TrustDomain, TrustBundle]:
    """Return all bundles, our own among them."""
    found: dict[TrustDomain, TrustBundle] = {}
    for row in connection.execute(select(bundles)):
        trust_domain = TrustDomain.parse(row.trust_domain)
        found[trust_domain] = _tainted(TrustBundle.parse(trust_domain, row.jwks), set(row.tainted.split()))
    return found


def _tainted(bundle: TrustBundle, tainted: set[str]) -> TrustBundle:
    roots = tuple(X509Root(root.der, root.authority_id in tainted) for root in bundle.x509_roots)
    jwt_keys, wit_keys = (
        tuple(replace(key, tainted=_key_name(key) in tainted) for key in keys)
        for keys in (bundle.jwt_keys, bundle.wit_keys)
    )
    return replace(bundle, x509_roots=roots, jwt_keys=jwt_keys, wit_keys=wit_keys)


def _key_name(key: JwtKey) -> str:
    return "key:" + quote(key.key_id, safe="")


def put_bundle(connection: Connection, bundle: TrustBundle) -> None:
    """Write a bundle in place of the one before."""
    name = bundle.trust_domain.name
    tainted = [root.authority_id for root in bundle.x509_roots if root.tainted]
    tainted += [_key_name(key) for key in (*bundle.jwt_keys, *bundle.wit_keys) if key.tainted]
    values = {"jwks": bundle.to_json(), "tainted": " ".join(tainted)}
    if connection.execute(update(bundles).where(bundles.c.trust_domain == name).values(values)).rowcount == 0:
        connection.execute(insert(bundles).values(trust_domain=name, **values))


def delete_bundle(connection: Connection, trust_domain: TrustDomain) -> None:
    """Delete a bundle that no entry federates with. Raise NotFound."""
    if connection.execute(delete(bundles).where(bundles.c.trust_domain == trust_domain.name)).rowcount != 1:
        raise NotFound("bundle not found")


# --- authorities ------------------------------------------------------------------------------------------------


def load_journal(connection: Connection, kind: str, broker_id: str = "") -> bytes | None:
    """Return the journal of one kind of authority of a broker."""
    where = (authorities.c.broker_id == broker_id) & (authorities.c.kind == kind)
    found: bytes | None = connection.scalar(select(authorities.c.journal).where(where))
    return found


def put_journal(connection: Connection, kind: str, journal: bytes, broker_id: str = "") -> None:
    """Write the journal of one kind of authority of a broker."""
    where = (authorities.c.broker_id == broker_id) & (authorities.c.kind == kind)
    if connection.execute(update(authorities).where(where).values(journal=journal)).rowcount == 0:
        connection.execute(insert(authorities).values(broker_id=broker_id, kind=kind, journal=journal))


# --- what was issued --------------------------------------------------------------------------------------------

# For `Database.append`: writes down what is about to be handed out.
INSERT_ISSUED: Final = insert(issued)


def insert_issued(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Do the same in the transaction of a job."""
    connection.execute(INSERT_ISSUED, rows)


@dataclass(frozen=True, slots=True)
class Live:
    """A certificate that was issued and has not expired. `entry_id` is empty unless it was issued through an entry."""

    spiffe_id: str
    entry_id: str
    agent_id: str
    not_after: int
    # How many there are of the four above, the longest-lived of them standing for all.
    count: int = 1


def issued_before(connection: Connection, before: int, now: int) -> list[Live]:
    """Return what lives and was issued before a time."""
    columns = (issued.c.spiffe_id, issued.c.entry_id, issued.c.agent_id, func.max(issued.c.not_after), func.count())
    where = (issued.c.issued_at < before) & (issued.c.not_after > now)
    return [Live(*row) for row in connection.execute(select(*columns).where(where).group_by(*columns[:3]))]


def issued_by_serial(connection: Connection, serial: str, now: int) -> Live | None:
    """Return the certificate that lives with this serial number."""
    columns = (issued.c.spiffe_id, issued.c.entry_id, issued.c.agent_id, issued.c.not_after)
    row = connection.execute(select(*columns).where((issued.c.serial == serial) & (issued.c.not_after > now)))
    found = row.one_or_none()
    return Live(*found) if found else None


@dataclass(frozen=True, slots=True)
class Issued:
    """One certificate that was issued, and through what."""

    serial: str
    spiffe_id: str
    entry_id: str
    agent_id: str
    not_after: int


def issued_after(connection: Connection, since: int) -> list[Issued]:
    """Return what was issued at a time or later."""
    columns = [issued.c[name] for name in Issued.__slots__]
    return [Issued(*row) for row in connection.execute(select(*columns).where(issued.c.issued_at >= since))]


def issued_since(connection: Connection, since: int) -> set[tuple[str, str]]:
    """Return (agent ID, entry ID) of what was issued at a time or later."""
    found = connection.execute(select(issued.c.agent_id, issued.c.entry_id).where(issued.c.issued_at >= since))
    return {(row.agent_id, row.entry_id) for row in found}


def prune(connection: Connection, now: int) -> None:
    """Delete what was issued and has expired, and revocations that nothing valid can match any more."""
    connection.execute(delete(issued).where(issued.c.not_after <= now))
    connection.execute(delete(revocations).where(revocations.c.expires_at <= now))


# --- revocations ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Revoked:
    """One revocation. `kind` is "serial", "authority" or "pattern"; `issued_before` counts for a pattern only."""

    kind: str
    value: str
    issued_before: int
    reason: str
    expires_at: int


def load_revocations(connection: Connection) -> dict[tuple[str, str], Revoked]:
    """Return all revocations."""
    columns = revocations.c
    found = connection.execute(
        select(columns.kind, columns.value, columns.issued_before, columns.reason, columns.expires_at)
    )
    return {(row.kind, row.value): Revoked(*row) for row in found}


def latest_issued_before(connection: Connection) -> int:
    """Return the latest time before which something that was issued is revoked, 0 when nothing is."""
    return connection.scalar(select(func.max(revocations.c.issued_before))) or 0


def revoke_issued(connection: Connection, column: str, value: str, reason: str, now: int) -> list[Revoked]:
    """Revoke by serial every workload SVID that lives and was issued through an agent or entry; return what is new.

    Not the agent's own: at our front it must still get as far as the refusal that tells it what to do (SPIRE's agents
    too end at AGENT_BANNED), and no segment takes it.
    """
    known = select(revocations.c.value).where(revocations.c.kind == "serial")
    where = (issued.c[column] == value) & (issued.c.not_after > now) & issued.c.serial.not_in(known)
    where &= issued.c.entry_id != ""
    found = connection.execute(select(issued.c.serial, issued.c.not_after).where(where))
    made = [Revoked("serial", row.serial, 0, reason, row.not_after) for row in found]
    if made:
        names = Revoked.__slots__
        connection.execute(insert(revocations), [{name: getattr(one, name) for name in names} for one in made])
    return made


def put_revocations(connection: Connection, made: Sequence[Revoked]) -> list[Revoked]:
    """Write revocations; one of the same kind and value becomes the wider of both. Return them as they stand."""
    return [_put_revocation(connection, one) for one in made]


def _put_revocation(connection: Connection, one: Revoked) -> Revoked:
    columns = revocations.c
    where = (columns.kind == one.kind) & (columns.value == one.value)
    row = connection.execute(select(columns.issued_before, columns.expires_at).where(where)).one_or_none()
    if row is None:
        connection.execute(insert(revocations).values({name: getattr(one, name) for name in Revoked.__slots__}))
        return one
    wider = replace(
        one, issued_before=max(one.issued_before, row.issued_before), expires_at=max(one.expires_at, row.expires_at)
    )
    values = {"issued_before": wider.issued_before, "reason": wider.reason, "expires_at": wider.expires_at}
    connection.execute(update(revocations).where(where).values(values))
    return wider


# --- policy -----------------------------------------------------------------------------------------------------


def load_documents(connection: Connection) -> tuple[Document, ...]:
    """Return the policy's documents in their order."""
    found = connection.execute(select(policy_documents).order_by(policy_documents.c.position))
    return tuple(Document(row.name, row.text) for row in found)


def replace_documents(connection: Connection, documents: Sequence[Document], if_generation: Generation | None) -> None:
    """Write the policy anew. Raise Conflict when the generation in force is another than the one given."""
    if if_generation is not None:
        present = present_generation(connection)
        if present != if_generation:
            raise Conflict(f"the generation in force is {present}; look at the difference and try again")
    connection.execute(delete(policy_documents))
    if documents:
        rows = [{"position": i, "name": d.name, "text": d.text} for i, d in enumerate(documents)]
        connection.execute(insert(policy_documents), rows)
