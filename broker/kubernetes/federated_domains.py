# SPDX-License-Identifier: Apache-2.0
"""SPIRE's ClusterFederatedTrustDomain (spire.spiffe.io/v1alpha1): federation relationships as a cluster's objects say.

Relationships that somebody made by hand, or that a file declares, are left alone. A bundle in an object is the first
one, for what is held since is newer; a bundle stays when its relationship goes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, final

from firedoor.broker.errors import BrokerError, InvalidRequest
from firedoor.broker.kubernetes.conditions import condition, known, timed
from firedoor.broker.kubernetes.registrar import origin_prefix
from firedoor.broker.kubernetes.rules import Rule, Unfit
from firedoor.broker.kubernetes.spire_identities import SpireRules
from firedoor.broker.relationship import Relationship, parse_relationship
from firedoor.certs import BundleError, TrustBundle, TrustDomain
from firedoor.cluster.errors import ClusterUnavailable
from firedoor.cluster.objects import Seen, mapping, text
from firedoor.wire import types

if TYPE_CHECKING:
    from firedoor.broker.federation import Federation
    from firedoor.broker.kubernetes.lease import Lease
    from firedoor.broker.state import State
    from firedoor.cluster.api import ClusterApi
    from firedoor.cluster.watch import Watch

_log = logging.getLogger("firedoor.broker.registration")
KIND: Final = "ClusterFederatedTrustDomain"
# Seconds between two looks when nothing changed.
_AGAIN: Final = 5.0


@final
@dataclass(frozen=True, slots=True)
class Domain:
    """What one object says; without a relationship its rule has the trouble."""

    rule: Rule
    relationship: Relationship | None = None
    bundle: TrustBundle | None = None


def read_domain(seen: Seen, own: TrustDomain, rules: SpireRules) -> Domain | None:
    """Read an object, None when it is not ours; one that is wrong has its trouble with it."""
    if not rules.are_ours(seen):
        return None
    try:
        relationship, bundle = _read(mapping(seen.get("spec")), own)
        return Domain(Rule.of(KIND, seen, privileged=rules.privileged), relationship, bundle)
    except Unfit as error:
        return Domain(Rule.of(KIND, seen, trouble=str(error)))


def _read(spec: Mapping[str, Any], own: TrustDomain) -> tuple[Relationship, TrustBundle | None]:
    profile = mapping(spec.get("bundleEndpointProfile"))
    message = types.FederationRelationship(
        trust_domain=text(spec.get("trustDomain")), bundle_endpoint_url=text(spec.get("bundleEndpointURL"))
    )
    if profile.get("type") == "https_web":
        message.https_web.SetInParent()
    elif profile.get("type") == "https_spiffe":
        message.https_spiffe.endpoint_spiffe_id = text(profile.get("endpointSPIFFEID"))
    try:
        found = parse_relationship(message)
        if found.trust_domain == own:
            raise Unfit("trustDomain: it is the broker's own")
        given = text(spec.get("trustDomainBundle"))
        return found, TrustBundle.parse(found.trust_domain, given.encode()) if given else None
    except InvalidRequest as error:
        raise Unfit(str(error)) from None
    except (BundleError, UnicodeEncodeError) as error:
        raise Unfit(f"trustDomainBundle: {error}") from None


@final
class FederatedDomains:
    """The relationships of one cluster. `run` until cancelled."""

    def __init__(
        self, api: ClusterApi, lease: Lease, cluster: str, federation: Federation, state: State, path: str
    ) -> None:
        self._api, self._lease, self._federation, self._state, self._path = api, lease, federation, state, path
        self._prefix = f"{origin_prefix(cluster)}{KIND}/"
        self._domains: dict[str, Domain] = {}
        self._wake = asyncio.Event()
        self._said: dict[str, tuple[str, int, str]] = {}
        self.watch: Watch | None = None
        # Whether it has written since the Lease is ours.
        self._begun = False

    def changed(self, name: str, _: Domain | None, new: Domain | None) -> None:
        """Take an object as it is."""
        if new is None:
            self._domains.pop(name, None)
            self._said.pop(name, None)
        else:
            self._domains[name] = new
        self._wake.set()

    async def run(self) -> None:
        """Look whenever something changed, and now and then."""
        while True:
            try:
                async with asyncio.timeout(_AGAIN):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            if self._leads():
                await self._look()

    def _leads(self) -> bool:
        """Say whether this broker writes. To begin with it knows what is there just now, as with entries."""
        self._begun = self._lease.held and (self._begun or (self.watch is not None and self.watch.current))
        return self._begun

    async def _look(self) -> None:
        wanted: dict[TrustDomain, Domain] = {}
        troubles: dict[str, str] = {}
        for name, one in sorted(self._domains.items(), key=lambda item: item[1].rule.rank):
            if one.relationship is None:
                troubles[name] = one.rule.trouble
            elif (first := wanted.setdefault(one.relationship.trust_domain, one)) is not one:
                troubles[name] = f"{first.rule.name}, which is older, is about {one.relationship.trust_domain} too"
        for trust_domain, held in list(self._federation.relationships.items()):
            if self._lease.held and held.origin.startswith(self._prefix) and trust_domain not in wanted:
                await self._try(self._federation.delete(trust_domain, origin=held.origin))
        for one in wanted.values():
            if not self._lease.held:
                # Each takes a while, and somebody else may write by then.
                return
            troubles[one.rule.name] = await self._keep(one)
        for name, why in troubles.items():
            await self._say(self._domains.get(name), why)

    async def _keep(self, one: Domain) -> str:
        """Have one relationship as it should be; say why it is not."""
        assert one.relationship is not None  # noqa: S101 - the caller has looked
        wanted = replace(one.relationship, origin=self._prefix + one.rule.name)
        if wanted.trust_domain in self._state.roles.trust_domains and not one.rule.privileged:
            return f"somebody of {wanted.trust_domain} administers this broker: make the relationship by hand"
        held = self._federation.relationships.get(wanted.trust_domain)
        bundle = one.bundle if wanted.trust_domain not in self._state.bundles else None
        if held == wanted:
            return ""
        if held is None:
            return await self._try(self._federation.create(wanted, bundle))
        if not held.origin.startswith(self._prefix):
            return f"there is a relationship with {wanted.trust_domain} that no object has made"
        return await self._try(self._federation.update(wanted, bundle, origin=held.origin))

    async def _try(self, work: Any) -> str:
        try:
            await work
        except BrokerError as error:
            return str(error)
        return ""

    async def _say(self, one: Domain | None, why: str) -> None:
        if one is None or self._said.get(one.rule.name) == (one.rule.uid, one.rule.generation, why):
            return
        if why:
            _log.warning("%s %s: %s", KIND, one.rule.name, why)
        said = condition(
            one.rule.generation, "Registered", "False" if why else "True", "Refused" if why else "Registered", why
        )
        status = {"conditions": timed([said], known(one.rule.status))}
        try:
            await self._api.put_status(f"{self._path}/{one.rule.name}", status)
        except ClusterUnavailable as error:
            _log.warning("the status of %s %s cannot be written: %s", KIND, one.rule.name, error)
            return
        self._said[one.rule.name] = (one.rule.uid, one.rule.generation, why)
