# SPDX-License-Identifier: Apache-2.0
"""ClusterNetworkPolicies (policy.networking.k8s.io/v1alpha2), tier Admin: what no owner of a namespace can undo.

| object | what it does |
|---|---|
| `firedoor-segment-<segment>-<n>` | accepts what flows allow, names and the broker |
| `firedoor-segment-<segment>-<n>`, in audit mode | refuses cloud metadata and nothing else |
| `firedoor-default-deny-<n>` | comes last: refuses the rest to all pods but those in audit mode |

Each has a priority of its own, for between equal ones there is no order. They know peers inside the cluster as pods
only: what comes from outside is refused by NetworkPolicies, not by these.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import Any, Final

from firedoor.segments.errors import ExportError
from firedoor.segments.exports.addresses import (
    ALL_V4,
    ALL_V6,
    BROKER_LABEL,
    DNS_LABEL,
    DNS_NAMESPACE,
    DNS_PORT,
    METADATA_V4,
    METADATA_V6,
    NODE_DNS,
    Object,
    metadata,
)
from firedoor.segments.exports.edges import Plan, Zone, without_accounts
from firedoor.segments.exports.network_policies import in_namespaces
from firedoor.segments.exports.places import Place
from firedoor.segments.well_known import SEGMENT

# Below it is room for what must come first, and the API takes no higher than the last.
FIRST_PRIORITY: Final = 100
LAST_PRIORITY: Final = 1000
# The API's limits on rules of a policy and on peers of a rule.
_MAX_RULES: Final = 25
_MAX_PEERS: Final = 25
_EVERYBODY: Final[list[Object]] = [{"namespaces": {}}]
_EVERYWHERE: Final[list[Object]] = [*_EVERYBODY, {"networks": [ALL_V4, ALL_V6]}]


def cluster_policies(plan: Plan) -> Iterator[Object]:
    """Yield the objects in the order of their priorities. Raise ExportError when there are more than priorities."""
    priority = FIRST_PRIORITY
    for spec, name, flows in _numbered(plan):
        if priority > LAST_PRIORITY:
            most = LAST_PRIORITY - FIRST_PRIORITY + 1
            raise ExportError(f"the flows need more than {most} ClusterNetworkPolicies: export NetworkPolicies instead")
        head: Object = {"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy"}
        made = {"tier": "Admin", "priority": priority, **spec}
        yield {**head, "metadata": metadata(name, None, flows), "spec": made}
        priority += 1


def _numbered(plan: Plan) -> Iterator[tuple[Object, str, tuple[str, ...]]]:
    numbers: defaultdict[str, int] = defaultdict(int)
    for zones in _alike(plan):
        segment = zones[0].segment
        subject = _subject(zones)
        for rules in _policies(zones[0], plan):
            numbers[segment] += 1
            yield {"subject": subject, **rules}, f"firedoor-segment-{segment}-{numbers[segment]}", zones[0].names
    for number, (audits, namespaces) in enumerate(_closed(plan).items(), 1):
        others = [{"key": SEGMENT, "operator": "NotIn", "values": list(audits)}] if audits else []
        pods = {"namespaceSelector": in_namespaces(namespaces), "podSelector": {"matchExpressions": others}}
        rules = {"ingress": [_refuse("from")], "egress": [_refuse("to")]}
        yield {"subject": {"pods": pods}, **rules}, f"firedoor-default-deny-{number}", ()


def _closed(plan: Plan) -> dict[tuple[str, ...], list[str]]:
    """Return the namespaces by the segments that are in audit mode there."""
    found: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for namespace in plan.namespaces:
        found[tuple(zone.segment for zone in plan.zones_in(namespace) if zone.audit)].append(namespace)
    return found


def _alike(plan: Plan) -> list[list[Zone]]:
    """Put the zones of a segment together that differ by their namespace alone."""
    found: defaultdict[Any, list[Zone]] = defaultdict(list)
    for zone in plan.zones:
        incoming = tuple((rule.port, rule.source) for rule in without_accounts(zone.incoming))
        outgoing = tuple((rule.port, rule.destination) for rule in without_accounts(zone.outgoing))
        found[zone.segment, zone.audit, incoming, outgoing, zone.names].append(zone)
    return list(found.values())


def _subject(zones: list[Zone]) -> Object:
    namespaces = in_namespaces([zone.namespace for zone in zones])
    return {"pods": {"namespaceSelector": namespaces, "podSelector": {"matchLabels": {SEGMENT: zones[0].segment}}}}


def _policies(zone: Zone, plan: Plan) -> Iterator[Object]:
    """Yield the rules of a zone, as many at a time as one policy takes."""
    if zone.audit:
        to = [{"networks": [*METADATA_V4, *METADATA_V6]}]
        yield {"egress": [{"name": "refuse-cloud-metadata", "action": "Deny", "to": to}]}
        return
    incoming = _accepted(((r.port, r.source) for r in without_accounts(zone.incoming)), "from")
    outgoing = [*_always(plan), *_accepted(((r.port, r.destination) for r in without_accounts(zone.outgoing)), "to")]
    parts = zip_longest(_parts(incoming), _parts(outgoing))
    for ingress, egress in parts:
        yield {**({"ingress": ingress} if ingress else {}), **({"egress": egress} if egress else {})}


def _parts(rules: list[Object]) -> list[list[Object]]:
    return [rules[at : at + _MAX_RULES] for at in range(0, len(rules), _MAX_RULES)]


def _refuse(word: str) -> Object:
    return {"name": "refuse-the-rest", "action": "Deny", word: _EVERYBODY if word == "from" else _EVERYWHERE}


def _always(plan: Plan) -> list[Object]:
    """Return what every enforcing segment needs: names and the broker."""
    servers = {"namespaceSelector": in_namespaces([DNS_NAMESPACE]), "podSelector": {"matchLabels": dict([DNS_LABEL])}}
    namespace = in_namespaces([plan.options.broker_namespace])
    broker = {"namespaceSelector": namespace, "podSelector": {"matchLabels": dict([BROKER_LABEL])}}
    dns = [{"pods": servers}, {"networks": [NODE_DNS]}]
    ports = [{"tcp": _port(port)} for port in plan.options.broker_ports]
    both = [{"udp": _port(DNS_PORT)}, {"tcp": _port(DNS_PORT)}]
    return [
        {"name": "dns", "action": "Accept", "to": dns, "protocols": both},
        {"name": "broker", "action": "Accept", "to": [{"pods": broker}], "protocols": ports},
    ]


def _accepted(ends: Iterable[tuple[int, Place]], word: str) -> list[Object]:
    """Return a rule for each port and as many peers as one takes."""
    ports: defaultdict[int, defaultdict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for port, place in ends:
        ports[port][place.segment].add(place.namespace or "")
    found = []
    for port, peers in sorted(ports.items()):
        listed = [_peer(segment, sorted(spaces)) for segment, spaces in sorted(peers.items())]
        for at in range(0, len(listed), _MAX_PEERS):
            rule = {"name": f"port-{port}", "action": "Accept", word: listed[at : at + _MAX_PEERS]}
            found.append({**rule, "protocols": [{"tcp": _port(port)}]})
    return found


def _peer(segment: str, namespaces: list[str]) -> Object:
    pods = {"matchLabels": {SEGMENT: segment}}
    return {"pods": {"namespaceSelector": in_namespaces(namespaces), "podSelector": pods}}


def _port(number: int) -> Object:
    return {"destinationPort": {"number": number}}
