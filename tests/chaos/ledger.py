# SPDX-License-Identifier: Apache-2.0
"""Has the database itself write down, in the transaction that commits it, what stood there at each signature.

Triggers that wait for the commit see what the commit leaves. A broker cannot forget to tell, tell it late, or tell what
it believes instead.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import psycopg
import yaml

from tests.chaos.observed import Entry, InForce, Journal, Revoked, Segment, Signed
from tests.postgres import Server

_DOCUMENTS = "(SELECT coalesce(jsonb_agg(text ORDER BY position), '[]') FROM public.policy_documents)"
_TABLES = f"""
CREATE SCHEMA ledger;
CREATE TABLE ledger.lines (number bigserial PRIMARY KEY, kind text NOT NULL, body jsonb NOT NULL);

CREATE FUNCTION ledger.signed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO ledger.lines (kind, body) SELECT 'signed', jsonb_build_object(
        'row', to_jsonb(NEW),
        'entries', (SELECT coalesce(jsonb_agg(jsonb_build_object(
            'id', e.id, 'spiffe_id', e.spiffe_id, 'parent_id', e.parent_id, 'selectors',
            (SELECT coalesce(jsonb_agg(s.type || ':' || s.value), '[]')
                FROM public.entry_selectors s WHERE s.entry_id = e.id))), '[]') FROM public.entries e),
        'agent', (SELECT NOT a.banned FROM public.agents a WHERE a.id = NEW.agent_id),
        'attested', (SELECT coalesce(jsonb_agg(s.type || ':' || s.value), '[]')
            FROM public.agent_selectors s WHERE s.agent_id = NEW.agent_id),
        'granted', (SELECT g.requester FROM public.grants g WHERE g.serial = NEW.serial AND g.approver <> ''
            AND g.approver <> g.requester),
        'documents', {_DOCUMENTS});
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER ledger_signed AFTER INSERT ON public.issued
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION ledger.signed();

CREATE FUNCTION ledger.reached() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO ledger.lines (kind, body) SELECT 'reached', jsonb_build_object(
        'epoch', NEW.epoch, 'number', NEW.number, 'documents', {_DOCUMENTS},
        'revoked', (SELECT coalesce(jsonb_agg(to_jsonb(r)), '[]') FROM public.revocations r));
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER ledger_reached AFTER INSERT OR UPDATE ON public.generation
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION ledger.reached();
UPDATE public.generation SET number = number + 1;
"""


class Ledger:
    """The lines of one database."""

    def __init__(self, server: Server, database: str, trust_domain: str) -> None:
        self._server, self._database, self._trust_domain = server, database, trust_domain
        self._read = 0

    def _connect(self) -> psycopg.Connection[Any]:
        return self._server.admin(self._database)

    def begin(self) -> None:
        """Make the triggers, in a database that a broker has made its tables in."""
        with self._connect() as connection, connection.transaction():
            connection.execute(_TABLES)

    def read_into(self, journal: Journal) -> None:
        """Add what came since the last time."""
        with self._connect() as connection:
            asked = "SELECT number, kind, body FROM ledger.lines WHERE number > %s ORDER BY number"
            for number, kind, body in connection.execute(asked, (self._read,)).fetchall():
                self._read = number
                if kind == "signed":
                    journal.signed.append(self._signed(body))
                else:
                    journal.in_force.append(self._reached(body))

    def _signed(self, body: dict[str, Any]) -> Signed:
        row = body["row"]
        entries = tuple(
            Entry(one["id"], one["spiffe_id"], one["parent_id"], frozenset(one["selectors"])) for one in body["entries"]
        )
        return Signed(
            **{name: row[name] for name in ("serial", "spiffe_id", "entry_id", "agent_id", "authority_id")},
            issued_at=row["issued_at"],
            entries=entries,
            agent=bool(body["agent"]),
            attested=frozenset(body["attested"]),
            granted=body["granted"] or "",
            segments=self._segments(body["documents"]),
        )

    def _reached(self, body: dict[str, Any]) -> InForce:
        found = ((one["kind"], self._own(one["value"]), one["issued_before"]) for one in body["revoked"])
        return InForce(
            (body["epoch"], body["number"]),
            self._segments(body["documents"]),
            frozenset(Revoked(*one) for one in found),
        )

    def _segments(self, documents: Iterable[str]) -> tuple[Segment, ...]:
        return read_segments(tuple(documents), self._trust_domain)

    def _own(self, pattern: str) -> str:
        return pattern.replace("{td}", self._trust_domain)


@functools.cache
def read_segments(documents: tuple[str, ...], trust_domain: str) -> tuple[Segment, ...]:
    """Read the segments of a policy, by a second reader."""
    found = (one for text in documents for one in yaml.safe_load_all(text) if one and one["kind"] == "Segment")
    return tuple(
        Segment(
            one["metadata"]["name"],
            tuple(pattern.replace("{td}", trust_domain) for pattern in one["spec"].get("members", ())),
            frozenset(one["spec"]["admission"].get("entry", ())),
            frozenset(one["spec"]["admission"].get("node", ())),
            bool(one["spec"]["admission"].get("breakglass")),
        )
        for one in found
    )
