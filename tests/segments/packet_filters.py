# SPDX-License-Identifier: Apache-2.0
"""What exported objects let through, by the rules of their APIs' documentation, with nothing of firedoor's.

Slow and literal on purpose, one class an API. A `Pod` has a namespace, a service account and labels; what is outside of
the cluster is an `Address`.
"""

import functools
import ipaddress
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Pod:
    namespace: str
    account: str
    labels: tuple[tuple[str, str], ...] = ()

    def __str__(self):
        return f"{self.namespace}/{self.account}/{dict(self.labels)}"


@dataclass(frozen=True)
class Address:
    text: str

    def within(self, block):
        return ipaddress.ip_address(self.text) in ipaddress.ip_network(block)


@dataclass(frozen=True)
class Connection:
    source: object
    destination: object
    port: int
    protocol: str = field(default="TCP")


def selects(selector, labels):
    """The semantics of a LabelSelector."""
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for rule in selector.get("matchExpressions", []):
        there, wanted = rule["key"] in labels, rule.get("values", [])
        holds = {
            "In": there and labels.get(rule["key"]) in wanted,
            "NotIn": labels.get(rule["key"]) not in wanted,
            "Exists": there,
            "DoesNotExist": not there,
        }
        if not holds[rule["operator"]]:
            return False
    return True


def namespace_labels(pod):
    return {"kubernetes.io/metadata.name": pod.namespace}


class NetworkPolicies:
    """networking.k8s.io/v1: rules add up; a pod that a policy selects is closed in the directions of the policy."""

    def __init__(self, objects):
        self.objects = objects

    def allows(self, c):
        out, into = ("Egress", "egress", "to"), ("Ingress", "ingress", "from")
        return self._side(c, c.source, c.destination, *out) and self._side(c, c.destination, c.source, *into)

    def _side(self, c, pod, peer, kind, section, word):
        if not isinstance(pod, Pod):
            return True
        mine = self._policies(pod, kind)
        rules = [rule for spec in mine for rule in spec.get(section, [])]
        return not mine or any(self._ports(rule, c) and self._peers(rule.get(word), peer) for rule in rules)

    @functools.cache  # noqa: B019 - it lives as long as a test
    def _policies(self, pod, kind):
        return [
            one["spec"]
            for one in self.objects
            if one["metadata"]["namespace"] == pod.namespace
            and kind in one["spec"]["policyTypes"]
            and selects(one["spec"]["podSelector"], dict(pod.labels))
        ]

    def _ports(self, rule, c):
        ports = rule.get("ports")
        return not ports or any(
            p.get("protocol", "TCP") == c.protocol and p.get("port", c.port) == c.port for p in ports
        )

    def _peers(self, peers, peer):
        return not peers or any(self._peer(one, peer) for one in peers)

    def _peer(self, one, peer):
        if "ipBlock" in one:
            block = one["ipBlock"]
            inside = isinstance(peer, Address) and peer.within(block["cidr"])
            return inside and not any(peer.within(cut) for cut in block.get("except", []))
        if not isinstance(peer, Pod):
            return False
        spaces = selects(one["namespaceSelector"], namespace_labels(peer))
        return spaces and selects(one.get("podSelector", {}), dict(peer.labels))


