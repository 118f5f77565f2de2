# SPDX-License-Identifier: Apache-2.0
"""Pods are registered as a real API server shows them: entries come with a pod, and go with it."""

from __future__ import annotations

import asyncio
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from firedoor.broker import broker as broker_module
from firedoor.broker import config as broker_config
from firedoor.broker.errors import ConfigError
from firedoor.broker.kubernetes import registering as registering_module
from firedoor.broker.kubernetes.spire_identities import SpireRules
from firedoor.certs import PodEvidence, make_csr
from firedoor.sidecar import config as sidecar_config
from firedoor.wire import admin_grpc, admin_pb2, agent_pb2, entry_pb2, types
from tests.broker.harness import AgentClient, RunningBroker, write_whole
from tests.kubernetes.asking import until_here
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.registering import (
    IDENTITIES,
    ROOT,
    SIDECAR,
    Resource,
    grant,
    grant_injector,
    has,
    identity,
    ids,
    registered,
    registering,
    says,
)
from tests.kubernetes.test_crds import explains, resources
from tests.kubernetes.test_injection import HOOKS, Injector, served, settings
from tests.pod_policy import pod_segment
from tests.postgres import Server
from tests.sidecar.harness import Running

pytestmark = [pytest.mark.peer, pytest.mark.timeout(400)]
__all__ = ["resources"]


@pytest.fixture(scope="module")
def token(resources: Cluster) -> str:
    return grant(resources)


@pytest.fixture
def namespace(resources: Cluster) -> Iterator[str]:
    """A namespace of the test's own; no WorkloadIdentity is left behind."""
    yield resources.namespace("serving")
    resources.api().delete(IDENTITIES)


def policy(namespace: str) -> str:
    mine = pod_segment(namespace, f"k8s_pod:ns:{namespace}")
    return "---\n".join(
        [mine, pod_segment("other", "k8s_pod:ns:elsewhere"), pod_segment("gold", f"k8s_pod:ns:{namespace}")]
    )


def made(cluster: Cluster, resource: Resource) -> str:
    """Make a WorkloadIdentity; return its path."""
    cluster.api().post(IDENTITIES, resource)
    return f"{IDENTITIES}/{resource['metadata']['name']}"


async def attest(broker: RunningBroker, token: str) -> AgentClient:
    node = broker.client()
    data = types.AttestationData(type="k8s_pod", payload=PodEvidence("prod", token).message())
    csr = agent_pb2.AgentX509SVIDParams(csr=make_csr(node.key))
    node.use(await node.attest_with(agent_pb2.AttestAgentRequest.Params(data=data, params=csr)), node.key)
    return node


async def test_a_pod_with_a_sidecar_has_its_identity_without_an_entry_made_by_hand(
    resources: Cluster, tmp_path: Path, token: str, namespace: str
) -> None:
    default = f"/segment/{namespace}/ns/{namespace}/sa/default"
    async with registering(resources, tmp_path / "b", policy(namespace), token) as broker:
        pod = await asyncio.to_thread(
            resources.pod, namespace, "vllm-0", spec=SIDECAR, node="worker-1", address="10.1.0.1"
        )
        plain = await asyncio.to_thread(resources.pod, namespace, "plain", node="worker-1", address="10.1.0.2")
        await has(broker, pod, default)
        assert ids(broker, plain) == set()
        bound = await asyncio.to_thread(resources.token, namespace, "default", "firedoor", pod=pod)
        node = await attest(broker, bound)
        (entry,) = await node.entries()
        assert entry.spiffe_id.path == default
        (result,) = await node.sign(entry.id)
        assert result.status.code == 0, result.status.message
        # It goes with its pod. Nothing is revoked: whoever had the keys is gone.
        await asyncio.to_thread(resources.delete_pod, namespace, "vllm-0")
        await has(broker, pod)
        assert not broker.broker.state.revocations


