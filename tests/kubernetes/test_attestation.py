# SPDX-License-Identifier: Apache-2.0
"""Pods attest by the tokens that a real API server issues: k8s_pod, and k8s_psat as SPIRE has it."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from firedoor.certs import PodEvidence, make_csr
from firedoor.wire import agent_pb2, types
from tests.broker.harness import AgentClient, RunningBroker, code_of, running, spiffe_id
from tests.kubernetes.cluster import ISSUER, Cluster
from tests.kubernetes.rights import ATTESTING, account, allow
from tests.pod_policy import INFERENCE
from tests.waiting import until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]
ROLE = "firedoor-broker"


@pytest.fixture(scope="module")
def access(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the API as a broker's service account reaches it, with the ClusterRole of docs/nodes.md and no more."""
    namespace = cluster.namespace("firedoor")
    allow(cluster, f"{ROLE}-{namespace}", ATTESTING, account(namespace))
    file = tmp_path_factory.mktemp("broker") / "token"
    file.write_text(cluster.token(namespace, "default", ISSUER))
    return {"server": cluster.url, "ca": str(cluster.ca_file), "token": str(file)}


@pytest.fixture
async def broker(tmp_path: Path, access: dict[str, str]) -> AsyncIterator[RunningBroker]:
    pods = json.dumps([{"name": "prod", **access}])
    (tmp_path / "b").mkdir()
    async with running(tmp_path / "b", INFERENCE, k8s_pod_clusters=pods) as found:
        yield found


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    return cluster.namespace("inference", labels={"segment": "inference"})


async def attest(broker: RunningBroker, token: str, kind: str = "k8s_pod") -> AgentClient:
    node = broker.client()
    data = types.AttestationData(type=kind, payload=PodEvidence("prod", token).message())
    csr = agent_pb2.AgentX509SVIDParams(csr=make_csr(node.key))
    node.use(await node.attest_with(agent_pb2.AttestAgentRequest.Params(data=data, params=csr)), node.key)
    return node


async def refusal(broker: RunningBroker, token: str, kind: str = "k8s_pod") -> str:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await attest(broker, token, kind)
    assert code_of(refused.value) == "PERMISSION_DENIED"
    assert token.rpartition(".")[2] not in json.dumps(broker.audit())
    return (refused.value.details() or "").removeprefix(f"failed to attest: {kind}: ")


async def selectors(broker: RunningBroker, node: AgentClient) -> set[str]:
    agent = await broker.agents.GetAgent(agent_pb2.GetAgentRequest(id=spiffe_id(node.path)))
    return {f"{one.type}:{one.value}" for one in agent.selectors}