class CiliumPolicies:
    """cilium.io/v2: a direction with rules is closed but for them; what is refused stays refused."""

    def __init__(self, objects):
        self.objects = objects

    def allows(self, c):
        out, into = ("egress", "to"), ("ingress", "from")
        return self._side(c, c.source, c.destination, *out) and self._side(c, c.destination, c.source, *into)

    def _side(self, c, pod, peer, section, word):
        if not isinstance(pod, Pod):
            return True
        mine = self._policies(pod)
        refused = [rule for spec in mine for rule in spec.get(f"{section}Deny", [])]
        if any(self._matches(rule, c, pod, peer, word) for rule in refused):
            return False
        closed = any(self._closes(spec, section) for spec in mine)
        rules = [rule for spec in mine for rule in spec.get(section, [])]
        return not closed or any(self._matches(rule, c, pod, peer, word) for rule in rules)

    @functools.cache  # noqa: B019 - it lives as long as a test
    def _policies(self, pod):
        return [
            spec
            for one in self.objects
            if one["metadata"]["namespace"] == pod.namespace
            for spec in (one.get("specs") or [one["spec"]])
            if selects(spec["endpointSelector"], self._labels(pod))
        ]

    def _closes(self, spec, section):
        has_rules = bool(spec.get(section) or spec.get(f"{section}Deny"))
        return spec.get("enableDefaultDeny", {}).get(section, has_rules)

    def _labels(self, pod):
        mine = {f"k8s:{key}": value for key, value in pod.labels}
        return {
            **mine,
            "k8s:io.kubernetes.pod.namespace": pod.namespace,
            "k8s:io.cilium.k8s.policy.serviceaccount": pod.account,
        }

    def _matches(self, rule, c, pod, peer, word):
        if not rule:
            return False
        ports = [p for group in rule.get("toPorts", []) for p in group["ports"]]
        fits = not ports or any(p["port"] == str(c.port) and p["protocol"] in ("ANY", c.protocol) for p in ports)
        entities = rule.get(f"{word}Entities", [])
        ends = rule.get(f"{word}Endpoints", [])
        blocks = rule.get(f"{word}CIDR", [])
        if isinstance(peer, Pod):
            named = any(self._endpoint(one, pod, peer) for one in ends)
        else:
            named = any(peer.within(block) for block in blocks)
        return fits and (named or "all" in entities)

    def _endpoint(self, one, pod, peer):
        space = "k8s:io.kubernetes.pod.namespace"
        named = space in one.get("matchLabels", {}) or any(r["key"] == space for r in one.get("matchExpressions", []))
        return (named or peer.namespace == pod.namespace) and selects(one, self._labels(peer))


class ClusterPolicies:
    """policy.networking.k8s.io, tier Admin: by priority, the first rule that matches; nothing matches: allowed."""

    def __init__(self, objects):
        self.objects = sorted(objects, key=lambda one: one["spec"]["priority"])
        priorities = [one["spec"]["priority"] for one in objects]
        assert len(set(priorities)) == len(priorities), "there is no order between equal priorities"

    def allows(self, c):
        out, into = ("egress", "to"), ("ingress", "from")
        return self._side(c, c.source, c.destination, *out) and self._side(c, c.destination, c.source, *into)

    def _side(self, c, pod, peer, section, word):
        if not isinstance(pod, Pod):
            return True
        for one in self._policies(pod):
            for rule in one["spec"].get(section, []):
                if self._ports(rule, c) and any(self._peer(end, peer) for end in rule[word]):
                    return {"Accept": True, "Deny": False}[rule["action"]]
        return True

    @functools.cache  # noqa: B019 - it lives as long as a test
    def _policies(self, pod):
        return [one for one in self.objects if self._pods(one["spec"]["subject"], pod)]

    def _ports(self, rule, c):
        wanted = rule.get("protocols")
        key = c.protocol.lower()
        return not wanted or any(key in p and p[key]["destinationPort"]["number"] == c.port for p in wanted)

    def _pods(self, end, pod):
        if "namespaces" in end:
            return selects(end["namespaces"], namespace_labels(pod))
        pods = end["pods"]
        inside = selects(pods["namespaceSelector"], namespace_labels(pod))
        return inside and selects(pods["podSelector"], dict(pod.labels))

    def _peer(self, end, peer):
        if "networks" in end:
            return isinstance(peer, Address) and any(peer.within(block) for block in end["networks"])
        return isinstance(peer, Pod) and self._pods(end, peer)


READERS = {
    "kubernetes": NetworkPolicies,
    "cilium": CiliumPolicies,
    "cluster-network-policy": ClusterPolicies,
}
