# SPDX-License-Identifier: Apache-2.0
"""The broker's end of the control streams: who listens, what each is told, what each has acknowledged.

Rust holds the streams; here a view is computed for each agent that listens, again at every generation, in slices that
never keep the event loop for long. An agent that is not attested, or banned, is told nothing and loses its streams, and
so does a stream that was opened with a certificate which is not one of its agent's any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from firedoor.broker.db.acknowledged_rows import put_acknowledged
from firedoor.broker.db.rows import Generation
from firedoor.broker.downstream import limited, listed
from firedoor.broker.errors import BrokerError
from firedoor.broker.spread import spread_ms
from firedoor.broker.told import Told, Viewers
from firedoor.broker.views import VERSION, Shared, View, Viewer
from firedoor.certs import CertsError, SpiffeId
from firedoor.mtls import ControlServer, MtlsError
from firedoor.segments.directory import Directory
from firedoor.wire import control_pb2
from firedoor.wire.views import CRLS, DELTA, SPREAD, UNKNOWN_BASE

if TYPE_CHECKING:
    from firedoor.broker.metrics import Metrics
    from firedoor.broker.policy import PolicyKeeper
    from firedoor.broker.state import State

_log = logging.getLogger("firedoor.broker.control")
# Events taken, and seconds of views computed, before other calls get a turn. A call has about seven turns of the event
# loop to wait for, so that it waits for seven of these.
_EVENTS: Final = 32
_SLICE_SECONDS: Final = 0.001
# How often other brokers are told what was acknowledged.
_SHARE_SECONDS: Final = 0.5
# A delta of fewer bytes is sent whatever the whole has.
_SHORT: Final = 1024
# An agent, an update, and whether it is whole.
Published = tuple[str, bytes, bool]


@dataclass(slots=True)
class Listening:
    """One agent with open streams, and what it last said."""

    # Each open one, and what the sidecar behind it takes.
    streams: dict[int, frozenset[str]] = field(default_factory=dict)
    # What it may listen with, as the core was told; None: nothing was said yet.
    certificates: tuple[str, ...] | None = None
    agent_version: str = ""
    running: Generation | None = None
    acknowledged: Generation | None = None
    view_hash: bytes = b""
    told: Told = field(default_factory=Told)
    # Entry ID to (notAfter, authority ID) of the SVID that the sidecar holds.
    svids: dict[str, tuple[int, str]] = field(default_factory=dict)
    # Entry ID to when that SVID was issued; sidecars of before did not say.
    issued: dict[str, int] = field(default_factory=dict)
    refused: str = ""

    def takes(self, feature: str) -> bool:
        """Say whether a feature is taken on every stream: all are sent the same."""
        return all(feature in features for features in self.streams.values())


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
        self._viewers = Viewers(state.trust_domain)
        # The present viewer, and when it was found to be.
        self._viewer: tuple[Generation, Viewer] | None = None
        self._looks: set[asyncio.Task[None]] = set()
        # What was acknowledged here and other brokers do not know yet.
        self._unshared: dict[SpiffeId, Generation] = {}
        # Updates of each kind that are not counted yet, and their bytes.
        self._sent: Counter[str] = Counter()
        self._sent_bytes: Counter[str] = Counter()
        # Whether what updates call for must not wait: an emergency.
        self.urgent: Callable[[], bool] = lambda: False
        # Derived services that there is no room for, as it was last said.
        self._left_out = 0
        # Said once that a sidecar is ahead of us.
        self._behind = False
        metrics.behind.set_function(lambda: len(self.missing(state.generation)))
        state.watch(self._changed.set)
        state.watch_agents(self._certificates_changed)

    @property
    def listening(self) -> dict[SpiffeId, Listening]:
        """Which agents listen, and what each acknowledged: what an authority rotation waits for."""
        return self._listening

    @property
    def directory(self) -> Directory:
        """What was derived from a cluster's objects, as sidecars are told it in the present generation."""
        return self._present_viewer().directory

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

    async def share(self) -> None:
        """Tell other brokers what was acknowledged here, until cancelled: a rotation of theirs waits for it too."""
        while True:
            await asyncio.sleep(_SHARE_SECONDS)
            told = {str(agent_id): one for agent_id, one in self._unshared.items()}
            if not told:
                continue
            with contextlib.suppress(BrokerError):
                if await self._state.database.others():
                    await self._state.database.write(lambda c, told=told: put_acknowledged(c, told))  # type: ignore[misc]
                    self._unshared = {a: one for a, one in self._unshared.items() if told.get(str(a)) != one}

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
        one.streams[stream] = frozenset(hello.features) & {DELTA, SPREAD, CRLS}
        one.agent_version = hello.agent_version[:255]
        one.running = _generation(hello.running) if hello.HasField("running") else None
        one.told.runs(one.running, hello.view_hash)
        if one.running is not None and one.running > self._state.generation:
            self._ahead(agent_id, one.running)
        self._absent.discard(agent_id)
        self._due[agent_id] = None
        self._changed.set()

    def _ahead(self, agent_id: SpiffeId, running: Generation) -> None:
        """Look what another broker told it; if that is not it, our data is old."""

        async def look() -> None:
            with contextlib.suppress(BrokerError):
                await self._state.database.catch_up()
                if running > self._state.generation:
                    self._behind_of(agent_id, running)

        self._looks.add(task := asyncio.create_task(look()))
        task.add_done_callback(self._looks.discard)

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
            one.told.runs(one.acknowledged, ack.view_hash)
            # Nobody can have what was not published; what says so is kept to this broker.
            if self._state.database.broker_id and one.acknowledged <= self._state.generation:
                self._unshared[agent_id] = one.acknowledged
            one.svids = {svid.entry_id: (svid.not_after, svid.authority_id) for svid in ack.svids}
            one.issued = {svid.entry_id: svid.issued_at for svid in ack.svids}

    def _nack(self, agent_id: SpiffeId, nack: control_pb2.Nack) -> None:
        one = self._listening.get(agent_id)
        if one is not None:
            if one.told.refused():
                # All of it may do. Once: what is refused again waits for the next change.
                self._due[agent_id] = None
                self._changed.set()
            if nack.code == UNKNOWN_BASE:
                _log.info("%s does not have the base of a delta; it is sent all", agent_id)
                return
            one.refused = nack.code[:64]
        self._metrics.updates_refused.inc()
        _log.warning("%s refused generation %s: %s", agent_id, _generation(nack.generation), nack.code[:64])

    def _closed(self, agent_id: SpiffeId, stream: int) -> None:
        one = self._listening.get(agent_id)
        if one is None:
            return
        one.streams.pop(stream, None)
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
        ready: list[Published] = []
        while self._due:
            agent_id, _ = self._due.popitem()
            view = self._view(agent_id)
            if view is not None:
                ready.append((str(agent_id), *view))
            if time.perf_counter() - began > _SLICE_SECONDS:
                self._hand_over(ready)
                ready = []
                await asyncio.sleep(0)
                began = time.perf_counter()
        self._hand_over(ready)
        self._count()

    def _count(self) -> None:
        self._metrics.generation.set(self._state.generation.number)
        for kind, number in self._sent.items():
            self._metrics.updates.labels(kind).inc(number)
        for kind, size in self._sent_bytes.items():
            self._metrics.update_bytes.labels(kind).inc(size)
        self._sent.clear()
        self._sent_bytes.clear()

    def _hand_over(self, ready: Iterable[Published]) -> None:
        wholes: list[tuple[list[str], bytes]] = []
        deltas: list[tuple[list[str], bytes]] = []
        for agent, update, whole in ready:
            (wholes if whole else deltas).append(([agent], update))
        self._publish(wholes, lasting=True)
        # What is built upon what a sidecar said is not for the next one that comes as this agent.
        self._publish(deltas, lasting=False)

    def _publish(self, views: list[tuple[list[str], bytes]], *, lasting: bool) -> None:
        if not views:
            return
        try:
            self._control.publish(views, lasting=lasting)
        except MtlsError as error:
            # One view that is too large must not keep the others from theirs.
            if len(views) == 1:
                _log.error("the view of %s cannot be sent: %s", views[0][0][0], error)
                return
            for view in views:
                self._publish([view], lasting=lasting)

    def _view(self, agent_id: SpiffeId) -> tuple[bytes, bool] | None:
        """Return an agent's update and whether it is whole, or cut it off when it has none."""
        try:
            entitlement = self._state.entitlement(agent_id)
        except BrokerError as error:
            _log.warning("control stream of %s closed: %s", agent_id, error)
            self.cut(agent_id)
            return None
        one = self._listening.get(agent_id)
        if one is None:
            return None
        viewer = self._present_viewer()
        view = viewer.view(entitlement, one.told.view, crls=one.takes(CRLS))
        deltas = one.takes(DELTA)
        spread = spread_ms(len(self._listening), urgent=self.urgent()) if one.takes(SPREAD) else None
        update = self._delta(viewer, view, one, spread) if deltas else None
        whole = update is None
        one.told.told(view, by_delta=not whole)
        made = update or viewer.whole(view, self._state.generation, by_parts=deltas, spread=spread)
        kind = "whole" if whole else "delta"
        self._sent[kind] += 1
        self._sent_bytes[kind] += len(made)
        return made, whole

    def _delta(self, viewer: Viewer, view: View, one: Listening, spread: int | None) -> bytes | None:
        """Return what has changed since what a sidecar runs; None when it must be told all, or that is shorter."""
        found = one.told.base(view)
        if found is None:
            return None
        generation, base = found
        before = self._viewers.by_number(base.viewer)
        made = viewer.delta(view, self._state.generation, base, generation, before, spread)
        # One with a few changes is not weighed.
        short = made is None or len(made) < _SHORT or len(made) < viewer.whole_size(view)
        return made if short else None

    def _present_viewer(self) -> Viewer:
        """Return the viewer of this generation: the one before, if nothing changed but entries."""
        state, policy = self._state, self._policy.current
        if self._viewer is None or self._viewer[0] != state.generation:
            cas = listed(state, policy.policy) if state.knows_all_below else None
            keys = limited(state, policy.policy)
            revoked, crls = state.revocations.values(), state.vouched_crls()
            shared = Shared.of(state.bundles, policy, revoked, cas, keys, crls, state.directory)
            self._viewer = (state.generation, self._viewers.of(shared))
            left_out = len(self._viewer[1].directory.left_out)
            if left_out and left_out != self._left_out:
                _log.warning(
                    "%d services of the cluster are left out: sidecars take no more beside the policy's", left_out
                )
            self._left_out = left_out
        return self._viewer[1]


def _generation(message: control_pb2.Generation) -> Generation:
    return Generation(message.epoch, message.number)
