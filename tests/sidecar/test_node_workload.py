# SPDX-License-Identifier: Apache-2.0
"""A sidecar that serves a node: which pod a process is of, by its real cgroup and what a kubelet tells over TLS."""

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from firedoor.broker import config as broker_config
from firedoor.cluster.errors import AccessUnusable
from firedoor.segments import Document, accept
from firedoor.sidecar import config, proc
from firedoor.sidecar.attestor import UnixAttestor
from firedoor.sidecar.config import Config
from firedoor.sidecar.errors import CallerRefused, ConfigError, NotReady
from firedoor.sidecar.node_config import NodeWorkloads
from firedoor.sidecar.node_workload import NodeAttestor
from firedoor.sidecar.pod_access import PodAccess
from firedoor.sidecar.pod_cgroup import Places, PodContainer
from firedoor.sidecar.pod_finder import PodFinder
from firedoor.sidecar.pod_source import ListedPods
from firedoor.wire import types
from tests.cgroups import Tree
from tests.pods import NODE, Kubelet, cgroup_of, container_id, kubelet, pod, status
from tests.sidecar.conftest import TD
from tests.sidecar.harness import Start, entry, ids, settings
from tests.sidecar.programs import end, sleeper, talker, tell
from tests.sidecar.spire_like import SpireLike
from tests.waiting import async_until

MIN = {"trust_domain": "example.org", "broker": "127.0.0.1:1"}
APP = container_id()
FILES = {"k8s_workloads_token": "/nonexistent/t", "k8s_workloads_ca": "/nonexistent/ca"}


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Kubelet]:
    async with kubelet(tmp_path, [pod("vllm-0", status("app", APP))]) as found:
        yield found


def read_config(found: Kubelet, **more: str) -> NodeWorkloads:
    made = config.load(None, {}, {**MIN, **found.settings(**more)}).k8s_workloads
    assert made is not None
    return made


@contextlib.asynccontextmanager
async def attestor(found: Kubelet, root: str = "/", **how: Any) -> AsyncIterator[NodeAttestor]:
    made = read_config(found, cgroup_root=root)
    finder = PodFinder(ListedPods(made.access), **{"pause": 0.02, **how})
    try:
        yield NodeAttestor(UnixAttestor(), finder, made.places)
    finally:
        await finder.close()


class Caller:
    """A process that called, and whether it is still there."""

    uid: int | None = os.geteuid()
    gid: int | None = os.getegid()

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.pid: int | None = process.pid
        self._process = process

    def alive(self) -> bool:
        return self._process.poll() is None


async def test_what_a_process_of_a_pod_is(node: Kubelet, cgroups: Tree) -> None:
    async with attestor(node, cgroups.root) as found:
        with sleeper() as process:
            assert not any(one.type == "k8s" for one in await found.attest(Caller(process), ()))
            cgroups.move(process.pid, cgroup_of(node.items[0], APP))
            selectors = {str(one) for one in await found.attest(Caller(process), ())}
    words = {"ns:inference", "sa:vllm", "pod-name:vllm-0", "container-name:app", f"node-name:{NODE}"}
    assert {f"unix:uid:{os.geteuid()}", *(f"k8s:{word}" for word in words)} <= selectors


async def test_names_that_a_workload_gives_its_own_cgroups_mean_nothing(node: Kubelet, cgroups: Tree) -> None:
    """It has a part of the tree for its own, and calls what is below it as another pod is called."""
    other = container_id()
    node.items.append(pod("admin-0", status("app", other), namespace="management"))
    async with attestor(node, cgroups.root) as found:
        with sleeper() as process:
            cgroups.move(process.pid, f"{cgroup_of(node.items[0], APP)}/{cgroup_of(node.items[1], other)}")
            selectors = {str(one) for one in await found.attest(Caller(process), ())}
            assert "k8s:ns:inference" in selectors
            assert "k8s:ns:management" not in selectors
            # A user's session beside the pods.
            cgroups.move(process.pid, f"user.slice/{cgroup_of(node.items[1], other)}")
            assert not any(one.type == "k8s" for one in await found.attest(Caller(process), ()))


