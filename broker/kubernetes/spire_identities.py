# SPDX-License-Identifier: Apache-2.0
"""SPIRE's ClusterSPIFFEID and ClusterStaticEntry (spire.spiffe.io/v1alpha1), as its controller manager reads them.

Pure. A template names what SPIRE's names, of which we know single values, labels and annotations; go_templates.py
says which part of the language. What is not understood is refused with a sentence, and makes no entry.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, final

from firedoor.broker.entry import MAX_DNS_NAMES, MAX_SELECTORS, Entry, check_workload_id
from firedoor.broker.errors import InvalidRequest
from firedoor.broker.kubernetes.go_templates import Fields, Template, TemplateError, parse, render
from firedoor.broker.kubernetes.mirror import short
from firedoor.broker.kubernetes.pods import Node, Pod
from firedoor.broker.kubernetes.rules import (
    Cluster,
    Place,
    Rule,
    Unfit,
    check_ttl,
    dns_names,
    federates,
    hint,
    selector,
    texts,
)
from firedoor.certs import Selector, SelectorError, SpiffeId, SpiffeIdError, TrustDomain
from firedoor.cluster.objects import Seen, mapping, text

GROUP: Final = "/apis/spire.spiffe.io/v1alpha1"
CLUSTER_SPIFFE_ID: Final = "ClusterSPIFFEID"
CLUSTER_STATIC_ENTRY: Final = "ClusterStaticEntry"
# Go's durations: 1h30m, 90s, 500ms.
_DURATION: Final = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,9})?(?:h|ms|m|s|us|µs|ns))+")
_PART: Final = re.compile(r"([0-9.]+)(h|ms|m|s|us|µs|ns)")
_UNITS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_META: Final = {"Name": "name", "GenerateName": "generateName", "Namespace": "namespace", "UID": "uid"}
_POD_SPEC: Final[Mapping[str, tuple[str, object]]] = {
    "ServiceAccountName": ("serviceAccountName", ""),
    "DeprecatedServiceAccount": ("serviceAccount", ""),
    "NodeName": ("nodeName", ""),
    "Hostname": ("hostname", ""),
    "Subdomain": ("subdomain", ""),
    "SchedulerName": ("schedulerName", ""),
    "PriorityClassName": ("priorityClassName", ""),
    "RestartPolicy": ("restartPolicy", ""),
    "DNSPolicy": ("dnsPolicy", ""),
    "HostNetwork": ("hostNetwork", False),
    "HostPID": ("hostPID", False),
    "HostIPC": ("hostIPC", False),
}
_NODE_SPEC: Final[Mapping[str, tuple[str, object]]] = {
    "ProviderID": ("providerID", ""),
    "PodCIDR": ("podCIDR", ""),
    "Unschedulable": ("unschedulable", False),
}


@final
@dataclass(frozen=True, slots=True)
class SpireRules:
    """Which of SPIRE's objects are ours, and how far they go."""

    # Whose `className` is this, and with `classless` those without one.
    class_name: str = ""
    classless: bool = False
    # Namespaces whose pods no ClusterSPIFFEID selects.
    ignored: frozenset[str] = frozenset()
    # They may make administrators, downstream authorities and node aliases.
    privileged: bool = False

    def are_ours(self, seen: Seen) -> bool:
        """Say whether an object is for us."""
        name = text(mapping(seen.get("spec")).get("className"))
        return name == self.class_name or (not name and self.classless)


@final
@dataclass(frozen=True, slots=True)
class ClusterId:
    """What a ClusterSPIFFEID says."""

    id: Template
    dns_names: tuple[Template, ...]
    selectors: tuple[Template, ...]
    service_names: bool
    fields: Mapping[str, Any]

    def draw(self, place: Place) -> Entry:
        """Return the entry of a pod. Raise Unfit."""
        values = _values(place)
        return place.entry(
            _rendered("spiffeIDTemplate", self.id, values),
            selectors=frozenset(_selector(_rendered("selector", one, values)) for one in self.selectors),
            dns_names=dns_names(self._dns_names(place, values)),
            **self.fields,
        )

    def _dns_names(self, place: Place, values: Fields) -> tuple[str, ...]:
        names = [_rendered("dnsNameTemplates", one, values) for one in self.dns_names]
        if self.service_names:
            names += sorted(_service_names(place))
        return tuple(dict.fromkeys(names))


def read_cluster_id(seen: Seen, cluster: Cluster, rules: SpireRules) -> Rule | None:
    """Read a ClusterSPIFFEID, None when it is not ours; one that is wrong has its trouble with it."""
    if not rules.are_ours(seen):
        return None
    spec = mapping(seen.get("spec"))
    try:
        return Rule.of(
            CLUSTER_SPIFFE_ID,
            seen,
            says=_cluster_id(spec, cluster.trust_domain),
            pods=selector("podSelector", spec.get("podSelector")),
            namespaces=selector("namespaceSelector", spec.get("namespaceSelector")),
            fallback=spec.get("fallback") is True,
            privileged=rules.privileged,
            ignored=rules.ignored,
        )
    except Unfit as error:
        return Rule.of(CLUSTER_SPIFFE_ID, seen, trouble=str(error))


