# SPDX-License-Identifier: Apache-2.0
"""Rights of accounts in the tests' cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from tests.kubernetes.api import AlreadyExists
from tests.kubernetes.cluster import Cluster
from tests.waiting import until

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
    for one in subjects:
        in_force(cluster, one, rules)


def in_force(
    cluster: Cluster, subject: Mapping[str, str], rules: Sequence[Mapping[str, Any]], namespace: str = ""
) -> None:
    """Wait until the API server goes by rules of a service account: it hears of them after they are stored."""
    user = f"system:serviceaccount:{subject['namespace']}:{subject['name']}"
    for rule in rules:
        until(partial(may, cluster, rule, namespace, user=user), f"{user} may {rule}")


def may(cluster: Cluster, rule: Mapping[str, Any], namespace: str = "", **who: Any) -> bool:
    """Say whether somebody may do the first of what a rule names."""
    resource, _, part = rule["resources"][0].partition("/")
    asked = {"group": rule["apiGroups"][0], "resource": resource, "subresource": part, "verb": rule["verbs"][0]}
    attributes = {**asked, "name": rule.get("resourceNames", [""])[0], "namespace": namespace}
    body = {"spec": {**who, "resourceAttributes": attributes}}
    answer = cluster.api().post("/apis/authorization.k8s.io/v1/subjectaccessreviews", body)
    return bool(answer["status"]["allowed"])
