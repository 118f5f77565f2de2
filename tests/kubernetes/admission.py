# SPDX-License-Identifier: Apache-2.0
"""The admission policies that are delivered, applied to a cluster of the tests' own: they reach beyond namespaces."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from firedoor.broker.injector import InjectorRules
from firedoor.broker.injector.cel import NAMESPACE, PARAMETERS, parameters
from tests.kubernetes.api import ApiError
from tests.kubernetes.cluster import Cluster, running_cluster
from tests.waiting import until

DELIVERED = Path(__file__).parents[2] / "deploy/kubernetes"
INJECTED = {"firedoor.dev/inject": "enabled"}
REQUIRED = {"firedoor.dev/inject": "required"}
# What the tests' namespaces say for whom no policy is to inject.
BY_OTHERS = {"test/injected-by": "others"}
Object = dict[str, Any]


def delivered(name: str) -> list[Object]:
    """Return the objects of a manifest."""
    return list(yaml.safe_load_all((DELIVERED / name).read_text()))


def apply(cluster: Cluster, objects: list[Object] | Path) -> None:
    """Apply objects, or a folder of them."""
    words = ("--filename", str(objects)) if isinstance(objects, Path) else ("--filename", "-")
    given = "" if isinstance(objects, Path) else objects
    applied = cluster.kubectl("apply", "--server-side", *words, given=given)
    assert applied.code == 0, applied.err


def injecting() -> list[Object]:
    """Return the injector's policy, which leaves namespaces alone that say so."""
    objects = delivered("injector-policy.yaml")
    for one in objects:
        if one["kind"] == "MutatingAdmissionPolicyBinding":
            selector = one["spec"]["matchResources"]["namespaceSelector"]
            selector["matchExpressions"].append({"key": "test/injected-by", "operator": "DoesNotExist"})
    return objects


@contextlib.contextmanager
def guarded_cluster(folder: Path, rules: InjectorRules) -> Iterator[Cluster]:
    """Run a control plane with the guards and the injector's policy, until both are in force."""
    with running_cluster(folder) as cluster:
        cluster.namespace(NAMESPACE, exact=True)
        settings = {"metadata": {"name": PARAMETERS}, "data": parameters(rules, "example.org")}
        cluster.api().post(f"/api/v1/namespaces/{NAMESPACE}/configmaps", settings)
        apply(cluster, DELIVERED / "crds")
        until(lambda: _answers(cluster, "/apis/firedoor.dev/v1alpha1/segments"), "segments are served")
        # The last first: once those are in force that `_in_force` tries, no other is still to come.
        apply(cluster, [*reversed(delivered("guards.yaml")), *injecting()])
        first, second = cluster.namespace("first", INJECTED), cluster.namespace("second", REQUIRED)
        until(lambda: _in_force(cluster, first), "the policies are in force")
        until(lambda: _in_force(cluster, second, required=True), "they are where sidecars are required")
        yield cluster


def _answers(cluster: Cluster, path: str) -> bool:
    with contextlib.suppress(ApiError):
        cluster.api().get(path)
        return True
    return False


def _in_force(cluster: Cluster, namespace: str, *, required: bool = False) -> bool:
    """Whether each policy does what it is for."""
    api, path = cluster.api(), f"/api/v1/namespaces/{namespace}/pods"
    app: Object = {"name": "app", "image": "x"}
    if required:
        stays: Object = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        app["securityContext"] = {"runAsUser": 1001, **stays}
    with contextlib.suppress(ApiError):
        pod = {"metadata": {"generateName": "try-"}, "spec": {"containers": [app]}}
        made = api.post(path, pod)
        if "initContainers" not in made["spec"]:
            return False
        name = made["metadata"]["name"]
        relabelled = {"metadata": {"labels": {"firedoor.dev/segment": "other"}}}
        targets = {"name": "debug", "image": "x", "targetContainerName": "firedoor-sidecar"}
        joined = {"spec": {"ephemeralContainers": [targets]}}
        claims = {"metadata": {"name": name, **relabelled["metadata"]}, "target": {"kind": "Node", "name": "one"}}
        host = {"metadata": {"name": "host"}, "spec": {"containers": [app], "hostNetwork": True}}
        stand = (
            "stays as it was" in refusal(lambda: api.patch(f"{path}/{name}", relabelled))
            and "sidecar's processes" in refusal(lambda: api.patch(f"{path}/{name}/ephemeralcontainers", joined))
            and "bound to a node" in refusal(lambda: api.post(f"{path}/{name}/binding", claims))
            and "spec.hostNetwork" in refusal(lambda: api.post(path, host))
        )
        # A policy that goes by Segments refuses all until it has read them.
        return stand and bool(api.post(path, pod))
    return False


def refusal(call: Any) -> str:
    """Return why a call was refused; nothing when it was not."""
    try:
        call()
    except ApiError as error:
        return error.message
    return ""
