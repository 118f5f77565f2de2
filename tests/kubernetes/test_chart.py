# SPDX-License-Identifier: Apache-2.0
"""A real API server takes everything that the chart writes."""

from __future__ import annotations

import pytest

from tests.deploy.test_helm import ALL, CLUSTER, MANIFESTS, POLICIES, TD, Helm, documents, helm, render
from tests.deploy.test_helm_nodes import NODES
from tests.kubernetes.cluster import Cluster

__all__ = ["helm"]

# The first test waits until the control plane is up.
pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]
# The Prometheus operator's definitions are not there.
OPERATOR = ("ServiceMonitor", "PrometheusRule")


@pytest.mark.parametrize(
    "words", [TD, ALL, CLUSTER, POLICIES, NODES], ids=["least", "all", "cluster", "policies", "nodes"]
)
def test_what_the_chart_writes_is_taken(cluster: Cluster, helm: Helm, words: tuple[str, ...]) -> None:
    # A dry run makes no namespace, and takes nothing into one that is not there.
    nodes = ("--set", f"nodes.namespace={cluster.namespace('nodes')}")
    rendered = render(helm, *words, *nodes, "--namespace", cluster.namespace("chart"))
    given = [one for one in rendered if one["kind"] not in OPERATOR]
    taken = cluster.kubectl("apply", "--dry-run=server", "--validate=strict", "--filename", "-", given=given)
    assert taken.code == 0, taken.err
    assert taken.out.count("(server dry run)") == len(given)


def test_the_manifests_without_helm_are_taken(cluster: Cluster) -> None:
    given = MANIFESTS.read_text().replace("firedoor-system", cluster.namespace("chart"))
    taken = cluster.kubectl("apply", "--dry-run=server", "--validate=strict", "--filename", "-", given=given)
    assert taken.code == 0, taken.err
    assert taken.out.count("(server dry run)") == len(documents(given))
