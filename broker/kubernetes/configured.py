# SPDX-License-Identifier: Apache-2.0
"""The controllers that a configuration names, put together: what each is given, and what runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from firedoor.broker.kubernetes.bundle_maps import BundleMaps
from firedoor.broker.kubernetes.cluster_bundle import ClusterBundle
from firedoor.broker.kubernetes.directory import ClusterDirectory
from firedoor.broker.kubernetes.pod_certificates import PodCertificates
from firedoor.broker.kubernetes.registering import Attesting, add_registration

if TYPE_CHECKING:
    from firedoor.broker.kubernetes.controllers import BrokerParts, Controllers
    from firedoor.broker.kubernetes.registration import Registration
    from firedoor.broker.kubernetes.trust_config import BundleRules
    from firedoor.certs import TrustBundle


@dataclass(frozen=True, slots=True)
class Configured:
    """Those that others ask how they are; None where they are off."""

    registration: Registration | None
    directory: ClusterDirectory | None


def add_configured(controllers: Controllers, attesting: Attesting, parts: BrokerParts) -> Configured:
    """Have the controllers run what their rules name."""
    rules, registration = controllers.rules, None
    if rules.bundle is not None:
        _add_bundle(controllers, rules.bundle, parts)
    if rules.registration is not None:
        registration = add_registration(controllers, rules.registration, attesting, parts)
    if rules.certificate_ttl:
        signs = PodCertificates(
            controllers, parts.state, parts.policy, parts.signer, parts.audit, parts.metrics, rules.certificate_ttl
        )
        controllers.add(signs.run)
    return Configured(registration, _add_directory(controllers, parts) if rules.directory else None)


def _add_bundle(controllers: Controllers, rules: BundleRules, parts: BrokerParts) -> None:
    api, lease, state = controllers.api, controllers.lease, parts.state

    def bundle() -> TrustBundle:
        return state.bundles[state.trust_domain]

    maps = BundleMaps(api, lease, rules, state.trust_domain, bundle, parts.metrics)
    state.watch(maps.changed)
    controllers.add(maps.run, ClusterBundle(api, lease, state.trust_domain, bundle).run)


def _add_directory(controllers: Controllers, parts: BrokerParts) -> ClusterDirectory:
    made = ClusterDirectory(controllers.api, controllers.lease, parts.state, parts.metrics, parts.listening)
    controllers.add(made.run)
    return made
