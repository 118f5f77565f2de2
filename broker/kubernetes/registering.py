# SPDX-License-Identifier: Apache-2.0
"""Puts registration together: what is watched, what is kept of it, what runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from firedoor.broker.kubernetes.federated_domains import KIND as DOMAIN
from firedoor.broker.kubernetes.federated_domains import FederatedDomains, read_domain
from firedoor.broker.kubernetes.identities import KIND, PLURAL, default_rule, read_identity
from firedoor.broker.kubernetes.mirror import Changed, Mirror, identified, named
from firedoor.broker.kubernetes.pods import read_labels, read_node, read_pod, read_slice
from firedoor.broker.kubernetes.registrar import Agents, Registrar, origin_prefix
from firedoor.broker.kubernetes.registration import Registration
from firedoor.broker.kubernetes.registration_status import RegistrationStatus, Status, Tally, identity_status
from firedoor.broker.kubernetes.rules import Cluster, Rule
from firedoor.broker.kubernetes.shares import Shares
from firedoor.broker.kubernetes.spire_identities import (
    CLUSTER_SPIFFE_ID,
    CLUSTER_STATIC_ENTRY,
    GROUP,
    SpireRules,
    StaticEntry,
    read_cluster_id,
    read_static_entry,
)
from firedoor.broker.kubernetes.spire_status import cluster_id_status, static_entry_status
from firedoor.cluster.objects import Seen
from firedoor.cluster.watch import Sink, Watch
from firedoor.segments import API_VERSION

if TYPE_CHECKING:
    from firedoor.broker.federation import Federation
    from firedoor.broker.kubernetes.controllers import BrokerParts, Controllers
    from firedoor.broker.kubernetes.registration_config import RegistrationRules
    from firedoor.broker.state import State

R = TypeVar("R")
# Pods and nodes of one cluster: Kubernetes itself is tested with 150,000 and 5,000.
_MOST_PODS: Final = 200_000
# What one of its namespaces may have, as in the directory.
_MOST_PODS_A_NAMESPACE: Final = 20_000
_MOST_NODES: Final = 10_000
_MOST_NAMESPACES: Final = 20_000
_MOST_OBJECTS: Final = 1000
_MOST_STATICS: Final = 50_000
_MOST_SLICES: Final = 100_000


@dataclass(frozen=True, slots=True)
class Attesting:
    """Who attests pods of the cluster. `audience` is that of tokens for k8s_pod, empty when it is off there."""

    audience: str
    of_nodes: bool


def add_registration(
    controllers: Controllers,
    rules: RegistrationRules,
    attesting: Attesting,
    parts: BrokerParts,
) -> Registration:
    """Have the controllers register pods."""
    state, name, spire = parts.state, controllers.rules.cluster, rules.spire
    cluster = Cluster(state.trust_domain, name, rules.cluster_domain)
    certificates = controllers.rules.certificate_ttl > 0
    registrar = Registrar(cluster, Agents(bool(attesting.audience) or certificates, attesting.of_nodes))
    lease, told = controllers.lease, (parts.audit, parts.metrics, parts.listening)
    made = _Made(controllers, Registration(registrar, name, [], lease, state, parts.policy, *told))
    made.follow(
        "/api/v1/namespaces",
        "Namespace",
        "namespaces",
        _MOST_NAMESPACES,
        named,
        read_labels,
        registrar.namespace_changed,
    )
    whole = spire is not None
    if attesting.of_nodes or whole:
        nodes = partial(read_node, whole=whole)
        made.follow("/api/v1/nodes", "Node", "nodes", _MOST_NODES, named, nodes, registrar.node_changed)
    pods = partial(read_pod, audience=attesting.audience, certificates=certificates, whole=whole)
    made.follow(
        "/api/v1/pods", "Pod", "pods", _MOST_PODS, identified, pods, registrar.pod_changed, shares=made.shares("pods")
    )
    identities = partial(read_identity, trust_domain=state.trust_domain)
    path = f"/apis/{API_VERSION}/{PLURAL}"
    rule_changed = _rules(registrar)
    made.follow(path, KIND, KIND, _MOST_OBJECTS, named, identities, rule_changed, "apply deploy/kubernetes/crds")
    made.written[KIND] = (path, identity_status)
    if rules.default:
        registrar.rule_changed(None, default_rule())
    if spire is not None:
        _add_spire(made, cluster, spire)
        _add_federation(made, spire, parts.federation, state)
    state.registers = (*state.registers, origin_prefix(name))
    paths = {kind: where for kind, (where, _) in made.written.items()}
    status = RegistrationStatus(
        controllers.api, made.registration, state, paths, {kind: says for kind, (_, says) in made.written.items()}
    )
    controllers.add(made.registration.run, status.run)
    return made.registration


class _Made:
    """What is being put together."""

    def __init__(self, controllers: Controllers, registration: Registration) -> None:
        self.controllers, self.registration = controllers, registration
        # By the kind, where the API has it, and what its status says.
        self.written: dict[str, tuple[str, Callable[[Rule, Tally], Status]]] = {}

    def follow(
        self,
        path: str,
        kind: str,
        what: str,
        most: int,
        key: Callable[[Seen], str],
        read: Callable[[Seen], R | None],
        changed: Changed[R],
        absent: str = "",
        shares: Shares | None = None,
    ) -> None:
        """Follow a kind of objects, as records that the registrar is told of."""

        def told(key: str, old: R | None, new: R | None) -> None:
            changed(key, old, new)
            self.registration.changed()

        watch = self.watch(path, kind, what, Mirror(what, most, key, read, told, shares), absent)
        self.registration.watches.append(watch)

    def shares(self, what: str) -> Shares:
        """Bound what one namespace may have of a kind; the registrar is told of what is left out."""

        def told(uid: str, namespace: str, left_out: bool) -> None:
            self.registration.registrar.left_out_changed(uid, namespace, left_out=left_out)
            self.registration.changed()

        return Shares(what, _MOST_PODS_A_NAMESPACE, told)

    def watch(self, path: str, kind: str, what: str, sink: Sink, absent: str) -> Watch:
        """Follow a kind of objects."""
        name = self.controllers.rules.cluster
        sentence = f"the cluster has no {what}: {absent}" if absent else ""
        watch = Watch(self.controllers.api, path, kind, f"{what} of cluster {name}", sink, absent=sentence)
        self.controllers.add(watch.run)
        return watch


_SPIRES: Final = "apply the definitions of spire-controller-manager, or leave out spire_registration"


def _add_spire(made: _Made, cluster: Cluster, spire: SpireRules) -> None:
    """Take SPIRE's objects for entries, too."""
    registrar = made.registration.registrar

    def static(_: str, old: StaticEntry | None, new: StaticEntry | None) -> None:
        entry = new.entry if new is not None else None
        registrar.static_changed(old.rule if old else None, new.rule if new else None, entry)

    slices = "/apis/discovery.k8s.io/v1/endpointslices"
    made.follow(
        slices, "EndpointSlice", "EndpointSlices", _MOST_SLICES, identified, read_slice, registrar.slice_changed
    )
    ids, statics = f"{GROUP}/clusterspiffeids", f"{GROUP}/clusterstaticentries"
    read_id = partial(read_cluster_id, cluster=cluster, rules=spire)
    made.follow(ids, CLUSTER_SPIFFE_ID, CLUSTER_SPIFFE_ID, _MOST_OBJECTS, named, read_id, _rules(registrar), _SPIRES)
    read_static = partial(read_static_entry, cluster=cluster, rules=spire)
    made.follow(statics, CLUSTER_STATIC_ENTRY, CLUSTER_STATIC_ENTRY, _MOST_STATICS, named, read_static, static, _SPIRES)
    made.written[CLUSTER_SPIFFE_ID] = (ids, partial(cluster_id_status, registrar))
    made.written[CLUSTER_STATIC_ENTRY] = (statics, static_entry_status)


def _add_federation(made: _Made, spire: SpireRules, federation: Federation, state: State) -> None:
    """Take SPIRE's objects for federation relationships, too."""
    controllers, path = made.controllers, f"{GROUP}/clusterfederatedtrustdomains"
    domains = FederatedDomains(controllers.api, controllers.lease, controllers.rules.cluster, federation, state, path)
    read = partial(read_domain, own=state.trust_domain, rules=spire)
    sink = Mirror(DOMAIN, _MOST_OBJECTS, named, read, domains.changed)
    domains.watch = made.watch(path, DOMAIN, DOMAIN, sink, _SPIRES)
    controllers.add(domains.run)


def _rules(registrar: Registrar) -> Callable[[str, Rule | None, Rule | None], None]:
    return lambda _, old, new: registrar.rule_changed(old, new)
