# SPDX-License-Identifier: Apache-2.0
"""A sidecar for a whole node, as `deploy/kubernetes/node.yaml` has it: real objects, real cgroups, a real process.

No kubelet runs: the test says in an object's status which containers run, and puts processes into their cgroups.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from firedoor.certs import Selector
from firedoor.sidecar import config
from firedoor.sidecar.attestor import UnixAttestor
from firedoor.sidecar.errors import NotReady, WorkloadGone
from firedoor.sidecar.named_pod import ObjectReference, find_pod
from firedoor.sidecar.node_workload import NodeAttestor
from firedoor.sidecar.pod_access import PodAccess
from firedoor.sidecar.pod_cgroup import PodContainer
from firedoor.sidecar.pod_finder import PodFinder
from firedoor.sidecar.pod_objects import read_pod
from firedoor.sidecar.pod_source import ListedPods
from firedoor.sidecar.pod_watch import WatchedPods
from tests.broker.harness import RunningBroker, running
from tests.cgroups import Tree, tree
from tests.kubernetes.asking import PATIENCE
from tests.kubernetes.cluster import ISSUER, Cluster, running_cluster
from tests.kubernetes.rights import account as service_account
from tests.kubernetes.rights import in_force
from tests.kubernetes.test_injection import allow, put
from tests.pods import Kubelet, cgroup_of, container_id, kubelet, status
from tests.sidecar.programs import talker, tell
from tests.sidecar.test_node_workload import ASKS, Caller
from tests.spire.programs import Daemon, SpireAgent
from tests.waiting import async_until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]
MANIFEST = Path(__file__).parents[2] / "deploy/kubernetes/node.yaml"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
POLICY = """\
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {name: inference}
spec:
  function: inference
  trust: medium
  mode: enforce
  members: ["spiffe://{td}/segment/inference/**"]
  admission: {entry: ["k8s:sa:default"], node: ["k8s_psat:cluster:prod"]}
"""


def manifests() -> dict[str, dict[str, Any]]:
    """Return the objects that are delivered, by kind."""
    return {one["kind"]: one for one in yaml.load_all(MANIFEST.read_text(), Loader=yaml.SafeLoader)}


class Node:
    """A node of the cluster, and what its kubelet would say and do."""

    def __init__(self, cluster: Cluster, cgroups: Tree | None = None) -> None:
        self.cluster, self.cgroups, self.name = cluster, cgroups, f"node-{secrets.token_hex(4)}"
        cluster.node(self.name)

    def runs(self, namespace: str, name: str, **how: Any) -> tuple[dict[str, Any], str]:
        """Make a pod here whose one container runs; return it as it is stored, and the container's ID."""
        container = container_id()
        made = self.cluster.pod(namespace, name, node=self.name, address="10.1.9.1", **how)
        path = f"/api/v1/namespaces/{namespace}/pods/{name}"
        running = {"containerStatuses": [status("app", container)]}
        self.cluster.api().patch(f"{path}/status", {"status": running})
        return {**made, **self.cluster.api().get(path)}, container

    def put(self, pid: int, pod: dict[str, Any], container: str) -> None:
        """Put a process into a container."""
        assert self.cgroups is not None
        self.cgroups.move(pid, cgroup_of(pod, container))


def account(cluster: Cluster) -> tuple[str, str]:
    """Make the service account with the ClusterRole of the manifest and no more; return namespace and name of it."""
    namespace, given = cluster.namespace("nodes"), manifests()
    cluster.service_account(namespace, "firedoor-node")
    role, binding = given["ClusterRole"], given["ClusterRoleBinding"]
    role["metadata"]["name"] = binding["metadata"]["name"] = binding["roleRef"]["name"] = namespace
    binding["subjects"][0]["namespace"] = namespace
    cluster.api().post(f"{RBAC}/clusterroles", role)
    cluster.api().post(f"{RBAC}/clusterrolebindings", binding)
    in_force(cluster, service_account(namespace, "firedoor-node"), role["rules"])
    return namespace, "firedoor-node"


