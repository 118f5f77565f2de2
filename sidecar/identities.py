# SPDX-License-Identifier: Apache-2.0
"""The SVIDs that a sidecar holds, when each is to be replaced, and the Material that the core runs on. Pure."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from firedoor.certs import Selector, SvidError, TrustBundle, TrustDomain, VerifiedSvid, X509Svid, verify_x509_svid
from firedoor.certs.certificate import read_certificate
from firedoor.mtls import ClientRule, Material, Svid
from firedoor.sidecar.keys import Key
from firedoor.sidecar.state import StoredAgent
from firedoor.sidecar.view import Entry, View, certs_revocation, core_revocation

# Renewal at half life, give or take: sidecars that started together do not come together for ever.
JITTER = 0.1
# However short a certificate lives, or however wrong a clock is: no busy loop.
SHORTEST_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Identity:
    """One verified SVID with its key, for one entry as it was at that revision."""

    entry: Entry
    svid: X509Svid
    key: Key
    authority_ids: tuple[str, ...]
    renew_at: float

    def live(self, now: float) -> bool:
        """Say whether it has not expired."""
        return now < self.svid.not_after


def renewal_time(obtained: float, not_after: float, uniform: Callable[[float, float], float] = random.uniform) -> float:
    """Return when to renew: half of what was left when it was obtained, with jitter."""
    return obtained + max(SHORTEST_SECONDS, (not_after - obtained) / 2 * uniform(1 - JITTER, 1 + JITTER))


class Standing(Enum):
    """What a certificate of ours is worth."""

    GOOD = "good"
    # It serves, and is to be replaced soon.
    TAINTED = "tainted"
    # Revoked, expired, or nobody vouches for it any more.
    BAD = "bad"


class Verifier:
    """Checks SVIDs of ours against one view, before they are used and again when the view changes."""

    def __init__(self, view: View, before: "Verifier | None" = None) -> None:
        self.view = view
        self.bundles = view.bundles
        self.revocations = tuple(certs_revocation(one, view.trust_domain) for one in view.revocations)
        # By serial number, what `_look` found; it takes a millisecond each, and most views change neither of the two.
        self.held: dict[str, Standing] = {}
        same = before and before.bundles == self.bundles and before.revocations == self.revocations
        if before and same and before.view.intermediates == view.intermediates:
            self.held = before.held

    def verify(self, chain: Sequence[bytes], at: float) -> VerifiedSvid:
        """Verify a chain. Raise SvidError."""
        listed = self.view.listed
        return verify_x509_svid(chain, self.bundles, int(at), revocations=self.revocations, intermediates=listed)

    def is_stale(self, identity: Identity, now: float) -> bool:
        """Say whether it must be replaced at once: its entry has changed, or its authority is tainted or gone."""
        entry = self.view.entries.get(identity.entry.id)
        if entry is None or entry.revision != identity.entry.revision:
            return True
        return self.standing(identity, now) is not Standing.GOOD

    def standing(self, identity: Identity, now: float) -> Standing:
        """Say what its certificate is worth, whatever its entry says now."""
        serial = identity.svid.serial
        if serial not in self.held:
            self.held[serial] = self._look(identity, now)
        return self.held[serial]

    def forget(self, serials: Iterable[str]) -> None:
        """Keep what is known about these alone."""
        kept = set(serials)
        for serial in self.held.keys() - kept:
            del self.held[serial]

    def _look(self, identity: Identity, now: float) -> Standing:
        try:
            verified = self.verify(identity.svid.chain, now)
        except SvidError:
            return Standing.BAD
        bad = tainted(self.bundles, identity.entry.spiffe_id.trust_domain, verified.authority_ids)
        return Standing.TAINTED if bad else Standing.GOOD


def anchored(chain: Sequence[bytes], bundle: TrustBundle | None) -> bool:
    """Say whether the authority that a chain ends at is in a bundle, by its ID. Nothing else about it is checked."""
    if bundle is None or not chain:
        return False
    above = read_certificate(chain[-1]).authority_key_id
    return any(root.authority_id == above for root in bundle.x509_roots)


def agent_tainted(verifier: Verifier, agent: StoredAgent, domain: TrustDomain, now: float) -> bool:
    """Say whether an authority above the agent SVID is tainted: it counts for now, and must be replaced."""
    try:
        return tainted(verifier.bundles, domain, verifier.verify(agent.chain, now).authority_ids)
    except SvidError:
        return False


def tainted(bundles: Mapping[TrustDomain, TrustBundle], domain: TrustDomain, authority_ids: Iterable[str]) -> bool:
    """Say whether one of the authorities is tainted in its bundle."""
    bundle = bundles.get(domain)
    bad = {root.authority_id for root in bundle.x509_roots if root.tainted} if bundle else set()
    return not bad.isdisjoint(authority_ids)


def material(
    view: View,
    agent: StoredAgent | None,
    identities: Iterable[Identity],
    now: float,
    rule_of: Callable[[frozenset[Selector]], ClientRule | None],
) -> Material:
    """Put together what the core runs on: one SVID an ID, and by which rules local clients may use it."""
    own = view.bundles.get(view.trust_domain)
    # One that has expired, or that no authority vouches for any more, would have the core refuse everything: the news
    # of that too.
    held = [agent] if agent is not None and _counts(agent, own, now) else []
    svids = [Svid(id=str(one.spiffe_id), chain=one.chain, key=one.key.private) for one in held]
    by_id: dict[str, list[Identity]] = {}
    for identity in sorted(identities, key=lambda one: one.entry.order):
        if identity.live(now):
            by_id.setdefault(str(identity.svid.id), []).append(identity)
    svids += [_svid(spiffe_id, group, rule_of) for spiffe_id, group in sorted(by_id.items())]
    return Material(
        trust_domain=view.trust_domain.name,
        bundles={domain.name: [root.der for root in one.x509_roots] for domain, one in view.bundles.items()},
        tainted=[root.der for one in view.bundles.values() for root in one.x509_roots if root.tainted],
        svids=svids,
        revocations=[core_revocation(one) for one in view.revocations],
        intermediates=None if view.intermediates is None else list(view.intermediates.items()),
        table=view.table,
        generation=view.generation or (0, 0),
    )


def _counts(agent: StoredAgent, own: TrustBundle | None, now: float) -> bool:
    return (own is None or anchored(agent.chain, own)) and read_certificate(agent.chain[0]).not_after > now


def _svid(
    spiffe_id: str, group: Sequence[Identity], rule_of: Callable[[frozenset[Selector]], ClientRule | None]
) -> Svid:
    """Make one SVID of several entries with one ID: any of their clients, only what all of them federate with."""
    first = group[0]
    federates = set(first.entry.federates_with).intersection(*(one.entry.federates_with for one in group))
    rules = [rule_of(one.entry.selectors) for one in group]
    return Svid(
        id=spiffe_id,
        chain=first.svid.chain,
        key=first.key.private,
        federates_with=sorted(one.name for one in federates),
        clients=[rule for rule in rules if rule is not None],
    )
