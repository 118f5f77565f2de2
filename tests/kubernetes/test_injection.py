# SPDX-License-Identifier: Apache-2.0
"""A real API server asks the webhook: what it stores has the sidecar once, and what may not be is not made."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from firedoor.broker.injector.webhook import Webhook
from firedoor.cli.commands import sidecar as command
from firedoor.cli.commands.sidecar import as_json
from firedoor.segments.well_known import CAPTURE_CONTAINER as CAPTURE
from firedoor.segments.well_known import SIDECAR_CONTAINER as SIDECAR
from firedoor.sidecar import config as sidecar_config
from firedoor.wire import workload_grpc, workload_pb2
from tests.broker.harness import RunningBroker, running
from tests.kubernetes import rights
from tests.kubernetes.api import ApiError
from tests.kubernetes.cluster import ISSUER, Cluster
from tests.pod_policy import INFERENCE
from tests.ports import own_port
from tests.sidecar.harness import Running
from tests.waiting import async_until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]
MANIFESTS = Path(__file__).parents[2] / "deploy/kubernetes/injector.yaml"
HOOKS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
RBAC = "/apis/rbac.authorization.k8s.io/v1"


class Injector:
    """A broker whose webhook the cluster asks, set up by the manifests that are delivered."""

    def __init__(self, cluster: Cluster, broker: RunningBroker, name: str) -> None:
        self.cluster, self.broker, self.name = cluster, broker, name

    def configure(self, *where: dict[str, Any]) -> None:
        """Create the webhooks of the manifest; no Service leads anywhere here, so that they are asked by URL."""
        assert self.broker.broker.webhook is not None
        port = self.broker.broker.webhook.address.rpartition(":")[2]
        (wanted,) = [one for one in manifests() if one["kind"] == "MutatingWebhookConfiguration"]
        wanted["metadata"]["name"] = self.name
        for hook in wanted["webhooks"]:
            path = hook["clientConfig"]["service"]["path"]
            hook["clientConfig"] = {"url": f"https://localhost:{port}{path}"}
            # The most that there is: on a busy machine the broker may not have its turn for seconds.
            hook["timeoutSeconds"] = 30
            hook["namespaceSelector"]["matchExpressions"] += where
        self.cluster.api().post(HOOKS, wanted)

    async def trusted(self, labels: Mapping[str, str] | None = None) -> None:
        """Wait until the broker has written its CAs into them, and the API server goes by that."""
        await async_until(lambda: all("caBundle" in hook["clientConfig"] for hook in self._hooks()), "the CAs")
        namespace = await self.namespace("first", "enabled", labels)
        await async_until(lambda: self._works(namespace), "that it works")

    async def _works(self, namespace: str) -> bool:
        with contextlib.suppress(ApiError):
            found = await self.pod(namespace, f"try-{secrets.token_hex(4)}")
            return len(found["spec"].get("initContainers", [])) == 2
        return False

    def _hooks(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.cluster.api().get(f"{HOOKS}/{self.name}")["webhooks"]
        return found

    async def namespace(self, prefix: str, wish: str = "", more: Mapping[str, str] | None = None) -> str:
        labels = {"segment": "inference"} | ({"firedoor.dev/inject": wish} if wish else {}) | dict(more or {})
        return await asyncio.to_thread(self.cluster.namespace, prefix, labels)

    async def pod(self, namespace: str, name: str, **how: Any) -> dict[str, Any]:
        """Create a pod. Another thread waits: the webhook is answered by this loop."""
        return await asyncio.to_thread(self.cluster.pod, namespace, name, **how)

    async def create(self, namespace: str, pod: dict[str, Any]) -> dict[str, Any]:
        """Create a pod from a whole object."""
        path = f"/api/v1/namespaces/{namespace}/pods"
        return await asyncio.to_thread(self.cluster.api().post, path, pod)


def manifests() -> list[dict[str, Any]]:
    """Return the objects that are delivered."""
    return list(yaml.load_all(MANIFESTS.read_text(), Loader=yaml.SafeLoader))


def allow(cluster: Cluster, name: str, folder: Path) -> dict[str, str]:
    """Return the API as a broker's account with the delivered ClusterRole reaches it."""
    namespace = cluster.namespace("firedoor-test")
    (role,) = [one for one in manifests() if one["kind"] == "ClusterRole"]
    role["rules"][-1]["resourceNames"] = [name]
    rights.allow(cluster, namespace, role["rules"], rights.account(namespace))
    (folder / "token").write_text(cluster.token(namespace, "default", ISSUER))
    return {"server": cluster.url, "ca": str(cluster.ca_file), "token": str(folder / "token")}


