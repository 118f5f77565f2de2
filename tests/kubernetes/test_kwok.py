# SPDX-License-Identifier: Apache-2.0
"""kwok plays the kubelets where a test has more pods than it wants to answer for."""

from __future__ import annotations

import pytest

from tests.kubernetes.cluster import KWOK, Cluster, running_kwok
from tests.waiting import until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]


def test_bound_pods_run(cluster: Cluster) -> None:
    metadata = {"name": "fake-1", "annotations": dict([KWOK])}
    cluster.api().post("/api/v1/nodes", {"metadata": metadata, "status": {"allocatable": {"pods": "110"}}})
    namespace = cluster.namespace("many")
    with running_kwok(cluster):
        for number in range(3):
            cluster.pod(namespace, f"pod-{number}", node="fake-1")

        def running() -> bool:
            pods = cluster.api().get(f"/api/v1/namespaces/{namespace}/pods")["items"]
            return [pod["status"]["phase"] for pod in pods] == ["Running"] * 3

        until(running, "the pods run")
    cluster.api().delete("/api/v1/nodes/fake-1")
