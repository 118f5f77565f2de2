# SPDX-License-Identifier: Apache-2.0
"""Exported packet filters allow what flows allow, and each part of them counts."""

from __future__ import annotations

import ipaddress
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from firedoor.certs import TrustDomain
from firedoor.segments import Document, PolicyErrors, load
from firedoor.segments.exports import FORMS, Export, ExportError, Options, addresses, export
from tests.segments import conftest as made
from tests.segments.packet_filters import READERS, Address, Connection, Pod
from tests.segments.pods import (
    BROKER,
    DNS,
    NODE_DNS,
    NOW,
    OUTSIDE,
    PORTS,
    SPACES,
    TD,
    Generator,
    Meaning,
    mutants,
    pod,
    pods,
)

DOMAIN = TrustDomain.parse(TD)
VECTORS = Path(__file__).parents[1] / "vectors"
METADATA = json.loads((VECTORS / "metadata_addresses.json").read_text())["metadata"]
SEEDS = range(16)
OPTIONS = Options(namespaces=SPACES)
# Cilium labels pods by their account; the others cannot tell accounts from each other.
ACCOUNTS = {"kubernetes": False, "cilium": True, "cluster-network-policy": False}
# Everything once: an account, an ID in Istio's form, a time, an audit segment in a namespace with an enforcing one.
CLUSTER = """\
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {name: inference}
spec:
  members: ["spiffe://{td}/segment/inference/**", "spiffe://{td}/ns/serving/sa/inference-only"]
  admission: {node: ["k8s_pod:cluster:prod", "k8s_pod:ns:serving"]}
---
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {name: registry}
spec: {members: ["spiffe://{td}/segment/registry/ns/models/sa/*"], admission: {node: ["k8s_pod:cluster:prod"]}}
---
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {name: training}
spec: {mode: audit, members: ["spiffe://{td}/segment/training/**"], admission: {node: ["k8s_pod:ns:serving"]}}
---
apiVersion: firedoor.dev/v1alpha1
kind: Flow
metadata: {name: pulls}
spec:
  owner: o
  reason: r
  from: {segment: inference, id: "spiffe://{td}/segment/inference/ns/serving/sa/vllm"}
  to: {segment: registry, port: 9000}
  allow: [{http: {methods: [GET]}}]
---
apiVersion: firedoor.dev/v1alpha1
kind: Flow
metadata: {name: trains}
spec: {owner: o, reason: r, from: {segment: training}, to: {segment: registry, port: 443}, allow: [{tcp: {}}]}
---
apiVersion: firedoor.dev/v1alpha1
kind: Flow
metadata: {name: talks}
spec: {owner: o, reason: r, from: {segment: inference}, to: {segment: inference, port: 443}, allow: [{tcp: {}}]}
"""


def made_from(text: str, form: str, options: Options = OPTIONS) -> Export:
    return export(load([Document("policy.yaml", text)], DOMAIN), form, options, NOW)


def differences(reader: Any, meaning: Meaning, ports: tuple[int, ...] = (*PORTS, 1)) -> list[Connection]:
    """The connections between pods that an export gets wrong."""
    every = pods(meaning)
    asked = (Connection(a, b, port) for a, b, port in itertools.product(every, every, ports))
    return [c for c in asked if reader.allows(c) != meaning.allows(c)]


def beyond(reader: Any, meaning: Meaning, form: str) -> list[str]:
    """What an export gets wrong about names, the broker, cloud metadata and the world outside."""
    wrong = []
    for one in pods(meaning):
        audits, member = meaning.audits(one), meaning.is_member(one)
        dns = [Connection(one, DNS, 53, protocol) for protocol in ("TCP", "UDP")]
        if form != "cilium":
            dns += [Connection(one, NODE_DNS, 53, protocol) for protocol in ("TCP", "UDP")]
        broker = [Connection(one, BROKER, 8081)]
        wrong += [c for c in (*dns, *broker) if reader.allows(c) != member]
        others = [Connection(one, DNS, 54), Connection(one, BROKER, 22)]
        others += [Connection(one, a, port) for a in OUTSIDE for port in (53, 443, 8081)]
        wrong += [c for c in others if reader.allows(c) != audits]
        wrong += [c for text in METADATA if reader.allows(c := Connection(one, Address(text), 80))]
        from_outside = [Connection(a, one, 443) for a in OUTSIDE]
        if form != "cluster-network-policy":
            wrong += [c for c in from_outside if reader.allows(c) != audits]
        strange = Connection(Pod("elsewhere", "default"), one, 443)
        wrong += [strange] if reader.allows(strange) != audits else []
    return [str(one) for one in wrong]