def settings(name: str, access: dict[str, str]) -> dict[str, str]:
    """Return the configuration of a broker whose webhook has a name, and which reaches the cluster so."""
    return {
        "k8s_pod_clusters": json.dumps([{"name": "prod", **access}]),
        # Found again after a restart.
        "injector_listen": f"127.0.0.1:{own_port()}",
        "injector_names": "localhost",
        "injector_cluster": "prod",
        "injector_image": "registry.example.org/firedoor:0.1.0",
        "injector_broker": "firedoor-broker.firedoor-system.svc:8081",
        "injector_accepted_images": "registry.example.org/firedoor:0.0.9",
        "injector_webhook": name,
    }


@pytest.fixture
async def injector(cluster: Cluster, tmp_path: Path) -> AsyncIterator[Injector]:
    name = f"injector-{secrets.token_hex(4)}"
    (tmp_path / "b").mkdir()
    async with running(tmp_path / "b", INFERENCE, **settings(name, allow(cluster, name, tmp_path))) as broker:
        found = Injector(cluster, broker, name)
        found.configure()
        try:
            await found.trusted()
            yield found
        finally:
            cluster.api().delete(f"{HOOKS}/{name}")


def names(pod: dict[str, Any]) -> list[str]:
    return [one["name"] for one in pod["spec"].get("initContainers", [])]


async def test_what_is_stored_has_the_sidecar_once_and_first(injector: Injector) -> None:
    namespace = await injector.namespace("inference", "enabled")
    puller = {"initContainers": [{"name": "weights", "image": "x"}]}
    made = await injector.pod(namespace, "vllm", annotations={"firedoor.dev/ports": "9000/http"}, spec=puller)
    assert names(made) == [CAPTURE, SIDECAR, "weights"]
    sidecar = made["spec"]["initContainers"][1]
    assert (sidecar["restartPolicy"], sidecar["securityContext"]["runAsNonRoot"]) == ("Always", True)
    env = {one["name"]: one["value"] for one in sidecar["env"]}
    identity = f"spiffe://example.org/segment/{namespace}/ns/{namespace}/sa/default"
    assert env["FIREDOOR_SIDECAR_CAPTURE_AS"] == identity
    assert sidecar_config.load(None, env, {}).capture is not None
    assert made["metadata"]["labels"]["firedoor.dev/enforcing"] == "true"
    loose = await injector.pod(namespace, "loose", annotations={"firedoor.dev/capture": "none"})
    assert loose["metadata"]["labels"]["firedoor.dev/enforcing"] == "false"
    # Again: what was stored is made anew, and nothing is added.
    again = copy.deepcopy({"metadata": {"name": "again", "annotations": made["metadata"]["annotations"]}})
    again["spec"] = {key: value for key, value in made["spec"].items() if key != "nodeName"}
    stored = await injector.create(namespace, again)
    assert (names(stored), stored["spec"]) == (names(made), made["spec"])


def owned_by(owner: Mapping[str, Any]) -> dict[str, Any]:
    """Return the reference of a controller to what it made."""
    who = {key: owner["metadata"][key] for key in ("name", "uid")}
    return {"apiVersion": owner["apiVersion"], "kind": owner["kind"], **who, "controller": True}


def workload(kind: str, version: str, name: str, **spec: Any) -> dict[str, Any]:
    """Return a Deployment, a ReplicaSet or a Job."""
    labels = {"app": "vllm"}
    more: dict[str, Any] = {} if kind == "Job" else {"selector": {"matchLabels": labels}}
    notes = {"firedoor.dev/ports": "9000/http"}
    containers = {"containers": [{"name": "app", "image": "registry.example/app:1"}], **spec}
    more["template"] = {"metadata": {"labels": labels, "annotations": notes}, "spec": containers}
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": more}


