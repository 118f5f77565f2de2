# SPDX-License-Identifier: Apache-2.0
"""Who may mount the socket of a node's sidecar: a real API server refuses with a sentence, and admits the twin."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from firedoor.segments import well_known
from tests.kubernetes.admission import apply, delivered, refusal
from tests.kubernetes.cluster import Cluster, running_cluster
from tests.kubernetes.test_guards import STRATEGIC
from tests.waiting import until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]
FOLDER, NODES = "/run/firedoor/node", "firedoor-nodes"
Pod = dict[str, Any]


class Site:
    """A cluster with the policies of node.yaml, and one namespace of each kind."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.labelled = cluster.namespace("web", {well_known.NODE_SOCKET: "enabled"})
        self.other, self.nodes = cluster.namespace("other"), cluster.namespace(NODES, exact=True)

    def makes(self, namespace: str, spec: Pod) -> str:
        """Return why a pod was refused; nothing when it was made."""
        pod = {"metadata": {"generateName": "app-"}, "spec": spec}
        return refusal(lambda: self.cluster.api().post(f"/api/v1/namespaces/{namespace}/pods", pod))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running_cluster(tmp_path_factory.mktemp("sockets")) as cluster:
        apply(cluster, [one for one in delivered("node.yaml") if one["kind"].startswith("ValidatingAdmissionPolicy")])
        found = Site(cluster)
        until(lambda: REPLACED in found.makes(found.other, mounting()), "that nobody writes to the folder")
        until(lambda: "hostPID" in found.makes(found.labelled, pod(hostPID=True)), "that labelled ones are held")
        yield found


def pod(*, container: Pod | None = None, **spec: Any) -> Pod:
    return {"containers": [{"name": "app", "image": "x"} | (container or {})], **spec}


def context(**fields: Any) -> Pod:
    return pod(container={"securityContext": fields})


def volumes(path: str = FOLDER, **more: str) -> list[Pod]:
    return [{"name": "socket", "hostPath": {"path": path, **more}}]


def mount(**more: Any) -> Pod:
    return {"name": "socket", "mountPath": "/run/firedoor/node", **more}


def mounting(path: str = FOLDER, *, read_only: bool = False, **more: str) -> Pod:
    mounted = mount(readOnly=True) if read_only else mount()
    return pod(container={"volumeMounts": [mounted]}, volumes=volumes(path, **more))


REPLACED = "volumeMounts: container app could replace the socket of the node's sidecar: mount it with readOnly: true"
ALONE = "spec.volumes: volume socket: of its node a pod of this namespace mounts /run/firedoor/node alone"
WITHIN = {"capabilities": {"add": ["CHOWN", "NET_BIND_SERVICE"], "drop": ["ALL"]}, "privileged": False}
# name: (what is refused in a namespace with the label, the words of the sentence, its twin)
LABELLED: dict[str, tuple[Pod, str, Pod]] = {
    "a mount to write to": (mounting(), REPLACED, mounting(read_only=True)),
    "another folder": (
        mounting("/var/log", read_only=True),
        ALONE,
        mounting(read_only=True, type="Directory"),
    ),
    "another folder beside it": (
        pod(volumes=[{"name": "node", "hostPath": {"path": FOLDER}}, *volumes("/")]),
        ALONE,
        pod(volumes=[{"name": "own", "emptyDir": {}}, *volumes()]),
    ),
    "the folder above": (mounting("/run/firedoor", read_only=True), ALONE, mounting(read_only=True)),
    "the socket itself": (mounting(f"{FOLDER}/auth.sock", read_only=True), ALONE, mounting(read_only=True)),
    "the folder written otherwise": (mounting(f"{FOLDER}/", read_only=True), ALONE, mounting(read_only=True)),
    "a folder that would be made": (
        mounting(read_only=True, type="DirectoryOrCreate"),
        ALONE,
        mounting(read_only=True, type=""),
    ),
    "the node's processes": (pod(hostPID=True), "spec.hostPID: no pod", pod(shareProcessNamespace=True)),
    "the node's memory": (pod(hostIPC=True), "spec.hostIPC: no pod", pod(hostIPC=False)),
    "the node's network": (pod(hostNetwork=True), "spec.hostNetwork: no pod", pod(hostNetwork=False)),
    "a privileged container": (context(privileged=True), "securityContext.privileged: no", context(privileged=False)),
    "a privileged init container": (
        pod(initContainers=[{"name": "first", "image": "x", "securityContext": {"privileged": True}}]),
        "securityContext.privileged: no",
        pod(initContainers=[{"name": "first", "image": "x", "securityContext": WITHIN}]),
    ),
    "a capability that lifts that a mount is read-only": (
        context(capabilities={"add": ["SYS_ADMIN"]}),
        "securityContext.capabilities.add: containers",
        context(**WITHIN),
    ),
    "a capability written otherwise": (
        context(capabilities={"add": ["cap_sys_admin"]}),
        "securityContext.capabilities.add: containers",
        context(capabilities={"drop": ["SYS_ADMIN"]}),
    ),
    "the whole of /proc": (
        pod(container={"securityContext": {"procMount": "Unmasked"}}, hostUsers=False),
        "securityContext.procMount: it is",
        pod(container={"securityContext": {"procMount": "Default"}}, hostUsers=False),
    ),
    "no seccomp": (
        context(seccompProfile={"type": "Unconfined"}),
        "no profile of seccomp",
        context(seccompProfile={"type": "RuntimeDefault"}),
    ),
    "no seccomp in the whole pod": (
        pod(securityContext={"seccompProfile": {"type": "Unconfined"}}),
        "no profile of seccomp",
        pod(securityContext={"seccompProfile": {"type": "RuntimeDefault"}}),
    ),
    "no AppArmor": (
        context(appArmorProfile={"type": "Unconfined"}),
        "no profile of seccomp",
        context(appArmorProfile={"type": "RuntimeDefault"}),
    ),
    "another type of SELinux": (
        pod(securityContext={"seLinuxOptions": {"type": "spc_t"}}),
        "securityContext.seLinuxOptions: in",
        pod(securityContext={"seLinuxOptions": {"type": "container_t", "level": "s0:c1,c2"}}),
    ),
    # The API server takes none that has not the node's network.
    "a process of the node": (
        pod(
            securityContext={"windowsOptions": {"hostProcess": True, "runAsUserName": "x"}},
            os={"name": "windows"},
            hostNetwork=True,
        ),
        "spec.hostNetwork: no pod",
        pod(securityContext={"windowsOptions": {"runAsUserName": "x"}}, os={"name": "windows"}),
    ),
}


