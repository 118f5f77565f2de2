# SPDX-License-Identifier: Apache-2.0
"""docs/operations.md, command by command: an upgrade, and nothing that is left when firedoor was taken away."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes.api import ApiError
from tests.kubernetes.test_start import NAMESPACES, SIDECAR, SYSTEM, Newcomer, arriving
from tests.waiting import until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(500)]

TEXT = (Path(__file__).parents[2] / "docs/operations.md").read_text()
(VALUES,) = re.findall(r"```yaml upgrade\.yaml\n(.*?)```", TEXT, re.DOTALL)
UPGRADE, AWAY = (
    [line.partition("    #")[0].strip().removeprefix("$ ") for line in block.splitlines()]
    for block in re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL)
)
OLD, NEW = (f"registry.example.org/firedoor:{tag}" for tag in ("0.1.0", "0.2.0"))
DEPLOYMENT = f"/apis/apps/v1/namespaces/{NAMESPACES[0]}/deployments"


class Operator:
    """Whoever runs what `newcomer` has installed, and what a cluster's own controllers would do meanwhile."""

    def __init__(self, newcomer: Newcomer) -> None:
        self.newcomer, self.api, self.types = newcomer, newcomer.cluster.api(), newcomer.types
        (newcomer.folder / "upgrade.yaml").write_text(VALUES)
        app = {"containers": [{"name": "app", "image": "registry.example.org/vllm:1"}]}
        template = {"metadata": {"labels": {"app": "vllm"}}, "spec": app}
        spec = {"selector": {"matchLabels": {"app": "vllm"}}, "template": template}
        self.api.post(DEPLOYMENT, {"metadata": {"name": "vllm"}, "spec": spec})

    def restarted(self) -> str:
        """Return when the pods of the Deployment were last to be made anew."""
        template = self.api.get(f"{DEPLOYMENT}/vllm")["spec"]["template"]
        return str(template["metadata"].get("annotations", {}).get("kubectl.kubernetes.io/restartedAt", ""))

    def makes(self, spec: Any = None) -> dict[str, Any]:
        """Return what would be stored of a pod: of that Deployment, or as it was stored before."""
        whole = spec or self.api.get(f"{DEPLOYMENT}/vllm")["spec"]["template"]["spec"]
        path = f"/api/v1/namespaces/{NAMESPACES[0]}/pods?dryRun=All"
        stored: dict[str, Any] = self.api.post(path, {"metadata": {"name": "try"}, "spec": whole})["spec"]
        return stored

    def images(self, spec: Any = None) -> set[str]:
        """Return the images of its sidecar; none when it has none, or is refused."""
        try:
            added = self.makes(spec).get("initContainers", [])
        except ApiError:
            return set()
        return {one["image"] for one in added if one["name"] in SIDECAR}

    def rolls_out(self) -> None:
        """Do what the StatefulSet's controller and kubelets do: all of it is new, and ready."""
        path = f"/apis/apps/v1/namespaces/{SYSTEM}/statefulsets/firedoor-broker"
        found = self.api.get(path)
        ready = dict.fromkeys(("replicas", "readyReplicas", "availableReplicas", "updatedReplicas"), 1)
        status = {**ready, "currentRevision": "b", "updateRevision": "b"}
        status["observedGeneration"] = found["metadata"]["generation"]
        self.api.patch(f"{path}/status", {"status": status})

    def deletes_namespace(self, command: str) -> None:
        """Run a command that waits until a namespace is gone, whose finalizer the controller would take."""
        path = f"/api/v1/namespaces/{SYSTEM}"

        def ending() -> dict[str, Any] | None:
            found = self.api.get(path)
            return found if "deletionTimestamp" in found["metadata"] else None

        with ThreadPoolExecutor(1) as pool:
            waits = pool.submit(self.types, command)
            found = until(ending, "its end")
            self.api.put(f"{path}/finalize", {**found, "spec": {"finalizers": []}})
            waits.result()

    def left(self) -> Iterator[str]:
        """Name the objects of ours that the cluster still has, but for those that went with our namespace."""
        kinds = self.types("kubectl api-resources --verbs=list --output name").stdout.split()
        found = self.types(f"kubectl get {','.join(kinds)} --all-namespaces --output json").stdout
        for one in json.loads(found)["items"]:
            metadata = one["metadata"]
            ours = "firedoor" in metadata["name"] or "firedoor" in json.dumps(metadata.get("labels", {}))
            if ours and metadata.get("namespace") != SYSTEM and one["kind"] != "Event":
                yield f"{one['kind']} {metadata.get('namespace', '')}/{metadata['name']}"


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Operator]:
    """Everything is there: what is taken in, and what was exported."""
    with arriving(tmp_path) as newcomer:
        newcomer.does("helm install")
        newcomer.start_broker()
        newcomer.does("kubectl apply --server-side")
        until(newcomer.in_force, "the policy is in force")
        newcomer.does("kubectl get segments,flows")
        newcomer.does("kubectl label namespace inference registry")
        until(lambda: all(map(newcomer.takes_in, NAMESPACES)), "sidecars, guards and trust bundles")
        while not newcomer.left[0].startswith("firedoor segment export"):
            newcomer.left.pop(0)
        newcomer.does("firedoor segment export kubernetes")
        yield Operator(newcomer)


def test_an_upgrade_and_the_end(operator: Operator) -> None:
    upgrades(operator)
    goes(operator)


def upgrades(operator: Operator) -> None:
    """Pods with either sidecar are let in meanwhile, those with the old one no longer when all is done."""
    before = operator.makes()
    assert operator.images(before) == operator.images() == {OLD}
    definitions, upgrade, status, restart, last = UPGRADE
    operator.types(definitions)
    operator.types(upgrade)
    until(lambda: operator.images() == {NEW}, "new pods have the new sidecar")
    assert operator.images(before) == {OLD}
    operator.rolls_out()
    assert "complete" in operator.types(status).stdout
    operator.types(restart)
    assert operator.restarted()
    operator.types(last)
    until(lambda: not operator.images(before), "the old sidecar is refused")
    assert operator.images() == {NEW}


def goes(operator: Operator) -> None:
    newcomer, since = operator.newcomer, operator.restarted()
    assert list(operator.left())
    filters, labels, restart, *rest, namespace = AWAY
    # Before the sidecars, or pods without one, which have no segment, would be closed off.
    exported = ("networkpolicies", "--all-namespaces", "--selector", "app.kubernetes.io/managed-by=firedoor")
    assert newcomer.there(*exported)
    operator.types(filters)
    assert not newcomer.there(*exported)
    operator.types(labels)
    for space in NAMESPACES:
        said = ("configmap", "firedoor-bundle", "--namespace", space)
        until(lambda said=said: not newcomer.there(*said), "the broker has deleted its ConfigMap")
    until(lambda: "initContainers" not in operator.makes(), "pods without sidecars")
    operator.types(restart)
    assert operator.restarted() != since
    assert rest[0].startswith("helm uninstall")
    for command in rest:
        operator.types(command)
        # As the StatefulSet goes, its pods do.
        newcomer.broker.close()
    operator.deletes_namespace(namespace)
    assert list(operator.left()) == []
