# SPDX-License-Identifier: Apache-2.0
"""What says which pods get which entries: objects of a cluster, and what holds without any. Pure.

A rule selects pods by their labels and those of their namespaces, and draws an entry for each. Where it draws for a pod
is a `Place`: the pod, its node, and the agent that attests its workloads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, final

from firedoor.broker.entry import MAX_FEDERATES, MAX_HINT_BYTES, MAX_TTL, Entry, check_dns_names, check_workload_id
from firedoor.broker.errors import InvalidRequest
from firedoor.broker.kubernetes.label_selectors import LabelSelector
from firedoor.broker.kubernetes.mirror import short
from firedoor.broker.kubernetes.pods import Node, Pod
from firedoor.certs import K8S_POD, Selector, SpiffeId, SpiffeIdError, TrustDomain
from firedoor.cluster.objects import Seen, mapping, metadata, text

# An object that is meant for nobody sorts last.
LAST: Final = "~"


class Unfit(Exception):
    """An object, or what it makes of a pod, is no entry. `str()` says why."""


@final
@dataclass(frozen=True, slots=True)
class Cluster:
    """Whose pods they are."""

    trust_domain: TrustDomain
    name: str
    # Empty: DNS names go no further than `.svc`.
    domain: str = ""


@final
@dataclass(frozen=True, slots=True)
class Place:
    """A pod for which an entry is drawn."""

    cluster: Cluster
    pod: Pod
    # None unless somebody asks for nodes and the pod is bound to one.
    node: Node | None
    # The agent that attests the pod's workloads.
    parent: SpiffeId
    # The Services of its namespace that it stands behind, where somebody asks for them.
    services: frozenset[str] = frozenset()

    def entry(self, spiffe_id: str, **fields: Any) -> Entry:
        """Return an entry for this pod. Raise Unfit. `selectors` are those beside the pod's UID."""
        more = fields.pop("selectors", frozenset())
        mine = frozenset([Selector.of("k8s", f"pod-uid:{self.pod.uid}")])
        wanted = workload_id(spiffe_id, self.cluster.trust_domain)
        return Entry(id="", spiffe_id=wanted, parent_id=self.parent, selectors=mine | more, **fields)

    def attested(self) -> frozenset[Selector]:
        """Return what the broker attests of the pod's own agent without looking further than the pod."""
        pod = self.pod
        values = [f"cluster:{self.cluster.name}", f"ns:{pod.namespace}", f"sa:{pod.account}", f"pod-uid:{pod.uid}"]
        return frozenset(Selector.of(K8S_POD, value) for value in values)


class Drawn(Protocol):
    """What a rule says of the pods that it selects."""

    def draw(self, place: Place) -> Entry:
        """Return the entry of a pod. Raise Unfit."""


@final
@dataclass(frozen=True, slots=True)
class Rule:
    """One object that selects pods. Two are the same when they are of the same generation of the same object."""

    kind: str
    name: str
    uid: str = ""
    generation: int = 0
    # Of two that draw the same entry the older one counts.
    created: str = field(default=LAST, compare=False)
    pods: LabelSelector = field(default=LabelSelector(), compare=False)
    namespaces: LabelSelector = field(default=LabelSelector(), compare=False)
    # None: it cannot be read, and `trouble` says why.
    says: Drawn | None = field(default=None, compare=False)
    trouble: str = field(default="", compare=False)
    # Counts only where no other rule of its kind does.
    fallback: bool = field(default=False, compare=False)
    # Selects pods that attest by themselves alone.
    own_agents: bool = field(default=False, compare=False)
    # Its entries may stand for more than workloads.
    privileged: bool = field(default=False, compare=False)
    # Namespaces that it never selects.
    ignored: frozenset[str] = field(default=frozenset(), compare=False)
    # The object's status as it was seen.
    status: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def key(self) -> tuple[str, str]:
        """What no other object has."""
        return self.kind, self.name

    @property
    def rank(self) -> tuple[str, str, str]:
        """Whoever is first counts."""
        return self.created, self.kind, self.name

    @classmethod
    def of(cls, kind: str, seen: Seen, **fields: Any) -> Rule:
        """Return the rule of an object."""
        meta = metadata(seen)
        generation = meta.get("generation")
        return cls(
            kind=kind,
            name=text(meta.get("name")),
            uid=text(meta.get("uid")),
            generation=generation if isinstance(generation, int) else 0,
            created=text(meta.get("creationTimestamp")) or LAST,
            status=mapping(seen.get("status")),
            **fields,
        )


def workload_id(said: str, trust_domain: TrustDomain) -> SpiffeId:
    """Return the ID of a workload. Raise Unfit."""
    try:
        return check_workload_id(SpiffeId.parse(said), trust_domain)
    except (SpiffeIdError, InvalidRequest) as error:
        raise Unfit(f"{short(said)!r} cannot be its ID: {error}") from None


def dns_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Check DNS names. Raise Unfit."""
    try:
        return check_dns_names(names)
    except InvalidRequest as error:
        raise Unfit(str(error)) from None


def federates(given: object, own: TrustDomain) -> tuple[TrustDomain, ...]:
    """Read names of trust domains. Raise Unfit."""
    names = texts(given, "federatesWith", MAX_FEDERATES)
    try:
        found = {TrustDomain.parse(name.removeprefix("spiffe://")) for name in names}
    except SpiffeIdError as error:
        raise Unfit(f"federatesWith: {error}") from None
    if own in found:
        raise Unfit(f"federatesWith: {own} is the broker's own trust domain")
    return tuple(sorted(found))


def texts(given: object, what: str, most: int) -> tuple[str, ...]:
    """Read a list of texts. Raise Unfit."""
    found = given or []
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise Unfit(f"{what} must be a list of texts")
    if len(found) > most:
        raise Unfit(f"{what} has at most {most} items")
    return tuple(found)


def hint(given: object) -> str:
    """Read a hint. Raise Unfit."""
    found = text(given)
    if len(found.encode("utf-8", "surrogatepass")) > MAX_HINT_BYTES:
        raise Unfit(f"hint has at most {MAX_HINT_BYTES} bytes")
    return found


def check_ttl(seconds: int, what: str) -> int:
    """Return a lifetime in seconds. Raise Unfit."""
    if not 0 <= seconds <= MAX_TTL:
        raise Unfit(f"{what} is between 0 and {MAX_TTL // 86400} days")
    return seconds


def selector(kind: str, given: object) -> LabelSelector:
    """Read a label selector. Raise Unfit."""
    try:
        return LabelSelector.read(given)
    except ValueError as error:
        raise Unfit(f"{kind}: {error}") from None
