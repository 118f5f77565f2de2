# SPDX-License-Identifier: Apache-2.0
"""What the broker knows, in memory, as of the last commit; and the one way to change it.

Reads never wait for the database. A change is a job for the database, and a function that brings memory up to the
commit; the generation is bumped in the same transaction, so that a sidecar which has acknowledged a generation has
everything that was committed before it. Touched on the event loop only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from sqlalchemy import Connection

from firedoor.broker.agent import Agent, check_agent
from firedoor.broker.authorized import Entitlement, Entitlements, EntryIndex
from firedoor.broker.clock import Clock
from firedoor.broker.db import Database
from firedoor.broker.db.agent_rows import load_agents, promote_agent
from firedoor.broker.db.entry_rows import load_entries
from firedoor.broker.db.intermediate_rows import DownstreamKey, Intermediate, load_downstream_keys, load_intermediates
from firedoor.broker.db.rows import (
    Generation,
    Revoked,
    begin_epoch,
    bump,
    load_bundles,
    load_generation,
    load_revocations,
)
from firedoor.broker.entry import Entry, server_id
from firedoor.broker.errors import AgentNotAttested, NotEntitled
from firedoor.certs import SpiffeId, TrustBundle, TrustDomain
from firedoor.mtls import Caller

T = TypeVar("T")


class State:
    """Entries, agents, bundles, revocations and the generation."""

    def __init__(
        self, trust_domain: TrustDomain, database: Database, clock: Clock, admin_ids: Iterable[SpiffeId] = ()
    ) -> None:
        self.trust_domain = trust_domain
        # Administrators beside those whom entries make so; they may be of other trust domains.
        self.admin_ids = frozenset(admin_ids)
        self.server_id = server_id(trust_domain)
        self._index(())
        self.agents: dict[SpiffeId, Agent] = {}
        self.bundles: dict[TrustDomain, TrustBundle] = {}
        self.revocations: dict[tuple[str, str], Revoked] = {}
        # CAs that authorities below us were given, by serial number; see downstream.py for which of them count.
        self.intermediates: dict[str, Intermediate] = {}
        # Whether no CA below the roots of our trust domain is another's than ours and theirs.
        self.knows_all_below = True
        # Keys in our own bundle that they published, by key ID.
        self.downstream_keys: dict[str, DownstreamKey] = {}
        self.generation = Generation(0, 0)
        self.database = database
        self.clock = clock
        # Held while our own bundle changes: X.509 and JWT authorities both stand in it.
        self.own_bundle = asyncio.Lock()
        self._watchers: list[Callable[[], None]] = []
        self._agent_watchers: list[Callable[[SpiffeId], None]] = []

    async def load(self) -> None:
        """Read everything from the database, at start."""
        now = self.clock.now()

        def run(connection: Connection) -> None:
            self.generation = load_generation(connection, now)
            self._index(load_entries(connection))
            self.agents = {agent.id: agent for agent in load_agents(connection)}
            self.bundles = load_bundles(connection)
            self.revocations = load_revocations(connection)
            self.intermediates = load_intermediates(connection)
            self.downstream_keys = load_downstream_keys(connection)

        await self.database.write(run)

    def _index(self, entries: Iterable[Entry]) -> None:
        self.entries = EntryIndex(self.server_id, entries)
        self._entitlements = Entitlements(self.entries, self.server_id)

    def watch(self, changed: Callable[[], None]) -> None:
        """Have a function called after every change. It must be quick."""
        self._watchers.append(changed)

    def watch_agents(self, changed: Callable[[SpiffeId], None]) -> None:
        """Have a function called whenever an agent's certificates change. It must be quick."""
        self._agent_watchers.append(changed)

    async def change(self, run: Callable[[Connection], T], apply: Callable[[T], None]) -> T:
        """Commit a job together with the next generation, then bring memory up to it. Raise what the job raises."""

        def bumped(connection: Connection) -> tuple[T, Generation]:
            return run(connection), bump(connection)

        def applied(result: tuple[T, Generation]) -> None:
            self.generation = result[1]
            try:
                apply(result[0])
            finally:
                for watcher in self._watchers:
                    watcher()

        value, _ = await self.database.write(bumped, applied)
        return value

    async def new_epoch(self) -> None:
        """Go to a later epoch than any before."""
        now = self.clock.now()
        self.generation = await self.database.write(lambda connection: begin_epoch(connection, now))

    # --- who is calling -----------------------------------------------------------------------------------------

    async def check_agent(self, spiffe_id: SpiffeId, caller: Caller) -> Agent:
        """Return the agent in good standing; the first use of a renewed certificate makes it the present one."""
        checked = self._checked(spiffe_id, caller)
        if checked is self.agents.get(spiffe_id):
            return checked

        def apply(_: None) -> None:
            present = self.agents.get(spiffe_id)
            if present is not None and present.new_serial == checked.serial:
                self.put_agent(present.promoted())

        await self.database.write(lambda connection: promote_agent(connection, checked), apply)
        # It may have been banned in the meantime.
        return self._checked(spiffe_id, caller)

    def _checked(self, spiffe_id: SpiffeId, caller: Caller) -> Agent:
        serial = str(int(caller.serial, 16)) if caller.serial else ""
        return check_agent(self.agents.get(spiffe_id), serial, caller.not_after or 0, self.clock.now())

    def is_admin(self, spiffe_id: SpiffeId) -> bool:
        """Say whether the configuration or a live entry makes this ID an administrator's."""
        if spiffe_id in self.admin_ids:
            return True
        now = self.clock.now()
        return any(entry.admin and not entry.expired(now) for entry in self.entries.with_spiffe_id(spiffe_id))

    def is_downstream(self, spiffe_id: SpiffeId) -> bool:
        """Say whether a live entry makes this ID a downstream authority's."""
        now = self.clock.now()
        return any(entry.downstream and not entry.expired(now) for entry in self.entries.with_spiffe_id(spiffe_id))

    # --- what an agent may have ---------------------------------------------------------------------------------

    def entitlement(self, agent_id: SpiffeId) -> Entitlement:
        """Return what an agent is entitled to; cheap while nothing changes. Raise AgentNotAttested."""
        agent = self.agents.get(agent_id)
        if agent is None or agent.banned:
            self._entitlements.forget(agent_id)
            raise AgentNotAttested("agent is not attested")
        return self._entitlements.of(agent_id, agent.selectors, self.clock.now())

    def entitled_entry(self, agent_id: SpiffeId, entry_id: str) -> Entry:
        """Return an entry that the agent is entitled to. Raise NotEntitled or AgentNotAttested."""
        entry = self.entitlement(agent_id).workloads.get(entry_id)
        if entry is None:
            raise NotEntitled("entry not found or not authorized")
        return entry

    # --- bringing memory up to a commit ---------------------------------------------------------------------------

    def put_agent(self, agent: Agent) -> None:
        """Remember an agent, with the certificates that it has now."""
        self.agents[agent.id] = agent
        for watcher in self._agent_watchers:
            watcher(agent.id)

    def renewed(self, agent_id: SpiffeId, serial: str, not_after: int) -> None:
        """Remember an agent's renewed certificate."""
        agent = self.agents.get(agent_id)
        if agent is not None:
            self.put_agent(replace(agent, new_serial=serial, new_not_after=not_after))

    def set_version(self, agent_id: SpiffeId, version: str) -> None:
        """Remember which version an agent runs."""
        agent = self.agents.get(agent_id)
        if agent is not None:
            self.agents[agent_id] = replace(agent, agent_version=version)

    def banned(self, agent_id: SpiffeId, revoked: Iterable[Revoked]) -> None:
        """Remember that an agent is banned, and what that revoked."""
        agent = self.agents[agent_id]
        self.agents[agent_id] = replace(agent, banned=True, serial="", new_serial="", new_not_after=0)
        self._entitlements.forget(agent_id)
        self.revoked(revoked)

    def evicted(self, agent_id: SpiffeId, revoked: Iterable[Revoked]) -> None:
        """Forget an agent, and remember what that revoked."""
        self.agents.pop(agent_id, None)
        self._entitlements.forget(agent_id)
        self.revoked(revoked)

    def revoked(self, revoked: Iterable[Revoked]) -> None:
        """Remember revocations."""
        self.revocations.update({(one.kind, one.value): one for one in revoked})

    def put_intermediate(self, made: Intermediate, dropped: Iterable[str]) -> None:
        """Remember a CA that was given to somebody below us, and forget others."""
        self.intermediates[made.serial] = made
        for serial in dropped:
            self.intermediates.pop(serial, None)

    def next_revision(self, entry_ids: Iterable[str]) -> None:
        """Remember that entries have a new revision."""
        for entry_id in entry_ids:
            entry = self.entries.get(entry_id)
            if entry is not None:
                self.entries.put(replace(entry, revision_number=entry.revision_number + 1))

    def put_bundle(self, bundle: TrustBundle) -> None:
        """Remember a bundle."""
        self.bundles[bundle.trust_domain] = bundle

    def drop_bundle(self, trust_domain: TrustDomain) -> None:
        """Forget a bundle."""
        self.bundles.pop(trust_domain, None)
