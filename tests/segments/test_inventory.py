# SPDX-License-Identifier: Apache-2.0
"""What an inventory says of a list of objects. tests/kubernetes/test_inventory.py asks a real cluster."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firedoor.broker.injector import InjectionRefused, demands, inject
from firedoor.certs import TrustDomain
from firedoor.segments import Document, PolicySet, load, well_known
from firedoor.segments.cluster_pods import read_cluster
from firedoor.segments.errors import InventoryError
from firedoor.segments.exports import FORMS, Options, export
from firedoor.segments.inventory import Row, inventory
from tests.broker.injector.test_inject import RULES, WHERE_REQUIRED

NOW = 1_800_000_000
POLICY = """
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {name: inference}
spec:
  function: inference
  trust: medium
  members: ["spiffe://{td}/segment/inference/**"]
  admission: {node: ["k8s_pod:cluster:prod", "k8s_pod:ns:serving"]}
---
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {name: registry}
spec:
  function: registry
  trust: high
  members: ["spiffe://{td}/segment/registry/**"]
  admission: {node: ["k8s_pod:cluster:prod", "k8s_pod:ns:models"]}
---
apiVersion: firedoor.dev/v1alpha1
kind: Flow
metadata: {name: pull}
spec:
  owner: platform
  reason: weights
  from: {segment: inference}
  to: {segment: registry, port: 9000}
  allow: [{tcp: {}}]