def made_by(owner: Mapping[str, Any]) -> dict[str, Any]:
    """Return the pod that a controller makes of what is stored of its object."""
    template = owner["spec"]["template"]
    named = {"generateName": f"{owner['metadata']['name']}-", "ownerReferences": [owned_by(owner)]}
    return {"metadata": {**template["metadata"], **named}, "spec": template["spec"]}


async def test_pods_of_a_deployment_and_of_a_job(injector: Injector) -> None:
    """The API server stores the owners; the test makes of them what the controller manager would."""
    namespace, api = await injector.namespace("inference", "enabled"), injector.cluster.api()

    async def store(plural: str, wanted: dict[str, Any]) -> dict[str, Any]:
        path = f"/apis/{wanted['apiVersion']}/namespaces/{namespace}/{plural}"
        return {**wanted, **await asyncio.to_thread(api.post, path, wanted)}

    puller = {"initContainers": [{"name": "weights", "image": "x"}]}
    deployment = await store("deployments", workload("Deployment", "apps/v1", "vllm", **puller))
    wanted = workload("ReplicaSet", "apps/v1", "vllm-5d4f", **puller)
    wanted["metadata"]["ownerReferences"] = [owned_by(deployment)]
    replicas = await store("replicasets", wanted)
    job = await store("jobs", workload("Job", "batch/v1", "train", restartPolicy="Never"))
    for owner, order in ((replicas, [CAPTURE, SIDECAR, "weights"]), (job, [CAPTURE, SIDECAR])):
        # The owner is stored as it was written: each of its pods is injected anew.
        assert names({"spec": owner["spec"]["template"]["spec"]})[:2] != [CAPTURE, SIDECAR]
        for _ in range(2):
            stored = await injector.create(namespace, made_by(owner))
            assert names(stored) == order
            assert stored["metadata"]["ownerReferences"][0]["uid"] == owner["metadata"]["uid"]
            assert stored["metadata"]["labels"]["app"] == "vllm"
            (sidecar,) = (one for one in stored["spec"]["initContainers"] if one["name"] == SIDECAR)
            assert sidecar["restartPolicy"] == "Always", "a Job's pod ends with its app"
            assert stored["spec"]["restartPolicy"] == owner["spec"]["template"]["spec"]["restartPolicy"]


async def test_who_did_not_ask_is_left_alone(injector: Injector) -> None:
    asked, other = await injector.namespace("asked", "enabled"), await injector.namespace("other")
    assert names(await injector.pod(asked, "out", labels={"firedoor.dev/inject": "disabled"})) == []
    assert names(await injector.pod(other, "plain")) == []
    assert names(await injector.pod(other, "one", labels={"firedoor.dev/inject": "enabled"})) == [CAPTURE, SIDECAR]


async def test_a_refusal_is_what_a_person_reads(injector: Injector) -> None:
    namespace = await injector.namespace("inference", "enabled")
    with pytest.raises(ApiError) as refused:
        await injector.pod(namespace, "host", spec={"hostNetwork": True})
    assert "firedoor cannot inject its sidecar: it uses the node's network (hostNetwork: true)" in refused.value.message
    with pytest.raises(ApiError, match=r"there is no annotation firedoor\.dev/port;"):
        await injector.pod(namespace, "typo", annotations={"firedoor.dev/port": "9000/http"})


async def test_without_an_answer_no_pod_is_made_where_sidecars_are_wanted(injector: Injector) -> None:
    asked, other = await injector.namespace("asked", "enabled"), await injector.namespace("other")
    webhook = injector.broker.broker.webhook
    assert webhook is not None
    before = await injector.pod(asked, "before")
    await webhook.stop()
    for how in ({}, {"labels": {"firedoor.dev/inject": "enabled"}}):
        with pytest.raises(ApiError) as refused:
            await injector.pod(asked, "vllm", **how)
        assert documented_refusal() in refused.value.message
    with pytest.raises(ApiError, match="failed calling webhook"):
        await injector.pod(other, "one", labels={"firedoor.dev/inject": "enabled"})
    # Who did not ask is not held up, and what runs goes on.
    assert names(await injector.pod(other, "plain")) == []
    assert names(await injector.pod(asked, "out", labels={"firedoor.dev/inject": "disabled"})) == []
    path = f"/api/v1/namespaces/{asked}/pods/before"
    changed = await asyncio.to_thread(injector.cluster.api().patch, path, {"metadata": {"labels": {"a": "b"}}})
    assert changed["spec"] == before["spec"]
    # It answers again, and pods are made again.
    again = await reopened(webhook)
    try:
        await async_until(lambda: injector._works(asked), "that it works again")
    finally:
        await again.stop()


