# SPDX-License-Identifier: Apache-2.0
"""Keeps the bundles of the trust domains that we federate with: fetched when their refresh hint says so.

A bundle that was fetched takes the place of the one of the same trust domain, and of no other. While an endpoint does
not answer, what was last fetched stays.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection

from firedoor.broker.db.federation_rows import (
    delete_relationship,
    insert_relationship,
    load_relationships,
    update_relationship,
)
from firedoor.broker.db.rows import put_bundle
from firedoor.broker.errors import BrokerError, EndpointError, NotFound
from firedoor.broker.relationship import Relationship
from firedoor.certs import TrustBundle, TrustDomain

if TYPE_CHECKING:
    from firedoor.broker.audit import Audit
    from firedoor.broker.endpoints import Fetcher
    from firedoor.broker.state import State

_log = logging.getLogger("firedoor.broker.federation")
# SPIFFE_Trust_Domain_and_Bundle.md 4.1.2: five minutes where the bundle does not say.
_DEFAULT_HINT: Final = 300
# Nobody is asked more often than once a minute, nor less often than once a day.
_LEAST: Final = 60
_MOST: Final = 86400
# Everybody asks a little earlier than the hint says, and not all at once.
_JITTER: Final = 0.2


class Federation:
    """The relationships of one broker. `run` fetches until cancelled."""

    def __init__(self, state: State, fetcher: Fetcher, audit: Audit) -> None:
        self._state, self._fetcher, self._audit = state, fetcher, audit
        self.relationships: dict[TrustDomain, Relationship] = {}
        # When each is fetched next, on the monotonic clock.
        self._due: dict[TrustDomain, float] = {}
        self._changed = asyncio.Event()

    async def load(self) -> None:
        """Read the relationships from the database, at start."""
        self.relationships = await self._state.database.read(load_relationships)
        self._due = dict.fromkeys(self.relationships, 0.0)

    async def create(self, one: Relationship, bundle: TrustBundle | None) -> None:
        """Add a relationship, with the first bundle if there is one. Raise AlreadyExists."""
        await self._write(one, bundle, lambda connection: insert_relationship(connection, one))

    async def update(self, one: Relationship, bundle: TrustBundle | None) -> None:
        """Replace a relationship. Raise NotFound."""
        await self._write(one, bundle, lambda connection: update_relationship(connection, one))

    async def _write(self, one: Relationship, bundle: TrustBundle | None, write: Callable[[Connection], None]) -> None:
        def run(connection: Connection) -> None:
            write(connection)
            if bundle is not None:
                put_bundle(connection, bundle)

        def apply(_: None) -> None:
            self.relationships[one.trust_domain] = one
            self._due[one.trust_domain] = 0.0
            self._changed.set()
            if bundle is not None:
                self._state.put_bundle(bundle)

        await self._state.change(run, apply)

    async def delete(self, trust_domain: TrustDomain) -> None:
        """Forget a relationship; its bundle stays until it is deleted too. Raise NotFound."""

        def apply(_: None) -> None:
            self.relationships.pop(trust_domain, None)
            self._due.pop(trust_domain, None)

        await self._state.database.write(lambda connection: delete_relationship(connection, trust_domain), apply)

    async def refresh(self, trust_domain: TrustDomain) -> None:
        """Fetch a bundle now. Raise NotFound or EndpointError."""
        one = self.relationships.get(trust_domain)
        if one is None:
            raise NotFound(f'no relationship with trust domain "{trust_domain}"')
        fetched = await self._fetcher.fetch(one)
        # It may have been deleted, or pointed elsewhere, in the meantime.
        if self.relationships.get(trust_domain) != one:
            raise EndpointError("the relationship has changed meanwhile")
        before = self._state.bundles.get(trust_domain)
        if before is None or _content(before) != _content(fetched):
            await self._state.change(
                lambda connection: put_bundle(connection, fetched), lambda _: self._state.put_bundle(fetched)
            )
            self._audit.event("bundle_fetched", trust_domain=trust_domain.name, sequence=fetched.sequence)

    async def run(self) -> None:
        """Fetch each bundle when it is time, until cancelled."""
        while True:
            self._changed.clear()
            now = time.monotonic()
            due = [trust_domain for trust_domain, at in self._due.items() if at <= now]
            await asyncio.gather(*map(self._refresh_quietly, due))
            soonest = min(self._due.values(), default=now + _MOST)
            try:
                async with asyncio.timeout(max(0.0, soonest - time.monotonic())):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _refresh_quietly(self, trust_domain: TrustDomain) -> None:
        try:
            await self.refresh(trust_domain)
        except BrokerError as error:
            _log.warning("the bundle of %s is not refreshed: %s", trust_domain, error)
        if trust_domain in self.relationships:
            bundle = self._state.bundles.get(trust_domain)
            hint = (bundle.refresh_hint if bundle else 0) or _DEFAULT_HINT
            wait = min(max(hint, _LEAST), _MOST) * (1 - random.uniform(0, _JITTER))  # noqa: S311 - spreads load
            self._due[trust_domain] = time.monotonic() + wait


def _content(bundle: TrustBundle) -> bytes:
    """Return what makes a fetched bundle another one: taint is known here alone, and no bundle says it."""
    return bundle.to_json()
