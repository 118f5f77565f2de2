# SPDX-License-Identifier: Apache-2.0
"""`firedoor segment inventory` of a real cluster, by kubectl."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from firedoor.segments import well_known
from tests.kubernetes.cluster import Cluster
from tests.segments.test_inventory import POLICY
from tests.spire.programs import needed

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]


class Zone:
    """A namespace of our own that the policy names `serving`, and the files of whoever looks."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.space = cluster.namespace("inventory", labels={well_known.INJECT: "enabled"})
        self.other = cluster.namespace("inventory-models", labels={well_known.INJECT: "enabled"})
        self.file = folder / "policy.yaml"
        self.file.write_text(POLICY.replace("ns:serving", f"ns:{self.space}").replace("ns:models", f"ns:{self.other}"))

    def firedoor(self, *words: str, given: str = "", path: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run the command."""
        kubectl = Path(needed("kubernetes", "kubectl")).parent
        env = {**os.environ, "PATH": f"{kubectl}:{os.environ['PATH']}" if path is None else path}
        command = [sys.executable, "-m", "firedoor.cli", "segment", *words, "--trust-domain", "corp.example"]
        return subprocess.run(command, input=given, capture_output=True, text=True, timeout=120, check=False, env=env)

    def look(self, *words: str) -> tuple[int, list[dict[str, Any]]]:
        """Look at the zone's namespaces; return the exit code and the rows."""
        kubeconfig = ("--kubeconfig", str(self.cluster.kubeconfig()), "--only", self.space, "--only", self.other)
        made = self.firedoor("inventory", str(self.file), *kubeconfig, "--output", "json", *words)
        assert made.returncode in (0, 1), made.stderr
        return made.returncode, json.loads(made.stdout)

    def pod(self, name: str, segment: str, *, captured: bool = True, sidecar: bool = True, **spec: Any) -> None:
        """Make a pod as an injector leaves it."""
        ours = (
            [{"name": well_known.SIDECAR_CONTAINER, "image": "firedoor", "restartPolicy": "Always"}] if sidecar else []
        )
        notes = {well_known.STATUS: json.dumps({"version": 1, "captured": captured})} if sidecar else {}
        labels = {well_known.SEGMENT: segment} if segment else {}
        space = self.other if segment == "registry" else self.space
        self.cluster.pod(space, name, labels=labels, annotations=notes, spec={"initContainers": ours, **spec})


@pytest.fixture
def zone(cluster: Cluster, tmp_path: Path) -> Iterator[Zone]:
    found = Zone(cluster, tmp_path)
    yield found
    exported = found.firedoor("export", "kubernetes", str(found.file)).stdout
    cluster.kubectl("delete", "--ignore-not-found", "--filename", "-", given=exported)


def codes(found: tuple[int, list[dict[str, Any]]]) -> set[tuple[str, str]]:
    return {(row["object"], row["code"]) for row in found[1]}


def test_a_zone_that_is_taken_in_step_by_step(zone: Zone) -> None:
    zone.pod("vllm", "inference", sidecar=False)
    zone.pod("stray", "", sidecar=False)
    zone.pod("store", "registry", captured=False)
    code, rows = zone.look()
    assert code == 1
    wanted = {("Pod/vllm", "no_sidecar"), ("Pod/stray", "no_segment"), ("Pod/stray", "no_sidecar")}
    assert wanted | {("Pod/store", "not_enforcing")} <= codes((code, rows))
    assert {row["code"] for row in rows if not row["pods"]} == {"missing"}

    exported = zone.firedoor("export", "kubernetes", str(zone.file)).stdout
    assert zone.cluster.kubectl("apply", "--filename", "-", given=exported).code == 0
    # What the API server stored is what was exported, and closes the pod that captures nothing.
    assert codes(zone.look()) == wanted

    for name in ("vllm", "stray"):
        zone.cluster.delete_pod(zone.space, name)
    zone.pod("vllm", "inference")
    assert zone.look() == (0, [])

    path = f"/apis/networking.k8s.io/v1/namespaces/{zone.other}/networkpolicies/firedoor-segment-registry"
    zone.cluster.api().patch(path, {"spec": {"ingress": [{}]}})
    assert codes(zone.look()) == {
        ("NetworkPolicy/firedoor-segment-registry", "changed"),
        ("Pod/store", "not_enforcing"),
    }
    zone.cluster.api().delete(path)
    assert ("NetworkPolicy/firedoor-segment-registry", "missing") in codes(zone.look())


def test_what_kubectl_printed_is_enough(zone: Zone, tmp_path: Path) -> None:
    zone.pod("stray", "", sidecar=False)
    listed = zone.cluster.kubectl("get", "namespaces,pods,networkpolicies", "--all-namespaces", "--output", "json")
    words = ("inventory", str(zone.file), "--from", "-", "--only", zone.space, "--exported", "none")
    # No kubectl is needed for it.
    made = zone.firedoor(*words, given=listed.out, path=str(tmp_path))
    assert made.returncode == 1
    assert made.stdout.splitlines()[0].split() == ["NAMESPACE", "OBJECT", "PODS", "WHAT", "WHY", "WHAT", "TO", "DO"]
    assert f"{zone.space}  Pod/stray  1     error[no_segment]" in made.stdout
    without = zone.firedoor("inventory", str(zone.file), path=str(tmp_path))
    assert (without.returncode, "kubectl is not installed" in without.stderr) == (2, True)


def test_who_may_not_look_is_told_so(zone: Zone) -> None:
    stranger = str(zone.cluster.kubeconfig("stranger"))
    made = zone.firedoor("inventory", str(zone.file), "--kubeconfig", stranger)
    assert made.returncode == 3
    assert "kubectl cannot list namespaces, pods, networkpolicies" in made.stderr
    assert "forbidden" in made.stderr
