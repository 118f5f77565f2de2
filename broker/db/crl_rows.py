# SPDX-License-Identifier: Apache-2.0
"""The revocation lists of all brokers' authorities, and what is to stand in them: jobs for `Database`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from sqlalchemy import ColumnElement, Connection, delete, insert, select

from firedoor.broker.db.rows import Revoked
from firedoor.broker.db.schema import crls, issued, revocations
from firedoor.certs import Crl, CrlError, IdPattern, SpiffeId, TrustDomain, read_crl, split_der

# IDs that one query names; SQLite's older versions take 999 values.
_IDS: Final = 500


@dataclass(frozen=True)
class SignedCrl:
    """A list as it is stored. `signers`: the authority's certificate and those between it and its root."""

    authority_id: str
    # The subject key ID of the root that vouches for the authority; its own when it is a root.
    anchor_id: str
    der: bytes
    signers: tuple[bytes, ...]
    next_update: int
    # How many it should have and has not: there are too many.
    left_out: int

    @cached_property
    def crl(self) -> Crl | None:
        """What it says; None when it cannot be read."""
        try:
            return read_crl(self.der)
        except CrlError:
            return None

    @cached_property
    def listed(self) -> dict[str, int]:
        """The serial numbers in it, with the time of each revocation. Large lists take milliseconds."""
        try:
            return self.crl.revoked() if self.crl else {}
        except CrlError:
            return {}


@dataclass(frozen=True, slots=True)
class Ended:
    """A certificate that was issued, has not expired and is revoked."""

    serial: str
    authority_id: str
    not_after: int


_ENDED: Final = (issued.c.serial, issued.c.authority_id, issued.c.not_after)


def load_crls(connection: Connection) -> dict[str, SignedCrl]:
    """Return all lists, by the authority's ID."""
    return {
        row.authority_id: SignedCrl(
            row.authority_id, row.anchor_id, row.crl, tuple(split_der(row.signers)), row.next_update, row.left_out
        )
        for row in connection.execute(select(crls))
    }


def put_crls(connection: Connection, made: Iterable[SignedCrl]) -> None:
    """Write lists in place of those before."""
    for one in made:
        connection.execute(delete(crls).where(crls.c.authority_id == one.authority_id))
        values = {
            "authority_id": one.authority_id,
            "anchor_id": one.anchor_id,
            "crl": one.der,
            "signers": b"".join(one.signers),
            "next_update": one.next_update,
            "left_out": one.left_out,
        }
        connection.execute(insert(crls), values)


def prune_crls(connection: Connection, now: int) -> None:
    """Delete the lists that nobody replaced in time: their authorities are gone, or their brokers."""
    connection.execute(delete(crls).where(crls.c.next_update <= now))


def ended_by_serial(connection: Connection, now: int) -> list[Ended]:
    """Return what is revoked by its serial number."""
    joined = (revocations.c.kind == "serial") & (revocations.c.value == issued.c.serial)
    found = connection.execute(select(*_ENDED).join(revocations, joined).where(issued.c.not_after > now))
    return [Ended(*row) for row in found]


def ended_by_pattern(connection: Connection, one: Revoked, trust_domain: TrustDomain, now: int) -> list[Ended]:
    """Return what a pattern ends."""
    pattern = IdPattern.parse(one.value, trust_domain, allow_reserved=True)
    before = (issued.c.issued_at < one.issued_before) & (issued.c.not_after > now)
    # What stands before the first wildcard; few IDs are left to be looked at one by one.
    literal = one.value.partition("*")[0]
    near = select(issued.c.spiffe_id).distinct().where(before & issued.c.spiffe_id.startswith(literal, autoescape=True))
    ids = [found for found in connection.scalars(near) if pattern.matches(SpiffeId.parse(found))]
    ended: list[Ended] = []
    for start in range(0, len(ids), _IDS):
        named: ColumnElement[bool] = issued.c.spiffe_id.in_(ids[start : start + _IDS])
        ended += [Ended(*row) for row in connection.execute(select(*_ENDED).where(before & named))]
    return ended
