# SPDX-License-Identifier: Apache-2.0
"""Brokers that register the pods of the tests' cluster, and what tests ask of them."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from firedoor.broker.entry import Entry
from tests.broker.harness import RunningBroker, running
from tests.kubernetes import rights
from tests.kubernetes.api import AlreadyExists
from tests.kubernetes.asking import until_answer
from tests.kubernetes.cluster import ISSUER, Cluster
from tests.kubernetes.controllers import MANIFESTS, follow

ROOT = Path(__file__).parents[2]
IDENTITIES = "/apis/firedoor.dev/v1alpha1/workloadidentities"
ROLE = "firedoor-registration"
_ACCOUNT = rights.account("firedoor-system", "firedoor-broker")
Resource = dict[str, Any]
# What the injector gives a pod that attests by itself.
TOKEN = {"serviceAccountToken": {"audience": "firedoor", "expirationSeconds": 600, "path": "token"}}
SIDECAR: Resource = {"volumes": [{"name": "firedoor-token", "projected": {"sources": [TOKEN]}}]}


def identity(name: str, namespace: str, **spec: Any) -> Resource:
    """Return a WorkloadIdentity for one namespace of a test."""
    chosen = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}
    whole = {"metadata": {"name": f"{name}-{secrets.token_hex(3)}"}, "spec": {**chosen, **spec}}
    return {"apiVersion": "firedoor.dev/v1alpha1", "kind": "WorkloadIdentity", **whole}


def grant(cluster: Cluster) -> str:
    """Let an account do what the manifests say that a broker's may; return a token of it."""
    with suppress(AlreadyExists):
        cluster.namespace("firedoor-system", exact=True)
    with suppress(AlreadyExists):
        cluster.service_account("firedoor-system", "firedoor-broker")
    applied = cluster.kubectl("apply", "--filename", str(MANIFESTS))
    assert applied.code == 0, applied
    follow(cluster, list(yaml.safe_load_all(MANIFESTS.read_text())), _ACCOUNT)
    rights.allow(cluster, ROLE, rights.ATTESTING, _ACCOUNT)
    return cluster.token("firedoor-system", "firedoor-broker", ISSUER)


def grant_injector(cluster: Cluster, name: str) -> None:
    """Let the same account write the CAs into a webhook's configuration."""
    where = {"apiGroups": ["admissionregistration.k8s.io"], "resources": ["mutatingwebhookconfigurations"]}
    rule = {**where, "resourceNames": [name], "verbs": ["get", "patch"]}
    rights.allow(cluster, name, [rule], _ACCOUNT)


def _write(folder: Path, token: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "token").write_text(token)


@asynccontextmanager
async def registering(
    cluster: Cluster, folder: Path, policy: str | None, token: str, **more: str
) -> AsyncIterator[RunningBroker]:
    """Run a broker that registers the cluster's pods."""
    _write(folder, token)
    where = {"server": cluster.url, "ca": str(cluster.ca_file), "token": str(folder / "token")}
    controllers = {"cluster": "prod", "namespace": "firedoor-system", "registration": "true", **where}
    given = {f"kubernetes_controllers_{key}": value for key, value in controllers.items()}
    pods = json.dumps([{"name": "prod", **where}])
    async with running(folder, policy, k8s_pod_clusters=pods, **{**given, **more}) as found:
        yield found


def registered(broker: RunningBroker, uid: str) -> list[Entry]:
    """Return the entries of a pod."""
    return [one for one in broker.broker.state.entries if any(s.value == f"pod-uid:{uid}" for s in one.selectors)]


def ids(broker: RunningBroker, pod: Mapping[str, Any]) -> set[str]:
    """Return the paths of a pod's IDs."""
    return {one.spiffe_id.path for one in registered(broker, pod["metadata"]["uid"])}


async def has(broker: RunningBroker, pod: Mapping[str, Any], *paths: str) -> None:
    """Wait until a pod has these IDs and no other."""
    what = f"{pod['metadata']['name']} has {paths}"
    await until_answer(lambda: ids(broker, pod), lambda found: found == set(paths), what)


def condition(cluster: Cluster, path: str, kind: str) -> dict[str, Any]:
    """Return a condition of an object."""
    conditions = cluster.api().get(path).get("status", {}).get("conditions", [])
    return next((one for one in conditions if one["type"] == kind), {"status": "", "message": ""})


async def says(cluster: Cluster, path: str, kind: str, status: str, word: str) -> None:
    """Wait until an object says this of itself."""
    await until_answer(
        lambda: condition(cluster, path, kind),
        lambda found: found["status"] == status and word in found["message"],
        f"{kind} of {path} is {status}: {word}",
    )
