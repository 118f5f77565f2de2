# SPDX-License-Identifier: Apache-2.0
"""Attestation by the token of a pod, where the broker knows the cluster's keys and asks nobody.

With a real API server: tests/kubernetes/test_attestation.py.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from firedoor.broker.config import load, validate
from firedoor.broker.db.agent_rows import delete_expired_spent_tokens
from firedoor.broker.errors import ConfigError
from firedoor.certs import PodEvidence, X509Svid, make_csr
from firedoor.wire import agent_pb2, types
from tests.broker.harness import AgentClient, RunningBroker, code_of, entry, flags, running, spiffe_id
from tests.pod_policy import pod_segment
from tests.service_accounts import ISSUER, POD_UID, TokenIssuer
from tests.waiting import async_until

ENGINES = ("sqlite", "postgres")
POLICY = f"""\
{pod_segment("inference", "k8s_pod:ns:inference")}---
{pod_segment("web", "k8s_pod:ns:web", trust="low")}---
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {{name: registry}}
spec:
  function: registry
  trust: high
  mode: enforce
  members: ["spiffe://{{td}}/segment/registry/**"]
  admission: {{entry: ["unix:user:registry"]}}
"""
WEB_UID = "7c1d7a90-52c3-4b3e-8b1c-0e4d4c9e2b77"


@pytest.fixture(scope="module")
def issuer() -> TokenIssuer:
    return TokenIssuer(int(time.time()) - 1)


def keys_file(folder: Path, issuer: TokenIssuer) -> str:
    """Return the setting of a cluster whose keys are known."""
    (folder / "jwks.json").write_bytes(issuer.jwks)
    return json.dumps([{"name": "prod", "jwks": str(folder / "jwks.json"), "issuer": ISSUER}])


@pytest.fixture
async def broker(folder: Path, engine: dict[str, str], issuer: TokenIssuer) -> AsyncIterator[RunningBroker]:
    source = None if engine else POLICY
    async with running(folder, source, k8s_pod_clusters=keys_file(folder, issuer), **engine) as found:
        if engine:
            await found.apply(POLICY)
        yield found


async def attest(broker: RunningBroker, token: str, cluster: str = "prod", kind: str = "k8s_pod") -> AgentClient:
    node = broker.client()
    node.use(await shown(node, token, cluster, kind), node.key)
    return node


async def shown(node: AgentClient, token: str, cluster: str = "prod", kind: str = "k8s_pod") -> X509Svid:
    return await node.attest_with(
        agent_pb2.AttestAgentRequest.Params(
            data=types.AttestationData(type=kind, payload=PodEvidence(cluster, token).message()),
            params=agent_pb2.AgentX509SVIDParams(csr=make_csr(node.key)),
        )
    )


async def refusal(broker: RunningBroker, token: str, cluster: str = "prod") -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await attest(broker, token, cluster)
    return code_of(refused.value), refused.value.details() or ""


def of_web(issuer: TokenIssuer) -> dict[str, Any]:
    """Return the claims of another pod, in namespace web."""
    bound = issuer.claims("web", "shop")["kubernetes.io"]
    return {"kubernetes.io": bound | {"pod": {"name": "shop-0", "uid": WEB_UID}}}


async def test_a_pod_attests_by_its_token(broker: RunningBroker, issuer: TokenIssuer) -> None:
    node = await attest(broker, issuer.token())
    assert node.id == f"spiffe://example.org/spire/agent/k8s_pod/prod/{POD_UID}"
    agent = await broker.agents.GetAgent(agent_pb2.GetAgentRequest(id=spiffe_id(node.path)))
    assert (agent.attestation_type, agent.can_reattest) == ("k8s_pod", True)
    assert sorted(one.value for one in agent.selectors) == [
        "cluster:prod",
        "node:worker-1",
        "ns:inference",
        f"pod-uid:{POD_UID}",
        "sa:vllm",
    ]
    assert {one.type for one in agent.selectors} == {"k8s_pod"}
    assert await node.entries() == []


async def test_two_pods_of_one_node_keep_their_agents(broker: RunningBroker, issuer: TokenIssuer) -> None:
    first = await attest(broker, issuer.token())
    second = await attest(broker, issuer.token("web", "shop", **of_web(issuer)))
    assert first.id != second.id
    assert await first.entries() == await second.entries() == []


async def test_a_token_is_good_for_one_attestation(broker: RunningBroker, issuer: TokenIssuer) -> None:
    token = issuer.token()
    node = await attest(broker, token)
    assert await refusal(broker, token) == (
        "PERMISSION_DENIED",
        "failed to attest: k8s_pod: the token has already been used to attest an agent",
    )
    # Whoever tried has not put the pod's own agent out.
    assert await node.entries() == []
    # An eviction does not make it good again.
    await broker.agents.DeleteAgent(agent_pb2.DeleteAgentRequest(id=spiffe_id(node.path)))
    assert "already been used" in (await refusal(broker, token))[1]
    # The pod's next token does it.
    await attest(broker, issuer.token())


async def test_of_many_at_once_one_attests(broker: RunningBroker, issuer: TokenIssuer) -> None:
    token = issuer.token()
    nodes = [broker.client() for _ in range(8)]
    results = await asyncio.gather(*(shown(node, token) for node in nodes), return_exceptions=True)
    assert len([one for one in results if isinstance(one, X509Svid)]) == 1
    assert all("already been used" in str(one) for one in results if isinstance(one, BaseException))


async def test_a_used_token_stays_used_after_a_restart(folder: Path, issuer: TokenIssuer) -> None:
    token, clusters = issuer.token(), keys_file(folder, issuer)
    async with running(folder, POLICY, k8s_pod_clusters=clusters) as broker:
        await attest(broker, token)
    async with running(folder, POLICY, k8s_pod_clusters=clusters) as broker:
        assert "already been used" in (await refusal(broker, token))[1]
        # It is forgotten when no clock takes the token any more, and not before.
        ends = issuer.at + 600
        await broker.broker.database.write(lambda c: delete_expired_spent_tokens(c, ends + 299), lambda _: None)
        assert "already been used" in (await refusal(broker, token))[1]
        await broker.broker.database.write(lambda c: delete_expired_spent_tokens(c, ends + 300), lambda _: None)
        await attest(broker, token)


async def test_after_a_restore_the_tokens_of_before_are_not_taken(broker: RunningBroker, issuer: TokenIssuer) -> None:
    """Which of them were used since the backup nobody knows."""
    await broker.broker.state.new_epoch()
    now = broker.broker.state.clock.now()
    code, said = await refusal(broker, issuer.token(iat=now, exp=now + 600))
    assert (code, "is from before the broker's database was restored" in said) == ("PERMISSION_DENIED", True)
    await attest(broker, issuer.token(iat=now + 60, exp=now + 660))


async def test_it_attests_again_instead_of_being_renewed(broker: RunningBroker, issuer: TokenIssuer) -> None:
    """So the agent of a pod that is gone, whose key somebody kept, ends with its certificate."""
    node = await attest(broker, issuer.token())
    with pytest.raises(grpc.aio.AioRpcError, match="must reattest"):
        await node.renew(node.key)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another audience": ({"aud": ["vault"]}, "the token is for another audience"),
    "expired": ({"iat": 1, "exp": 601}, "the token has expired"),
    "of no pod": ({"kubernetes.io": None}, "the token is bound to no pod"),
    "of another cluster": ({"iss": "https://other"}, "the token's iss is not the issuer that is configured"),
    "without a jti": ({"jti": None}, "the token has no jti"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_token_that_is_refused(folder: Path, issuer: TokenIssuer, case: str) -> None:
    claims, words = REFUSED[case]
    token = issuer.token(**claims)
    async with running(folder, POLICY, k8s_pod_clusters=keys_file(folder, issuer)) as broker:
        code, said = await refusal(broker, token)
        assert (code, said.startswith(f"failed to attest: k8s_pod: {words}")) == ("PERMISSION_DENIED", True), said
        assert not broker.broker.state.agents
        assert token.rpartition(".")[2] not in json.dumps(broker.audit())


async def test_clusters_that_are_not_known(broker: RunningBroker, issuer: TokenIssuer) -> None:
    assert "no cluster of the name staging is configured" in (await refusal(broker, issuer.token(), "staging"))[1]
    assert "is not signed by the key" in (await refusal(broker, TokenIssuer(issuer.at).token()))[1]
    for payload in (b"", b"{}", b'{"cluster":"../x","token":"t"}', b"x" * 30_000):
        data = types.AttestationData(type="k8s_pod", payload=payload)
        csr = agent_pb2.AgentX509SVIDParams(csr=make_csr(broker.client().key))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await broker.client().attest_with(agent_pb2.AttestAgentRequest.Params(data=data, params=csr))
        assert code_of(refused.value) == "INVALID_ARGUMENT"


async def test_a_modified_sidecar_gets_nothing_of_another_namespace(broker: RunningBroker, issuer: TokenIssuer) -> None:
    """A genuine token of `web`, and a sidecar that claims whatever selectors entries of `inference` ask for."""
    alias = "/node/inference"
    inference = "/segment/inference/ns/inference/sa/vllm"
    await broker.entry(alias, "/spire/server", ["k8s_pod:cluster:prod", "k8s_pod:ns:inference"])
    made = await broker.entry(inference, alias, ["k8s:ns:inference", "k8s:sa:vllm"])
    right = await attest(broker, issuer.token())
    assert [one.id for one in await right.entries()] == [made.id]
    (result,) = await right.sign(made.id)
    assert result.status.code == 0, result.status.message

    web = await attest(broker, issuer.token("web", "shop", **of_web(issuer)))
    assert await web.entries() == []
    (result,) = await web.sign(made.id)
    assert (result.status.code, len(result.svid.cert_chain)) == (grpc.StatusCode.NOT_FOUND.value[0], 0)
    with pytest.raises(grpc.aio.AioRpcError):
        await web.token(made.id)
    # Nor when somebody writes an entry for its agent by mistake: what the broker attested is what admission goes by.
    (mistaken,) = await broker.create(entry(inference, web.path, ["k8s:ns:inference", "k8s:sa:vllm"]))
    assert mistaken.status.code == 0, mistaken.status.message
    (result,) = await web.sign(mistaken.entry.id)
    assert result.status.code == grpc.StatusCode.PERMISSION_DENIED.value[0], result.status.message
    assert "k8s_pod:ns" in result.status.message
    with pytest.raises(grpc.aio.AioRpcError):
        await web.token(mistaken.entry.id)


async def test_a_pod_gets_nothing_of_a_segment_without_node_selectors(
    broker: RunningBroker, issuer: TokenIssuer
) -> None:
    """Whatever user its sidecar says that its program is."""
    pod = await attest(broker, issuer.token())
    made = await broker.entry("/segment/registry/x", pod.path, ["unix:user:registry"])
    assert await pod.entries() == []
    (result,) = await pod.sign(made.id)
    assert result.status.code == grpc.StatusCode.PERMISSION_DENIED.value[0]
    assert "segment registry has no node selector" in result.status.message


async def test_keys_are_read_again_when_they_change(folder: Path, issuer: TokenIssuer) -> None:
    async with running(folder, POLICY, k8s_pod_clusters=keys_file(folder, issuer)) as broker:
        fresh = TokenIssuer(issuer.at, "key-2")
        assert "have none of the token's kid" in (await refusal(broker, fresh.token()))[1]
        before = broker.broker.pod_clusters["prod"].keys
        assert before is not None
        old = before.value
        (folder / "jwks.json").write_text("no keys")
        await before.reread()
        assert before.value is old
        (folder / "jwks.json.new").write_bytes(fresh.jwks)
        (folder / "jwks.json.new").rename(folder / "jwks.json")
        await async_until(lambda: before.value is not old)
        await attest(broker, fresh.token())


@pytest.mark.parametrize(
    ("clusters", "words"),
    [
        ("[]", "k8s_pod.clusters: is missing or empty"),
        ("[{}]", "clusters[0].name: is missing"),
        ("[{name: a/b}]", "must be letters, digits, dots, dashes and underscores"),
        ("[{name: a}, {name: a}]", "stands in the list twice"),
        ("[{name: a, jwks: x.json}]", "jwks and issuer go together"),
        ("[{name: a, server: 'http://10.0.0.1', ca: c, token: t}]", "must be an address such as https://"),
        ("[{name: a, server: 'https://10.0.0.1'}]", "clusters[0].ca: is missing, which `server` needs"),
        ("[{name: a, servr: x}]", "no such key; did you mean"),
    ],
)
def test_what_is_configured_wrong(folder: Path, clusters: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(None, {}, flags(folder, k8s_pod_clusters=clusters))
    assert words in str(refused.value)


def test_agents_need_their_service_accounts(folder: Path) -> None:
    for clusters, words in (
        ("[{name: a}]", "service_accounts: is missing or empty"),
        ("[{name: a, service_accounts: [x]}]", "NAMESPACE:SERVICE-ACCOUNT"),
    ):
        with pytest.raises(ConfigError) as refused:
            load(None, {}, flags(folder, k8s_psat_clusters=clusters))
        assert words in str(refused.value)


def test_what_validate_finds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are not there, and a cluster of our own where there is none."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    (folder / "empty").write_text("")
    (folder / "one-word").write_text("token")
    access = f"ca: {folder}/empty, token: {folder}/one-word"
    text = f"[{{name: here}}, {{name: far, server: 'https://h', {access}}}, {{name: off, jwks: /none.json, issuer: i}}]"
    found = "\n".join(validate(load(None, {}, flags(folder, k8s_pod_clusters=text))))
    assert "k8s_pod.clusters: here: server: is missing, and this process runs in no pod" in found
    assert "holds no certificates in PEM" in found
    assert "/none.json cannot be read" in found
