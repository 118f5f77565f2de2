# SPDX-License-Identifier: Apache-2.0
"""A broker's account with the rights that are delivered for its controllers, and no others."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import yaml

from firedoor.certs import KeyType, TrustDomain, generate_key, issue_ca
from firedoor.certs.certificate import pem_encode
from tests.kubernetes import rights
from tests.kubernetes.cluster import ISSUER, Cluster

MANIFESTS = Path(__file__).parents[2] / "deploy/kubernetes/controllers.yaml"
RBAC = "/apis/rbac.authorization.k8s.io/v1"


def flags(cluster: Cluster, folder: Path) -> dict[str, str]:
    """Apply the manifest under names of a namespace's own; return what a broker is told that comes with its token."""
    namespace = cluster.namespace("firedoor-system")
    cluster.service_account(namespace, "firedoor-broker")
    objects = list(yaml.load_all(MANIFESTS.read_text(), Loader=yaml.SafeLoader))
    for one in objects:
        _of(one, namespace)
        plural = one["kind"].lower() + "s"
        below = "" if plural.startswith("cluster") else f"namespaces/{namespace}/"
        cluster.api().post(f"{RBAC}/{below}{plural}", one)
    follow(cluster, objects, rights.account(namespace, "firedoor-broker"))
    folder.mkdir(exist_ok=True)
    (folder / "token").write_text(cluster.token(namespace, "firedoor-broker", ISSUER))
    access = {"server": cluster.url, "ca": str(cluster.ca_file), "token": str(folder / "token")}
    given = {"cluster": "prod", "namespace": namespace, **access}
    return {f"kubernetes_controllers_{key}": value for key, value in given.items()}


def follow(cluster: Cluster, objects: list[dict[str, Any]], account: dict[str, str]) -> None:
    """Wait until the API server goes by the roles among the objects."""
    for one in objects:
        if one["kind"] in ("Role", "ClusterRole"):
            rights.in_force(cluster, account, one["rules"], one["metadata"].get("namespace", ""))


def _of(one: dict[str, Any], namespace: str) -> None:
    """Move an object to a namespace of its own; what is in none is called after it."""
    if one["kind"].startswith("Cluster"):
        one["metadata"]["name"] = namespace
        if "roleRef" in one:
            one["roleRef"]["name"] = namespace
    else:
        one["metadata"]["namespace"] = namespace
    for subject in one.get("subjects", ()):
        subject["namespace"] = namespace


def root_pem() -> str:
    """Return a CA certificate that nobody knows."""
    made = issue_ca(
        TrustDomain.parse("example.org"), generate_key(KeyType.EC_P256), at=int(time.time()), random=os.urandom
    )
    return pem_encode([made.der])
