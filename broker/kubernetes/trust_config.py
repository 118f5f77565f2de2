# SPDX-License-Identifier: Apache-2.0
"""What the configuration says of how pods get the trust bundle, and certificates without a sidecar.

kubernetes_controllers:
cluster: prod
trust_bundle: true
bundle_config_map: firedoor-bundle
bundle_namespaces: firedoor.dev/inject in (enabled,required) # or all
pod_certificates: true
pod_certificate_ttl: 1h
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Final

from firedoor.certs.pod_token import is_object_name
from firedoor.segments.setting_values import boolean, duration
from firedoor.segments.settings import Option, Section
from firedoor.segments.well_known import INJECT

CONFIG_MAP: Final = "firedoor-bundle"
NAMESPACES: Final = f"{INJECT} in (enabled,required)"
# Seconds: no API server takes less, and for longer nobody should be trusted unasked.
_LEAST: Final = 3600
_LONGEST: Final = 86400
_ALL: Final = "all"
# Selectors as kubectl takes them with -l; what is wrong beyond the alphabet the API server says.
_SELECTOR: Final = re.compile(r"[A-Za-z0-9=!,() ._/-]{1,1024}")


@dataclass(frozen=True, slots=True)
class BundleRules:
    """Which namespaces get the trust bundle, in a ConfigMap of which name. `namespaces` empty: all of them."""

    config_map: str
    namespaces: str


def options(environment: str) -> tuple[Option, ...]:
    """Return the keys."""
    option = partial(Option, environment, metavar="NAME")
    return (
        option(
            "kubernetes_controllers.trust_bundle",
            metavar="true|false",
            help="keep the trust bundle in ConfigMaps and in a ClusterTrustBundle",
        ),
        option("kubernetes_controllers.bundle_config_map", help="the ConfigMap in each of the namespaces"),
        option(
            "kubernetes_controllers.bundle_namespaces",
            metavar="SELECTOR|all",
            help=f"the labels of the namespaces; {INJECT}=enabled or =required unless given",
        ),
        option(
            "kubernetes_controllers.pod_certificates",
            metavar="true|false",
            help="sign PodCertificateRequests of the signer firedoor.dev/segment",
        ),
        option(
            "kubernetes_controllers.pod_certificate_ttl",
            metavar="DURATION",
            help="how long those certificates live; 1h, which is the least, unless given",
        ),
    )


def bundle_rules(section: Section) -> BundleRules | None:
    """Read what `kubernetes_controllers` says of it; None when it is off."""
    name = section.parse("bundle_config_map", _object_name, CONFIG_MAP)
    namespaces = section.parse("bundle_namespaces", _selector, NAMESPACES)
    return BundleRules(name, namespaces) if section.parse("trust_bundle", boolean, default=False) else None


def certificate_ttl(section: Section) -> int:
    """Read how long certificates of pods live, in seconds; 0 when none are signed."""
    ttl = section.parse("pod_certificate_ttl", duration(_LEAST, _LONGEST), _LEAST)
    return ttl if section.parse("pod_certificates", boolean, default=False) else 0


def _object_name(value: str) -> str:
    if not is_object_name(value):
        raise ValueError("must be a name of a Kubernetes object")
    return value


def _selector(value: str) -> str:
    if value == _ALL:
        return ""
    if not _SELECTOR.fullmatch(value):
        raise ValueError(f"must be a label selector such as {INJECT}=enabled, or all")
    return value