@pytest.mark.parametrize("case", LABELLED)
def test_where_pods_may_have_the_socket(site: Site, case: str) -> None:
    refused, words, twin = LABELLED[case]
    found = site.makes(site.labelled, refused)
    assert words in found, found
    assert site.makes(site.labelled, twin) == ""


WRITTEN = ("", "/", "//", "/.", "/auth.sock")


@pytest.mark.parametrize(
    "path",
    [
        *(f"{FOLDER}{end}" for end in WRITTEN),
        *("/run/firedoor", "/run/firedoor/", "/run/firedoor/.", "/var/run/firedoor/node", "//run/./firedoor//node"),
    ],
)
def test_nobody_writes_to_it(site: Site, path: str) -> None:
    """Not where Pod Security is as lax as it can be either."""
    assert REPLACED in site.makes(site.other, mounting(path))
    assert site.makes(site.other, mounting(path, read_only=True)) == ""
    # It has to, and makes the folder.
    assert site.makes(site.nodes, mounting(path, type="DirectoryOrCreate")) == ""


@pytest.mark.parametrize("path", ["/run", "/run/firedoor/nodes", "/run/firedoor/other", "/srv/run/firedoor/node"])
def test_what_else_pods_write_to_is_not_looked_at(site: Site, path: str) -> None:
    assert site.makes(site.other, mounting(path)) == ""


@pytest.mark.parametrize("kind", ["initContainers", "containers"])
def test_no_container_of_a_pod_writes_to_it(site: Site, kind: str) -> None:
    spec = pod(container={"volumeMounts": [mount(readOnly=True)]}, volumes=volumes())
    second = {"name": "second", "image": "x", "volumeMounts": [mount()]}
    spec[kind] = [*spec.get(kind, []), second]
    for namespace in (site.labelled, site.other):
        assert "container second could replace" in site.makes(namespace, spec)
    second["volumeMounts"] = [mount(readOnly=True)]
    for namespace in (site.labelled, site.other):
        assert site.makes(namespace, spec) == ""


def joins(site: Site, namespace: str, **fields: Any) -> str:
    """Return why a container may not join a pod that has the socket, as `kubectl debug` adds one."""
    path = f"/api/v1/namespaces/{namespace}/pods"
    made = {"metadata": {"generateName": "app-"}, "spec": mounting(read_only=True)}
    name = site.cluster.api().post(path, made)["metadata"]["name"]
    joining = {"spec": {"ephemeralContainers": [{"name": "debug", "image": "x", **fields}]}}
    return refusal(lambda: site.cluster.api().patch(f"{path}/{name}/ephemeralcontainers", joining, STRATEGIC))


def test_a_container_that_joins(site: Site) -> None:
    for namespace in (site.labelled, site.other):
        assert "container debug could replace" in joins(site, namespace, volumeMounts=[mount()])
        assert joins(site, namespace, volumeMounts=[mount(readOnly=True)]) == ""
    assert "securityContext.privileged: no" in joins(site, site.labelled, securityContext={"privileged": True})


def test_what_the_word_says_does_not_matter(site: Site) -> None:
    """A misspelt one holds as well: its Pod Security is as lax."""
    namespace = site.cluster.namespace("typo", {well_known.NODE_SOCKET: "yes"})
    until(lambda: "hostPID" in site.makes(namespace, pod(hostPID=True)), "that the namespace is known")
    assert ALONE in site.makes(namespace, mounting("/", read_only=True))