def access(cluster: Cluster, node: str, folder: Path, token: str = "") -> PodAccess:
    file = folder / "api-token"
    file.write_text(token or cluster.token(*account(cluster), ISSUER))
    return PodAccess(node, "api-server", cluster.url, "", cluster.ca_file, file)


@asynccontextmanager
async def finder(given: PodAccess, looks: int = 1200) -> AsyncIterator[PodFinder]:
    made = PodFinder(WatchedPods(given), looks=looks, pause=0.05)
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
def cgroups() -> Iterator[Tree]:
    with tree() as found:
        yield found


def seen(pod: dict[str, Any], container: str) -> PodContainer:
    return PodContainer(pod["metadata"]["uid"], container)


async def test_pods_are_followed_by_the_api_server(cluster: Cluster, tmp_path: Path) -> None:
    node, other = await asyncio.to_thread(lambda: (Node(cluster), Node(cluster)))
    namespace = await asyncio.to_thread(cluster.namespace, "inference")
    one, container = await asyncio.to_thread(node.runs, namespace, "vllm-0", labels={"app": "vllm"})
    elsewhere, foreign = await asyncio.to_thread(other.runs, namespace, "vllm-1")
    async with finder(access(cluster, node.name, tmp_path)) as found:
        pod, app = await found.container(seen(one, container))
        assert (pod.name, app.name, pod.labels) == ("vllm-0", "app", (("app", "vllm"),))
        assert [each.name for each in await found.source.pods(0)] == ["vllm-0"]
        # One that comes later, and is asked about before its container is told.
        two, later = await asyncio.to_thread(node.runs, namespace, "vllm-2")
        assert (await found.container(seen(two, later)))[0].name == "vllm-2"
        # What changes.
        path = f"/api/v1/namespaces/{namespace}/pods/vllm-0"
        await asyncio.to_thread(cluster.api().patch, path, {"metadata": {"labels": {"app": "other"}}})
        await pods_are(found, lambda pods: ("app", "other") in pods["vllm-0"].labels)
        # As another program refers to it.
        by_key, by_uid = ObjectReference(namespace, "vllm-0", ""), ObjectReference("", "", one["metadata"]["uid"])
        named = [await find_pod(found.source, wanted) for wanted in (by_key, by_uid)]
        assert [Selector.parse("k8s:pod-label:app:other") in await each.attest() for each in named] == [True, True]
        with pytest.raises(WorkloadGone):
            await find_pod(found.source, ObjectReference("", "", elsewhere["metadata"]["uid"]))
        await asyncio.to_thread(cluster.delete_pod, namespace, "vllm-0")
        await pods_are(found, lambda pods: set(pods) == {"vllm-2"})
        # Another one of that name.
        await asyncio.to_thread(node.runs, namespace, "vllm-0")
        await pods_are(found, lambda pods: set(pods) == {"vllm-0", "vllm-2"})
        for each in named:
            with pytest.raises(WorkloadGone):
                await each.attest()
    async with finder(access(cluster, node.name, tmp_path), looks=2) as found:
        for gone in (seen(one, container), seen(elsewhere, foreign)):
            with pytest.raises(NotReady, match="no pod of this node is known to have"):
                await found.container(gone)


async def test_pods_that_the_kubelet_does_not_take_are_none(cluster: Cluster, tmp_path: Path) -> None:
    """Whoever may make pods may name any node in them."""
    node = await asyncio.to_thread(Node, cluster)
    namespace = await asyncio.to_thread(cluster.namespace, "crowd")

    def fails(name: str) -> None:
        path = f"/api/v1/namespaces/{namespace}/pods/{name}/status"
        cluster.api().patch(path, {"status": {"phase": "Failed", "reason": "OutOfpods"}})

    for name in ("before", "after", "stays"):
        await asyncio.to_thread(node.runs, namespace, name)
    await asyncio.to_thread(fails, "before")
    async with finder(access(cluster, node.name, tmp_path)) as found:
        assert {pod.name for pod in await found.source.pods(0)} == {"after", "stays"}
        await asyncio.to_thread(fails, "after")
        await pods_are(found, lambda pods: set(pods) == {"stays"})


