# SPDX-License-Identifier: Apache-2.0
"""The control plane that the other tests stand on does what they take for granted."""

from __future__ import annotations

import pytest

from tests.kubernetes.api import ApiError
from tests.kubernetes.cluster import ISSUER, Cluster
from tests.waiting import until

# The first test waits until the control plane is up.
pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]


def test_versions(cluster: Cluster) -> None:
    """Clients choose what to send by the version, which the linker has to be told."""
    said = cluster.kubectl("version", "--output", "json").json()
    assert [said[side]["gitVersion"] for side in ("clientVersion", "serverVersion")] == ["v1.37.2"] * 2
    assert (said["serverVersion"]["major"], said["serverVersion"]["minor"]) == ("1", "37")


@pytest.mark.parametrize(
    ("group", "resource"),
    [
        ("admissionregistration.k8s.io/v1", "mutatingadmissionpolicies"),
        ("admissionregistration.k8s.io/v1", "validatingadmissionpolicies"),
        ("certificates.k8s.io/v1", "clustertrustbundles"),
        ("certificates.k8s.io/v1", "podcertificaterequests"),
        ("networking.k8s.io/v1", "networkpolicies"),
    ],
)
def test_what_it_serves(cluster: Cluster, group: str, resource: str) -> None:
    found = cluster.api().get(f"/apis/{group}")
    assert resource in [one["name"] for one in found["resources"]]


def test_a_projected_token_answers_for_its_pod(cluster: Cluster) -> None:
    namespace = cluster.namespace("inference")
    pod = cluster.pod(namespace, "vllm", node="gpu-1", address="10.244.0.7")
    token = cluster.token(namespace, "default", "firedoor", pod=pod)
    said = cluster.review(token, "firedoor")
    assert said["authenticated"] is True
    assert said["audiences"] == ["firedoor"]
    assert said["user"]["username"] == f"system:serviceaccount:{namespace}:default"
    extra = said["user"]["extra"]
    assert extra["authentication.kubernetes.io/pod-name"] == ["vllm"]
    assert extra["authentication.kubernetes.io/pod-uid"] == [pod["metadata"]["uid"]]
    assert extra["authentication.kubernetes.io/node-name"] == [pod["spec"]["nodeName"]]


def test_a_token_of_another_audience_or_of_a_deleted_pod_is_none(cluster: Cluster) -> None:
    namespace = cluster.namespace("web")
    pod = cluster.pod(namespace, "front", node="gpu-1")
    token = cluster.token(namespace, "default", "elsewhere", pod=pod)
    assert not cluster.review(token, "firedoor").get("authenticated")
    assert cluster.review(token, "elsewhere")["authenticated"]
    cluster.delete_pod(namespace, "front")
    # The API server keeps what it found out about a token for some seconds.
    until(lambda: not cluster.review(token, "elsewhere").get("authenticated"), "the token is none")


def test_keys_that_verify_tokens_offline(cluster: Cluster) -> None:
    assert cluster.api().get("/.well-known/openid-configuration")["issuer"] == ISSUER
    assert len(cluster.api().get("/openid/v1/jwks")["keys"]) == 1


def test_a_pod_gets_its_account_as_the_admission_gives_it(cluster: Cluster) -> None:
    namespace = cluster.namespace("web")
    pod = cluster.pod(namespace, "front")
    sources = pod["spec"]["volumes"][0]["projected"]["sources"]
    assert any("serviceAccountToken" in source for source in sources)
    with pytest.raises(ApiError, match="serviceaccount"):
        cluster.pod(namespace, "other", account="nobody-made-it")


def test_rights_are_asked_for(cluster: Cluster) -> None:
    stranger = cluster.api(cluster.tokens["stranger"])
    with pytest.raises(ApiError, match='User \\\\"stranger\\\\" cannot list resource') as refused:
        stranger.get("/api/v1/pods")
    assert refused.value.code == 403
    with pytest.raises(ApiError) as unknown:
        cluster.api("no-token-of-ours").get("/api/v1/pods")
    assert unknown.value.code == 401
    assert "forbidden" in cluster.kubectl("get", "pods", user="stranger").err.lower()


def test_kubectl_applies_and_shows(cluster: Cluster) -> None:
    namespace = cluster.namespace("web")
    wanted = [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}} for name in ("a", "b")]
    done = cluster.kubectl("apply", "--namespace", namespace, "--filename", "-", given=wanted)
    assert done.out.split("\n")[:2] == ["configmap/a created", "configmap/b created"]