async def test_a_namespace_with_too_many_pods_leaves_room_for_the_others(
    resources: Cluster, tmp_path: Path, token: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registering_module, "_MOST_PODS_A_NAMESPACE", 2)
    other = resources.namespace("elsewhere")
    both = "---\n".join([pod_segment(one, f"k8s_pod:ns:{one}") for one in (namespace, other)])
    async with registering(resources, tmp_path / "b", both, token) as broker:
        path = made(resources, identity("all", namespace))
        pods = [await asyncio.to_thread(resources.pod, namespace, f"p-{n}", spec=SIDECAR) for n in range(3)]
        default = f"/segment/{namespace}/ns/{namespace}/sa/default"
        for pod in pods[:2]:
            await has(broker, pod, default)
        await says(resources, path, "Registered", "False", f"namespace {namespace} has more pods than are registered")
        apart = await asyncio.to_thread(resources.pod, other, "apart", spec=SIDECAR)
        await has(broker, apart, f"/segment/{other}/ns/{other}/sa/default")
        assert ids(broker, pods[2]) == set()
        # Other tests' namespaces may have too many, too.
        await until_here(
            lambda: re.search(r"^firedoor_broker_pods_left_out (\d+)", broker.broker.metrics.text().decode(), re.M),
            lambda found: found is not None and int(found[1]) > 0,
            "it is counted",
        )
        # There is room again, and it is taken as it changes.
        await asyncio.to_thread(resources.delete_pod, namespace, "p-0")
        await has(broker, pods[0])
        labelled = {"metadata": {"labels": {"again": "yes"}}}
        await asyncio.to_thread(resources.api().patch, f"/api/v1/namespaces/{namespace}/pods/p-2", labelled)
        await has(broker, pods[2], default)
        await says(resources, path, "Registered", "True", "all 2 pods have their entry")


async def test_an_object_says_which_pods_get_which_id(
    resources: Cluster, tmp_path: Path, token: str, namespace: str
) -> None:
    cluster, api = resources, resources.api()
    pods = f"/api/v1/namespaces/{namespace}/pods"
    default = f"/segment/{namespace}/ns/{namespace}/sa/default"
    async with registering(cluster, tmp_path / "b", policy(namespace), token) as broker:
        pod = await asyncio.to_thread(cluster.pod, namespace, "a", spec=SIDECAR, labels={"tier": "gold"})
        other = await asyncio.to_thread(cluster.pod, namespace, "b", spec=SIDECAR)
        await has(broker, pod, default)
        chosen = {"podSelector": {"matchLabels": {"tier": "gold"}}, "segment": "gold", "ttl": "30m"}
        path = made(cluster, identity("gold", namespace, **chosen, dnsNames=["{sa}.{ns}.svc"], hint="gold"))
        gold = f"/segment/gold/ns/{namespace}/sa/default"
        await has(broker, pod, default, gold)
        assert ids(broker, other) == {default}
        (entry,) = [one for one in registered(broker, pod["metadata"]["uid"]) if one.hint == "gold"]
        assert (entry.x509_svid_ttl, entry.dns_names) == (1800, (f"default.{namespace}.svc",))
        await says(cluster, path, "Registered", "True", "all 1 pods have their entry")
        assert (await asyncio.to_thread(api.get, path))["status"]["pods"] == 1
        # Another label, another answer.
        await asyncio.to_thread(api.patch, f"{pods}/a", {"metadata": {"labels": {"tier": "silver"}}})
        await has(broker, pod, default)
        await asyncio.to_thread(api.patch, f"{pods}/b", {"metadata": {"labels": {"tier": "gold"}}})
        await has(broker, other, default, gold)
        # A change of the object changes the entry and no other.
        kept = {one.id for one in registered(broker, other["metadata"]["uid"])}
        await asyncio.to_thread(api.patch, path, {"spec": {"ttl": "10m"}})
        await until_here(
            lambda: [one.x509_svid_ttl for one in registered(broker, other["metadata"]["uid"]) if one.hint],
            lambda found: found == [600],
            "the entry has the new lifetime",
        )
        assert {one.id for one in registered(broker, other["metadata"]["uid"])} == kept
        await asyncio.to_thread(api.delete, path)
        await has(broker, other, default)