async def pods_are(found: PodFinder, condition: Callable[[dict[str, Any]], object]) -> None:
    async def known() -> dict[str, Any]:
        return {pod.name: pod for pod in await found.source.pods(0)}

    await async_until(known, "the pods that are known", when=condition)


async def test_without_the_right_to_ask_it_says_so(cluster: Cluster, tmp_path: Path) -> None:
    given = access(cluster, "gpu-1", tmp_path, cluster.tokens["stranger"])
    async with finder(given) as found:
        with pytest.raises(NotReady, match=r"it answers 403: the account .* needs the right to list and watch pods"):
            await found.container(PodContainer("x", container_id()))


async def test_what_was_seen_counts_while_the_api_server_is_away(tmp_path: Path) -> None:
    """It has a cluster of its own, whose API server goes away."""
    (tmp_path / "cluster").mkdir()
    with running_cluster(tmp_path / "cluster") as cluster:
        node = await asyncio.to_thread(Node, cluster)
        namespace = await asyncio.to_thread(cluster.namespace, "inference")
        one, container = await asyncio.to_thread(node.runs, namespace, "vllm-0")
        async with finder(access(cluster, node.name, tmp_path)) as found:
            assert await found.container(seen(one, container))
            await asyncio.to_thread(cluster.stop_server)
            assert await found.container(seen(one, container))
            assert await asyncio.to_thread(cluster.start_server)
            two, later = await asyncio.to_thread(node.runs, namespace, "vllm-1")
            assert (await found.container(seen(two, later)))[0].name == "vllm-1"


def test_the_manifest_is_taken(cluster: Cluster) -> None:
    given = MANIFEST.read_text().replace("firedoor-nodes", cluster.namespace("nodes"))
    taken = cluster.kubectl("apply", "--dry-run=server", "--validate=strict", "--filename", "-", given=given)
    assert taken.code == 0, taken.err
    assert taken.out.count("(server dry run)") == 10


def test_the_admin_socket_is_where_no_pod_sees_it() -> None:
    given = manifests()
    spec = given["DaemonSet"]["spec"]["template"]["spec"]
    (shared,) = [one for one in spec["volumes"] if "hostPath" in one]
    mounts = {one["mountPath"]: one["name"] for one in spec["containers"][0]["volumeMounts"]}
    (found,) = yaml.load_all(given["ConfigMap"]["data"]["sidecar.yaml"], Loader=yaml.SafeLoader)
    assert mounts[str(Path(found["auth_socket"]).parent)] == shared["name"]
    for path in (Path(found["admin_socket"]), Path(found["data_dir"])):
        assert all(mounts.get(str(above)) != shared["name"] for above in path.parents)


class Sidecar(Daemon):
    """The sidecar of the manifest as a process; folders stand for its volumes."""

    def __init__(self, folder: Path, node: Node, broker: RunningBroker, namespace: str) -> None:
        super().__init__(folder / "sidecar.log")
        assert node.cgroups is not None
        given = manifests()
        container = given["DaemonSet"]["spec"]["template"]["spec"]["containers"][0]
        text = given["ConfigMap"]["data"]["sidecar.yaml"]
        for number, mount in enumerate(container["volumeMounts"]):
            (folder / f"v{number}").mkdir(mode=0o755)
            text = text.replace(mount["mountPath"] + "/", f"{folder / f'v{number}'}/")
        (found,) = yaml.load_all(text, Loader=yaml.SafeLoader)
        pod = node.cluster.pod(namespace, "firedoor-node", account="firedoor-node", node=node.name)
        psat = node.cluster.token(namespace, "firedoor-node", "spire-server", pod=pod)
        put(found["k8s_psat"]["token"], psat.encode())
        state = broker.broker.state
        put(found["bootstrap_bundle"], state.bundles[state.trust_domain].to_json())
        # What a pod has from its cluster.
        own = {"server": node.cluster.url, "ca": str(node.cluster.ca_file), "token": str(folder / "own-token")}
        put(own["token"], node.cluster.token(namespace, "firedoor-node", ISSUER, pod=pod).encode())
        found["k8s_workloads"] |= {**own, "cgroup_root": node.cgroups.root}
        (folder / "sidecar.yaml").write_text(json.dumps({**found, "broker": [broker.broker.listen], "metrics": "off"}))
        self.socket, self.config = Path(found["auth_socket"]), folder / "sidecar.yaml"
        (name,) = (one["name"] for one in container["env"])
        self.more_environment = {name: node.name}
        self.command = container["command"][1:3]

    def start(self) -> None:
        """Start it, as the manifest has its command."""
        self.launch(sys.executable, "-m", "firedoor.cli", *self.command, "--config", str(self.config))


