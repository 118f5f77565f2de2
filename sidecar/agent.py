# SPDX-License-Identifier: Apache-2.0
"""The agent: attested, connected, and kept so."""

import asyncio
import contextlib
import logging
from collections.abc import Callable

from firedoor.mtls import Core, MtlsError
from firedoor.sidecar.backoff import Backoff
from firedoor.sidecar.config import Config
from firedoor.sidecar.enrolment import Enrolment, not_after
from firedoor.sidecar.errors import (
    AgentBanned,
    AgentLost,
    AttestationRefused,
    OperatorError,
    ServerUnavailable,
    StateError,
    TokenMissing,
)
from firedoor.sidecar.holder import Holder
from firedoor.sidecar.identities import agent_tainted, anchored, renewal_time
from firedoor.sidecar.issuer import Issuer
from firedoor.sidecar.link import EventKind, Link
from firedoor.sidecar.servers import Servers
from firedoor.sidecar.state import State, StoredAgent
from firedoor.sidecar.tasks import until_first
from firedoor.sidecar.updates import Updates
from firedoor.sidecar.version import VERSION
from firedoor.wire import control_pb2

log = logging.getLogger(__name__)


class Agent:
    """Attests, follows the server, and keeps all SVIDs fresh."""

    def __init__(
        self,
        core: Core,
        config: Config,
        state: State,
        holder: Holder,
        now: Callable[[], float],
        local_table: bytes | None,
    ) -> None:
        self._state, self._holder, self._now = state, holder, now
        self._servers = Servers(config.broker)
        self._enrolment = Enrolment(core, config, self._servers, state, now)
        self._events: asyncio.Queue[tuple[EventKind, bytes]] = asyncio.Queue()
        self.link = Link(core, config, self._servers, self._events.put_nowait)
        # The server that answers fails: have `_fail_over` look.
        self._failed = asyncio.Event()
        self._lost = False
        # The server was away when the agent SVID was to be used first.
        self._unused = False
        # The last try to get a new agent SVID came to nothing.
        self._failing = False
        # Of our own bundle, as of the last view.
        self._taints: frozenset[str] = frozenset()
        # Have `_keep_agent` look now.
        self._look = asyncio.Event()
        failed = self._failed.set
        self._issuer = Issuer(holder, state, now, self._agent_lost, failed, keep_on_disk=config.keep_workload_keys)
        self._updates = Updates(
            holder,
            self.link,
            state,
            local_table,
            now,
            self._issuer.spread,
            wake=self._view_changed,
            lost=self._agent_lost,
            failed=failed,
            later=self._events.put_nowait,
        )
        self._keep_on_disk = config.keep_workload_keys

    def restore(self, update: control_pb2.Update) -> None:
        """Take up what is stored for the view that the holder has, which is that of an update."""
        self._updates.bases.runs(update)
        if self._keep_on_disk:
            self._issuer.restore()

    def wake(self) -> None:
        """Look at once whether an SVID is lacking."""
        self._issuer.wake()

    def look_again(self) -> None:
        """Let go of what has expired, and replace what must be, after time that no timer knows of."""
        self._holder.set()
        self._look.set()
        self._issuer.wake()

    def drain_events(self) -> None:
        """Take over what the control stream has to say; `run` works on it."""
        self.link.take()

    async def run(self) -> None:
        """Run for ever. Raise AgentBanned, AttestationRefused or OperatorError: a person must act then."""
        try:
            await self._begin()
            await until_first(
                self._follow(),
                self._keep_agent(),
                self._fail_over(),
                self._updates.poll(),
                self._issuer.run(lambda: self.link.server, self._updates.acknowledge),
            )
        except AgentBanned as error:
            self._state.delete_agent()
            raise AgentBanned(f"{error}; its SVID is deleted, and this sidecar stops") from error

    async def _begin(self) -> None:
        """Become an agent: the stored one, or a new one."""
        stored = self._enrolment.stored()
        if stored is not None and not self._vouched(stored):
            log.warning("no authority vouches for the stored agent SVID any more: attesting again")
        elif stored is not None:
            try:
                return await self._use(stored)
            except ServerUnavailable as error:
                log.error("the stored agent SVID is not used", extra={"reason": str(error)})
        return await self._use(await self._attest())

    async def close(self) -> None:
        """Close the connections to the server."""
        await self.link.close()

    def last_sync(self) -> float:
        """Return when our view was the server's last, in Unix seconds: now while it pushes; 0 when it never was."""
        return self._now() if self.link.connected and self._updates.heard_at else self._updates.heard_at

    async def _attest(self) -> StoredAgent:
        """Attest, however long the server is away."""
        backoff = Backoff()
        while True:
            try:
                return await self._enrolment.attest()
            except ServerUnavailable as error:
                wait = backoff.failed()
                log.warning("not attested yet", extra={"reason": str(error), "next_try_seconds": round(wait, 1)})
                await asyncio.sleep(wait)

    async def _use(self, agent: StoredAgent) -> None:
        """Run as this agent: publish its SVID and call the server with it, which makes it the one that counts."""
        try:
            self._holder.set(agent=agent)
        except MtlsError as error:
            raise ServerUnavailable(f"the agent SVID cannot be used: {error}") from error
        await self.link.open(agent.spiffe_id)
        await self._first_use()

    async def _first_use(self) -> None:
        """Call the server as the agent: until then it does not know that a renewed SVID has arrived."""
        try:
            await self.link.server.post_status(VERSION)
            self._unused = False
        except ServerUnavailable as error:
            self._unused = True
            log.warning("the server does not answer", extra={"reason": str(error)})
            if not self._holder.identities and self._holder.view.synced:
                log.warning("nothing can be served until it does: workload keys are not on disk (keep_workload_keys)")
        except AgentLost:
            self._agent_lost()

    def _view_changed(self) -> None:
        """Look at once whether anything of ours must be replaced; at some time soon when everybody's must."""
        self._issuer.wake()
        before, self._taints = self._taints, self._tainted_roots()
        if self._taints <= before or self._forsaken():
            self._look_now()
        else:
            asyncio.get_running_loop().call_later(self._issuer.spread.taint_delay(), self._look_now)

    def _tainted_roots(self) -> frozenset[str]:
        own = self._holder.view.bundles.get(self._holder.view.trust_domain)
        return frozenset(root.authority_id for root in own.x509_roots if root.tainted) if own else frozenset()

    def _look_now(self) -> None:
        if self._holder.agent is not None and (self._tainted() or self._forsaken()):
            self._look.set()

    def _tainted(self) -> bool:
        """Say whether the agent SVID is signed by what is about to be revoked."""
        return agent_tainted(self._holder.verifier, self._agent, self._holder.view.trust_domain, self._now())

    def _forsaken(self) -> bool:
        """Say whether no authority vouches for the agent SVID any more: the server will not even shake hands."""
        return self._holder.agent is not None and not self._vouched(self._holder.agent)

    def _vouched(self, agent: StoredAgent) -> bool:
        own = self._holder.view.bundles.get(self._holder.view.trust_domain)
        return own is None or anchored(agent.chain, own)

    def _agent_lost(self) -> None:
        """Note that the server knows this agent no longer, or says so."""
        self._lost = True
        self._look.set()

    async def _follow(self) -> None:
        """Work on the control stream's events."""
        while True:
            kind, data = await self._events.get()
            try:
                await self._updates.on_event(kind, data)
            except AgentLost:
                self._agent_lost()
            if kind != "connected":
                continue
            if self._failing:
                # It is back: no need to wait for the next try.
                self._look.set()
            if self._unused:
                await self._first_use()

    async def _fail_over(self) -> None:
        """Go to another server when the present one fails though it is connected: it hangs, or is behind."""
        backoff = Backoff()
        while True:
            await self._failed.wait()
            if self._servers.turn():
                log.warning("going to another server", extra={"server": self._servers.order[0]})
                await self.link.open(self._agent.spiffe_id)
                self._issuer.wake()
            # However many fail, nobody is tried in a busy loop; and what one failure sets off is over by then.
            await asyncio.sleep(backoff.failed())
            if not self._failed.is_set():
                backoff.reset()
            self._failed.clear()

    async def _keep_agent(self) -> None:
        """Renew the agent SVID at half life and when it is tainted, or attest again when it counts no longer."""
        backoff = Backoff()
        due = self._due()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, due - self._now())):
                    await self._look.wait()
            self._look.clear()
            if self._now() < due and not (self._lost or self._failing or self._tainted() or self._forsaken()):
                continue
            try:
                agent = await self._next_agent()
                if agent is not None:
                    await self._use(agent)
                    due = self._due()
                self._failing = False
                backoff.reset()
            except (ServerUnavailable, StateError) as error:
                # A full disk too: one that cannot be stored would be lost with this process, and the old one with it.
                log.warning("the agent SVID is not renewed", extra={"reason": str(error)})
                self._failing, self._lost = True, False
                self._failed.set()
                due = self._now() + backoff.failed(not_after(self._agent) - self._now())

    async def _next_agent(self) -> StoredAgent | None:
        """Return a new agent SVID; None when the present one turns out to be good."""
        agent = self._agent
        if not_after(agent) <= self._now() or self._forsaken():
            return await self._enrolment.attest()
        try:
            if not self._lost:
                if agent.reattestable:
                    return await self._attest_early()
                return await self._enrolment.renew(self.link.server, agent)
            # A call that was under way with the SVID before this one is refused, and says nothing about this one.
            self._lost = False
            await self.link.server.post_status(VERSION)
        except AgentLost as error:
            log.error("attesting again", extra={"reason": str(error)})
            return await self._enrolment.attest()
        return None

    async def _attest_early(self) -> StoredAgent:
        """Attest while the present SVID still counts: whatever is wrong, there is time to put it right."""
        try:
            return await self._enrolment.attest()
        except (AttestationRefused, OperatorError) as error:
            left = not_after(self._agent) - self._now()
            raise ServerUnavailable(f"{error}; the present agent SVID ends in {left:.0f} s") from error

    @property
    def _agent(self) -> StoredAgent:
        if self._holder.agent is None:
            raise TokenMissing("the sidecar has not attested yet")
        return self._holder.agent

    def _due(self) -> float:
        return renewal_time(self._now(), not_after(self._agent))
