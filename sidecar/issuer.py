# SPDX-License-Identifier: Apache-2.0
"""Keeps an SVID for every entry: fetched in batches, renewed at half life, with a fresh key each time.

A server that does not answer changes nothing: what is held is used until it expires, and asked for again meanwhile.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from firedoor.certs import NOT_BEFORE_CUSHION, CertsError
from firedoor.mtls import MtlsError
from firedoor.sidecar import keys
from firedoor.sidecar.backoff import Backoff
from firedoor.sidecar.errors import AgentLost, ServerUnavailable, StateError
from firedoor.sidecar.holder import Holder
from firedoor.sidecar.identities import Identity, Verifier, renewal_time
from firedoor.sidecar.keys import Key
from firedoor.sidecar.server import BATCH, Issued, Server
from firedoor.sidecar.spread import Spread
from firedoor.sidecar.state import State
from firedoor.sidecar.view import Entry, View

log = logging.getLogger(__name__)

# Keys and requests that are made, and answers that are checked, before other work gets a turn.
SLICE = 50
# A refused entry is asked for again this often, and at once when the view changes.
REFUSED_SECONDS = 30.0
# Nothing falls due that is not looked at within this time; a clock may have been set meanwhile.
LONGEST_WAIT_SECONDS = 60.0


class Issuer:
    """Has SVIDs issued and keeps them.

    `lost` is called when the server knows this agent no longer, `failed` when it does not do its work.
    """

    def __init__(
        self,
        holder: Holder,
        state: State,
        now: Callable[[], float],
        lost: Callable[[], None],
        failed: Callable[[], None],
        *,
        keep_on_disk: bool,
    ) -> None:
        self._holder, self._state, self._now, self._lost, self._failed = holder, state, now, lost, failed
        self._keep_on_disk = keep_on_disk
        self.spread = Spread()
        self._wake = asyncio.Event()
        # The server failed, and is asked again after a while.
        self._failing = False
        # When the last look was: what fell due since then was not looked at.
        self._looked = 0.0
        # Somebody began to use an identity since the last look.
        self._wanted = False
        # What was refused: under which view, and when to ask again under the same.
        self._ask_again: dict[str, tuple[View, float]] = {}
        holder.demand.wake = self.wanted

    def wake(self) -> None:
        """Look at once whether anything is lacking."""
        self._wake.set()

    def wanted(self) -> None:
        """Look because a program begins to use an identity; that has a server that failed asked no sooner."""
        self._wanted = True
        if not self._failing:
            self._wake.set()

    def restore(self) -> None:
        """Take up the identities that are on disk."""
        found = []
        for entry_id, (key, chain) in self._state.load_workloads(self._holder.view.entries).items():
            entry = self._holder.view.entries[entry_id]
            try:
                one = _identity(self._holder.verifier, entry, key, chain, self._now(), stored=True)
            except (CertsError, ValueError) as error:
                log.info("a stored SVID is not used", extra={"entry_id": entry_id, "reason": str(error)})
                continue
            found.append(one)
        if found:
            self._holder.set(identities=found)

    async def run(self, server: Callable[[], Server], done: Callable[[], None]) -> None:
        """Keep issuing; `done` is called after each pass. Raise AgentBanned."""
        backoff = Backoff()
        while True:
            self._wake.clear()
            self._wanted, failed_before = False, self._failing
            self._failing = await self._try(server)
            # Once may be a connection that was just replaced.
            if self._failing and failed_before:
                self._failed()
            self._holder.prune()
            done()
            if self._failing:
                wait = backoff.failed(self._first_expiry())
            else:
                backoff.reset()
                wait = 0.0 if self._wanted else self._until_due()
            try:
                async with asyncio.timeout(wait):
                    await self._wake.wait()
            except TimeoutError:
                # Time alone changes answers: SVIDs and entries expire.
                self._holder.notify()

    async def _try(self, server: Callable[[], Server]) -> bool:
        """Fetch what is lacking; say whether that failed."""
        now = self._looked = self._now()
        self._ask_again = {key: value for key, value in self._ask_again.items() if key in self._holder.view.entries}
        found = [one for one in self._holder.lacking(now) if self._may_ask(one, now)]
        waiting = self.spread.waiting(*self._holder.can_wait(found, now), now)
        lacking = [one for one in found if one.id not in waiting]
        try:
            for start in range(0, len(lacking), BATCH):
                await self._fetch(server(), lacking[start : start + BATCH])
        except ServerUnavailable as error:
            log.warning("SVIDs cannot be fetched", extra={"reason": str(error)})
            return True
        except AgentLost:
            self._lost()
            return True
        return False

    async def _fetch(self, server: Server, entries: Sequence[Entry]) -> None:
        """Have SVIDs issued for these entries."""
        view = self._holder.view
        fresh = await asyncio.to_thread(_requests, entries)
        answers = await server.issue([(entry.id, csr) for entry, _, csr in fresh])
        issued, refusals = await self._accept([(e, key, a) for (e, key, _), a in zip(fresh, answers, strict=True)])
        again = self._now() + REFUSED_SECONDS
        for entry in entries:
            self._ask_again.pop(entry.id, None)
            if entry.id in refusals:
                log.warning("no SVID issued", extra={"entry_id": entry.id, "reason": refusals[entry.id].refusal})
                self._ask_again[entry.id] = (view, again)
        self._publish(issued)
        self._holder.refused({**self._holder.refusals, **refusals})

    def _may_ask(self, entry: Entry, now: float) -> bool:
        """Say whether an entry was not refused a moment ago, under this very view: policy may admit it now."""
        asked = self._ask_again.get(entry.id)
        return asked is None or asked[0] is not self._holder.view or now >= asked[1]

    async def _accept(
        self, answers: Sequence[tuple[Entry, Key, Issued]]
    ) -> tuple[list[Identity], Mapping[str, Issued]]:
        """Verify what the server sent; what cannot be used counts as refused."""
        issued: list[Identity] = []
        refusals: dict[str, Issued] = {}
        for start in range(0, len(answers), SLICE):
            part = answers[start : start + SLICE]
            checked = await asyncio.to_thread(_checked, self._holder.verifier, part, self._now())
            for (entry, _, _), one in zip(part, checked, strict=True):
                if isinstance(one, Identity):
                    issued.append(one)
                else:
                    refusals[entry.id] = one
        return issued, refusals

    def _publish(self, issued: Iterable[Identity]) -> None:
        fresh = {one.entry.id: one for one in issued}
        if not fresh:
            return
        try:
            self._holder.set(identities=[*{**self._holder.identities, **fresh}.values()])
        except MtlsError as error:
            raise ServerUnavailable(f"the server sent SVIDs that cannot be used: {error}") from error
        log.info("SVIDs issued", extra={"count": len(fresh)})
        self._holder.refusals = {key: why for key, why in self._holder.refusals.items() if key not in fresh}
        if self._keep_on_disk:
            self._store(fresh.values())

    def _store(self, identities: Iterable[Identity]) -> None:
        try:
            for one in identities:
                self._state.store_workload(one.entry.id, one.key, one.svid.chain)
            self._state.keep_workloads(self._holder.identities)
        except StateError as error:
            log.error("workload keys are not stored", extra={"reason": str(error)})

    def _until_due(self) -> float:
        """Return the seconds until something falls due."""
        now = self._now()
        held = self._holder.identities.values()
        times = [one.renew_at for one in held] + [float(one.svid.not_after) for one in held]
        times += [float(one.expires_at) for one in self._holder.view.entries.values() if one.expires_at]
        times += [when for _, when in self._ask_again.values()]
        times += self.spread.next_due()
        # A millisecond that is waited may be over before this is asked.
        return max(0.05, min((when - now for when in times if when > self._looked), default=LONGEST_WAIT_SECONDS))

    def _first_expiry(self) -> float | None:
        now = self._now()
        return min(
            (one.svid.not_after - now for one in self._holder.identities.values() if one.live(now)), default=None
        )


def _requests(entries: Sequence[Entry]) -> list[tuple[Entry, Key, bytes]]:
    made = []
    for entry in entries:
        key = keys.generate()
        made.append((entry, key, keys.csr(key, entry.spiffe_id)))
    return made


def _checked(verifier: Verifier, answers: Sequence[tuple[Entry, Key, Issued]], now: float) -> list[Identity | Issued]:
    found: list[Identity | Issued] = []
    for entry, key, answer in answers:
        if answer.refusal:
            found.append(answer)
            continue
        try:
            found.append(_identity(verifier, entry, key, answer.chain, now))
        except (CertsError, ValueError) as error:
            found.append(Issued(refusal=f"the server sent an SVID that cannot be used: {error}"))
    return found


def _identity(
    verifier: Verifier, entry: Entry, key: Key, chain: Sequence[bytes], now: float, *, stored: bool = False
) -> Identity:
    """Verify a chain for an entry. Raise SvidError, or ValueError when it is another ID's or another key's."""
    verified = verifier.verify(chain, now)
    if verified.svid.id != entry.spiffe_id:
        raise ValueError("the SVID has another ID than the entry")
    if keys.public_key_of(chain[0]) != key.public:
        raise ValueError("the SVID is for another key")
    obtained = verified.svid.not_before + NOT_BEFORE_CUSHION if stored else now
    renew_at = renewal_time(obtained, verified.svid.not_after)
    return Identity(entry, verified.svid, key, verified.authority_ids, renew_at)
