# SPDX-License-Identifier: Apache-2.0
"""NetworkPolicies (networking.k8s.io/v1): in each namespace everything is closed, and what flows allow is opened.

| object | what it does |
|---|---|
| `firedoor-default-deny` | closes every pod of the namespace, those without a segment too, in both directions |
| `firedoor-dns`, `firedoor-broker` | let the pods of enforcing segments ask for names, and for their identities |
| `firedoor-segment-<segment>` | opens what the segment's ends of the flows allow; in audit mode, leaves it open |
| `firedoor-ambient-probes` | lets the probes in that Istio's ambient mesh sends, where there is one |

They add up, and nothing in them refuses: cloud metadata is closed because no rule opens it, and is cut out of the one
rule that opens everything. Ports are the flows' own: where connections are captured, a pod's port is its service port.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from firedoor.segments.exports.addresses import (
    ALL_V4,
    ALL_V6,
    AMBIENT_PROBES,
    BROKER_LABEL,
    DNS_LABEL,
    DNS_NAMESPACE,
    DNS_PORT,
    METADATA_V4,
    METADATA_V6,
    NAMESPACE_LABEL,
    NODE_DNS,
    Object,
    metadata,
)
from firedoor.segments.exports.edges import Plan, Zone, without_accounts
from firedoor.segments.exports.places import Place
from firedoor.segments.well_known import SEGMENT


def network_policies(plan: Plan) -> Iterator[Object]:
    """Yield the objects, namespace by namespace."""
    for namespace in plan.namespaces:
        zones = plan.zones_in(namespace)
        yield _policy("firedoor-default-deny", namespace, {}, [], [])
        enforcing = [zone.segment for zone in zones if not zone.audit]
        if enforcing:
            yield _policy("firedoor-dns", namespace, _in(enforcing), None, [_dns()])
            yield _policy("firedoor-broker", namespace, _in(enforcing), None, [_broker(plan)])
            if plan.options.ambient:
                probes: Object = {"from": [{"ipBlock": {"cidr": AMBIENT_PROBES}}]}
                yield _policy("firedoor-ambient-probes", namespace, _in(enforcing), [probes], None)
        for zone in zones:
            yield from _zone(zone)


def _zone(zone: Zone) -> Iterator[Object]:
    name, pods = f"firedoor-segment-{zone.segment}", {"matchLabels": {SEGMENT: zone.segment}}
    if zone.audit:
        yield _policy(name, zone.namespace, pods, [{}], [{"to": _anywhere()}])
        return
    incoming = _opened(((r.port, r.source) for r in without_accounts(zone.incoming)), "from")
    outgoing = _opened(((r.port, r.destination) for r in without_accounts(zone.outgoing)), "to")
    if incoming or outgoing:
        yield _policy(name, zone.namespace, pods, incoming or None, outgoing or None, zone.names)


def _policy(
    name: str,
    namespace: str,
    pods: Object,
    incoming: list[Object] | None,
    outgoing: list[Object] | None,
    flows: tuple[str, ...] = (),
) -> Object:
    """Return one object. A direction that is None is not touched by it."""
    spec: Object = {"podSelector": pods, "policyTypes": []}
    if incoming is not None:
        spec["policyTypes"].append("Ingress")
        spec |= {"ingress": incoming} if incoming else {}
    if outgoing is not None:
        spec["policyTypes"].append("Egress")
        spec |= {"egress": outgoing} if outgoing else {}
    head: Object = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy"}
    return {**head, "metadata": metadata(name, namespace, flows), "spec": spec}


def _opened(ends: Iterable[tuple[int, Place]], word: str) -> list[Object]:
    """Return a rule for each port, with a peer for each segment."""
    ports: defaultdict[int, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for port, place in ends:
        ports[port][place.segment].append(place.namespace or "")
    return [
        {
            word: [_peer(segment, spaces) for segment, spaces in peers.items()],
            "ports": [{"protocol": "TCP", "port": port}],
        }
        for port, peers in sorted(ports.items())
    ]


def _peer(segment: str, namespaces: list[str]) -> Object:
    spaces = sorted(set(namespaces))
    return {"namespaceSelector": in_namespaces(spaces), "podSelector": {"matchLabels": {SEGMENT: segment}}}


def in_namespaces(names: list[str]) -> Object:
    """Return a selector of namespaces by their names."""
    if len(names) == 1:
        return {"matchLabels": {NAMESPACE_LABEL: names[0]}}
    return {"matchExpressions": [{"key": NAMESPACE_LABEL, "operator": "In", "values": names}]}


def _in(segments: list[str]) -> Object:
    return {"matchExpressions": [{"key": SEGMENT, "operator": "In", "values": sorted(segments)}]}


def _dns() -> Object:
    servers = {"namespaceSelector": in_namespaces([DNS_NAMESPACE]), "podSelector": {"matchLabels": dict([DNS_LABEL])}}
    ports = [{"protocol": protocol, "port": DNS_PORT} for protocol in ("UDP", "TCP")]
    return {"to": [servers, {"ipBlock": {"cidr": NODE_DNS}}], "ports": ports}


def _broker(plan: Plan) -> Object:
    namespace = in_namespaces([plan.options.broker_namespace])
    broker = {"namespaceSelector": namespace, "podSelector": {"matchLabels": dict([BROKER_LABEL])}}
    return {"to": [broker], "ports": [{"protocol": "TCP", "port": port} for port in plan.options.broker_ports]}


def _anywhere() -> list[Object]:
    """Return everywhere but where clouds hand out credentials."""
    return [
        {"namespaceSelector": {}},
        {"ipBlock": {"cidr": ALL_V4, "except": list(METADATA_V4)}},
        {"ipBlock": {"cidr": ALL_V6, "except": list(METADATA_V6)}},
    ]
