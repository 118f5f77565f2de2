# SPDX-License-Identifier: Apache-2.0
"""The chart as it is installed, without a webhook: a labelled namespace is all that it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.deploy.test_helm import CHART, POLICIES, Helm, helm, render
from tests.kubernetes.admission import INJECTED, apply, refusal
from tests.kubernetes.api import ApiError
from tests.kubernetes.cluster import Cluster, running_cluster
from tests.waiting import until

__all__ = ["helm"]

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]
NAMESPACE = "elsewhere"


def test_an_installed_chart_injects_and_guards(helm: Helm, tmp_path: Path) -> None:
    with running_cluster(tmp_path) as cluster:
        cluster.namespace(NAMESPACE, exact=True)
        # As helm does it: definitions first.
        apply(cluster, CHART / "crds")
        apply(cluster, render(helm, *POLICIES, "--namespace", NAMESPACE))
        asked, other = cluster.namespace("inference", INJECTED), cluster.namespace("other")
        until(lambda: not refusal(lambda: with_sidecar(cluster, asked)), "a sidecar")
        first = made(cluster, asked)
        assert names(first) == ["firedoor-capture", "firedoor-sidecar"]
        env = {one["name"]: one["value"] for one in first["spec"]["initContainers"][1]["env"]}
        assert env["FIREDOOR_SIDECAR_BROKER"] == f"firedoor-broker.{NAMESPACE}.svc:8081"
        until(lambda: "spec.hostNetwork" in why(cluster, asked), "a refusal")
        # Who did not ask, and the brokers themselves, are left alone.
        assert names(made(cluster, other, hostNetwork=True)) == []
        assert names(made(cluster, NAMESPACE)) == []


def made(cluster: Cluster, namespace: str, **spec: Any) -> dict[str, Any]:
    """Make a pod. Policies come one by one, and one that goes by Segments refuses all until it has read them."""
    whole = {"containers": [{"name": "app", "image": "x"}], **spec}
    path = f"/api/v1/namespaces/{namespace}/pods"

    def tried() -> dict[str, Any] | None:
        try:
            return cluster.api().post(path, {"metadata": {"generateName": "app-"}, "spec": whole})
        except ApiError as error:
            if "not yet synced" not in error.message:
                raise
            return None

    found: dict[str, Any] = until(tried, "that the policies have read the Segments")
    return found


def with_sidecar(cluster: Cluster, namespace: str) -> None:
    """Make a pod that has one; until the policies are known, some are refused and some have none."""
    if not names(made(cluster, namespace)):
        raise ApiError(0, "it has no sidecar")


def why(cluster: Cluster, namespace: str) -> str:
    """Return why a pod on the node's network is refused."""
    return refusal(lambda: made(cluster, namespace, hostNetwork=True))


def names(pod: dict[str, Any]) -> list[str]:
    return [one["name"] for one in pod["spec"].get("initContainers", [])]