def documented_refusal() -> str:
    """Return how the refusal begins that docs/injection.md shows."""
    text = (Path(__file__).parents[2] / "docs/injection.md").read_text()
    (line,) = (one for one in text.splitlines() if "failed calling webhook" in one)
    return line.partition(": Internal error occurred: ")[2].partition("failed to call webhook")[0]


async def reopened(webhook: Webhook) -> Webhook:
    """Return the webhook as it is after a restart of its broker, where it was."""
    made = Webhook(dataclasses.replace(webhook._rules, listen=webhook.address), webhook._core, webhook._as_id)
    await made.open()
    return made


async def test_the_sidecar_of_a_stored_pod_runs_and_serves_the_pods_identity(
    injector: Injector, cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its environment is the stored one; folders stand for the volumes, and the test for the kubelet's token."""
    namespace = await injector.namespace("inference", "enabled")
    notes = {"firedoor.dev/capture": "none", "firedoor.dev/segment": "inference"}
    pod = await injector.pod(namespace, "vllm", annotations=notes, node="worker-1", address="10.1.9.1")
    assert names(pod) == [SIDECAR]
    (mounted,) = [m for m in pod["spec"]["containers"][0]["volumeMounts"] if m["name"] == "firedoor-auth"]
    assert mounted["readOnly"] is True
    env = {one["name"]: one["value"] for one in pod["spec"]["initContainers"][0]["env"]}
    for number, mount in enumerate(pod["spec"]["initContainers"][0]["volumeMounts"]):
        folder = tmp_path / f"v{number}"
        folder.mkdir()
        env = {key: value.replace(mount["mountPath"] + "/", f"{folder}/") for key, value in env.items()}
    env |= {"FIREDOOR_SIDECAR_BROKER": injector.broker.broker.listen, "FIREDOOR_SIDECAR_METRICS": "127.0.0.1:0"}
    token = cluster.token(namespace, "default", "firedoor", pod=pod, seconds=600)
    put(env["FIREDOOR_SIDECAR_K8S_POD_TOKEN"], token.encode())
    state = injector.broker.broker.state
    put(env["FIREDOOR_SIDECAR_BOOTSTRAP_BUNDLE"], state.bundles[state.trust_domain].to_json())
    alias = "/node/inference"
    await injector.broker.entry(alias, "/spire/server", ["k8s_pod:cluster:prod", f"k8s_pod:ns:{namespace}"])
    path = f"/segment/inference/ns/{namespace}/sa/default"
    await injector.broker.entry(path, alias, [f"k8s:ns:{namespace}", "k8s:sa:default"])
    await injector.broker.entry("/segment/inference/other", alias, [f"k8s:ns:{namespace}", "k8s:sa:other"])
    one = Running(sidecar_config.load(None, env, {}))
    try:
        await one.until(lambda process: not process.report.missing(), "it is ready")
        status = one.process.report.status()
        assert as_json(status)["not_enforcing"] == status.not_enforcing
        command._show(status)
        assert "\nnot enforcing the app can be reached past its sidecar" in capsys.readouterr().out
        assert status.not_enforcing.startswith("the app can be reached past its sidecar")
        assert await served(env["FIREDOOR_SIDECAR_AUTH_SOCKET"]) == [f"spiffe://example.org{path}"]
    finally:
        await one.stop()


def put(file: str, data: bytes) -> None:
    Path(file).write_bytes(data)


async def served(socket: str) -> list[str]:
    """Return the identities that a program of the pod gets."""
    async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
        call = workload_grpc.SpiffeWorkloadAPIStub(channel).FetchX509SVID(
            workload_pb2.X509SVIDRequest(), metadata=(("workload.spiffe.io", "true"),)
        )
        return [svid.spiffe_id for svid in (await anext(aiter(call))).svids]