def claims(token: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    return found


async def test_a_pod_attests_and_gets_the_identity_of_its_namespace(
    cluster: Cluster, broker: RunningBroker, namespace: str
) -> None:
    pod = cluster.pod(namespace, "vllm-0", labels={"app": "vllm"}, node="worker-1", address="10.1.0.1")
    uid = pod["metadata"]["uid"]
    node = await attest(broker, cluster.token(namespace, "default", "firedoor", pod=pod))
    assert node.path == f"/spire/agent/k8s_pod/prod/{uid}"
    assert await selectors(broker, node) == {
        "k8s_pod:cluster:prod",
        f"k8s_pod:ns:{namespace}",
        "k8s_pod:sa:default",
        f"k8s_pod:pod-uid:{uid}",
        "k8s_pod:node:worker-1",
        "k8s_pod:label:app:vllm",
        "k8s_pod:ns-label:segment:inference",
        f"k8s_pod:ns-label:kubernetes.io/metadata.name:{namespace}",
    }
    alias = "/node/inference"
    await broker.entry(alias, "/spire/server", ["k8s_pod:cluster:prod", f"k8s_pod:ns:{namespace}"])
    made = await broker.entry(f"/segment/inference/ns/{namespace}/sa/default", alias, [f"k8s:ns:{namespace}"])
    (result,) = await node.sign(made.id)
    assert result.status.code == 0, result.status.message


async def test_two_pods_of_one_node_keep_their_agents(cluster: Cluster, broker: RunningBroker, namespace: str) -> None:
    nodes = []
    for name in ("a", "b"):
        pod = cluster.pod(namespace, name, node="worker-1", address="10.1.0.2")
        nodes.append(await attest(broker, cluster.token(namespace, "default", "firedoor", pod=pod)))
    assert len({node.id for node in nodes}) == 2
    assert [await node.entries() for node in nodes] == [[], []]


async def test_each_refusal_has_its_reason(cluster: Cluster, broker: RunningBroker, namespace: str) -> None:
    pod = cluster.pod(namespace, "vllm-0", node="worker-1", address="10.1.0.3")
    token = cluster.token(namespace, "default", "firedoor", pod=pod)
    await attest(broker, token)
    assert await refusal(broker, token) == "the token has already been used to attest an agent"
    other = cluster.token(namespace, "default", "vault", pod=pod)
    assert await refusal(broker, other) == "the token is for another audience"
    assert (await refusal(broker, cluster.token(namespace, "default", "firedoor"))).startswith(
        "the token is bound to no"
    )
    long = cluster.token(namespace, "default", "firedoor", pod=pod, seconds=2 * 86400)
    assert await refusal(broker, long) == "the token lives longer than a day"
    last = cluster.token(namespace, "default", "firedoor", pod=pod)
    cluster.delete_pod(namespace, "vllm-0")
    # It hears that the pod is gone after that is stored, and keeps for ten seconds what it found of a token before.
    gone = lambda: not cluster.review(last, "firedoor").get("authenticated")  # noqa: E731
    await asyncio.to_thread(until, gone, "the token is none")
    assert "does not vouch for the token" in await refusal(broker, last)
    # Nor is another pod of that name the one that the token was for.
    cluster.pod(namespace, "vllm-0", node="worker-1", address="10.1.0.4")
    assert "does not vouch for the token" in await refusal(broker, last)


async def test_a_pod_that_has_ended_or_has_no_node(cluster: Cluster, broker: RunningBroker, namespace: str) -> None:
    pod = cluster.pod(namespace, "done", node="worker-1", address="10.1.0.5")
    token = cluster.token(namespace, "default", "firedoor", pod=pod)
    cluster.api().patch(f"/api/v1/namespaces/{namespace}/pods/done/status", {"status": {"phase": "Succeeded"}})
    assert "has ended or is being deleted" in await refusal(broker, token)
    waiting = cluster.pod(namespace, "waiting")
    assert "is another than the token's" in await refusal(
        broker, cluster.token(namespace, "default", "firedoor", pod=waiting)
    )


async def test_by_the_clusters_keys_nobody_is_asked(cluster: Cluster, tmp_path: Path, namespace: str) -> None:
    (tmp_path / "jwks.json").write_text(cluster.api().text("GET", "/openid/v1/jwks"))
    (tmp_path / "b").mkdir()
    clusters = json.dumps([{"name": "prod", "jwks": str(tmp_path / "jwks.json"), "issuer": ISSUER}])
    pod = cluster.pod(namespace, "vllm-0", labels={"app": "vllm"}, node="worker-1", address="10.1.0.6")
    async with running(tmp_path / "b", INFERENCE, k8s_pod_clusters=clusters) as broker:
        node = await attest(broker, cluster.token(namespace, "default", "firedoor", pod=pod, seconds=600))
        assert await selectors(broker, node) == {
            "k8s_pod:cluster:prod",
            f"k8s_pod:ns:{namespace}",
            "k8s_pod:sa:default",
            f"k8s_pod:pod-uid:{pod['metadata']['uid']}",
            "k8s_pod:node:worker-1",
        }
        long = cluster.token(namespace, "default", "firedoor", pod=pod, seconds=7200)
        assert "lives longer than an hour" in await refusal(broker, long)


async def test_a_broker_that_may_not_ask(
    cluster: Cluster, tmp_path: Path, access: dict[str, str], namespace: str
) -> None:
    (tmp_path / "token").write_text(cluster.tokens["stranger"])
    (tmp_path / "b").mkdir()
    clusters = json.dumps([{"name": "prod", **access, "token": str(tmp_path / "token")}])
    pod = cluster.pod(namespace, "vllm-0", node="worker-1", address="10.1.0.7")
    async with running(tmp_path / "b", INFERENCE, k8s_pod_clusters=clusters) as broker:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await attest(broker, cluster.token(namespace, "default", "firedoor", pod=pod))
        # No verdict on the token: the pod tries again.
        assert code_of(refused.value) == "UNAVAILABLE"


async def test_an_agent_of_a_node_attests_as_spires_do(
    cluster: Cluster, tmp_path: Path, access: dict[str, str]
) -> None:
    spire = cluster.namespace("spire")
    cluster.service_account(spire, "agent")
    pod = cluster.pod(spire, "agent-1", account="agent", labels={"app": "agent", "x": "y"}, node="worker-1")
    token = cluster.token(spire, "agent", "spire-server", pod=pod)
    (tmp_path / "b").mkdir()
    agents = json.dumps([{"name": "prod", **access, "service_accounts": [f"{spire}:agent"], "pod_labels": ["app"]}])
    async with running(tmp_path / "b", INFERENCE, k8s_psat_clusters=agents) as broker:
        node = await attest(broker, token, "k8s_psat")
        uid = cluster.api().get("/api/v1/nodes/worker-1")["metadata"]["uid"]
        assert node.path == f"/spire/agent/k8s_psat/prod/{uid}"
        assert await selectors(broker, node) == {
            "k8s_psat:cluster:prod",
            f"k8s_psat:agent_ns:{spire}",
            "k8s_psat:agent_sa:agent",
            "k8s_psat:agent_pod_name:agent-1",
            f"k8s_psat:agent_pod_uid:{pod['metadata']['uid']}",
            "k8s_psat:agent_node_name:worker-1",
            f"k8s_psat:agent_node_uid:{uid}",
            "k8s_psat:agent_pod_label:app:agent",
        }
        # SPIRE's works again and again.
        await attest(broker, token, "k8s_psat")
        other = cluster.token(spire, "default", "spire-server", pod=cluster.pod(spire, "other-1", node="worker-1"))
        assert "is not in service_accounts" in await refusal(broker, other, "k8s_psat")
        cluster.delete_pod(spire, "agent-1")
        # API servers remember for ten seconds that a token was good; the pod is looked up all the same.
        said = await refusal(broker, token, "k8s_psat")
        assert "is not there any more" in said or "does not vouch" in said
