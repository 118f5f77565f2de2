# SPDX-License-Identifier: Apache-2.0
"""Which entries a cluster's objects ask for. Pure: told what changed, it knows which entries may differ.

Each rule makes a claim for each pod that it selects: an entry, or a sentence why there is none. Claims to the same
entry (ID, parent and selectors) are one entry, by the rule of the lowest rank; those of the others are masked. A change
of one pod costs as much as there are rules, a change of a rule or a namespace as much as it has pods.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, final

from firedoor.broker.entry import Entry
from firedoor.broker.kubernetes.pods import Node, Pod, Slice
from firedoor.broker.kubernetes.rules import Cluster, Place, Rule, Unfit
from firedoor.certs import K8S_POD, K8S_PSAT, Selector, SpiffeId

Key = tuple[str, str]
_PREFIX: Final = "kubernetes"
NO_AGENT: Final = "no agent attests it: it has no token for k8s_pod, and k8s_psat has no agents of this cluster"


@final
@dataclass(frozen=True, slots=True)
class Claim:
    """What a rule makes of a pod."""

    rank: tuple[str, str, str]
    # None: `trouble` says why there is none.
    entry: Entry | None
    trouble: str = ""
    # What the broker will attest of the pod's own agent; empty where somebody else's agent attests it.
    attested: frozenset[Selector] = frozenset()
    # It may stand for more than a workload.
    privileged: bool = False


@final
@dataclass(frozen=True, slots=True)
class Agents:
    """Who attests pods: themselves, or agents of their nodes."""

    own: bool
    of_nodes: bool


def origin_prefix(cluster: str) -> str:
    """Return how the origins of a cluster's entries begin."""
    return f"{_PREFIX}:{cluster}/"


