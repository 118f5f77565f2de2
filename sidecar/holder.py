# SPDX-License-Identifier: Apache-2.0
"""The one place where a running sidecar's knowledge lives: agent, view, identities, and who waits for changes.

Everything is replaced, nothing is changed in place, and only the event loop's thread touches it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import replace

from firedoor.certs import Selector
from firedoor.mtls import ClientRule, Core
from firedoor.sidecar.crls import vouched
from firedoor.sidecar.demand import Demand
from firedoor.sidecar.identities import Identity, Standing, Verifier, material
from firedoor.sidecar.server import Issued
from firedoor.sidecar.state import StoredAgent
from firedoor.sidecar.view import Entry, View

RuleOf = Callable[[frozenset[Selector]], ClientRule | None]


class Holder:
    """Holds what the sidecar knows and publishes it to the core as one value."""

    def __init__(
        self, core: Core, view: View, now: Callable[[], float], rule_of: RuleOf, demand: Demand | None = None
    ) -> None:
        self._core, self._now, self._rule_of = core, now, rule_of
        self.demand = Demand() if demand is None else demand
        self.view = view
        self.agent: StoredAgent | None = None
        self.identities: Mapping[str, Identity] = {}
        self.verifier = Verifier(view)
        self.revision = 0
        # The revocation lists that local programs get, DER.
        self.crls: tuple[bytes, ...] = vouched(view, now())
        # Why the server gave no SVID, by entry ID.
        self.refusals: Mapping[str, Issued] = {}
        # Set at the next change, and then another one stands here.
        self.changed = asyncio.Event()

    def set(
        self,
        *,
        view: View | None = None,
        agent: StoredAgent | None = None,
        identities: Iterable[Identity] | None = None,
    ) -> None:
        """Publish a new state; raise MaterialError, with nothing changed, when the core refuses it.

        Identities that nobody wants are dropped when there are too many.
        """
        new_view = view or self.view
        new_agent = agent or self.agent
        kept = self.identities.values() if identities is None else identities
        found = {one.entry.id: one for one in _entitled(new_view, kept)}
        chosen = self.demand.chosen(new_view, found)
        new_identities = {key: one for key, one in found.items() if key in chosen}
        self.revision = self._core.publish(
            material(new_view, new_agent, new_identities.values(), self._now(), self._rule_of)
        )
        if view is not None:
            self.verifier = Verifier(view, self.verifier)
            if (view.crls, view.bundles) != (self.view.crls, self.view.bundles):
                self.crls = vouched(view, self._now())
        self.verifier.forget(one.svid.serial for one in new_identities.values())
        self.view, self.agent, self.identities = new_view, new_agent, new_identities
        self.refusals = {key: why for key, why in self.refusals.items() if key in new_view.entries}
        self.notify()

    def refused(self, refusals: Mapping[str, Issued]) -> None:
        """Note why the server gave no SVIDs; an identity that came since clears its own."""
        self.refusals = {key: why for key, why in refusals.items() if key in self.view.entries}
        self.notify()

    def lacking(self, now: float) -> list[Entry]:
        """Return the entries whose SVID is missing, due for renewal, or good no longer."""
        chosen = self.demand.chosen(self.view, self.identities)
        return [self.view.entries[one] for one in chosen if not self._is_fresh(self.view.entries[one], now)]

    def can_wait(self, entries: Iterable[Entry], now: float) -> tuple[list[str], list[str]]:
        """Return which of these, that lack a fresh SVID, have one that serves: after a change, and after a taint."""
        changed: list[str] = []
        tainted: list[str] = []
        for entry in entries:
            held = self.identities.get(entry.id)
            if held is None or now >= held.renew_at:
                continue
            standing = self.verifier.standing(held, now)
            if standing is not Standing.BAD:
                (tainted if standing is Standing.TAINTED else changed).append(entry.id)
        return changed, tainted

    def prune(self) -> None:
        """Drop identities that nobody wants any more, when there are too many."""
        if not self.identities.keys() <= self.demand.chosen(self.view, self.identities).keys():
            self.set()

    def _is_fresh(self, entry: Entry, now: float) -> bool:
        held = self.identities.get(entry.id)
        return held is not None and now < held.renew_at and not self.verifier.is_stale(held, now)

    def live(self, now: float) -> list[Identity]:
        """Return the identities that have not expired, in the order of their entries."""
        return sorted((one for one in self.identities.values() if one.live(now)), key=lambda one: one.entry.order)

    def notify(self) -> None:
        """Wake whoever watches."""
        event, self.changed = self.changed, asyncio.Event()
        event.set()

    def not_admitted(self) -> frozenset[str]:
        """Return the entries that the server refuses to issue for, until something changes."""
        return frozenset(key for key, why in self.refusals.items() if why.denied and key not in self.identities)

    async def changes(self) -> AsyncIterator[None]:
        """Yield at once and after every change; changes while the consumer is busy are one."""
        while True:
            event = self.changed
            yield
            await event.wait()


def _entitled(view: View, identities: Iterable[Identity]) -> Iterable[Identity]:
    """Keep what the view's entries still give, under their present selectors, and its authorities still vouch for."""
    roots = {name: {root.authority_id for root in one.x509_roots} for name, one in view.bundles.items()}
    for one in identities:
        entry = view.entries.get(one.entry.id)
        if one.authority_ids[-1] not in roots.get(one.entry.spiffe_id.trust_domain, ()):
            continue
        if entry is not None and entry.spiffe_id == one.entry.spiffe_id:
            yield one if entry == one.entry else _with_entry(one, entry)


def _with_entry(identity: Identity, entry: Entry) -> Identity:
    """Take over what an entry says now; the certificate stays as old as it is, so the revision does too."""
    return replace(identity, entry=replace(entry, revision=identity.entry.revision))
