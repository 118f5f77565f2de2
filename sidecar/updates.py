# SPDX-License-Identifier: Apache-2.0
"""Following the server: updates of the control stream, or polls of a server that has none.

An update is published as soon as it is read: flows and revocations do not wait for new SVIDs. It is acknowledged when
the SVIDs that it calls for have been asked for, so that an acknowledgement says what this sidecar runs with.
"""

import asyncio
import logging
import random
from collections.abc import Callable

from google.protobuf.message import DecodeError

from firedoor.certs import NOT_BEFORE_CUSHION, TrustBundle, TrustDomain
from firedoor.mtls import MtlsError, check_roots
from firedoor.sidecar import bundles, deltas
from firedoor.sidecar.errors import AgentLost, ServerUnavailable, StateError, UpdateRefused
from firedoor.sidecar.holder import Holder
from firedoor.sidecar.link import EventKind, Link
from firedoor.sidecar.server import Server, with_advice
from firedoor.sidecar.spread import Spread
from firedoor.sidecar.state import State
from firedoor.sidecar.version import VERSION
from firedoor.sidecar.view import View, check_update, read_checked, read_entry, read_update
from firedoor.wire import control_pb2, views

log = logging.getLogger(__name__)

PROTOCOL_VERSIONS = (1,)
FEATURES = (views.DELTA, views.SPREAD, views.CRLS)
POLL_SECONDS = 5.0
# Give or take: those that a server's return brought together part again. Nobody gains by guessing it.
POLL_JITTER = 0.1
# How long a server may be behind what another one said.
CATCH_UP_SECONDS = 5.0