@pytest.mark.parametrize("form", FORMS)
def test_agrees_with_the_flows(form: str) -> None:
    opened = 0
    for seed in SEEDS:
        text = Generator(seed).text
        meaning = Meaning(text, SPACES, accounts=ACCOUNTS[form])
        reader = READERS[form](made_from(text, form).objects)
        assert not differences(reader, meaning), f"seed {seed}\n{text}"
        assert not beyond(reader, meaning, form), f"seed {seed}\n{text}"
        every = pods(meaning)
        opened += any(reader.allows(Connection(a, b, 443)) for a, b in itertools.product(every, every))
    assert opened > len(SEEDS) / 4


@pytest.mark.parametrize("form", FORMS)
def test_every_part_counts(form: str) -> None:
    meaning = Meaning(CLUSTER, SPACES, accounts=ACCOUNTS[form])
    objects = list(made_from(CLUSTER, form).objects)
    whole = READERS[form](objects)
    assert not differences(whole, meaning)
    assert not beyond(whole, meaning, form)
    for name, changed in mutants(objects):
        reader = READERS[form](changed)
        # What opens everything for somebody else must not open cloud metadata.
        refused = form == "cilium" and _opens_metadata(changed)
        assert refused or differences(reader, meaning) or beyond(reader, meaning, form), f"{name} was not missed"