async def test_what_a_segment_does_not_admit_is_not_made_and_says_why(
    resources: Cluster, tmp_path: Path, token: str, namespace: str
) -> None:
    async with registering(resources, tmp_path / "b", policy(namespace), token) as broker:
        pod = await asyncio.to_thread(resources.pod, namespace, "a", spec=SIDECAR)
        path = made(resources, identity("greedy", namespace, segment="other"))
        said = f"0 of 1 pods have their entry; {namespace}/a: segment other"
        await says(resources, path, "Registered", "False", said)
        nobody = made(resources, identity("nobody", namespace, id="spiffe://{td}/somewhere/{pod}"))
        await says(resources, nobody, "Registered", "False", "spiffe://example.org/somewhere/a")
        reserved = made(resources, identity("reserved", namespace, id="spiffe://{td}/spire/agent/{pod}"))
        await says(resources, reserved, "Registered", "False", "reserved namespace")
        partner = made(resources, identity("partner", namespace, segment="gold", federatesWith=["partner.example"]))
        await says(resources, partner, "Registered", "False", "there is no bundle of that trust domain")
        assert ids(broker, pod) == {f"/segment/{namespace}/ns/{namespace}/sa/default"}
        # Once the policy admits it, it is there.
        wider = policy(namespace).replace("k8s_pod:ns:elsewhere", f"k8s_pod:ns:{namespace}")
        write_whole(tmp_path / "b/policy/segments.yaml", wider)
        await says(resources, path, "Registered", "True", "all 1 pods have their entry")


async def test_two_objects_for_one_entry(resources: Cluster, tmp_path: Path, token: str, namespace: str) -> None:
    cluster = resources
    async with registering(cluster, tmp_path / "b", policy(namespace), token) as broker:
        pod = await asyncio.to_thread(cluster.pod, namespace, "a", spec=SIDECAR)
        first, second = identity("a", namespace, ttl="5m"), identity("b", namespace, ttl="7m")
        older = made(cluster, first)
        await says(cluster, older, "Registered", "True", "all 1 pods have their entry")
        # Where both are of one second, the names decide.
        younger = made(cluster, second)
        await says(cluster, younger, "Registered", "True", "1 of them by an older object")
        (entry,) = registered(broker, pod["metadata"]["uid"])
        assert (entry.x509_svid_ttl, entry.origin.rpartition("/")[2]) == (300, first["metadata"]["name"])
        await asyncio.to_thread(cluster.api().delete, older)
        await until_here(
            lambda: [one.x509_svid_ttl for one in registered(broker, pod["metadata"]["uid"])],
            lambda found: found == [420],
            "the other object counts",
        )
        await says(cluster, younger, "Registered", "True", "all 1 pods have their entry")


async def test_what_was_made_by_hand_stays_and_what_was_not_is_not_changed_by_hand(
    resources: Cluster, tmp_path: Path, token: str, namespace: str
) -> None:
    default = f"/segment/{namespace}/ns/{namespace}/sa/default"
    async with registering(resources, tmp_path / "b", policy(namespace), token) as broker:
        pod = await asyncio.to_thread(resources.pod, namespace, "a", spec=SIDECAR)
        uid = pod["metadata"]["uid"]
        await has(broker, pod, default)
        (entry,) = registered(broker, uid)
        agent = f"/spire/agent/k8s_pod/prod/{uid}"
        by_hand = await broker.entry(f"/segment/gold/ns/{namespace}/hand", agent, [f"k8s:pod-uid:{uid}"])
        refused = await broker.entries.BatchDeleteEntry(entry_pb2.BatchDeleteEntryRequest(ids=[entry.id]))
        assert "is made from kubernetes:prod/sidecars, which would undo this" in refused.results[0].status.message
        changed = types.Entry(id=entry.id, hint="mine")
        mask = types.EntryMask(hint=True)
        answer = await broker.entries.BatchUpdateEntry(
            entry_pb2.BatchUpdateEntryRequest(entries=[changed], input_mask=mask)
        )
        assert "which would undo this" in answer.results[0].status.message
        shown = await asyncio.to_thread(show, broker, entry.id)
        assert "made by        kubernetes:prod/sidecars, which would undo a change\n" in shown
        assert "made by" not in await asyncio.to_thread(show, broker, by_hand.id)
        asked = admin_pb2.ListOriginsRequest(entry_ids=[entry.id, by_hand.id, "unknown"])
        (origin,) = (await admin_grpc.EntryAdminStub(broker.admin).ListOrigins(asked)).origins
        assert (origin.entry_id, origin.origin, origin.kept) == (entry.id, "kubernetes:prod/sidecars", True)
        asked = admin_pb2.ListOriginsRequest(entry_ids=["x"] * 1001)
        with pytest.raises(grpc.aio.AioRpcError, match="at most 1000 items"):
            await admin_grpc.EntryAdminStub(broker.admin).ListOrigins(asked)
        await asyncio.to_thread(resources.delete_pod, namespace, "a")
        await has(broker, pod, f"/segment/gold/ns/{namespace}/hand")
        assert (await broker.entries.GetEntry(entry_pb2.GetEntryRequest(id=by_hand.id))).id == by_hand.id