class Updates:
    """Keeps the view that of the server.

    `wake` is called when SVIDs may be lacking, `lost` when the server knows this agent no longer, `failed` when what it
    says stays older than what runs here, and `later` takes events of our own for `on_event`. `spread` is how what every
    sidecar would do at once is spread.
    """

    def __init__(
        self,
        holder: Holder,
        link: Link,
        state: State,
        local_table: bytes | None,
        now: Callable[[], float],
        spread: Spread,
        *,
        wake: Callable[[], None],
        lost: Callable[[], None],
        failed: Callable[[], None],
        later: Callable[[tuple[EventKind, bytes]], None],
    ) -> None:
        self._holder, self._link, self._state, self._wake, self._lost = holder, link, state, wake, lost
        self._local_table, self._now, self._spread = local_table, now, spread
        self._failed, self._later = failed, later
        # What the server may build updates upon.
        self.bases = deltas.Bases()
        # When the server last told what it has, in Unix seconds; 0 before that.
        self.heard_at = 0.0
        self._owed = False
        # What was acknowledged last: the same is not said twice, unless an update asks again.
        self._said: control_pb2.Ack | None = None
        # The latest update was refused: an Ack of the one before would hide that from the server.
        self._refused = False
        self._polling: asyncio.Event = asyncio.Event()
        # Why the stream broke last; the same reason is logged once.
        self._reason = ""
        # Trust domains whose bundle could not be used when the server was asked last.
        self._odd: set[TrustDomain] = set()

    @property
    def polling(self) -> bool:
        """Whether the server has no control stream."""
        return self._polling.is_set()

    async def on_event(self, kind: EventKind, data: bytes) -> None:
        """Take one event of the control stream. Raise AgentBanned or AgentLost."""
        if kind == "connected":
            self._polling.clear()
            self._reason = ""
            log.info("connected to the server")
            self._link.greet(self._hello())
        elif kind == "message":
            self._on_message(data)
        elif kind == "unsupported":
            if not self.polling:
                log.info("the server has no control stream: it is asked every few seconds")
            self._polling.set()
        elif kind == "disconnected":
            self._on_disconnect(data.decode(errors="replace"))
        else:
            await self._ask()

    def _hello(self) -> control_pb2.Hello:
        view = self._holder.view
        hello = control_pb2.Hello(
            versions=PROTOCOL_VERSIONS, features=FEATURES, view_hash=view.hash, agent_version=VERSION
        )
        self.bases.said(view.hash)
        if view.generation is not None:
            hello.running.CopyFrom(_generation(view))
        return hello

    def _on_message(self, data: bytes) -> None:
        message = control_pb2.FromBroker()
        try:
            message.ParseFromString(data)
            if message.WhichOneof("kind") != "update":
                raise UpdateRefused("unknown_message", "the server sent a message of an unknown kind")
            self._take(message.update)
        except DecodeError:
            self._refuse(message.update, UpdateRefused("malformed", "the server sent what is no message"))
        except UpdateRefused as error:
            self._refuse(message.update, error)

    def _take(self, update: control_pb2.Update) -> None:
        old = self._holder.view
        told = update.spread_ms if update.HasField("spread_ms") else None
        update, view = self._read(update, old)
        try:
            self._holder.set(view=view)
        except MtlsError as error:
            raise UpdateRefused("material_refused", f"the update cannot be used: {error}") from error
        self.heard_at = self._now()
        self.bases.runs(update)
        self._spread.take(told)
        self._link.spread(self._spread.milliseconds)
        self._keep(update, view)
        if view.generation != old.generation:
            log.info("generation", extra={"generation": list(view.generation or ()), "entries": len(view.entries)})
        self._owed, self._refused = True, False
        self._wake()

    def _read(self, update: control_pb2.Update, old: View) -> tuple[control_pb2.Update, View]:
        """Return an update made whole, and its view. Raise UpdateRefused."""
        if not update.HasField("base"):
            return update, read_update(update, old.trust_domain, old.generation)
        check_update(update, old.generation)
        delta = update.delta
        if old.generation is None or views.generation_key(update.base) > old.generation:
            raise UpdateRefused(views.UNKNOWN_BASE, "the update is built upon a generation that never ran here")
        full = deltas.whole(self.bases.find(delta.base_hash), update, old.trust_domain)
        if not self.bases.runs_with(delta.base_hash) or old.hash != delta.base_hash:
            return full, read_checked(full, old.trust_domain)
        put = {entry.id for part in delta.put for entry in part.entries.entries}
        known = {entry_id: entry for entry_id, entry in old.entries.items() if entry_id not in put}
        return full, read_checked(full, old.trust_domain, known)

    def _refuse(self, update: control_pb2.Update, error: UpdateRefused) -> None:
        self._refused = True
        # All of it comes in place of a delta that cannot be used.
        level = logging.INFO if error.nack == views.UNKNOWN_BASE else logging.ERROR
        log.log(level, "an update was refused", extra={"code": error.nack, "reason": str(error)})
        nack = control_pb2.Nack(generation=update.generation, code=error.nack, error=str(error))
        self._link.send(control_pb2.FromSidecar(nack=nack))
        if error.nack == "generation_went_back":
            # One of several brokers hears of the others' changes within moments.
            asyncio.get_running_loop().call_later(CATCH_UP_SECONDS, self._still_behind)

    def _still_behind(self) -> None:
        if self._refused:
            self._failed()

    def _keep(self, update: control_pb2.Update | None, view: View) -> None:
        """Store what a restart begins with; when that fails, this process still runs on it."""
        try:
            if update is not None:
                self._state.store_generation(update)
            self._state.store_bundles(bundles.dump(view.bundles.values()))
        except StateError as error:
            log.error("the update is not stored", extra={"reason": str(error)})

    def acknowledge(self) -> None:
        """Say what runs here, if an update is owed an answer or identities have changed since."""
        view = self._holder.view
        if self._refused or view.generation is None or not view.hash:
            return
        svids = [
            control_pb2.SvidState(
                entry_id=one.entry.id,
                not_after=one.svid.not_after,
                authority_id=one.svid.authority_id,
                issued_at=one.svid.not_before + NOT_BEFORE_CUSHION,
            )
            for one in self._holder.identities.values()
        ]
        ack = control_pb2.Ack(generation=_generation(view), view_hash=view.hash, svids=svids)
        if not self._owed and ack == self._said:
            return
        self._owed, self._said = False, ack
        self.bases.said(view.hash)
        self._link.send(control_pb2.FromSidecar(ack=ack))

    def _on_disconnect(self, reason: str) -> None:
        if reason != self._reason:
            log.warning("the control stream is down", extra={"reason": with_advice(reason)})
            self._reason = reason
        # All sidecars may have lost it.
        asyncio.get_running_loop().call_later(self._spread.delay(), self._later, ("ask", b""))

    async def _ask(self) -> None:
        """Ask the server whether it still knows us: a stream that was reset does not say why."""
        try:
            await self._link.server.post_status(VERSION)
        except ServerUnavailable as error:
            log.debug("the server does not answer", extra={"reason": str(error)})

    async def poll(self) -> None:
        """Ask the server every few seconds for as long as it has no control stream. Raise AgentBanned."""
        while True:
            await self._polling.wait()
            try:
                await self._poll_once(self._link.server)
            except AgentLost:
                self._lost()
            except (ServerUnavailable, UpdateRefused, MtlsError) as error:
                log.warning("the server was asked in vain", extra={"reason": str(error)})
            await asyncio.sleep(POLL_SECONDS * random.uniform(1 - POLL_JITTER, 1 + POLL_JITTER))  # noqa: S311 - as above

    async def _poll_once(self, server: Server) -> None:
        old = self._holder.view
        entries = [read_entry(one, old.trust_domain) for one in await server.entries()]
        own = await server.bundle()
        federated = {name for entry in entries for name in entry.federates_with} - {old.trust_domain}
        others = [await self._other(server, name) for name in sorted(federated)]
        self._odd &= federated
        view = View(
            old.trust_domain,
            synced=True,
            generation=None if self._local_table is None else (0, 1),
            table=self._local_table or b"",
        )
        self.heard_at = self._now()
        view = view.with_entries(entries).with_bundles([own, *(one for one in others if one is not None)])
        if view == old or not self.polling:
            return
        self._holder.set(view=view)
        self.bases.forget()
        self._keep(None, view)
        log.info("entries", extra={"entries": len(view.entries)})
        self._wake()

    async def _other(self, server: Server, name: TrustDomain) -> TrustBundle | None:
        """Return another trust domain's bundle: the one before, if what the server has now cannot be used.

        It must not keep our own entries and authorities from us.
        """
        try:
            found = await server.federated_bundle(name)
            if found is not None:
                check_roots(name.name, [root.der for root in found.x509_roots])
        except (UpdateRefused, MtlsError) as error:
            if name not in self._odd:
                log.error("a bundle cannot be used", extra={"trust_domain": name.name, "reason": str(error)})
            self._odd.add(name)
            return self._holder.view.bundles.get(name)
        self._odd.discard(name)
        return found


def _generation(view: View) -> control_pb2.Generation:
    epoch, number = view.generation or (0, 0)
    return control_pb2.Generation(epoch=epoch, number=number)
