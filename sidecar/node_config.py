# SPDX-License-Identifier: Apache-2.0
"""What the configuration says of a Kubernetes node whose pods this sidecar serves.

k8s_workloads: {node: gpu-1}                                # its kubelet, on loopback
k8s_workloads: {node: gpu-1, pods_from: api-server}         # that of the cluster that this sidecar runs in
k8s_workloads: {node: gpu-1, pods_from: api-server, server: "https://10.0.0.1:6443", ca: ca.pem, token: token}
"""

from dataclasses import dataclass
from functools import partial

from firedoor.certs.pod_token import is_object_name
from firedoor.cluster.access import IN_CLUSTER, server_address
from firedoor.segments.setting_values import choice, host_port, integer
from firedoor.segments.settings import Option, Section
from firedoor.sidecar import settings
from firedoor.sidecar.pod_access import PodAccess
from firedoor.sidecar.pod_cgroup import Places
from firedoor.sidecar.pod_finder import LOOKS

KUBELET = "127.0.0.1:10250"
_MAX_LOOKS = 600


@dataclass(frozen=True, slots=True)
class NodeWorkloads:
    """The node: whom to ask for its pods, where their cgroups are, how often a container is looked for."""

    access: PodAccess
    places: Places
    looks: int


def options(environment: str) -> tuple[Option, ...]:
    """Return the keys."""
    option = partial(Option, environment)
    return (
        option("k8s_workloads.node", "NAME", "the Kubernetes node whose pods this sidecar serves"),
        option("k8s_workloads.pods_from", "kubelet|api-server", "who says which pods are there"),
        option("k8s_workloads.kubelet", "HOST:PORT", "where the kubelet is; 127.0.0.1:10250 unless given"),
        option("k8s_workloads.kubelet_name", "NAME", "the name in its certificate; the node's unless given"),
        option("k8s_workloads.server", "URL", "the API server; that of the sidecar's own cluster unless given"),
        option("k8s_workloads.ca", "FILE", "the CA of either; the cluster's, as pods have it, unless given"),
        option("k8s_workloads.token", "FILE", "the token that the sidecar comes with; its pod's own unless given"),
        option("k8s_workloads.cgroup_root", "PATH", "the kubelet's cgroupRoot"),
        option("k8s_workloads.max_poll_attempts", "N", "looks for the container of a caller, half a second apart"),
    )


def node_workloads(top: Section) -> NodeWorkloads | None:
    """Read `k8s_workloads`; None when it is absent."""
    if top.get("k8s_workloads") is None:
        return None
    section = top.section("k8s_workloads")
    return NodeWorkloads(
        access=_access(section),
        places=section.parse("cgroup_root", Places.of, Places.of("/")),
        looks=section.parse("max_poll_attempts", integer(1, _MAX_LOOKS), LOOKS),
    )


def _access(section: Section) -> PodAccess:
    node = section.require("node", _node, "", ", the name of the node")
    by_kubelet = section.parse("pods_from", choice("kubelet", "api-server"), "kubelet") == "kubelet"
    for key in ("server",) if by_kubelet else ("kubelet", "kubelet_name"):
        if section.get(key) is not None:
            other = "api-server" if by_kubelet else "kubelet"
            section.findings.add(section.at(key), section.path(key), f"is for `pods_from: {other}`")
    return PodAccess(
        node=node,
        asks="kubelet" if by_kubelet else "api-server",
        address=section.parse("kubelet", host_port, KUBELET)
        if by_kubelet
        else section.parse("server", server_address, ""),
        server_name=section.parse("kubelet_name", _node, node) if by_kubelet else "",
        ca=section.parse("ca", settings.path, IN_CLUSTER / "ca.crt"),
        token=section.parse("token", settings.path, IN_CLUSTER / "token"),
    )


def _node(value: str) -> str:
    if not is_object_name(value):
        raise ValueError("must be the name of a node: lower case letters, digits, dots and dashes")
    return value
