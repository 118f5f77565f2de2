# SPDX-License-Identifier: Apache-2.0
"""Keeps the bundles of the trust domains that we federate with: fetched when their refresh hint says so.

A bundle that was fetched takes the place of the one of the same trust domain, and of no other. While an endpoint does
not answer, or serves what may not be taken (fetched.py), what was last fetched stays. Relationships come from the API
and from a file (relationship_file.py); what stands in the file cannot be changed by the API.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection

from firedoor.broker.db import Basis
from firedoor.broker.db.federation_rows import (
    delete_relationship,
    insert_relationship,
    load_relationships,
    update_relationship,
)
from firedoor.broker.db.rows import put_bundle
from firedoor.broker.db.settled import settled
from firedoor.broker.errors import BrokerError, Conflict, EndpointError, NotFound
from firedoor.broker.fetched import check_successor
from firedoor.broker.relationship import Relationship
from firedoor.certs import TrustBundle, TrustDomain

if TYPE_CHECKING:
    from firedoor.broker.audit import Audit
    from firedoor.broker.endpoints import Fetcher
    from firedoor.broker.metrics import Metrics
    from firedoor.broker.relationship_file import RelationshipFile
    from firedoor.broker.state import State

_log = logging.getLogger("firedoor.broker.federation")
# SPIFFE_Trust_Domain_and_Bundle.md 4.1.2: five minutes where the bundle does not say.
_DEFAULT_HINT: Final = 300
# Nobody is asked more often than once a minute, nor less often than once a day.
_LEAST: Final = 60
_MOST: Final = 86400
# Everybody asks a little earlier than the hint says, and not all at once.
_JITTER: Final = 0.2
# How often a broker that does not lead looks whether it does, in seconds.
_FOLLOW: Final = 2.0
# Fetches at once. One that hangs holds its place for half a minute.
_PARALLEL: Final = 8


@dataclass(slots=True)
class _Turn:
    """When a bundle is fetched next, on the monotonic clock, and how often in a row that came to nothing."""

    due: float = 0.0
    failures: int = 0
    running: bool = False


class Federation:
    """The relationships of one broker. `run` fetches until cancelled."""

    def __init__(
        self, state: State, fetcher: Fetcher, audit: Audit, metrics: Metrics, file: RelationshipFile | None = None
    ) -> None:
        self._state, self._fetcher, self._audit, self._metrics, self._file = state, fetcher, audit, metrics, file
        self._stored: dict[TrustDomain, Relationship] = {}
        self._declared: dict[TrustDomain, Relationship] = {}
        self._turns: dict[TrustDomain, _Turn] = {}
        self._changed = asyncio.Event()
        self._places = asyncio.Semaphore(_PARALLEL)
        state.database.watch("federation_relationships", lambda connection, _: self._follow(connection))

    def _follow(self, connection: Connection) -> Callable[[], None]:
        """Take the relationships as another broker left them."""
        found = load_relationships(connection)

        def apply() -> None:
            others = {td for td, one in found.items() if self._stored.get(td) not in (None, one)}
            self._stored = found
            self._plan(*others)

        return apply

    @property
    def relationships(self) -> dict[TrustDomain, Relationship]:
        """All of them; what the file declares counts."""
        return {**self._stored, **self._declared}

    async def load(self) -> None:
        """Read the relationships, at start. Raise ConfigError."""
        self._stored = await self._state.database.write(load_relationships)
        if self._file is not None:
            await self._declare()
        self._plan()

    async def poll(self) -> None:
        """Read the file again if it changed. One that is wrong is logged and changes nothing."""
        if self._file is not None and await self._file.changed():
            await self.reread()

    async def reread(self) -> None:
        """Read the file now."""
        if self._file is None:
            return
        try:
            await self._declare()
        except BrokerError as error:
            _log.error("the relationships that are declared stay as they were: %s", error)
        self._plan()

    async def _declare(self) -> None:
        assert self._file is not None  # noqa: S101
        found = await self._file.read()
        for declared in found:
            if declared.bundle is not None:
                await self._put_first(declared.bundle)
        self._declared = {declared.relationship.trust_domain: declared.relationship for declared in found}

    async def _put_first(self, bundle: TrustBundle) -> None:
        """Take the first bundle alone: what is held since is newer."""

        async def attempt() -> None:
            basis = self._state.database.basis("bundles")
            if bundle.trust_domain not in self._state.bundles:
                await self._put(bundle, basis)

        await self._state.foreign_bundles.run(lambda: settled(attempt))

    def _plan(self, *again: TrustDomain) -> None:
        """Have what is new, or named, fetched at once; forget the turns of what is gone."""
        known = self.relationships
        self._turns = {td: turn for td, turn in self._turns.items() if td in known and td not in again}
        for trust_domain in known:
            self._turns.setdefault(trust_domain, _Turn())
        self._changed.set()

    async def create(self, one: Relationship, bundle: TrustBundle | None) -> None:
        """Add a relationship, with the first bundle if there is one. Raise AlreadyExists or Conflict."""
        await self._write(one, bundle, lambda connection: insert_relationship(connection, one))

    async def update(self, one: Relationship, bundle: TrustBundle | None, *, origin: str = "") -> None:
        """Replace a relationship. `origin`: whose it is now; ours by hand. Raise NotFound or Conflict."""
        await self._write(one, bundle, lambda connection: update_relationship(connection, one), origin)

    async def _write(
        self,
        one: Relationship,
        bundle: TrustBundle | None,
        write: Callable[[Connection], None],
        origin: str = "",
    ) -> None:
        def run(connection: Connection) -> None:
            write(connection)
            if bundle is not None:
                put_bundle(connection, bundle)

        def apply(_: None) -> None:
            self._stored[one.trust_domain] = one
            self._plan(one.trust_domain)
            if bundle is not None:
                self._state.put_bundle(bundle)

        async def change() -> None:
            self._check_ours(one.trust_domain, origin)
            await self._state.change(run, apply)

        await self._state.foreign_bundles.run(change)

    async def delete(self, trust_domain: TrustDomain, *, origin: str = "") -> None:
        """Forget a relationship; its bundle stays until it is deleted too. Raise NotFound or Conflict."""

        def apply(_: None) -> None:
            self._stored.pop(trust_domain, None)
            self._plan()

        async def change() -> None:
            self._check_ours(trust_domain, origin)
            await self._state.database.write(lambda connection: delete_relationship(connection, trust_domain), apply)

        await self._state.foreign_bundles.run(change)

    def _check_ours(self, trust_domain: TrustDomain, origin: str) -> None:
        if trust_domain in self._declared:
            raise Conflict(f"the relationship with {trust_domain} is declared in {self._file}: change it there")
        present = self._stored.get(trust_domain)
        if present is not None and present.origin != origin and present.origin.startswith(self._state.registers):
            raise Conflict(f"the relationship with {trust_domain} is made from {present.origin}: change it there")

    async def refresh(self, trust_domain: TrustDomain) -> None:
        """Fetch a bundle now. Raise NotFound or EndpointError."""
        one = self.relationships.get(trust_domain)
        if one is None:
            raise NotFound(f'no relationship with trust domain "{trust_domain}"')
        try:
            changed = await self._fetch(one)
        except BrokerError:
            self._metrics.bundles_fetched.labels("failed").inc()
            raise
        self._metrics.bundles_fetched.labels("changed" if changed else "unchanged").inc()

    async def _fetch(self, one: Relationship) -> bool:
        """Fetch, check and take a bundle; say whether it is another one. Raise EndpointError."""
        fetched = await self._fetcher.fetch(one)
        return await settled(lambda: self._taken(one, fetched))

    async def _taken(self, one: Relationship, fetched: TrustBundle) -> bool:
        # Two fetches of one bundle may end in any order, and a person may set another meanwhile.
        return await self._state.foreign_bundles.run(lambda: self._replaced(one, fetched))

    async def _replaced(self, one: Relationship, fetched: TrustBundle) -> bool:
        trust_domain, basis = one.trust_domain, self._state.database.basis("bundles", "federation_relationships")
        # It may have been deleted, or pointed elsewhere, in the meantime.
        if self.relationships.get(trust_domain) != one:
            raise EndpointError("the relationship has changed meanwhile")
        held = self._state.bundles.get(trust_domain)
        if held is not None and _content(held) == _content(fetched):
            return False
        proves_itself = one.endpoint_id is not None and one.endpoint_id.trust_domain == trust_domain
        try:
            check_successor(held, fetched, proves_itself=proves_itself)
        except EndpointError as error:
            self._audit.event("bundle_refused", trust_domain=trust_domain.name, reason=str(error))
            raise
        await self._put(fetched, basis)
        self._audit.event("bundle_fetched", trust_domain=trust_domain.name, sequence=fetched.sequence)
        return True

    async def _put(self, bundle: TrustBundle, basis: Basis | None = None) -> None:
        await self._state.change(
            lambda connection: put_bundle(connection, bundle), lambda _: self._state.put_bundle(bundle), basis=basis
        )

    async def run(self) -> None:
        """Fetch each bundle when it is time, until cancelled. One that hangs holds up no other."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._changed.clear()
                for trust_domain, turn in self._turns.items():
                    if not turn.running and turn.due <= time.monotonic():
                        turn.running = True
                        group.create_task(self._take(trust_domain, turn))
                waiting = [turn.due for turn in self._turns.values() if not turn.running]
                patience = max(0.0, min(waiting, default=time.monotonic() + _MOST) - time.monotonic())
                try:
                    async with asyncio.timeout(patience):
                        await self._changed.wait()
                except TimeoutError:
                    continue

    async def _take(self, trust_domain: TrustDomain, turn: _Turn) -> None:
        if not self._state.database.leads:
            # Another broker fetches for all.
            await asyncio.sleep(_FOLLOW)
            turn.running = False
            self._changed.set()
            return
        try:
            async with self._places:
                await self.refresh(trust_domain)
            turn.failures = 0
        except BrokerError as error:
            turn.failures += 1
            _log.warning("the bundle of %s is not refreshed: %s", trust_domain, error)
        bundle = self._state.bundles.get(trust_domain)
        wait = _interval((bundle.refresh_hint if bundle else 0) or _DEFAULT_HINT, turn.failures)
        turn.due, turn.running = time.monotonic() + wait, False
        self._metrics.bundles_overdue.set(sum(bool(each.failures) for each in self._turns.values()))
        self._changed.set()


def _interval(hint: int, failures: int) -> float:
    """Return how long to wait: the hint; after failures a minute, doubling up to the hint."""
    whole = min(max(hint, _LEAST), _MOST)
    wait = min(_LEAST * 2 ** min(failures - 1, 16), whole) if failures else whole
    return wait * (1 - random.uniform(0, _JITTER))  # noqa: S311 - spreads load


def _content(bundle: TrustBundle) -> bytes:
    """Return what makes a fetched bundle another one: taint is known here alone, and no bundle says it."""
    return bundle.to_json()