async def told(program: Any) -> list[str]:
    words = (await asyncio.to_thread(tell, program)).decode().split()
    return [word.rpartition("/")[2] for word in words]


async def becomes(program: Any, wanted: list[str], log: Callable[[], str]) -> None:
    """Wait until a program is told this, which it is denied so long."""

    async def answer() -> list[str]:
        words = await told(program)
        assert words in (wanted, ["UNAVAILABLE"], ["PERMISSION_DENIED"]), log()
        return words

    await async_until(answer, f"{wanted}", when=lambda words: words == wanted, state=log, seconds=PATIENCE)


@asynccontextmanager
async def brokers(cluster: Cluster, folder: Path, namespace: str, name: str) -> AsyncIterator[RunningBroker]:
    """Run a broker at which agents with this service account attest."""
    (folder / "b").mkdir()
    given = {**allow(cluster, "none", folder), "service_accounts": [f"{namespace}:{name}"]}
    async with running(folder / "b", POLICY, k8s_psat_clusters=json.dumps([{"name": "prod", **given}])) as broker:
        yield broker


async def test_the_sidecar_of_a_node_serves_the_pods_of_that_node(
    cluster: Cluster, tmp_path: Path, cgroups: Tree
) -> None:
    namespace, name = account(cluster)
    node = Node(cluster, cgroups)
    one, container = node.runs(cluster.namespace("inference"), "vllm-0", labels={"app": "vllm"})
    two, other = node.runs(cluster.namespace("web"), "web-0")
    async with brokers(cluster, tmp_path, namespace, name) as broker:
        sidecar = await asyncio.to_thread(Sidecar, tmp_path, node, broker, namespace)
        uid = cluster.api().get(f"/api/v1/nodes/{node.name}")["metadata"]["uid"]
        agent = f"/spire/agent/k8s_psat/prod/{uid}"
        for path, pod, more in (("vllm", one, "k8s:pod-label:app:vllm"), ("web", two, "k8s:container-name:app")):
            its = [f"k8s:ns:{pod['metadata']['namespace']}", "k8s:sa:default", more]
            await broker.entry(f"/segment/inference/{path}", agent, its)
        try:
            await asyncio.to_thread(sidecar.start)
            with talker(f"import sys; sys.argv = ['', {str(sidecar.socket)!r}]\n{ASKS}") as program:
                assert program.stdout
                await asyncio.to_thread(program.stdout.readline)
                node.put(program.pid, one, container)
                await becomes(program, ["vllm"], lambda: sidecar.text)
                node.put(program.pid, two, other)
                await becomes(program, ["web"], lambda: sidecar.text)
                cgroups.move(program.pid, "elsewhere")
                assert await told(program) == ["PERMISSION_DENIED"]
        finally:
            await asyncio.to_thread(sidecar.close)


