# SPDX-License-Identifier: Apache-2.0
"""CiliumNetworkPolicies (cilium.io/v2): as NetworkPolicies, with service accounts, and metadata refused outright.

Cilium labels a pod with its service account by itself, so flows that mean one are said exactly. `authentication.mode`
is never written: it is deprecated and encrypts nothing. Nor are HTTP rules: inside mTLS there is nothing to read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from firedoor.segments.exports.addresses import (
    AMBIENT_PROBES,
    BROKER_LABEL,
    DNS_LABEL,
    DNS_NAMESPACE,
    DNS_PORT,
    METADATA_V4,
    METADATA_V6,
    Object,
    metadata,
)
from firedoor.segments.exports.edges import Plan, Rule, Zone, fewest
from firedoor.segments.exports.places import Place
from firedoor.segments.well_known import SEGMENT

# A rule that matches nobody: it closes its direction and opens nothing.
_CLOSED: Final[Object] = {}
_NAMESPACE: Final = "k8s:io.kubernetes.pod.namespace"
_ACCOUNT: Final = "k8s:io.cilium.k8s.policy.serviceaccount"
_SEGMENT: Final = f"k8s:{SEGMENT}"
# A label's value is no longer; an account's name may be.
_MAX_LABEL: Final = 63


def cilium_policies(plan: Plan) -> Iterator[Object]:
    """Yield the objects, namespace by namespace."""
    for namespace in plan.namespaces:
        yield _policy("firedoor-default-deny", namespace, [_default_deny()])
        yield _policy("firedoor-metadata", namespace, [_metadata()])
        zones = plan.zones_in(namespace)
        enforcing = sorted(zone.segment for zone in zones if not zone.audit)
        if enforcing:
            yield _policy("firedoor-system", namespace, [_system(plan, enforcing)])
        for zone in zones:
            if specs := _specs(zone):
                yield _policy(f"firedoor-segment-{zone.segment}", namespace, specs, zone.names)


def _policy(name: str, namespace: str, specs: list[Object], flows: tuple[str, ...] = ()) -> Object:
    head: Object = {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy"}
    body: Object = {"spec": specs[0]} if len(specs) == 1 else {"specs": specs}
    return {**head, "metadata": metadata(name, namespace, flows), **body}


def _default_deny() -> Object:
    return {
        "description": "everything is closed that no other policy opens",
        "endpointSelector": {},
        "ingress": [_CLOSED],
        "egress": [_CLOSED],
    }


def _metadata() -> Object:
    return {
        "description": "cloud metadata is closed, whatever opens it",
        "endpointSelector": {},
        "enableDefaultDeny": {"ingress": False, "egress": False},
        "egressDeny": [{"toCIDR": [*METADATA_V4, *METADATA_V6]}],
    }


def _system(plan: Plan, enforcing: list[str]) -> Object:
    """Names and the broker for all pods of enforcing segments."""
    broker = {_NAMESPACE: plan.options.broker_namespace, f"k8s:{BROKER_LABEL[0]}": BROKER_LABEL[1]}
    servers = {_NAMESPACE: DNS_NAMESPACE, f"k8s:{DNS_LABEL[0]}": DNS_LABEL[1]}
    probes = [{"fromCIDR": [AMBIENT_PROBES]}] if plan.options.ambient else []
    return {
        "description": "names, and identities from the broker",
        "endpointSelector": {"matchExpressions": [{"key": _SEGMENT, "operator": "In", "values": enforcing}]},
        **({"ingress": probes} if probes else {}),
        "egress": [
            {"toEndpoints": [{"matchLabels": servers}], "toPorts": [_ports(DNS_PORT, protocol="ANY")]},
            {"toEndpoints": [{"matchLabels": broker}], "toPorts": [_ports(*plan.options.broker_ports)]},
        ],
    }


def _specs(zone: Zone) -> list[Object]:
    """Return a rule set for the whole segment and one for each service account that flows name."""
    if zone.audit:
        everybody = {"ingress": [{"fromEntities": ["all"]}], "egress": [{"toEntities": ["all"]}]}
        return [{"endpointSelector": {"matchLabels": {_SEGMENT: zone.segment}}, **everybody}]
    incoming, outgoing = fewest(map(_labelled, zone.incoming)), fewest(map(_labelled, zone.outgoing))
    own = {rule.destination.account for rule in incoming} | {rule.source.account for rule in outgoing}
    return [_spec(zone, account, incoming, outgoing) for account in sorted(own, key=lambda one: one or "")]


def _spec(zone: Zone, account: str | None, incoming: Iterable[Rule], outgoing: Iterable[Rule]) -> Object:
    to_me = ((rule.port, rule.source) for rule in incoming if rule.destination.account == account)
    from_me = ((rule.port, rule.destination) for rule in outgoing if rule.source.account == account)
    made: Object = {"endpointSelector": {"matchLabels": {_SEGMENT: zone.segment}}}
    if account is not None:
        made["endpointSelector"]["matchLabels"][_ACCOUNT] = account
    if opened := _opened(to_me, "fromEndpoints"):
        made["ingress"] = opened
    if opened := _opened(from_me, "toEndpoints"):
        made["egress"] = opened
    return made


def _labelled(rule: Rule) -> Rule:
    """Drop the accounts whose names fit no label."""
    return replace(rule, source=_short(rule.source), destination=_short(rule.destination))


def _short(place: Place) -> Place:
    return replace(place, account=None) if len(place.account or "") > _MAX_LABEL else place


def _opened(ends: Iterable[tuple[int, Place]], word: str) -> list[Object]:
    ports: defaultdict[int, list[Object]] = defaultdict(list)
    for port, place in ends:
        ports[port].append({"matchLabels": _labels(place)})
    return [{word: peers, "toPorts": [_ports(port)]} for port, peers in sorted(ports.items())]


def _labels(place: Place) -> dict[str, str]:
    labels = {_NAMESPACE: place.namespace or "", _SEGMENT: place.segment}
    return labels if place.account is None else {**labels, _ACCOUNT: place.account}


def _ports(*numbers: int, protocol: str = "TCP") -> Object:
    return {"ports": [{"port": str(number), "protocol": protocol} for number in numbers]}