class Registrar:
    """The claims of one cluster's objects."""

    def __init__(self, cluster: Cluster, agents: Agents) -> None:
        self._cluster, self._agents = cluster, agents
        self.pods: dict[str, Pod] = {}
        self.nodes: dict[str, Node] = {}
        self.namespaces: dict[str, Mapping[str, str]] = {}
        # UIDs of pods that are there and not looked at, as their namespaces have too many; and how many of each.
        self.left_out: set[str] = set()
        self.crowded: Counter[str] = Counter()
        self.rules: dict[Key, Rule] = {}
        # By the pod's UID and the slice that says so, the namespace and name of a Service.
        self._behind: dict[str, dict[str, tuple[str, str]]] = {}
        self._in_namespace: dict[str, set[str]] = defaultdict(set)
        self._on_node: dict[str, set[str]] = defaultdict(set)
        # By the subject (a pod's UID), what each rule makes of it; and the same by the rule.
        self._claims: dict[str, dict[Key, Claim]] = {}
        self.by_rule: dict[Key, dict[str, Claim]] = defaultdict(dict)
        # By the ID of an entry, who claims it.
        self._wanted: dict[str, dict[tuple[Key, str], Claim]] = {}
        # Pods to look at, entries that may differ, rules whose claims did change.
        self.dirty_pods: set[str] = set()
        self.dirty_entries: set[str] = set()
        self.dirty_rules: set[Key] = set()

    # --- what changed -------------------------------------------------------------------------------------------

    def pod_changed(self, uid: str, old: Pod | None, new: Pod | None) -> None:
        """Take a pod as it is."""
        if old is not None:
            self._in_namespace[old.namespace].discard(uid)
            self._on_node[old.node].discard(uid)
        if new is None:
            self.pods.pop(uid, None)
        else:
            self.pods[uid] = new
            self._in_namespace[new.namespace].add(uid)
            self._on_node[new.node].add(uid)
        self.dirty_pods.add(uid)

    def left_out_changed(self, uid: str, namespace: str, *, left_out: bool) -> None:
        """Take it that a pod is left out, or no longer."""
        before = namespace in self.crowded
        if left_out:
            self.left_out.add(uid)
            self.crowded[namespace] += 1
        else:
            self.left_out.discard(uid)
            self.crowded[namespace] -= 1
            if not self.crowded[namespace]:
                del self.crowded[namespace]
        if before != (namespace in self.crowded):
            self.dirty_rules |= self.rules.keys()

    def crowd(self, rule: Rule) -> str:
        """Return a namespace that a rule selects and that has more pods than are looked at; nothing when none has."""
        found = (one for one in sorted(self.crowded) if one not in rule.ignored)
        return next((one for one in found if rule.namespaces.matches(self.namespaces.get(one, {}))), "")

    def node_changed(self, name: str, _: Node | None, new: Node | None) -> None:
        """Take a node as it is."""
        if new is None:
            self.nodes.pop(name, None)
        else:
            self.nodes[name] = new
        self.dirty_pods |= self._on_node.get(name, set())

    def namespace_changed(self, name: str, _: Mapping[str, str] | None, new: Mapping[str, str] | None) -> None:
        """Take a namespace's labels as they are."""
        if new is None:
            self.namespaces.pop(name, None)
        else:
            self.namespaces[name] = new
        self.dirty_pods |= self._in_namespace.get(name, set())

    def slice_changed(self, key: str, old: Slice | None, new: Slice | None) -> None:
        """Take an EndpointSlice as it is."""
        for uid in old.pods if old is not None else ():
            behind = self._behind.get(uid, {})
            behind.pop(key, None)
            if not behind:
                self._behind.pop(uid, None)
            self._service_changed(uid, old)
        for uid in new.pods if new is not None else ():
            assert new is not None  # noqa: S101 - or it had none
            self._behind.setdefault(uid, {})[key] = (new.namespace, new.service)
            self._service_changed(uid, new)

    def _service_changed(self, uid: str, one: Slice | None) -> None:
        """Look at a pod again, unless what changed is another namespace's: that would make work without an end."""
        pod = self.pods.get(uid)
        if pod is not None and one is not None and pod.namespace == one.namespace:
            self.dirty_pods.add(uid)

    def rule_changed(self, old: Rule | None, new: Rule | None) -> None:
        """Take a rule as it is."""
        if old is not None:
            self.rules.pop(old.key, None)
            self.dirty_rules.add(old.key)
        if new is not None:
            self.rules[new.key] = new
            self.dirty_rules.add(new.key)
        self.dirty_pods |= self.pods.keys()

    def static_changed(self, old: Rule | None, new: Rule | None, entry: Entry | None) -> None:
        """Take an object as it is that asks for one entry, for no pod in particular."""
        for rule in (old, new):
            if rule is not None:
                self.rules.pop(rule.key, None)
                self.dirty_rules.add(rule.key)
        claims: dict[Key, Claim] = {}
        if new is not None:
            self.rules[new.key] = new
            named = self.named(entry, new) if entry is not None else None
            claims[new.key] = Claim(new.rank, named, new.trouble, privileged=new.privileged)
        some = old or new
        if some is not None:
            self._put(f"{some.kind}/{some.name}", claims)

    # --- what follows -------------------------------------------------------------------------------------------

    def look(self, uids: Iterable[str]) -> None:
        """Compute anew what is claimed for some pods."""
        for uid in uids:
            self.dirty_pods.discard(uid)
            pod = self.pods.get(uid)
            self._put(uid, self._claimed(pod) if pod is not None else {})

    def everything(self) -> set[str]:
        """Return the IDs of all entries that are claimed."""
        return set(self._wanted)

    def desired(self, entry_id: str) -> Claim | None:
        """Return the claim that counts for an entry, None when nobody claims it."""
        claims = self._wanted.get(entry_id)
        return min(claims.values(), key=lambda claim: claim.rank) if claims else None

    def settled(self, ids: Iterable[str]) -> None:
        """Take it that what became of some entries is another than before."""
        for entry_id in ids:
            self.dirty_rules |= {key for key, _ in self._wanted.get(entry_id, ())}

    def is_over(self, entry: Entry) -> bool:
        """Say whether an entry was for a pod that is gone."""
        uids = [one.value.removeprefix("pod-uid:") for one in entry.selectors if one.value.startswith("pod-uid:")]
        return bool(uids) and not any(uid in self.pods or uid in self.left_out for uid in uids)

    def _put(self, subject: str, claims: dict[Key, Claim]) -> None:
        before = self._claims.pop(subject, {})
        if claims:
            self._claims[subject] = claims
        for key in before.keys() | claims.keys():
            old, new = before.get(key), claims.get(key)
            if old == new:
                continue
            self.dirty_rules.add(key)
            self._unclaim(key, subject, old)
            self._claim(key, subject, new)

    def _unclaim(self, key: Key, subject: str, old: Claim | None) -> None:
        if old is None:
            return
        del self.by_rule[key][subject]
        if not self.by_rule[key]:
            del self.by_rule[key]
        if old.entry is not None:
            claims = self._wanted[old.entry.id]
            del claims[key, subject]
            if not claims:
                del self._wanted[old.entry.id]
            self.dirty_entries.add(old.entry.id)

    def _claim(self, key: Key, subject: str, new: Claim | None) -> None:
        if new is None:
            return
        self.by_rule[key][subject] = new
        if new.entry is not None:
            self._wanted.setdefault(new.entry.id, {})[key, subject] = new
            self.dirty_entries.add(new.entry.id)

    def _claimed(self, pod: Pod) -> dict[Key, Claim]:
        labels = self.namespaces.get(pod.namespace)
        if labels is None:
            # It is going, or has not been seen yet; then it is looked at again.
            return {}
        chosen = [rule for rule in self.rules.values() if self._selects(rule, pod, labels)]
        kinds = {rule.kind for rule in chosen if not rule.fallback}
        return {
            rule.key: claim
            for rule in chosen
            if not (rule.fallback and rule.kind in kinds) and (claim := self._drawn(rule, pod)) is not None
        }

    @staticmethod
    def _selects(rule: Rule, pod: Pod, labels: Mapping[str, str]) -> bool:
        if rule.says is None or (rule.own_agents and not pod.own_agent) or pod.namespace in rule.ignored:
            return False
        return rule.namespaces.matches(labels) and (bool(pod.trouble) or rule.pods.matches(pod.labels))

    def _drawn(self, rule: Rule, pod: Pod) -> Claim | None:
        assert rule.says is not None  # noqa: S101 - it selects nothing then
        if pod.trouble:
            return Claim(rule.rank, None, pod.trouble)
        node = self.nodes.get(pod.node)
        try:
            place = self._place(pod, node)
            if place is None:
                return None
            entry = rule.says.draw(place)
        except Unfit as error:
            return Claim(rule.rank, None, str(error))
        attested = place.attested() if pod.own_agent else frozenset()
        return Claim(rule.rank, self.named(entry, rule), attested=attested, privileged=rule.privileged)

    def _place(self, pod: Pod, node: Node | None) -> Place | None:
        """Return where an entry is drawn, None when it is not known yet. Raise Unfit."""
        td, name = self._cluster.trust_domain, self._cluster.name
        if pod.own_agent and self._agents.own:
            parent: SpiffeId = td.with_path(f"/spire/agent/{K8S_POD}/{name}/{pod.uid}")
        elif not self._agents.of_nodes:
            raise Unfit(NO_AGENT)
        elif node is None:
            return None
        else:
            parent = td.with_path(f"/spire/agent/{K8S_PSAT}/{name}/{node.uid}")
        return Place(self._cluster, pod, node, parent, self._services(pod))

    def _services(self, pod: Pod) -> frozenset[str]:
        """Return the Services that a pod stands behind. Whoever writes in another namespace says nothing of it."""
        behind = self._behind.get(pod.uid, {}).values()
        return frozenset(service for namespace, service in behind if namespace == pod.namespace)

    def named(self, entry: Entry, rule: Rule) -> Entry:
        """Return an entry with the ID that it has wherever it comes from, and its origin."""
        made = f"{_PREFIX}.{self._cluster.name}.{entry.similarity.hex()[:32]}"
        kind = f"{rule.kind}/" if rule.kind else ""
        return replace(entry, id=made, origin=f"{origin_prefix(self._cluster.name)}{kind}{rule.name}")