def _opens_metadata(objects: list[dict[str, Any]]) -> bool:
    """Whether a policy of somebody else could open cloud metadata."""
    head = {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy"}
    spec = {"endpointSelector": {}, "egress": [{"toCIDR": ["0.0.0.0/0", "::/0"]}]}
    theirs = [{**head, "metadata": {"namespace": space, "name": "theirs"}, "spec": spec} for space in SPACES]
    reader = READERS["cilium"]([*objects, *theirs])
    asked = (Connection(pod(space, None), Address(text), 80) for space in SPACES for text in METADATA)
    return any(reader.allows(c) for c in asked)


@pytest.mark.parametrize("form", FORMS)
def test_nobody_else_opens_cloud_metadata(form: str) -> None:
    if form == "cilium":
        assert not _opens_metadata(list(made_from(CLUSTER, form).objects))
    blocks = [ipaddress.ip_network(block) for block in (*addresses.METADATA_V4, *addresses.METADATA_V6)]
    assert {str(block.network_address) for block in blocks} == {str(ipaddress.ip_address(text)) for text in METADATA}


@pytest.mark.parametrize("form", FORMS)
def test_ambient_tunnels(form: str) -> None:
    options = Options(namespaces=SPACES, ambient=True)
    reader = READERS[form](made_from(CLUSTER, form, options).objects)
    meaning = Meaning(CLUSTER, SPACES, accounts=ACCOUNTS[form])
    every = pods(meaning)
    for a, b in itertools.product(every, every):
        direct = any(meaning.allows(Connection(a, b, port)) for port in PORTS)
        assert reader.allows(Connection(a, b, 15008)) == direct
        assert reader.allows(Connection(a, b, 443)) == meaning.allows(Connection(a, b, 443))
    vllm = pod("serving", "inference", "vllm")
    assert reader.allows(Connection(vllm, BROKER, 15008))
    assert reader.allows(Connection(Address("169.254.7.127"), vllm, 8080))
    assert "ambient" in [found.code for found in made_from(CLUSTER, form, options).report]


@pytest.mark.parametrize("form", FORMS)
def test_no_two_objects_have_one_name(form: str) -> None:
    names = ("broker", "default-deny", "dns", "metadata", "segment", "system", "a", "a-1", "a-1-1")
    audited = [made.segment(name, mode="audit") for name in names]
    objects = export(made.policy(made.segment("x"), *audited), form, Options(namespaces=SPACES), NOW).objects
    heads = [(one["metadata"].get("namespace"), one["metadata"]["name"]) for one in objects]
    assert len(set(heads)) == len(heads)


def test_deprecated_authentication_is_never_written() -> None:
    for seed in SEEDS:
        text = json.dumps(made_from(Generator(seed).text, "cilium").objects)
        assert "authentication" not in text
        assert "rules" not in text


def test_more_rules_than_one_policy_takes() -> None:
    """ClusterNetworkPolicy takes 25 rules, and 25 peers in one."""
    segments = [made.segment(f"s{n}") for n in range(30)]
    flows = [
        made.flow(f"f{n}", source={"segment": f"s{n}"}, to={"segment": "s0", "port": 1000 + n % 29}) for n in range(30)
    ]
    same = [made.flow(f"g{n}", source={"segment": f"s{n}"}, to={"segment": "s1", "port": 99}) for n in range(30)]
    policy = made.policy(*segments, *flows, *same)
    objects = export(policy, "cluster-network-policy", Options(namespaces=("web",)), NOW).objects
    for one in objects:
        for section, word in (("ingress", "from"), ("egress", "to")):
            rules = one["spec"].get(section, [])
            assert len(rules) <= 25
            assert all(1 <= len(rule[word]) <= 25 for rule in rules)
    reader = READERS["cluster-network-policy"](objects)
    for n in range(30):
        (one, zero) = (pod("web", f"s{n}"), pod("web", "s0"))
        assert reader.allows(Connection(one, zero, 1000 + n % 29))
        assert not reader.allows(Connection(one, zero, 1000 + (n + 2) % 29))
        assert reader.allows(Connection(one, pod("web", "s1"), 99))
        assert not reader.allows(Connection(one, pod("web", "s2"), 99))


def test_more_policies_than_there_are_priorities() -> None:
    policy = made.policy(*(made.segment(f"s{n}") for n in range(902)))
    with pytest.raises(ExportError, match="more than 901 ClusterNetworkPolicies"):
        export(policy, "cluster-network-policy", Options(namespaces=("web",)), NOW)


def codes(*documents: dict[str, Any], options: Options = OPTIONS, form: str = "kubernetes") -> list[str]:
    report = export(made.policy(*documents), form, options, NOW).report
    return sorted({found.code for found in report} - {"uncovered"})


A, B = made.segment("a"), made.segment("b")
LOSSES: dict[str, tuple[list[str], list[dict[str, Any]]]] = {
    "nothing": ([], [A, B, made.flow("f")]),
    "requests": (["requests"], [A, B, made.flow("f", allow=[{"http": {"methods": ["GET"]}}])]),
    "time": (["time"], [A, B, made.flow("f", valid={"until": "2099-01-01T00:00:00Z"})]),
    "account": (["account"], [A, B, made.flow("f", source={"id": "spiffe://td/segment/a/ns/web/sa/x"})]),
    "audit": (["audit"], [made.segment("a", mode="audit"), B, made.flow("f")]),
    "host": (["no_pods"], [A, made.segment("b", members=["spiffe://td/segment/b/host/*/svc/x"])]),
    "foreign": (["no_pods"], [A, B, made.segment("c", members=["spiffe://partner.example/x/*"])]),
    "fallback": (["fallback"], [A, B, made.segment("c", members=[], fallback=True, trust="low")]),
    "end": (["no_pods"], [A, B, made.flow("f", source={"segment": "a", "id": "spiffe://td/segment/a/host/h/svc/x"})]),
    "ambient": (["ambient_port"], [A, B, made.flow("f", to={"segment": "b", "port": 15008})]),
}


@pytest.mark.parametrize("case", LOSSES)
def test_what_cannot_be_said(case: str) -> None:
    expected, documents = LOSSES[case]
    assert codes(*documents) == expected


def test_no_namespace() -> None:
    assert codes(A, B, made.flow("f"), options=Options()) == ["no_namespace"]
    assert export(made.policy(A, B, made.flow("f")), "kubernetes", Options(), NOW).objects == ()


def test_selectors_that_contradict_admit_nobody() -> None:
    nobody = made.segment("a", admission={"node": ["k8s_pod:ns:web", "k8s_pod:ns:models"]})
    (flow,) = (made.flow("f"),)
    assert codes(nobody, B, flow) == ["no_pods"]


@pytest.mark.parametrize("options", [Options(namespaces=("No_Name",)), Options(broker_namespace="")])
def test_what_is_no_namespace(options: Options) -> None:
    with pytest.raises(ExportError, match="is no name of a namespace"):
        export(made.policy(A, B), "kubernetes", options, NOW)


def test_a_policy_with_errors_is_not_exported() -> None:
    with pytest.raises(PolicyErrors):
        export(made.policy(A, made.flow("f", to={"segment": "gone", "port": 1})), "kubernetes", OPTIONS, NOW)


DOCS = (Path(__file__).parents[2] / "docs/kubernetes.md").read_text()


def test_the_documents_example_prints_what_they_say() -> None:
    (text,) = (one for one in re.findall(r"```yaml\n(.*?)```", DOCS, re.DOTALL) if "kind: Segment" in one)
    (console,) = re.findall(r"```console\n(\$ firedoor segment export.*?)```", DOCS, re.DOTALL)
    policy = load([Document("policy.yaml", text)], TrustDomain.parse("example.org"))
    report = {str(found) for found in export(policy, "kubernetes", Options(), NOW).report}
    assert report == {line for line in console.splitlines() if not line.startswith("$")}


def test_the_documents_name_every_code() -> None:
    listed = {code for line in DOCS.splitlines() if line.startswith("| `") for code in re.findall(r"`(\w+)`", line)}
    known = {code for expected, _ in LOSSES.values() for code in expected}
    assert known | {"ambient", "from_outside", "no_namespace", "uncovered"} <= listed
