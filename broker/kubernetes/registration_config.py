# SPDX-License-Identifier: Apache-2.0
"""What the configuration says of how pods are registered.

kubernetes_controllers:
cluster: prod
registration: true
registration_default: true
spire_registration: true
spire_class_name: spire-mgmt
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Final

from firedoor.broker.kubernetes.spire_identities import SpireRules
from firedoor.certs import check_dns_name
from firedoor.segments.setting_values import boolean, text
from firedoor.segments.settings import Option, Section

_ALONE: Final = "counts with `registration: true` alone"


@dataclass(frozen=True, slots=True)
class RegistrationRules:
    """How pods are registered."""

    # Pods with a sidecar get the ID that it asks for, without any object that says so.
    default: bool
    # How far SPIRE's resources go; None: nobody looks at them.
    spire: SpireRules | None = None
    # Where DNS names of Services end; empty: in `.svc`.
    cluster_domain: str = ""


def options(environment: str) -> tuple[Option, ...]:
    """Return the keys."""
    option = partial(Option, environment)
    return (
        option("kubernetes_controllers.registration", "true|false", "makes entries for the cluster's pods; false"),
        option(
            "kubernetes_controllers.registration_default",
            "true|false",
            "whether pods with a sidecar get the ID it asks for without a WorkloadIdentity; true",
        ),
        option(
            "kubernetes_controllers.spire_registration",
            "true|false",
            "whether SPIRE's ClusterSPIFFEID, ClusterStaticEntry and ClusterFederatedTrustDomain count; false",
        ),
        option("kubernetes_controllers.spire_class_name", "NAME", "the className of those that do; none"),
        option("kubernetes_controllers.spire_classless", "true|false", "whether those without one do, too; false"),
        option(
            "kubernetes_controllers.spire_ignore_namespaces",
            "NAME",
            "namespaces in which a ClusterSPIFFEID selects nothing",
            several=True,
        ),
        option(
            "kubernetes_controllers.spire_cluster_domain",
            "NAME",
            "where DNS names of Services end; in .svc without",
        ),
        option(
            "kubernetes_controllers.spire_privileged",
            "true|false",
            "whether they may make administrators, downstream authorities and node aliases; false",
        ),
    )


def registration_rules(section: Section) -> RegistrationRules | None:
    """Read them from `kubernetes_controllers`; None when it is off."""
    on, spire = section.parse("registration", boolean, False), _spire(section)
    if not on:
        if spire is not None:
            section.findings.add(section.at("spire_registration"), section.path("spire_registration"), _ALONE)
        return None
    return RegistrationRules(
        default=section.parse("registration_default", boolean, True),
        spire=spire,
        cluster_domain=section.parse("spire_cluster_domain", _domain, ""),
    )


def _spire(section: Section) -> SpireRules | None:
    rules = SpireRules(
        class_name=section.parse("spire_class_name", text, ""),
        classless=section.parse("spire_classless", boolean, False),
        ignored=frozenset(section.each("spire_ignore_namespaces", text)),
        privileged=section.parse("spire_privileged", boolean, False),
    )
    return rules if section.parse("spire_registration", boolean, False) else None


def _domain(value: str) -> str:
    check_dns_name(value)
    return value
