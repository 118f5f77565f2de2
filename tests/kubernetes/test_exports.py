# SPDX-License-Identifier: Apache-2.0
"""The API server takes what `firedoor segment export` writes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.kubernetes.api import ApiError
from tests.kubernetes.cluster import Cluster
from tests.peers.build import Missing, source
from tests.segments.pods import SPACES, Generator
from tests.segments.test_exports import CLUSTER
from tests.waiting import until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs/kubernetes.md").read_text()


# Form, whose module defines the resource, where in it, and the API's path of the resource.
DEFINED = {
    "cilium": (
        "github.com/cilium/cilium",
        "pkg/k8s/apis/cilium.io/client/crds/v2/ciliumnetworkpolicies.yaml",
        "/apis/cilium.io/v2/ciliumnetworkpolicies",
    ),
    "cluster-network-policy": (
        "sigs.k8s.io/network-policy-api",
        "config/crd/standard/policy.networking.k8s.io_clusternetworkpolicies.yaml",
        "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies",
    ),
}


def exported(path: Path, *words: str, form: str = "kubernetes") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "firedoor.cli", "segment", "export", form, str(path), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)


@pytest.fixture
def spaces(cluster: Cluster) -> Cluster:
    """A cluster with the namespaces that the policies name."""
    names = {one["metadata"]["name"] for one in cluster.api().get("/api/v1/namespaces")["items"]}
    for name in set(SPACES) - names:
        cluster.namespace(name, exact=True)
    return cluster


def test_network_policies_are_taken(spaces: Cluster, tmp_path: Path) -> None:
    (documented,) = (one for one in re.findall(r"```yaml\n(.*?)```", DOCS, re.DOTALL) if "kind: Segment" in one)
    texts = [CLUSTER, documented, *(Generator(seed).text for seed in range(3))]
    for number, text in enumerate(texts):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        added = [word for space in SPACES for word in ("--namespace", space)]
        made = exported(path, "--trust-domain", "corp.example", "--ambient", *added)
        objects = [one for one in yaml.safe_load_all(made.stdout) if one]
        assert len(objects) > len(SPACES)
        applied = spaces.kubectl("apply", "--dry-run=server", "--validate=strict", "--filename", "-", given=made.stdout)
        assert applied.code == 0, applied
        assert applied.out.count("(server dry run)") == len(objects)


def test_what_is_stored_is_what_was_written(spaces: Cluster, tmp_path: Path) -> None:
    """Nothing is dropped or filled in that changes what a rule means."""
    path = tmp_path / "policy.yaml"
    path.write_text(CLUSTER)
    added = [word for space in SPACES for word in ("--namespace", space)]
    made = exported(path, "--trust-domain", "corp.example", *added)
    try:
        applied = spaces.kubectl("apply", "--filename", "-", given=made.stdout)
        assert applied.code == 0, applied
        for one in yaml.safe_load_all(made.stdout):
            head = one["metadata"]
            path_of = f"/apis/networking.k8s.io/v1/namespaces/{head['namespace']}/networkpolicies/{head['name']}"
            assert spaces.api().get(path_of)["spec"] == one["spec"]
    finally:
        spaces.kubectl("delete", "--ignore-not-found", "--filename", "-", given=made.stdout)


@pytest.mark.parametrize("form", DEFINED)
def test_other_forms_are_taken_by_their_own_definitions(spaces: Cluster, tmp_path: Path, form: str) -> None:
    """Their schemas are those that Cilium and the policy API's own project publish."""
    module, definition, resource = DEFINED[form]
    try:
        folder = source("crds", module)
    except Missing as missing:
        pytest.skip(str(missing))
    assert spaces.kubectl("apply", "--server-side", "--filename", str(folder / definition)).code == 0
    until(lambda: _served(spaces, resource), f"{resource} is served")
    for number, text in enumerate([CLUSTER, *(Generator(seed).text for seed in range(3))]):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        added = [word for space in SPACES for word in ("--namespace", space)]
        made = exported(path, "--trust-domain", "corp.example", "--ambient", *added, form=form)
        objects = [one for one in yaml.safe_load_all(made.stdout) if one]
        applied = spaces.kubectl("apply", "--dry-run=server", "--validate=strict", "--filename", "-", given=made.stdout)
        assert applied.code == 0, applied
        assert applied.out.count("(server dry run)") == len(objects)


def _served(cluster: Cluster, resource: str) -> bool:
    try:
        cluster.api().get(resource)
    except ApiError:
        return False
    return True
