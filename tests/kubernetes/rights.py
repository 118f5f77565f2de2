# SPDX-License-Identifier: Apache-2.0
"""Rights of accounts in the tests' cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from tests.kubernetes.api import AlreadyExists
from tests.kubernetes.cluster import Cluster

RBAC = "/apis/rbac.authorization.k8s.io/v1"
# What docs/nodes.md has for a broker at which pods and nodes attest.
ATTESTING = (
    {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
    {"apiGroups": [""], "resources": ["pods", "namespaces", "nodes"], "verbs": ["get"]},
)


def account(namespace: str, name: str = "default") -> dict[str, str]:
    """Return a service account as bindings name it."""
    return {"kind": "ServiceAccount", "name": name, "namespace": namespace}


def bind(cluster: Cluster, name: str, role: str, *subjects: Mapping[str, str]) -> None:
    """Give somebody a ClusterRole."""
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}
    body = {"metadata": {"name": name}, "roleRef": reference, "subjects": list(subjects)}
    with suppress(AlreadyExists):
        cluster.api().post(f"{RBAC}/clusterrolebindings", body)


def allow(cluster: Cluster, name: str, rules: Sequence[Mapping[str, Any]], *subjects: Mapping[str, str]) -> None:
    """Make a ClusterRole, and give it to somebody."""
    with suppress(AlreadyExists):
        cluster.api().post(f"{RBAC}/clusterroles", {"metadata": {"name": name}, "rules": list(rules)})
    bind(cluster, name, name, *subjects)
