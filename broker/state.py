# SPDX-License-Identifier: Apache-2.0
"""What the broker knows, in memory, as of the last commit; and the one way to change it.

Reads never wait for the database. A change is a job for the database, and a function that brings memory up to the
commit; the generation is bumped in the same transaction, so that a sidecar which has acknowledged a generation has
everything that was committed before it. Touched on the event loop only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final, TypeVar

from sqlalchemy import Connection

from firedoor.broker.agent import Agent, adopted, check_agent
from firedoor.broker.authorized import Entitlement, Entitlements, EntryIndex
from firedoor.broker.clock import Clock
from firedoor.broker.db import Basis, Database
from firedoor.broker.db.agent_rows import adopt_agent, distrust_tokens, expire_tokens, load_agents, promote_agent
from firedoor.broker.db.crl_rows import SignedCrl, load_crls
from firedoor.broker.db.directory_rows import load_directory
from firedoor.broker.db.entry_rows import load_entries
from firedoor.broker.db.grant_rows import end_untaken
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
from firedoor.broker.errors import AgentError, AgentNotActive, AgentNotAttested, DatabaseError, NotEntitled
from firedoor.broker.finished import OneByOne
from firedoor.broker.following import follow
from firedoor.broker.roles import Role, Roles
from firedoor.certs import NOT_BEFORE_CUSHION, IdPattern, SpiffeId, TrustBundle, TrustDomain
from firedoor.mtls import Caller
from firedoor.segments.directory import Derived

T = TypeVar("T")
_log = logging.getLogger("firedoor.broker")
# How far issue times run ahead, in seconds, when revocations come faster than one a second. Half of the 10 s that a
# leaf is back-dated: the other half is for clocks that differ.
MOST_AHEAD: Final = 5


class State:
    """Entries, agents, bundles, revocations and the generation."""

    def __init__(self, trust_domain: TrustDomain, database: Database, clock: Clock, roles: Roles | None = None) -> None:
        self.trust_domain = trust_domain
        self.roles = roles or Roles()
        self.server_id = server_id(trust_domain)
        self._index(())
        self.agents: dict[SpiffeId, Agent] = {}
        self.bundles: dict[TrustDomain, TrustBundle] = {}
        self.revocations: dict[tuple[str, str], Revoked] = {}
        # The latest time before which something that was issued is revoked; it may be the second that comes next.
        self._issued_before = 0
        # CAs that authorities below us were given, by serial number; see downstream.py for which of them count.
        self.intermediates: dict[str, Intermediate] = {}
        # Whether no CA below the roots of our trust domain is another's than ours and theirs.
        self.knows_all_below = True
        # Keys in our own bundle that they published, by key ID.
        self.downstream_keys: dict[str, DownstreamKey] = {}
        # The revocation lists of all brokers' authorities, by authority ID.
        self.crls: dict[str, SignedCrl] = {}
        # Services that were derived from a cluster's objects, by name. Replaced, never changed. What is in the database
        # counts while this broker's configuration names a cluster for it.
        self.directory: Mapping[str, Derived] = {}
        self.has_directory = False
        self.generation = Generation(0, 0)
        self.database = database
        self.clock = clock
        # Held while our own bundle changes: X.509 and JWT authorities both stand in it.
        self.own_bundle = OneByOne()
        # The same for those of other trust domains, and whom we federate with: a fetch looks at what is held first.
        self.foreign_bundles = OneByOne()
        # How the origins of entries begin that are kept as they are by this broker, and others like it.
        self.registers: tuple[str, ...] = ()
        self._watchers: list[Callable[[], None]] = []
        self._gone_watchers: list[Callable[[SpiffeId], None]] = []
        # The database had an older generation than memory: it was put back to what it once was.
        self.went_back = False
        self._agent_watchers: list[Callable[[SpiffeId], None]] = []
        follow(self)

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
            self.crls = load_crls(connection)
            self.directory = load_directory(connection) if self.has_directory else {}

        await self.database.write(run)

    def _index(self, entries: Iterable[Entry]) -> None:
        self.entries = EntryIndex(self.server_id, entries, self.is_privileged)
        self._entitlements = Entitlements(self.entries, self.server_id)

    def watch(self, changed: Callable[[], None]) -> None:
        """Have a function called after every change. It must be quick."""
        self._watchers.append(changed)

    def watch_agents(self, changed: Callable[[SpiffeId], None]) -> None:
        """Have a function called whenever an agent's certificates change. It must be quick."""
        self._agent_watchers.append(changed)

    def watch_gone(self, gone: Callable[[SpiffeId], None]) -> None:
        """Have a function called when another broker banned or evicted an agent. It must be quick."""
        self._gone_watchers.append(gone)

    async def change(
        self,
        run: Callable[[Connection], T],
        apply: Callable[[T], None],
        *,
        basis: Basis | None = None,
        bumps: Callable[[T], bool] = lambda _: True,
    ) -> T:
        """Commit a job together with the next generation, then bring memory up to it. Raise what the job raises.

        `basis`: as `Database.write` has it. `bumps`: whether what the job returned makes it a generation of its own.
        """

        def bumped(connection: Connection) -> tuple[T, Generation | None]:
            value = run(connection)
            return value, bump(connection) if bumps(value) else None

        def applied(result: tuple[T, Generation | None]) -> None:
            value, generation = result
            try:
                apply(value)
            finally:
                if generation is not None:
                    self.reached(generation)

        value, _ = await self.database.write(bumped, applied, basis)
        return value

    def issue_time(self) -> int:
        """Return the issue time of what is signed now: this second, or the first that is not revoked yet.

        A leaf is back-dated by more than that lies ahead, so that it holds at once. Raise what `Clock.now_for_issuing`
        raises.
        """
        now = self.clock.now_for_issuing()
        return max(now, min(self._issued_before, now + MOST_AHEAD))

    async def time_to_issue(self) -> None:
        """Wait while all that could be issued is revoked: so many revocations came at once."""
        ahead = self._issued_before - self.clock.now() - MOST_AHEAD
        if ahead > 0:
            await asyncio.sleep(ahead)

    def reached(self, generation: Generation) -> None:
        """Take it that memory has all of a generation, and tell whoever watches."""
        self.generation = generation
        for watcher in self._watchers:
            watcher()

    async def new_epoch(self) -> None:
        """Go to a later epoch than any before: the database was put back.

        What can be used once, and may have been used since, ends: join tokens, tokens of pods, and grants that nobody
        has taken.
        """
        now = max(self.clock.now(), self.generation.epoch + 1)

        def run(connection: Connection) -> Generation:
            expire_tokens(connection)
            distrust_tokens(connection, now)
            end_untaken(connection, now)
            return begin_epoch(connection, now)

        def apply(generation: Generation) -> None:
            self.went_back = False
            self.reached(generation)

        await self.database.write(run, apply)

    def check_current(self) -> None:
        """Raise DatabaseError while it is not known what other brokers changed: nobody may be issued anything then."""
        if trouble := self.database.trouble:
            raise DatabaseError(f"nothing is issued: {trouble}")

    async def learn(self, agent_id: SpiffeId, entry_ids: Iterable[str]) -> None:
        """Look whether other brokers changed something before an agent is refused one of these entries."""
        agent = self.agents.get(agent_id)
        known = self.entitlement(agent_id).workloads if agent is not None and not agent.banned else {}
        if any(entry_id not in known for entry_id in entry_ids):
            await self.database.catch_up()

    # --- who is calling -----------------------------------------------------------------------------------------

    async def check_agent(self, spiffe_id: SpiffeId, caller: Caller) -> Agent:
        """Return the agent in good standing; the first use of a renewed certificate makes it the present one."""
        try:
            checked = self._checked(spiffe_id, caller)
        except AgentError:
            # It may have attested, or renewed its certificate, at another broker a moment ago.
            await self.database.catch_up()
            try:
                checked = self._checked(spiffe_id, caller)
            except AgentNotActive:
                checked = await self._adopt(spiffe_id, caller)
        if checked is self.agents.get(spiffe_id):
            return checked

        def apply(_: None) -> None:
            present = self.agents.get(spiffe_id)
            if present is not None and present.new_serial == checked.serial:
                self.put_agent(present.promoted())

        await self.database.write(lambda connection: promote_agent(connection, checked), apply)
        # It may have been banned in the meantime.
        return self._checked(spiffe_id, caller)

    async def _adopt(self, spiffe_id: SpiffeId, caller: Caller) -> Agent:
        """Take up a certificate that was signed after the backup which the database was restored from.

        Else every agent that renewed since would have to attest again, and a join token works once. It chains to our
        authority (the front has looked), was issued before this epoch began, and no row knows it. Raise AgentNotActive.
        """
        agent, issued_at = self.agents.get(spiffe_id), (caller.not_before or 0) + NOT_BEFORE_CUSHION
        if agent is None or not caller.serial or issued_at > self.generation.epoch:
            raise AgentNotActive("agent SVID is not active")
        made = adopted(agent, _decimal(caller.serial), caller.not_after or 0)

        def apply(done: bool) -> None:
            if done and (present := self.agents.get(spiffe_id)) is not None and present.serial == agent.serial:
                self.put_agent(made)

        if not await self.database.write(lambda connection: adopt_agent(connection, agent, made, issued_at), apply):
            raise AgentNotActive("agent SVID is not active")
        _log.warning("agent %s renewed its SVID after the backup that was restored; it counts", spiffe_id)
        return self._checked(spiffe_id, caller)

    def _checked(self, spiffe_id: SpiffeId, caller: Caller) -> Agent:
        serial = _decimal(caller.serial) if caller.serial else ""
        return check_agent(self.agents.get(spiffe_id), serial, caller.not_after or 0, self.clock.now())

    def roles_of(self, spiffe_id: SpiffeId) -> frozenset[Role]:
        """Return the roles that the configuration or a live entry gives this ID."""
        found, now = self.roles.of(spiffe_id), self.clock.now()
        if any(entry.admin and not entry.expired(now) for entry in self.entries.with_spiffe_id(spiffe_id)):
            found |= {Role.ADMIN}
        return found

    def is_privileged(self, entry: Entry) -> bool:
        """Say whether whoever gets the entry's ID may change what workloads may not."""
        return entry.admin or entry.downstream or self.roles.beyond_viewer(entry.spiffe_id)

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

    def followed(self, agent: Agent) -> None:
        """Remember an agent as another broker left it."""
        if self.agents.get(agent.id) == agent:
            return
        if not agent.banned:
            self.put_agent(agent)
            return
        self.agents[agent.id] = agent
        self._gone(agent.id)

    def gone(self, agent_id: SpiffeId) -> None:
        """Forget an agent that another broker evicted."""
        if self.agents.pop(agent_id, None) is not None:
            self._gone(agent_id)

    def _gone(self, agent_id: SpiffeId) -> None:
        self._entitlements.forget(agent_id)
        for watcher in self._gone_watchers:
            watcher(agent_id)

    def banned(self, agent_id: SpiffeId, revoked: Iterable[Revoked]) -> None:
        """Remember that an agent is banned, and what that revoked."""
        agent = self.agents.get(agent_id)
        if agent is not None:
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
        for one in revoked:
            self.revocations[one.kind, one.value] = one
            self._issued_before = max(self._issued_before, one.issued_before)

    def ends(self, spiffe_id: SpiffeId, issued_at: int) -> bool:
        """Say whether a revocation by pattern ends what was issued for an ID at a time."""
        if issued_at >= self._issued_before:
            return False
        later = [one for one in self.revocations.values() if one.kind == "pattern" and one.issued_before > issued_at]
        return any(IdPattern.parse(one.value, self.trust_domain).matches(spiffe_id) for one in later)

    def follow_revocations(self, found: Mapping[tuple[str, str], Revoked]) -> None:
        """Remember the revocations as other brokers left them."""
        self.revocations = {}
        self.revoked(found.values())

    def put_crls(self, made: Iterable[SignedCrl]) -> None:
        """Remember revocation lists."""
        self.crls = {**self.crls, **{one.authority_id: one for one in made}}

    def change_directory(self, put: Mapping[str, Derived], gone: Iterable[str]) -> None:
        """Remember derived services, and forget others."""
        left_out = frozenset(gone)
        self.directory = {name: one for name, one in self.directory.items() if name not in left_out} | dict(put)

    def vouched_crls(self) -> list[SignedCrl]:
        """Return the lists of authorities that our bundle vouches for, in a lasting order."""
        bundle = self.bundles.get(self.trust_domain)
        roots = {root.authority_id for root in bundle.x509_roots} if bundle else set()
        return [self.crls[key] for key in sorted(self.crls) if self.crls[key].anchor_id in roots]

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


def _decimal(serial: str) -> str:
    """Return a serial number in hex as SPIRE writes it."""
    return str(int(serial, 16))