MOUNTS = """
import os, sys, time
print(flush=True)
sys.stdin.readline()
print(open("/proc/self/mountinfo").read().count(sys.argv[1]), flush=True)
sys.stdin.readline()
"""


@contextlib.contextmanager
def mounts(place: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a user's program that has mounted a cgroup where a container has its own."""
    command = ["unshare", "-Urm", "sh", "-c", f'mount --bind {place} /sys/fs/cgroup && exec "$@"']
    with subprocess.Popen(
        [*command, "sh", sys.executable, "-c", MOUNTS, APP],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        user=61234,
        group=61234,
        extra_groups=(),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes cgroups")
async def test_names_that_a_user_mounts_mean_nothing(node: Kubelet, cgroups: Tree) -> None:
    """In a mount namespace of his own, any user has a pod's cgroup where a container has its own."""
    with mounts(cgroups.make(cgroup_of(node.items[0], APP))) as process:
        assert process.stdout
        if not await asyncio.to_thread(process.stdout.readline):
            pytest.skip("no user namespace can be made here")
        assert int(await asyncio.to_thread(tell, process)) > 0, "the mount says that this is the pod"
        async with attestor(node, cgroups.root) as found:
            caller = Caller(process)
            caller.uid = caller.gid = 61234
            assert not any(one.type == "k8s" for one in await found.attest(caller, ()))


IN_A_POD = """
import sys
from firedoor.sidecar import proc
from firedoor.sidecar.pod_cgroup import CgroupUnreadable, Places
try:
    print(Places.of(sys.argv[2]).find(proc.read_cgroup(int(sys.argv[1]))))
except CgroupUnreadable:
    print("refused")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes cgroup namespaces")
async def test_seen_from_a_sidecar_that_is_in_a_pod_itself(node: Kubelet, cgroups: Tree) -> None:
    """Its cgroup namespace hides where it is itself, and so the beginning of where others are."""
    uid = node.items[0]["metadata"]["uid"]
    own = cgroup_of(pod("firedoor"), container_id())
    cases = {
        cgroup_of(node.items[0], APP): str(PodContainer(uid, APP)),
        cgroup_of(node.items[0], APP, kind="besteffort"): str(PodContainer(uid, APP)),
        f"user.slice/{cgroup_of(node.items[0], APP)}": "None",
        f"{own.rpartition('/')[0]}/{container_id()}": "refused",
    }
    for path, expected in cases.items():
        with sleeper() as process:
            cgroups.move(process.pid, path)
            words = f'echo $$ > {cgroups.make(own)}/cgroup.procs; exec unshare -C "$@"'
            command = ["sh", "-c", words, "sh", sys.executable, "-c", IN_A_POD, str(process.pid), cgroups.root]
            done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
            assert done.stdout.strip() == expected


@pytest.mark.parametrize("what", ["ends", "moves"])
async def test_a_process_that_changes_while_its_pod_is_looked_for(node: Kubelet, cgroups: Tree, what: str) -> None:
    made, node.items = node.items, []
    async with attestor(node, cgroups.root, looks=500) as found:
        with sleeper() as process:
            cgroups.move(process.pid, cgroup_of(made[0], APP))
            asked = asyncio.create_task(found.attest(Caller(process), ()))
            await async_until(lambda: node.asked > 1, "it is looked for")
            if what == "ends":
                end(process)
            else:
                cgroups.move(process.pid, "elsewhere")
            node.items = made
            with pytest.raises(CallerRefused, match=r"has ended|has moved to another container"):
                await asyncio.wait_for(asked, 60)


# --- patience ---------------------------------------------------------------------------------------------------------


def finder(found: Kubelet, **how: Any) -> PodFinder:
    return PodFinder(ListedPods(read_config(found).access), **{"pause": 0.02, **how})


async def test_a_container_is_waited_for(node: Kubelet) -> None:
    made, node.items = node.items, []
    one = finder(node, looks=500)
    wanted = PodContainer(made[0]["metadata"]["uid"], APP)
    asked = [asyncio.create_task(one.container(wanted)) for _ in range(5)]
    await async_until(lambda: node.asked > 2, "it is looked for")
    # Who goes away takes nothing from the others.
    asked[0].cancel()
    node.items = made
    for task in asked[1:]:
        assert (await asyncio.wait_for(task, 60))[1].name == "app"
    await one.close()


async def test_nobody_can_make_it_ask_without_end(node: Kubelet) -> None:
    """However many ask about containers that nobody knows, and however often."""
    now = [0.0]
    one = finder(node, looks=3, pause=0.001, clock=lambda: now[0])
    wanted = PodContainer(node.items[0]["metadata"]["uid"], container_id())

    async def ask() -> None:
        with pytest.raises(NotReady, match="no pod of this node is known to have"):
            await one.container(wanted)

    await asyncio.gather(*(ask() for _ in range(50)))
    assert node.asked <= 3
    before = node.asked
    for _ in range(50):
        await ask()
    assert node.asked == before
    now[0] += 1000
    await ask()
    assert node.asked > before
    await one.close()


async def test_a_container_that_was_put_into_a_running_pod_gets_nothing(node: Kubelet, cgroups: Tree) -> None:
    debug = container_id()
    node.items[0]["status"]["ephemeralContainerStatuses"] = [status("debug", debug)]
    async with attestor(node, cgroups.root) as found:
        with sleeper() as process:
            cgroups.move(process.pid, cgroup_of(node.items[0], debug))
            with pytest.raises(CallerRefused, match="put into its pod while that ran"):
                await found.attest(Caller(process), ())


# --- whom it asks -----------------------------------------------------------------------------------------------------


async def refusal(access: PodAccess) -> str:
    source = ListedPods(access)
    try:
        with pytest.raises(NotReady) as refused:
            await source.pods(0)
        return str(refused.value)
    finally:
        await source.close()


async def test_the_kubelet_is_asked_by_its_name_with_our_token(node: Kubelet, tmp_path: Path) -> None:
    now = [0.0]
    source = ListedPods(read_config(node).access, lambda: now[0])
    assert source.trouble == "which pods are on this node is not known yet"
    assert [one.name for one in await source.pods(0)] == ["vllm-0"]
    assert source.trouble == ""
    asked = node.asked
    assert [one.name for one in await source.pods(3600)] == ["vllm-0"]
    assert node.asked == asked
    # What was seen counts for some minutes.
    node.token = "another"
    now[0] += 299
    assert [one.name for one in await source.pods(0)] == ["vllm-0"]
    assert "it answers 401" in source.trouble
    now[0] += 2
    with pytest.raises(NotReady, match=r"it answers 401: .* nodes/pods"):
        await source.pods(0)
    # The kubelet renews the file.
    node.token_file.write_text("another\n")
    assert await source.pods(0)
    await source.close()


async def test_whose_certificate_is_not_the_nodes_is_not_asked(node: Kubelet, tmp_path: Path) -> None:
    access = read_config(node).access
    assert "its certificate does not verify: Hostname mismatch" in await refusal(replace(access, server_name="gpu-2"))
    (tmp_path / "other").mkdir()
    stranger = Kubelet(tmp_path / "other")
    words = await refusal(replace(access, ca=stranger.ca_file))
    assert "its certificate does not verify" in words
    assert node.asked == 0


async def test_one_connection_is_used_again(node: Kubelet, tmp_path: Path) -> None:
    """Each question would cost the kubelet a handshake otherwise; another CA counts at once all the same."""
    source = ListedPods(read_config(node).access)
    for _ in range(3):
        await source.pods(-1)
    assert (node.asked, len(node.connections)) == (3, 1)
    (tmp_path / "other").mkdir()
    node.ca_file.write_bytes(Kubelet(tmp_path / "other").ca_file.read_bytes())
    await source.pods(-1)
    assert "its certificate does not verify" in source.trouble
    await source.close()


async def test_what_a_kubelet_answers(node: Kubelet, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    access = read_config(node).access
    cases: list[tuple[int, bytes, str]] = [
        (200, b"{", "no JSON"),
        (200, b"[]", "no object"),
        (200, b"{}", "no list of pods"),
        (200, b'{"kind": "PodList"}', "no list of pods"),
        (200, b'{"kind": "NodeList", "items": null}', "no list of pods"),
        (404, b"", "it answers 404"),
        (200, b"[" * 100_000, "no JSON"),
        (302, b"", "it answers 302"),
        (403, b"", "nodes/pods"),
        (500, b"", "it answers 500"),
        (200, json.dumps({"items": ["x" * 33 * 1024 * 1024]}).encode(), "longer than 32 MiB"),
    ]
    for code, body, words in cases:
        node.instead = (code, body)
        assert words in await refusal(access)
    empty = tmp_path / "empty"
    empty.touch()
    for wrong, words in (
        (replace(access, token=empty), "holds no token"),
        (replace(access, ca=empty), "holds no certificates"),
        (replace(access, token=tmp_path / "none"), "cannot be read: No such file"),
        (replace(access, address="127.0.0.1:1"), "it cannot be asked"),
    ):
        assert words in await refusal(wrong)
    assert node.token not in caplog.text


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kubelet": "127.0.0.1:1"}, "k8s_workloads.node: is missing, the name of the node"),
        ({"node": "A"}, "must be the name of a node"),
        ({"node": "a", "cgroup_root": "kubelet"}, "must be an absolute path of a cgroup"),
        ({"node": "a", "pods_from": "both"}, "k8s_workloads.pods_from"),
        ({"node": "a", "server": "https://10.0.0.1"}, "is for `pods_from: api-server`"),
        ({"node": "a", "pods_from": "api-server", "kubelet": "a:1"}, "is for `pods_from: kubelet`"),
        ({"node": "a", "pods_from": "api-server", "server": "http://10.0.0.1"}, "must be an address such as https"),
        ({"node": "a", "max_poll_attempts": "0"}, "k8s_workloads.max_poll_attempts"),
    ],
)
def test_configured_wrong(given: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config.load(None, {}, {**MIN, **{f"k8s_workloads_{key}": value for key, value in given.items()}})
    assert words in str(refused.value)


def test_validated(tmp_path: Path) -> None:
    found = config.load(None, {}, {**MIN, "data_dir": str(tmp_path), "k8s_workloads_node": "a", **FILES})
    assert "k8s_workloads.token: /nonexistent/t cannot be read: No such file or directory" in config.validate(found)


def test_a_pods_own_socket_is_no_nodes() -> None:
    with pytest.raises(ConfigError, match="k8s_workloads: is for the socket of a node"):
        config.load(None, {}, {**MIN, "workload": "pod", "k8s_pod_cluster": "prod", "k8s_workloads_node": "a"})


def test_configured(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.yaml"
    file.write_text('k8s_workloads: {node: gpu-1, pods_from: api-server, server: "https://10.0.0.1:6443/"}\n')
    found = config.load(file, {}, MIN).k8s_workloads
    assert found is not None
    assert (found.places, found.looks) == (Places.of("/"), 60)
    path = "/api/v1/pods?fieldSelector=spec.nodeName%3Dgpu-1"
    assert found.access.access.address() == "https://10.0.0.1:6443"
    assert found.access.path == f"{path}%2Cstatus.phase%21%3DFailed%2Cstatus.phase%21%3DSucceeded"
    assert config.load(None, {}, MIN).k8s_workloads is None


def test_in_a_cluster_its_own_api_server_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    found = config.load(None, {}, {**MIN, "k8s_workloads_node": "a", "k8s_workloads_pods_from": "api-server"})
    assert found.k8s_workloads is not None
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    access = found.k8s_workloads.access.access
    with pytest.raises(AccessUnusable, match="server: is missing"):
        access.address()
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    assert access.address() == "https://[fd00::1]:443"


def test_the_documents_examples_load(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/kubernetes-nodes.md").read_text()
    blocks = re.findall(r"```yaml (\w+)\n(.*?)```", text, re.DOTALL)
    for kind, block in blocks:
        if kind == "sidecar":
            (tmp_path / "sidecar.yaml").write_text(block)
            found = config.load(tmp_path / "sidecar.yaml", {}, {}).k8s_workloads
            assert found is not None
            assert found.access.node == "gpu-1"
        elif kind == "policy":
            assert accept([Document("policy.yaml", block)], TD)[1] == []
        else:
            (tmp_path / "broker.yaml").write_text(textwrap.dedent(block))
            (agents,) = broker_config.load(tmp_path / "broker.yaml", {}, {}).kubernetes.agents
            assert agents.service_accounts == {("firedoor-nodes", "firedoor-node")}
    assert {kind for kind, _ in blocks} == {"sidecar", "policy", "broker"}


# --- a whole sidecar --------------------------------------------------------------------------------------------------

ASKS = """
import sys, grpc
from firedoor.wire import workload_grpc, workload_pb2
print(flush=True)
for line in sys.stdin:
    with grpc.insecure_channel("unix:" + sys.argv[1]) as channel:
        stub = workload_grpc.SpiffeWorkloadAPIStub(channel)
        call = stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=[("workload.spiffe.io", "true")], timeout=50)
        try:
            print(*sorted(svid.spiffe_id for svid in next(call).svids), flush=True)
        except grpc.RpcError as error:
            print(error.code().name, flush=True)
"""


def of(*values: str) -> list[types.Selector]:
    return [types.Selector(type="k8s", value=value) for value in values]


def node_settings(tmp_path: Path, found: Kubelet, cgroups: Tree, **more: str) -> Config:
    return settings(tmp_path, **found.settings(cgroup_root=cgroups.root, **more))


async def test_a_sidecar_gives_each_pod_of_its_node_its_own(
    server: SpireLike, running: Start, tmp_path: Path, node: Kubelet, cgroups: Tree
) -> None:
    other = container_id()
    node.items.append(pod("web-0", status("app", other), namespace="web"))
    server.entries = {
        "vllm": entry("vllm", selectors=of("ns:inference", "sa:vllm", "container-name:app")),
        "web": entry("web", selectors=of("ns:web", "sa:vllm")),
        "node": entry("node"),
    }
    one = running(node_settings(tmp_path, node, cgroups, max_poll_attempts="2"))
    await one.until(lambda p: ids(p) == {"vllm", "web", "node"}, "its SVIDs")
    script = f"import sys; sys.argv = ['', {str(tmp_path / 'auth.sock')!r}]\n{ASKS}"
    with talker(script) as program:
        assert program.stdout
        await asyncio.to_thread(program.stdout.readline)

        async def told() -> list[str]:
            words = (await asyncio.to_thread(tell, program)).decode().split()
            return [word.rpartition("/")[2] for word in words]

        assert await told() == ["node"]
        cgroups.move(program.pid, cgroup_of(node.items[0], APP))
        assert await told() == ["node", "vllm"]
        cgroups.move(program.pid, cgroup_of(node.items[1], other))
        assert await told() == ["node", "web"]
        # A kubelet that is away takes nothing from those that it has told of.
        node.instead = (500, b"")
        assert await told() == ["node", "web"]
        # What cannot be told is no reason to take a process for one of no pod.
        node.items.append(pod("new-0", status("app", new := container_id())))
        cgroups.move(program.pid, cgroup_of(node.items[2], new))
        assert await told() == ["UNAVAILABLE"]
        node.instead = None
        await async_until(told, "the new pod's", when=lambda found: found == ["node", "vllm"])


async def test_it_is_not_ready_while_no_pod_can_be_told(
    server: SpireLike, running: Start, tmp_path: Path, node: Kubelet, cgroups: Tree
) -> None:
    server.entries = {"x": entry("x")}
    node.instead = (403, b"")
    one = running(node_settings(tmp_path, node, cgroups))
    await one.until(lambda p: any("needs the right to get nodes/pods" in line for line in p.report.missing()), "why")
    node.instead = None
    await one.until(lambda p: not any("k8s_workloads" in line for line in p.report.missing()), "pods")
    assert node.asked > 1


def test_what_proc_says_of_ourselves() -> None:
    assert proc.read_cgroup(os.getpid()).endswith(b"\n")
    with pytest.raises(proc.ProcError, match="cannot be read"):
        proc.read_cgroup(2**31 - 1)