def show(broker: RunningBroker, entry_id: str) -> str:
    """Return what the command prints of an entry."""
    words = ("entry", "show", entry_id, "--admin-socket", str(broker.broker.config.admin_socket))
    command = [sys.executable, "-m", "firedoor.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


async def test_an_identity_that_is_withdrawn_is_revoked(
    resources: Cluster, tmp_path: Path, token: str, namespace: str
) -> None:
    async with registering(resources, tmp_path / "b", policy(namespace), token) as broker:
        pod = await asyncio.to_thread(resources.pod, namespace, "a", spec=SIDECAR, node="worker-1", address="10.1.0.3")
        path = made(resources, identity("gold", namespace, segment="gold"))
        gold = f"/segment/gold/ns/{namespace}/sa/default"
        await has(broker, pod, gold, f"/segment/{namespace}/ns/{namespace}/sa/default")
        node = await attest(broker, await asyncio.to_thread(resources.token, namespace, "default", "firedoor", pod=pod))
        (entry,) = [one for one in await node.entries() if one.spiffe_id.path == gold]
        (signed,) = await node.sign(entry.id)
        assert signed.status.code == 0, signed.status.message
        await asyncio.to_thread(resources.api().delete, path)
        await has(broker, pod, f"/segment/{namespace}/ns/{namespace}/sa/default")
        assert [one.reason for one in broker.broker.state.revocations.values()] == ["entry_deleted"]


async def test_it_outlives_an_api_server_and_a_broker_that_restart(
    resources: Cluster, tmp_path: Path, token: str, namespace: str
) -> None:
    cluster, default = resources, f"/segment/{namespace}/ns/{namespace}/sa/default"
    async with registering(cluster, tmp_path / "b", policy(namespace), token) as broker:
        first = await asyncio.to_thread(cluster.pod, namespace, "a", spec=SIDECAR)
        second = await asyncio.to_thread(cluster.pod, namespace, "b", spec=SIDECAR)
        await has(broker, first, default)
        await asyncio.to_thread(cluster.stop_server)
        # What was seen last counts while nobody answers.
        assert ids(broker, first) == {default}
        assert await asyncio.to_thread(cluster.start_server)
        third = await asyncio.to_thread(cluster.pod, namespace, "c", spec=SIDECAR)
        await has(broker, third, default)
        kept = {one.id for one in registered(broker, first["metadata"]["uid"])}
    await asyncio.to_thread(cluster.delete_pod, namespace, "b")
    async with registering(cluster, tmp_path / "b", policy(namespace), token) as broker:
        # It is there before the API server was asked, and the same afterwards.
        assert {one.id for one in registered(broker, first["metadata"]["uid"])} == kept
        await has(broker, second)
        assert {one.id for one in registered(broker, first["metadata"]["uid"])} == kept


@pytest.mark.parametrize("case", ["placeholder", "duration", "no effect", "dns", "trust domain", "operator"])
def test_what_is_refused(resources: Cluster, case: str) -> None:
    spec, sentence = _REFUSED[case]
    answer = resources.kubectl("apply", "--dry-run=server", "--filename", "-", given=identity("x", "y", **spec))
    assert answer.code != 0
    assert sentence in answer.err


_REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "placeholder": (
        {"id": "spiffe://{td}/{account}"},
        "placeholders are {td}, {cluster}, {segment}, {ns}",
    ),
    "duration": ({"ttl": "1 hour"}, "write a duration like 90s, 30m, 12h or 7d"),
    "no effect": ({"segment": "gold", "id": "spiffe://{td}/x"}, "segment has no effect: id does not name {segment}"),
    "dns": ({"dnsNames": ["{pod}/x"]}, "write a DNS name in lower case"),
    "trust domain": ({"federatesWith": ["spiffe://x"]}, "write a trust domain, such as partner.example"),
    "operator": (
        {"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}},
        "In and NotIn need values, Exists and DoesNotExist take none",
    ),
}


def test_the_twin_is_taken_and_explained(resources: Cluster) -> None:
    whole = identity(
        "x",
        "y",
        podSelector={"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]},
        segment="gold",
        id="spiffe://{td}/segment/{segment}/ns/{ns}/{pod}",
        ttl="1h",
        jwtTtl="5m",
        federatesWith=["partner.example"],
        dnsNames=["{sa}.{ns}.svc"],
        hint="main",
    )
    answer = resources.kubectl("apply", "--dry-run=server", "--filename", "-", given=whole)
    assert answer.code == 0, answer
    explains(resources, "workloadidentities.spec.segment", "What {segment} stands for")


async def test_a_broker_that_may_not_look_says_so(
    resources: Cluster, tmp_path: Path, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = resources.tokens["stranger"]
    async with registering(resources, tmp_path / "b", policy(namespace), stranger):
        await until_here(lambda: caplog.text, lambda text: "may not read pods" in text, "a line of the log")


async def test_nothing_is_registered_where_nobody_asked(
    resources: Cluster, tmp_path: Path, token: str, namespace: str
) -> None:
    off = {"kubernetes_controllers_registration_default": "false"}
    async with registering(resources, tmp_path / "b", policy(namespace), token, **off) as broker:
        pod = await asyncio.to_thread(resources.pod, namespace, "a", spec=SIDECAR)
        made(resources, identity("gold", namespace, segment="gold"))
        await has(broker, pod, f"/segment/gold/ns/{namespace}/sa/default")


async def test_with_a_label_at_its_namespace_a_pod_has_its_identity(
    resources: Cluster, tmp_path: Path, token: str
) -> None:
    """The sidecar has the environment of the stored pod, and nobody has made an entry by hand."""
    cluster, name = resources, f"injector-{secrets.token_hex(4)}"
    await asyncio.to_thread(grant_injector, cluster, name)
    injects = {key: value for key, value in settings(name, {}).items() if key.startswith("injector")}
    admits = pod_segment("inference", "k8s_pod:ns-label:segment:inference")
    async with registering(cluster, tmp_path / "b", admits, token, **injects) as broker:
        injector = Injector(cluster, broker, name)
        await asyncio.to_thread(injector.configure)
        try:
            await injector.trusted()
            namespace = await injector.namespace("inference", "enabled")
            notes = {"firedoor.dev/capture": "none", "firedoor.dev/segment": "inference"}
            pod = await injector.pod(namespace, "vllm", annotations=notes, node="worker-1", address="10.1.9.2")
            env = await asyncio.to_thread(mounted, tmp_path, pod, cluster, broker)
            one = Running(sidecar_config.load(None, env, {}))
            try:
                await one.until(lambda process: not process.report.missing(), "it is ready")
                path = f"/segment/inference/ns/{namespace}/sa/default"
                assert await served(env["FIREDOOR_SIDECAR_AUTH_SOCKET"]) == [f"spiffe://example.org{path}"]
            finally:
                await one.stop()
        finally:
            await asyncio.to_thread(cluster.api().delete, f"{HOOKS}/{name}")


def mounted(folder: Path, pod: Resource, cluster: Cluster, broker: RunningBroker) -> dict[str, str]:
    """Stand for the kubelet: folders for volumes, the token, the bundle. Return the sidecar's environment."""
    (sidecar,) = pod["spec"]["initContainers"]
    env = {one["name"]: one["value"] for one in sidecar["env"]}
    for number, mount in enumerate(sidecar["volumeMounts"]):
        place = folder / f"v{number}"
        place.mkdir()
        env = {key: value.replace(mount["mountPath"] + "/", f"{place}/") for key, value in env.items()}
    bound = cluster.token(pod["metadata"]["namespace"], "default", "firedoor", pod=pod, seconds=600)
    Path(env["FIREDOOR_SIDECAR_K8S_POD_TOKEN"]).write_text(bound)
    state = broker.broker.state
    Path(env["FIREDOOR_SIDECAR_BOOTSTRAP_BUNDLE"]).write_bytes(state.bundles[state.trust_domain].to_json())
    return {**env, "FIREDOOR_SIDECAR_BROKER": broker.broker.listen, "FIREDOOR_SIDECAR_METRICS": "127.0.0.1:0"}


async def test_of_two_brokers_one_writes_and_the_other_goes_on(
    resources: Cluster,
    tmp_path: Path,
    token: str,
    namespace: str,
    postgres: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(broker_module, "NEWCOMER_WAITS", 0.0)
    url, password_file = postgres.database()
    shared = {"database": url, "database_password_file": str(password_file)}
    default, cluster = f"/segment/{namespace}/ns/{namespace}/sa/default", resources
    async with AsyncExitStack() as stack:
        async with registering(cluster, tmp_path / "a", policy(namespace), token, **shared) as one:
            first = await asyncio.to_thread(cluster.pod, namespace, "a", spec=SIDECAR)
            await has(one, first, default)
            two = await stack.enter_async_context(
                registering(cluster, tmp_path / "c", policy(namespace), token, **shared)
            )
            await has(two, first, default)
            second = await asyncio.to_thread(cluster.pod, namespace, "b", spec=SIDECAR)
            await has(two, second, default)
            held = [found.broker.registration.leads for found in (one, two) if found.broker.registration]
            assert held == [True, False]
            # At either of them it cannot be changed by hand.
            (entry,) = registered(two, second["metadata"]["uid"])
            refused = await two.entries.BatchDeleteEntry(entry_pb2.BatchDeleteEntryRequest(ids=[entry.id]))
            assert "would undo this" in refused.results[0].status.message
        # The first is gone; what happened meanwhile the second makes good.
        await asyncio.to_thread(cluster.delete_pod, namespace, "a")
        third = await asyncio.to_thread(cluster.pod, namespace, "c", spec=SIDECAR)
        await has(two, third, default)
        await has(two, first)
        assert {one.id for one in registered(two, second["metadata"]["uid"])} == {entry.id}


async def test_it_goes_on_when_the_api_server_has_forgotten_where_it_was(
    resources: Cluster, tmp_path: Path, token: str, namespace: str
) -> None:
    cluster, default = resources, f"/segment/{namespace}/ns/{namespace}/sa/default"
    async with registering(cluster, tmp_path / "b", policy(namespace), token) as broker:
        first = await asyncio.to_thread(cluster.pod, namespace, "a", spec=SIDECAR)
        await has(broker, first, default)
        registration = broker.broker.registration
        assert registration is not None
        await asyncio.to_thread(cluster.stop_server)
        await until_here(lambda: [watch.trouble for watch in registration.watches], all, "all watches ended")
        for watch in registration.watches:
            # The API server answers 410 to it.
            watch._version = "1"
        assert await asyncio.to_thread(cluster.start_server)
        await asyncio.to_thread(cluster.delete_pod, namespace, "a")
        second = await asyncio.to_thread(cluster.pod, namespace, "b", spec=SIDECAR)
        await has(broker, second, default)
        await has(broker, first)


def test_the_documents_examples_are_taken(resources: Cluster, tmp_path: Path) -> None:
    text = (ROOT / "docs/registration.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    answer = resources.kubectl("apply", "--dry-run=server", "--filename", "-", given=example)
    assert answer.code == 0, answer
    blocks = re.findall(r"```yaml configuration\n(.*?)```", text, re.DOTALL)
    found = []
    for block in blocks:
        (tmp_path / "broker.yaml").write_text(f"trust_domain: example.org\n{block}")
        rules = broker_config.load(tmp_path / "broker.yaml", {}, {}).kubernetes.controllers
        assert rules is not None
        assert rules.registration is not None
        found.append(rules.registration)
    first, second = found
    assert (first.default, first.spire) == (True, None)
    assert second.spire == SpireRules(class_name="spire-mgmt-spire")
    # A configuration that would be without effect is refused.
    (tmp_path / "broker.yaml").write_text(
        "trust_domain: example.org\nkubernetes_controllers: {cluster: a, namespace: b, spire_registration: true}\n"
    )
    with pytest.raises(ConfigError, match="counts with `registration: true` alone"):
        broker_config.load(tmp_path / "broker.yaml", {}, {})
