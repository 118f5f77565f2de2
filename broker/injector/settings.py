# SPDX-License-Identifier: Apache-2.0
"""What the configuration says of the injector.

injector:
listen: 0.0.0.0:9443
names: [firedoor-injector.firedoor-system.svc]
cluster: prod
image: registry.example.org/firedoor:0.1.0
accepted_images: [registry.example.org/firedoor:0.0.9]
broker: ["firedoor-broker.firedoor-system.svc:8081"]
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Final

from firedoor.broker import values
from firedoor.certs import check_dns_name
from firedoor.certs.pod_token import is_object_name
from firedoor.segments.setting_values import choice, cluster_name, host_port, integer, is_off
from firedoor.segments.settings import Option, Section

# No user of images that people run, nor Istio's 1337; the example of docs/capture.md.
DEFAULT_UID: Final = 990
STRICT_USERS: Final = ("required", "everywhere", "nowhere")
_HIGHEST_UID: Final = 2**31 - 1
# A reference of a container image: what a registry could take, and no shell or YAML reads otherwise.
_IMAGE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,510}")


@dataclass(frozen=True, kw_only=True, slots=True)
class InjectorRules:
    """How sidecars are injected, and where the webhook listens."""

    listen: str
    # DNS names by which API servers reach it.
    names: tuple[str, ...]
    # The cluster, as `k8s_pod` calls it.
    cluster: str
    image: str
    # Where sidecars find the broker.
    broker: tuple[str, ...]
    # The ConfigMap in each namespace that holds the trust bundle as `bundle.json`.
    bundle_config_map: str
    # The audience of the projected token.
    audience: str
    # The sidecar's own user.
    uid: int
    # Where each container's user must be known, and no other than it says: required, everywhere or nowhere.
    strict_users: str
    # Further images of sidecars that pods may come with, while one version follows another.
    accepted_images: tuple[str, ...]
    # The MutatingWebhookConfiguration whose caBundle is kept up to date; empty: somebody else does.
    webhook: str


def options(environment: str) -> tuple[Option, ...]:
    """Return the keys."""
    option = partial(Option, environment)
    return (
        option("injector.listen", "HOST:PORT|off", "where API servers find the admission webhook; off unless given"),
        option("injector.names", "NAME", "its DNS names, such as firedoor-injector.firedoor-system.svc", several=True),
        option("injector.cluster", "NAME", "the cluster, as k8s_pod calls it"),
        option("injector.image", "IMAGE", "the image of sidecars"),
        option("injector.broker", "HOST:PORT", "where sidecars find brokers", several=True),
        option("injector.bundle_config_map", "NAME", "the ConfigMap in each namespace with bundle.json"),
        option("injector.webhook", "NAME|off", "the MutatingWebhookConfiguration whose caBundle is kept up to date"),
        option("injector.uid", "UID", "the sidecars' own user, and nobody else's in any pod"),
        option(
            "injector.strict_users",
            "|".join(STRICT_USERS),
            "where no container may be, or become, the sidecar's user: namespaces with inject=required unless given",
        ),
        option("injector.accepted_images", "IMAGE", "further images that sidecars of new pods may have", several=True),
    )


def injector(top: Section, audience: str) -> InjectorRules | None:
    """Read `injector`; None when it is off."""
    section = top.section("injector")
    listen = section.parse("listen", values.host_port_or_off, None)
    if listen is None:
        return None
    section.require_some("names", "the DNS names by which API servers reach it")
    section.require_some("broker", "where sidecars find brokers")
    return InjectorRules(
        listen=listen,
        names=section.each("names", _dns_name),
        cluster=section.require("cluster", cluster_name, ""),
        image=section.require("image", _image, ""),
        broker=section.each("broker", host_port),
        bundle_config_map=section.parse("bundle_config_map", _object_name, "firedoor-bundle"),
        audience=audience,
        webhook=section.parse("webhook", _webhook, "firedoor-injector"),
        uid=section.parse("uid", integer(1, _HIGHEST_UID), DEFAULT_UID),
        strict_users=section.parse("strict_users", choice(*STRICT_USERS), STRICT_USERS[0]),
        accepted_images=section.each("accepted_images", _image),
    )


def _dns_name(value: str) -> str:
    check_dns_name(value)
    return value


def _image(value: str) -> str:
    if not _IMAGE.fullmatch(value):
        raise ValueError("must be the reference of an image, such as registry.example.org/firedoor:0.1.0")
    return value


def _webhook(value: str) -> str:
    return "" if is_off(value) else _object_name(value)


def _object_name(value: str) -> str:
    if not is_object_name(value):
        raise ValueError("must be a name of a Kubernetes object")
    return value
