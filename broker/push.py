# SPDX-License-Identifier: Apache-2.0
"""The broker's end of the control streams: who listens, what each is told, what each has acknowledged.

Rust holds the streams; here a view is computed for each agent that listens, again at every generation, in slices that
never keep the event loop for long. An agent that is not attested, or banned, is told nothing and loses its streams, and
so does a stream that was opened with a certificate which is not one of its agent's any more.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from firedoor.broker.db.rows import Generation
from firedoor.broker.downstream import limited, listed
from firedoor.broker.errors import BrokerError
from firedoor.broker.views import VERSION, View, Viewer
from firedoor.certs import CertsError, SpiffeId
from firedoor.mtls import ControlServer, MtlsError
from firedoor.wire import control_pb2

if TYPE_CHECKING:
    from firedoor.broker.metrics import Metrics
    from firedoor.broker.policy import PolicyKeeper
    from firedoor.broker.state import State

_log = logging.getLogger("firedoor.broker.control")
# Events taken, and seconds of views computed, before other calls get a turn. A call has about seven turns of the event
# loop to wait for, so that it waits for seven of these.
_EVENTS: Final = 32
_SLICE_SECONDS: Final = 0.001


@dataclass(slots=True)
class Listening:
    """One agent with open streams, and what it last said."""

    streams: set[int] = field(default_factory=set)
    # What it may listen with, as the core was told; None: nothing was said yet.
    certificates: tuple[str, ...] | None = None
    agent_version: str = ""
    running: Generation | None = None
    acknowledged: Generation | None = None
    view_hash: bytes = b""
    # What it was told last.
    told: View | None = None
    # Entry ID to (notAfter, authority ID) of the SVID that the sidecar holds.
    svids: dict[str, tuple[int, str]] = field(default_factory=dict)
    # Entry ID to when that SVID was issued; sidecars of before did not say.
    issued: dict[str, int] = field(default_factory=dict)
    refused: str = ""


class Pusher:
    """Tells every listening agent its view of the present generation."""

    def __init__(self, state: State, policy: PolicyKeeper, control: ControlServer, metrics: Metrics) -> None:
        self._state, self._policy, self._control, self._metrics = state, policy, control, metrics
        self._listening: dict[SpiffeId, Listening] = {}
        # Agents that left; what is kept for them is dropped at the next change, so that nobody comes back to old news.
        self._absent: set[SpiffeId] = set()
        # Whom a view is to be made for.
        self._due: dict[SpiffeId, None] = {}
        self._changed = asyncio.Event()
        self._viewer: tuple[Generation, Viewer] | None = None
        # Said once that a sidecar is ahead of us.
        self._behind = False
        state.watch(self._changed.set)
        state.watch_agents(self._certificates_changed)

    @property
    def listening(self) -> dict[SpiffeId, Listening]:
        """Which agents listen, and what each acknowledged: what an authority rotation waits for."""
        return self._listening

    def missing(self, generation: Generation) -> list[SpiffeId]:
        """Return the agents that listen and have not acknowledged this generation or a later one."""
        return [
            agent_id
            for agent_id, one in self._listening.items()
            if one.acknowledged is None or one.acknowledged < generation
        ]

    def take_events(self) -> None:
        """Take what sidecars said. Called when the core's descriptor is readable."""
        for kind, agent, stream, data in self._control.drain(_EVENTS):
            try:
                agent_id = SpiffeId.parse(agent)
                if kind == "closed":
                    self._closed(agent_id, stream)
                else:
                    self._said(agent_id, stream, control_pb2.FromSidecar.FromString(data))
            except (CertsError, DecodeError) as error:
                _log.warning("a control stream sent what cannot be read: %s", type(error).__name__)
                self._forget(agent)
        self._metrics.streams.set(self._control.streams())

    async def run(self) -> None:
        """Publish views at every generation and to whoever comes, until cancelled."""
        told = None
        while True:
            await self._changed.wait()
            self._changed.clear()
            if told != self._state.generation:
                told = self._state.generation
                self._drop_absent()
                self._due.update(dict.fromkeys(self._listening))
            await self._publish_due()

    def cut(self, agent_id: SpiffeId) -> None:
        """Tell an agent nothing more and reset its streams (ban, evict)."""
        self._listening.pop(agent_id, None)
        self._absent.discard(agent_id)
        self._due.pop(agent_id, None)
        self._control.forget(str(agent_id))

    def _certificates_changed(self, agent_id: SpiffeId) -> None:
        """Take what an agent may listen with as it stands now."""
        if agent_id in self._listening:
            self._restrict(agent_id)
        elif agent_id in self._absent:
            self._absent.discard(agent_id)
            self._control.forget(str(agent_id))

    def _forget(self, agent: str) -> None:
        """Break an agent's connections; it may come again, and is looked at anew then."""
        self._control.forget(agent)
        for agent_id, one in self._listening.items():
            if str(agent_id) == agent:
                one.certificates = None

    def _restrict(self, agent_id: SpiffeId) -> None:
        """Let the agent listen with its present certificates alone. Done before it is told anything."""
        agent, one = self._state.agents.get(agent_id), self._listening[agent_id]
        certificates = agent.certificates if agent else ()
        if one.certificates != certificates:
            one.certificates = certificates
            self._control.restrict(str(agent_id), certificates)

    # --- what sidecars say --------------------------------------------------------------------------------------

    def _said(self, agent_id: SpiffeId, stream: int, message: control_pb2.FromSidecar) -> None:
        match message.WhichOneof("kind"):
            case "hello":
                self._hello(agent_id, stream, message.hello)
            case "ack":
                self._ack(agent_id, message.ack)
            case "nack":
                self._nack(agent_id, message.nack)
            case _:
                # A later version says something that this one does not know; it will be told by what it is sent.
                _log.info("a sidecar said something unknown; ignored")

    def _hello(self, agent_id: SpiffeId, stream: int, hello: control_pb2.Hello) -> None:
        if VERSION not in hello.versions:
            _log.warning("%s speaks none of our versions of the control stream", agent_id)
            self._forget(str(agent_id))
            return
        one = self._listening.setdefault(agent_id, Listening())
        self._restrict(agent_id)
        one.streams.add(stream)
        one.agent_version = hello.agent_version[:255]
        one.running = _generation(hello.running) if hello.HasField("running") else None
        if one.running is not None and one.running > self._state.generation:
            self._behind_of(agent_id, one.running)
        self._absent.discard(agent_id)
        self._due[agent_id] = None
        self._changed.set()

    def _behind_of(self, agent_id: SpiffeId, running: Generation) -> None:
        """Say what happened when the mark was restored together with the database: sidecars refuse what we say."""
        if not self._behind:
            self._behind = True
            _log.error(
                "%s says that it runs generation %s, and this broker is at %s: its data is older than what it once "
                "published, and sidecars refuse that. Stop it, delete the file `generation` in its data directory, and "
                "start it again: a new epoch begins",
                agent_id,
                running,
                self._state.generation,
            )

    def _ack(self, agent_id: SpiffeId, ack: control_pb2.Ack) -> None:
        one = self._listening.get(agent_id)
        if one is not None:
            one.acknowledged, one.view_hash, one.refused = _generation(ack.generation), ack.view_hash, ""
            one.svids = {svid.entry_id: (svid.not_after, svid.authority_id) for svid in ack.svids}
            one.issued = {svid.entry_id: svid.issued_at for svid in ack.svids}

    def _nack(self, agent_id: SpiffeId, nack: control_pb2.Nack) -> None:
        one = self._listening.get(agent_id)
        if one is not None:
            one.refused = nack.code[:64]
        self._metrics.updates_refused.inc()
        _log.warning("%s refused generation %s: %s", agent_id, _generation(nack.generation), nack.code[:64])

    def _closed(self, agent_id: SpiffeId, stream: int) -> None:
        one = self._listening.get(agent_id)
        if one is None:
            return
        one.streams.discard(stream)
        if not one.streams:
            del self._listening[agent_id]
            self._absent.add(agent_id)

    # --- what they are told -------------------------------------------------------------------------------------

    def _drop_absent(self) -> None:
        for agent_id in self._absent:
            self._control.forget(str(agent_id))
        self._absent.clear()

    async def _publish_due(self) -> None:
        """Compute and hand over every view that is due, in slices."""
        began = time.perf_counter()
        ready: list[tuple[list[str], bytes]] = []
        while self._due:
            agent_id, _ = self._due.popitem()
            view = self._view(agent_id)
            if view is not None:
                ready.append(([str(agent_id)], view))
            if time.perf_counter() - began > _SLICE_SECONDS:
                self._hand_over(ready)
                ready = []
                await asyncio.sleep(0)
                began = time.perf_counter()
        self._hand_over(ready)
        self._metrics.generation.set(self._state.generation.number)

    def _hand_over(self, views: list[tuple[list[str], bytes]]) -> None:
        if not views:
            return
        try:
            self._control.publish(views)
        except MtlsError as error:
            # One view that is too large must not keep the others from theirs.
            if len(views) == 1:
                _log.error("the view of %s cannot be sent: %s", views[0][0][0], error)
                return
            for view in views:
                self._hand_over([view])

    def _view(self, agent_id: SpiffeId) -> bytes | None:
        """Return an agent's view, or cut it off when it has none."""
        try:
            entitlement = self._state.entitlement(agent_id)
        except BrokerError as error:
            _log.warning("control stream of %s closed: %s", agent_id, error)
            self.cut(agent_id)
            return None
        one = self._listening.get(agent_id)
        view = self._present_viewer().view(entitlement, one.told if one else None)
        if one is not None:
            one.told = view
        return view.update(self._state.generation)

    def _present_viewer(self) -> Viewer:
        """Return the viewer of this generation: the one before, if nothing changed but entries."""
        state, policy = self._state, self._policy.current
        if self._viewer is None or self._viewer[0] != state.generation:
            viewer = self._viewer[1] if self._viewer else None
            cas = listed(state, policy.policy) if state.knows_all_below else None
            below = cas, limited(state, policy.policy)
            if viewer is None or not viewer.is_of(state.bundles, policy, state.revocations.values(), *below):
                viewer = Viewer(state.trust_domain, state.bundles, policy, state.revocations.values(), *below)
            self._viewer = (state.generation, viewer)
        return self._viewer[1]


def _generation(message: control_pb2.Generation) -> Generation:
    return Generation(message.epoch, message.number)