class StockAgent(SpireAgent):
    """A spire-agent on a node, which asks a kubelet about pods."""

    def __init__(self, folder: Path, broker: RunningBroker, psat: Path, told_by: Kubelet) -> None:
        pem = "".join(ssl.DER_cert_to_PEM_cert(root) for root in broker.roots())
        super().__init__(folder, broker.broker.listen, pem)
        data = f'cluster = "prod" token_path = "{psat}"'
        self.node_attestor = f'NodeAttestor "k8s_psat" {{ plugin_data {{ {data} }} }}'
        port = told_by.address.rpartition(":")[2]
        data = f'kubelet_secure_port = {port} node_name = "localhost" kubelet_ca_path = "{told_by.ca_file}"'
        data += f' token_path = "{told_by.token_file}"'
        self.workload_attestor = f'WorkloadAttestor "k8s" {{ plugin_data {{ {data} }} }}'


async def test_a_stock_agent_gives_a_process_the_same_selectors(
    cluster: Cluster, tmp_path: Path, cgroups: Tree
) -> None:
    """It asks a kubelet that tells the pod as the API server has stored it."""
    namespace, name = account(cluster)
    node = Node(cluster, cgroups)
    owner = {"apiVersion": "v1", "kind": "Pod", "name": "boss", "uid": "0b3f5c1e-7a55-4c1a-9a52-2f7d1d1c9e11"}
    pod, container = node.runs(cluster.namespace("inference"), "vllm-0", labels={"app": "vllm", "empty": ""})
    path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/vllm-0"
    pod = await asyncio.to_thread(cluster.api().patch, path, {"metadata": {"ownerReferences": [owner]}})
    ours = read_pod(pod, node.name)
    app = ours.container(container)
    assert app is not None
    selectors = sorted(str(one) for one in ours.selectors_in(app))
    assert len(selectors) == 16
    own = await asyncio.to_thread(cluster.pod, namespace, "agent", account=name, node=node.name)
    put(str(tmp_path / "psat"), cluster.token(namespace, name, "spire-server", pod=own).encode())
    async with (
        brokers(cluster, tmp_path, namespace, name) as broker,
        kubelet(tmp_path, [pod], ["localhost"]) as told_by,
    ):
        agent = StockAgent(tmp_path / "a", broker, tmp_path / "psat", told_by)
        uid = cluster.api().get(f"/api/v1/nodes/{node.name}")["metadata"]["uid"]
        parent = f"/spire/agent/k8s_psat/prod/{uid}"
        await broker.entry("/segment/inference/all", parent, selectors)
        for number, one in enumerate(near_misses(selectors)):
            await broker.entry(f"/segment/inference/not-{number}", parent, ["k8s:sa:default", one])
        try:
            await asyncio.to_thread(agent.start)
            with talker(f"import sys; sys.argv = ['', {str(agent.socket)!r}]\n{ASKS}") as program:
                assert program.stdout
                await asyncio.to_thread(program.stdout.readline)
                node.put(program.pid, pod, container)
                await becomes(program, ["all"], lambda: agent.text[-3000:])
                # Ours, told by the same kubelet of the same process.
                assert {str(one) for one in await attested(node, told_by, program)} >= set(selectors)
        finally:
            await asyncio.to_thread(agent.close)


async def attested(node: Node, told_by: Kubelet, program: subprocess.Popen[bytes]) -> frozenset[Selector]:
    """Return what a sidecar of ours finds of a program."""
    assert node.cgroups is not None
    given = told_by.settings(node=node.name, kubelet_name="localhost", cgroup_root=node.cgroups.root)
    own = config.load(None, {}, {"trust_domain": "example.org", "broker": "127.0.0.1:1", **given}).k8s_workloads
    assert own is not None
    pods = PodFinder(ListedPods(own.access))
    try:
        return await NodeAttestor(UnixAttestor(), pods, own.places).attest(Caller(program), ())
    finally:
        await pods.close()


def near_misses(selectors: list[str]) -> list[str]:
    """Return selectors of the same kinds that the pod has not."""
    keys = sorted({Selector.parse(one).key for one in selectors})
    return [f"k8s:{key}:other" for key in keys]
