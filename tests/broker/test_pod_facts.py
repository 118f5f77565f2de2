# SPDX-License-Identifier: Apache-2.0
"""What a looked-up pod must be, and which selectors it gives."""

from __future__ import annotations

from typing import Any

import pytest

from firedoor.broker.kubernetes.pod_facts import PodFacts, namespace_labels, node_facts, pod_selectors, psat_selectors
from firedoor.certs import PodToken, PodTokenError
from tests.service_accounts import POD_UID, TokenIssuer

CLAIMS = PodToken.read(TokenIssuer(1_800_000_000).token()).claims


def pod(*, metadata: dict[str, Any] | None = None, spec: dict[str, Any] | None = None, phase: str = "Running") -> Any:
    return {
        "metadata": {"uid": POD_UID, "labels": {"app": "vllm", "empty": ""}} | (metadata or {}),
        "spec": {"nodeName": "worker-1", "serviceAccountName": "vllm"} | (spec or {}),
        "status": {"phase": phase, "hostIP": "10.0.0.7"},
    }


def test_a_pod_and_its_selectors() -> None:
    facts = PodFacts.read(pod(), CLAIMS)
    found = pod_selectors("prod", CLAIMS, facts, {"team": "llm"})
    assert sorted(map(str, found)) == [
        "k8s_pod:cluster:prod",
        "k8s_pod:label:app:vllm",
        "k8s_pod:label:empty:",
        "k8s_pod:node:worker-1",
        "k8s_pod:ns-label:team:llm",
        "k8s_pod:ns:inference",
        f"k8s_pod:pod-uid:{POD_UID}",
        "k8s_pod:sa:vllm",
    ]


def test_the_selectors_of_spire() -> None:
    facts, node = PodFacts.read(pod(), CLAIMS), ("node-uid", {"zone": "a", "other": "b"})
    found = psat_selectors("prod", CLAIMS, facts, node, ("app", "none"), ("zone",))
    assert sorted(map(str, found)) == [
        "k8s_psat:agent_node_ip:10.0.0.7",
        "k8s_psat:agent_node_label:zone:a",
        "k8s_psat:agent_node_name:worker-1",
        "k8s_psat:agent_node_uid:node-uid",
        "k8s_psat:agent_ns:inference",
        "k8s_psat:agent_pod_label:app:vllm",
        "k8s_psat:agent_pod_name:vllm-0",
        f"k8s_psat:agent_pod_uid:{POD_UID}",
        "k8s_psat:agent_sa:vllm",
        "k8s_psat:cluster:prod",
    ]


@pytest.mark.parametrize(
    "found",
    [
        pod(metadata={"uid": "other"}),
        pod(metadata={"uid": None}),
        pod(spec={"serviceAccountName": "other"}),
        pod(spec={"nodeName": "worker-2"}),
        pod(spec={"nodeName": ""}),
        {},
        {"metadata": [], "spec": "x"},
    ],
)
def test_a_pod_that_is_another(found: Any) -> None:
    with pytest.raises(PodTokenError) as refused:
        PodFacts.read(found, CLAIMS)
    assert refused.value.code == "pod_differs"


def test_a_pod_that_is_gone_or_going() -> None:
    for found, code in (
        (None, "pod_gone"),
        (pod(metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"}), "pod_ended"),
        (pod(phase="Succeeded"), "pod_ended"),
        (pod(phase="Failed"), "pod_ended"),
    ):
        with pytest.raises(PodTokenError) as refused:
            PodFacts.read(found, CLAIMS)
        assert refused.value.code == code


def test_namespaces_and_nodes() -> None:
    assert namespace_labels({"metadata": {"labels": {"a": "b"}}}) == {"a": "b"}
    for gone in (None, {"metadata": {"deletionTimestamp": "x"}}):
        with pytest.raises(PodTokenError) as refused:
            namespace_labels(gone)
        assert refused.value.code == "namespace_gone"
    with pytest.raises(PodTokenError):
        node_facts(None)


def test_labels_are_capped_and_what_no_selector_can_hold_is_left_out() -> None:
    with pytest.raises(PodTokenError) as refused:
        PodFacts.read(pod(metadata={"labels": {f"k{n}": "v" for n in range(257)}}), CLAIMS)
    assert refused.value.code == "too_many_labels"
    facts = PodFacts.read(pod(metadata={"labels": {"a": "x\ny", "b": 1, "c": "v"}}), CLAIMS)
    assert [one.value for one in pod_selectors("p", CLAIMS, facts, {}) if one.key == "label"] == ["label:c:v"]
