# SPDX-License-Identifier: Apache-2.0
"""What is read of SPIRE's objects."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firedoor.broker.kubernetes.federated_domains import read_domain
from firedoor.broker.kubernetes.pods import Slice, read_node, read_pod, read_slice
from firedoor.broker.kubernetes.registrar import Agents, Registrar
from firedoor.broker.kubernetes.rules import Cluster, Unfit
from firedoor.broker.kubernetes.spire_identities import SpireRules, duration, read_cluster_id, read_static_entry
from firedoor.certs import TrustDomain
from tests.broker.test_registrar import JSON

TD = TrustDomain.parse("example.org")
CLUSTER = Cluster(TD, "prod", "cluster.local")
POD = {
    "metadata": {
        "name": "a-0",
        "namespace": "ns",
        "uid": "u",
        "generateName": "a-",
        "labels": {"app": "a"},
        "annotations": {"team": "t"},
    },
    "spec": {"serviceAccountName": "sa", "nodeName": "n1", "hostNetwork": True, "containers": [{"name": "secret"}]},
}
NODE = {"metadata": {"name": "n1", "uid": "node-uid"}, "spec": {"providerID": "aws:///x", "podCIDR": "10.0.0.0/24"}}


def drawn(**spec: Any) -> Any:
    """Return the only claim of a ClusterSPIFFEID."""
    made = Registrar(CLUSTER, Agents(own=True, of_nodes=True))
    made.namespace_changed("ns", None, {})
    made.node_changed("n1", None, read_node(NODE, whole=True))
    made.pod_changed("u", None, read_pod(POD, "firedoor", whole=True))
    made.slice_changed("s", None, Slice("ns", "svc", frozenset("u")))
    made.slice_changed("t", None, Slice("other", "foreign", frozenset("u")))
    rule = read_cluster_id({"metadata": {"name": "x"}, "spec": spec}, CLUSTER, SpireRules())
    assert rule is not None
    if rule.says is None:
        return rule
    made.rule_changed(None, rule)
    made.look(["u"])
    (claim,) = made.by_rule[rule.key].values()
    return claim


@pytest.mark.parametrize(
    ("template", "path"),
    [
        ("{{.ClusterName}}/{{.ClusterDomain}}", "/prod/cluster.local"),
        ("{{.PodMeta.Name}}/{{.PodMeta.GenerateName}}/{{.PodMeta.UID}}", "/a-0/a-/u"),
        ("{{.PodMeta.Annotations.team}}", "/t"),
        ("{{.PodSpec.NodeName}}/{{.PodSpec.HostNetwork}}", "/n1/true"),
        ("{{.NodeMeta.Name}}/{{.NodeMeta.UID}}", "/n1/node-uid"),
        ("{{if .PodSpec.Hostname}}x{{else}}{{.PodMeta.Labels.app}}{{end}}", "/a"),
    ],
)
def test_what_templates_may_name(template: str, path: str) -> None:
    claim = drawn(spiffeIDTemplate=f"spiffe://{{{{.TrustDomain}}}}/{template}")
    assert claim.entry.spiffe_id.path == path
    assert claim.entry.parent_id.path == "/spire/agent/k8s_psat/prod/node-uid"


@pytest.mark.parametrize("name", [".PodSpec.Containers", ".PodMeta.ManagedFields", ".NodeSpec.Taints", ".PodStatus"])
def test_what_they_may_not(name: str) -> None:
    assert "here; known are" in drawn(spiffeIDTemplate=f"spiffe://{{{{.TrustDomain}}}}/{{{{ {name} }}}}").trouble


def test_names_of_services_of_its_own_namespace() -> None:
    claim = drawn(spiffeIDTemplate="spiffe://example.org/x", autoPopulateDNSNames=True, dnsNameTemplates=["svc"])
    assert claim.entry.dns_names == ("svc", "svc.ns", "svc.ns.svc", "svc.ns.svc.cluster.local")


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({}, "spiffeIDTemplate is empty"),
        ({"spiffeIDTemplate": "{{"}, "spiffeIDTemplate: {{ is not closed"),
        ({"spiffeIDTemplate": "spiffe://example.org/spire/server"}, "reserved namespace"),
        ({"spiffeIDTemplate": "spiffe://example.org/x", "dnsNameTemplates": ["a_b.-"]}, "invalid DNS name"),
        ({"spiffeIDTemplate": "spiffe://example.org/x", "workloadSelectorTemplates": ["x"]}, "is not type:value"),
        ({"spiffeIDTemplate": "spiffe://example.org/x", "federatesWith": ["A"]}, "federatesWith"),
        ({"spiffeIDTemplate": "spiffe://example.org/x", "jwtTtl": "-1h"}, "no duration"),
        ({"spiffeIDTemplate": "spiffe://example.org/x", "ttl": "90000h"}, "between 0 and 366 days"),
    ],
)
def test_what_is_refused(spec: dict[str, Any], sentence: str) -> None:
    assert sentence in drawn(**spec).trouble


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(None, 0), ("", 0), ("0s", 0), ("90s", 90), ("1h30m", 5400), ("1.5h", 5400), ("1500ms", 1), ("1m0.5s", 60)],
)
def test_durations(text: str | None, seconds: int) -> None:
    assert duration("ttl", text) == seconds


@pytest.mark.parametrize("text", ["1", "1d", "h", "-1s", "1h 2m", "1.2.3s", "1e9s", "9" * 70 + "s", 5])
def test_durations_that_are_none(text: object) -> None:
    with pytest.raises(Unfit):
        duration("ttl", text)


@pytest.mark.parametrize(
    ("rules", "given", "ours"),
    [
        (SpireRules(), None, True),
        (SpireRules(), "a", False),
        (SpireRules(class_name="a"), "a", True),
        (SpireRules(class_name="a"), None, False),
        (SpireRules(class_name="a", classless=True), None, True),
        (SpireRules(class_name="a", classless=True), "b", False),
    ],
)
def test_classes(rules: SpireRules, given: str | None, ours: bool) -> None:
    assert rules.are_ours({"spec": {"className": given} if given else {}}) is ours


NAMES = """
    spiffeIDTemplate spiffeID parentID selectors ttl x509SVIDTTL dnsNames dnsNameTemplates workloadSelectorTemplates
    podSelector federatesWith trustDomain bundleEndpointURL className bundleEndpointProfile trustDomainBundle hint
"""
FIELDS = st.sampled_from(NAMES.split())
HEX = st.sampled_from(["spiffe://example.org/x", "{{.TrustDomain}}", "a:b", "1h", "https://x/", "partner.example"])


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(FIELDS, JSON | HEX | st.lists(HEX, max_size=3), max_size=8))
def test_no_object_ends_anything(spec: dict[str, Any]) -> None:
    seen = {"metadata": {"name": "x"}, "spec": spec}
    for rules in (SpireRules(), SpireRules(classless=True)):
        read_static_entry(seen, CLUSTER, rules)
        read_domain(seen, TD, rules)
    spec.pop("className", None)
    drawn(**spec)


@settings(max_examples=200, deadline=None)
@given(JSON)
def test_no_slice_ends_anything(seen: Any) -> None:
    read_slice({"metadata": seen, "endpoints": seen})
    read_slice(seen if isinstance(seen, dict) else {})