def _cluster_id(spec: Mapping[str, Any], own: TrustDomain) -> ClusterId:
    fields = {
        "x509_svid_ttl": duration("ttl", spec.get("ttl")),
        "jwt_svid_ttl": duration("jwtTtl", spec.get("jwtTtl")),
        "federates_with": federates(spec.get("federatesWith"), own),
        "admin": spec.get("admin") is True,
        "downstream": spec.get("downstream") is True,
        "hint": hint(spec.get("hint")),
    }
    names = texts(spec.get("dnsNameTemplates"), "dnsNameTemplates", MAX_DNS_NAMES)
    selectors = texts(spec.get("workloadSelectorTemplates"), "workloadSelectorTemplates", MAX_SELECTORS - 1)
    said = text(spec.get("spiffeIDTemplate"))
    if not said:
        raise Unfit("spiffeIDTemplate is empty")
    return ClusterId(
        id=_template("spiffeIDTemplate", said),
        dns_names=tuple(_template("dnsNameTemplates", one) for one in names),
        selectors=tuple(_template("workloadSelectorTemplates", one) for one in selectors),
        service_names=spec.get("autoPopulateDNSNames") is True,
        fields=fields,
    )


@final
@dataclass(frozen=True, slots=True)
class StaticEntry:
    """What a ClusterStaticEntry says: a rule, and its entry, None when it cannot be read."""

    rule: Rule
    entry: Entry | None


def read_static_entry(seen: Seen, cluster: Cluster, rules: SpireRules) -> StaticEntry | None:
    """Read a ClusterStaticEntry, None when it is not ours; one that is wrong has its trouble with it."""
    if not rules.are_ours(seen):
        return None
    try:
        entry = _static_entry(mapping(seen.get("spec")), cluster.trust_domain)
        return StaticEntry(Rule.of(CLUSTER_STATIC_ENTRY, seen, privileged=rules.privileged), entry)
    except Unfit as error:
        return StaticEntry(Rule.of(CLUSTER_STATIC_ENTRY, seen, trouble=str(error)), None)


def _static_entry(spec: Mapping[str, Any], own: TrustDomain) -> Entry:
    selectors = frozenset(_selector(one) for one in texts(spec.get("selectors"), "selectors", MAX_SELECTORS))
    if not selectors:
        raise Unfit("selectors is empty")
    stored = spec.get("storeSVID") is True
    if stored and len({one.type for one in selectors}) > 1:
        raise Unfit("selectors are of one type where storeSVID is set")
    return Entry(
        id="",
        spiffe_id=_id("spiffeID", spec.get("spiffeID"), own),
        parent_id=_parent(spec.get("parentID"), own),
        selectors=selectors,
        x509_svid_ttl=duration("x509SVIDTTL", spec.get("x509SVIDTTL")),
        jwt_svid_ttl=duration("jwtSVIDTTL", spec.get("jwtSVIDTTL")),
        federates_with=federates(spec.get("federatesWith"), own),
        dns_names=dns_names(texts(spec.get("dnsNames"), "dnsNames", MAX_DNS_NAMES)),
        admin=spec.get("admin") is True,
        downstream=spec.get("downstream") is True,
        store_svid=stored,
        hint=hint(spec.get("hint")),
    )


def _id(what: str, given: object, own: TrustDomain) -> SpiffeId:
    try:
        return check_workload_id(SpiffeId.parse(text(given)), own)
    except (SpiffeIdError, InvalidRequest) as error:
        raise Unfit(f"{what}: {error}") from None


def _parent(given: object, own: TrustDomain) -> SpiffeId:
    try:
        found = SpiffeId.parse(text(given))
    except SpiffeIdError as error:
        raise Unfit(f"parentID: {error}") from None
    if found.trust_domain != own or not found.path:
        raise Unfit(f"parentID: it must be an ID of {own} with a path")
    return found


def duration(what: str, given: object) -> int:
    """Read a duration as Go writes it, in whole seconds; 0 when there is none. Raise Unfit."""
    said = text(given)
    if given in (None, "", "0"):
        return 0
    if len(said) > 64 or not _DURATION.fullmatch(said):
        raise Unfit(f"{what}: {short(said)!r} is no duration such as 1h30m or 90s")
    try:
        return check_ttl(int(sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(said))), what)
    except ValueError:
        raise Unfit(f"{what}: {short(said)!r} is no duration such as 1h30m or 90s") from None


def _template(what: str, said: str) -> Template:
    try:
        return parse(said)
    except TemplateError as error:
        raise Unfit(f"{what}: {error}") from None


def _rendered(what: str, template: Template, values: Fields) -> str:
    try:
        return render(template, values)
    except TemplateError as error:
        raise Unfit(f"{what}: {error}") from None


def _selector(said: str) -> Selector:
    try:
        return Selector.parse(said)
    except SelectorError as error:
        # Its value may be nobody's business.
        raise Unfit(f"a workload selector is not type:value: {error}") from None


def _service_names(place: Place) -> set[str]:
    found = set()
    for service in place.services:
        whole = f"{service}.{place.pod.namespace}.svc"
        found |= {service, f"{service}.{place.pod.namespace}", whole}
        if place.cluster.domain:
            found.add(f"{whole}.{place.cluster.domain}")
    return found


def _values(place: Place) -> Fields:
    """Return what templates may name."""
    cluster, pod, node = place.cluster, place.pod, place.node
    found: dict[str, Any] = {
        "TrustDomain": cluster.trust_domain.name,
        "ClusterName": cluster.name,
        "ClusterDomain": cluster.domain,
        "PodMeta": _meta(".PodMeta", pod),
        "PodSpec": _spec(".PodSpec", pod.spec, _POD_SPEC),
    }
    if node is not None:
        found["NodeMeta"] = _meta(".NodeMeta", node)
        found["NodeSpec"] = _spec(".NodeSpec", node.spec, _NODE_SPEC)
    return Fields("a template", found)


def _meta(what: str, of: Pod | Node) -> Fields:
    named = {go: of.meta.get(key, "") for go, key in _META.items()}
    return Fields(what, {**named, "Labels": of.labels, "Annotations": of.annotations})


def _spec(what: str, said: Mapping[str, Any], known: Mapping[str, tuple[str, object]]) -> Fields:
    return Fields(what, {go: said.get(key, zero) for go, (key, zero) in known.items()})