"""
Change = Callable[[list[dict[str, Any]]], object]


def policy(text: str = POLICY) -> PolicySet:
    return load([Document("policy.yaml", text)], TrustDomain.parse("corp.example"))


def namespace(name: str, *, injected: bool = True) -> dict[str, Any]:
    labels = {well_known.INJECT: "enabled"} if injected else {}
    return {"kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def pod(
    space: str, name: str, *, labels: dict[str, str] | None = None, captured: bool | None = True, **spec: Any
) -> dict[str, Any]:
    """A pod; `captured` None: it has no sidecar."""
    notes, ours = {}, []
    if captured is not None:
        notes[well_known.STATUS] = json.dumps({"version": 1, "captured": captured})
        ours = [{"name": well_known.SIDECAR_CONTAINER, "restartPolicy": "Always"}]
    metadata = {"namespace": space, "name": name, "labels": labels or {}, "annotations": notes}
    return {"kind": "Pod", "metadata": metadata, "spec": {"containers": [], "initContainers": ours, **spec}}


def cluster() -> list[dict[str, Any]]:
    """A cluster in which there is nothing to see to."""
    exported = export(policy(), "kubernetes", Options(), NOW).objects
    pods = [
        pod("serving", "vllm-0", labels={well_known.SEGMENT: "inference"}),
        pod("models", "store-0", labels={well_known.SEGMENT: "registry"}, captured=False),
        pod("kube-system", "dns", captured=None, hostNetwork=True),
        pod("firedoor-system", "broker", captured=None),
    ]
    spaces = [namespace("serving"), namespace("models"), namespace("kube-system", injected=False)]
    return [*spaces, *pods, *copy.deepcopy(list(exported))]


def rows(objects: list[dict[str, Any]], form: str = "kubernetes", only: tuple[str, ...] = ()) -> list[Row]:
    found = read_cluster(json.dumps({"kind": "List", "items": objects}))
    return inventory(policy(), found, form, Options(), NOW, only)


def codes(objects: list[dict[str, Any]], form: str = "kubernetes") -> list[tuple[str, str, int]]:
    return [(row.object, row.code, row.pods) for row in rows(objects, form)]


def one(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = (x for x in objects if x["kind"] == kind and x["metadata"]["name"] == name)
    return found


def test_nothing_to_see_to() -> None:
    assert codes(cluster()) == []


DEPLOYED = {"pod-template-hash": "7d4b9"}
OWNED = [{"kind": "ReplicaSet", "name": "vllm-7d4b9", "controller": True}]


def deployed(name: str) -> dict[str, Any]:
    made = pod("serving", name, labels=DEPLOYED, captured=None)
    made["metadata"]["ownerReferences"] = OWNED
    return made


FAULTS: dict[str, tuple[Change, list[tuple[str, str, int]]]] = {
    "no label": (
        lambda o: o.append(pod("web", "shop", captured=None)),
        [("Pod/shop", "no_segment", 1)],
    ),
    "two pods of a deployment": (
        lambda o: o.extend([deployed("vllm-7d4b9-a"), deployed("vllm-7d4b9-b")]),
        [("Deployment/vllm", "no_segment", 2), ("Deployment/vllm", "no_sidecar", 2)],
    ),
    "a segment that is none": (
        lambda o: o.append(pod("serving", "x", labels={well_known.SEGMENT: "nosuch"})),
        [("Pod/x", "no_segment", 1)],
    ),
    "a segment of elsewhere": (
        lambda o: o.append(pod("serving", "x", labels={well_known.SEGMENT: "registry"})),
        [("Pod/x", "no_segment", 1)],
    ),
    "no sidecar where none is asked for, and a claim": (
        lambda o: o.append(
            pod("models", "x", labels={well_known.SEGMENT: "registry", well_known.INJECT: "disabled"}, captured=None)
        ),
        [("Pod/x", "opted_out", 1)],
    ),
    "a container with the sidecar's name": (
        lambda o: o.append(
            pod(
                "serving",
                "x",
                labels={well_known.SEGMENT: "inference"},
                captured=None,
                initContainers=[{"name": "firedoor-sidecar"}],
            )
        ),
        [("Pod/x", "no_sidecar", 1)],
    ),
    "the node's network": (
        lambda o: o.append(pod("serving", "x", labels={well_known.SEGMENT: "inference"}, hostNetwork=True)),
        [("Pod/x", "host_network", 1)],
    ),
    "plaintext": (
        lambda o: one(o, "Pod", "vllm-0")["metadata"]["annotations"].update(
            {well_known.PORTS: "9000/http/audit, 1/tcp"}
        ),
        [("Pod/vllm-0", "plaintext_audit", 1)],
    ),
    "a filter that is gone": (
        lambda o: o.remove(one(o, "NetworkPolicy", "firedoor-segment-registry")),
        [("NetworkPolicy/firedoor-segment-registry", "missing", 0), ("Pod/store-0", "not_enforcing", 1)],
    ),
    "a filter that was edited": (
        lambda o: one(o, "NetworkPolicy", "firedoor-segment-registry")["spec"].update({"ingress": [{}]}),
        [("NetworkPolicy/firedoor-segment-registry", "changed", 0), ("Pod/store-0", "not_enforcing", 1)],
    ),
    "a filter of former times": (
        lambda o: o.append(
            {
                "kind": "NetworkPolicy",
                "metadata": {
                    "namespace": "serving",
                    "name": "old",
                    "labels": {"app.kubernetes.io/managed-by": "firedoor"},
                },
                "spec": {},
            }
        ),
        [("NetworkPolicy/old", "stale", 0)],
    ),
    "a filter of somebody else": (
        lambda o: o.append(
            {
                "kind": "NetworkPolicy",
                "metadata": {"namespace": "models", "name": "theirs"},
                "spec": {"podSelector": {}, "ingress": [{}]},
            }
        ),
        [("NetworkPolicy/theirs", "widened", 0), ("Pod/store-0", "not_enforcing", 1)],
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_each_fault_is_found(case: str) -> None:
    change, wanted = FAULTS[case]
    objects = cluster()
    change(objects)
    assert codes(objects) == wanted
    assert all(row.message and row.fix for row in rows(objects))


def requiring(label: str = "") -> list[dict[str, Any]]:
    """The cluster, with a namespace of inference that requires sidecars."""
    objects = cluster()
    labels = {well_known.INJECT: "required"} | ({well_known.CAPTURE: label} if label else {})
    one(objects, "Namespace", "serving")["metadata"]["labels"] = labels
    return objects


@pytest.mark.parametrize("case", WHERE_REQUIRED)
def test_what_is_refused_where_a_sidecar_is_required_is_found_where_it_runs(case: str) -> None:
    """It was made before that was said, as a namespace that asks for sidecars lets it be."""
    given_pod, asked, _ = WHERE_REQUIRED[case]
    label = {path.rpartition("/")[2]: each for path, each in demands.PATHS.items()}
    (word,) = (word for word, each in label.items() if each == asked)
    objects = requiring("" if word == "required" else word)
    ran = copy.deepcopy(given_pod)
    with contextlib.suppress(InjectionRefused):
        ran = inject(given_pod, "serving", RULES, "corp.example", demands.ENABLED).pod
    labels = {**ran["metadata"].get("labels", {}), well_known.SEGMENT: "inference"}
    ran["metadata"] |= {"namespace": "serving", "labels": labels}
    found = [row.code for row in rows([*objects, {"kind": "Pod", **ran}]) if row.object == "Pod/vllm"]
    wanted = {
        "no sidecar": ["opted_out"],
        "the node's network": ["host_network", "no_sidecar"],
        **{key: ["left_out"] for key in ("no capture", "what passes by", "UDP")},
        # There are no rules that a user could pass.
        "the same, where nothing is captured": [],
    }
    assert found == wanted.get(case, ["user"])


def test_opting_out_is_an_error_where_a_sidecar_is_required() -> None:
    severities = []
    for objects in (cluster(), requiring()):
        objects.append(
            pod("serving", "x", labels={well_known.SEGMENT: "inference", well_known.INJECT: "disabled"}, captured=None)
        )
        severities += [(row.code, row.severity) for row in rows(objects)]
    assert severities == [("opted_out", "warning"), ("opted_out", "error")]


def test_what_has_ended_is_not_looked_at() -> None:
    objects = cluster()
    objects.append({**pod("web", "job", captured=None), "status": {"phase": "Succeeded"}})
    objects.append({**pod("web", "going", captured=None), "status": {"phase": "Running"}})
    assert codes(objects) == [("Pod/going", "no_segment", 1)]


def test_only_some_namespaces() -> None:
    objects = [*cluster(), pod("web", "a", captured=None), pod("shop", "b", captured=None)]
    assert [row.object for row in rows(objects, only=("shop",))] == ["Pod/b"]
    # What is left out unless it is asked for can be asked for.
    assert {row.object for row in rows(objects, only=("kube-system",))} == {"Pod/dns"}


@pytest.mark.parametrize("form", FORMS)
def test_each_exported_object_that_is_gone_or_edited_is_noticed(form: str) -> None:
    exported = copy.deepcopy(list(export(policy(), form, Options(), NOW).objects))
    others = [x for x in cluster() if x["kind"] != "NetworkPolicy"]
    assert not [row for row in rows([*others, *exported], form) if not row.pods]
    for gone in exported:
        left = [x for x in exported if x is not gone]
        (row,) = (row for row in rows([*others, *left], form) if not row.pods)
        assert (row.code, row.object) == ("missing", f"{gone['kind']}/{gone['metadata']['name']}")
        edited = copy.deepcopy(exported)
        edited[exported.index(gone)]["spec"]["edited"] = True
        (row,) = (row for row in rows([*others, *edited], form) if not row.pods)
        assert row.code == "changed"


def test_without_filters_nothing_guards() -> None:
    assert codes(cluster(), "") == [("Pod/store-0", "not_enforcing", 1)]


NO_LISTS = {
    "no JSON": "{",
    "a list": "[]",
    "no items": "{}",
    "deep": "[" * 100_000,
    "no pods": json.dumps({"items": [namespace("a")]}),
    "no namespaces": json.dumps({"items": [pod("a", "b")]}),
}


@pytest.mark.parametrize("case", NO_LISTS)
def test_what_is_no_list_is_refused(case: str) -> None:
    with pytest.raises(InventoryError, match=r"kubectl get|needs them"):
        read_cluster(NO_LISTS[case])


LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
VALUES = st.recursive(LEAVES, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3))
KEYS = ("labels", "annotations", "ownerReferences", "namespace", "name")


@given(
    st.dictionaries(st.sampled_from(KEYS), VALUES),
    st.dictionaries(st.sampled_from(("initContainers", "hostNetwork", "serviceAccountName")), VALUES),
    VALUES,
)
def test_objects_of_any_shape_end_nothing(metadata: dict[str, Any], spec: dict[str, Any], status: object) -> None:
    odd = {"kind": "Pod", "metadata": metadata, "spec": spec, "status": status}
    policy_of = {"kind": "NetworkPolicy", "metadata": metadata, "spec": spec}
    for found in (odd, policy_of, {"kind": "Pod", "metadata": {"name": "a"}, "spec": status}, status):
        rows([*cluster(), found])  # type: ignore[list-item]
