# SPDX-License-Identifier: Apache-2.0
"""What an API server's objects say of a pod whose token was verified, and what becomes selectors. Pure.

A token lives longer than its pod may. So the pod is looked up, and has to be the very one: UID, service account, node.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from firedoor.certs import K8S_POD, K8S_PSAT, PodClaims, PodTokenError, Selector
from firedoor.certs.selectors import selectors_of
from firedoor.cluster.objects import mapping, text

# Kubernetes bounds all annotations of an object, its labels only by its size.
_MAX_LABELS: Final = 256
_ENDED: Final = ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class PodFacts:
    """A pod as its cluster knows it."""

    node_name: str
    host_ip: str
    labels: Mapping[str, str]

    @classmethod
    def read(cls, pod: Mapping[str, Any] | None, claims: PodClaims) -> PodFacts:
        """Read a pod, and hold it against the token that names it. Raise PodTokenError."""
        if pod is None:
            raise PodTokenError("pod_gone")
        metadata, spec, status = (mapping(pod.get(part)) for part in ("metadata", "spec", "status"))
        node = text(spec.get("nodeName"))
        same = metadata.get("uid") == claims.pod_uid and spec.get("serviceAccountName") == claims.service_account
        # A pod without a node has no container that could show anything.
        if not same or not node or claims.node_name not in ("", node):
            raise PodTokenError("pod_differs")
        if metadata.get("deletionTimestamp") is not None or status.get("phase") in _ENDED:
            raise PodTokenError("pod_ended")
        return cls(node, text(status.get("hostIP")), _labels(metadata))


def namespace_labels(namespace: Mapping[str, Any] | None) -> Mapping[str, str]:
    """Return a namespace's labels. Raise PodTokenError when it is gone or going."""
    metadata = mapping((namespace or {}).get("metadata"))
    if namespace is None or metadata.get("deletionTimestamp") is not None:
        raise PodTokenError("namespace_gone")
    return _labels(metadata)


def node_facts(node: Mapping[str, Any] | None) -> tuple[str, Mapping[str, str]]:
    """Return a node's UID and labels. Raise PodTokenError."""
    metadata = mapping((node or {}).get("metadata"))
    uid = text(metadata.get("uid"))
    if not uid:
        raise PodTokenError("pod_differs")
    return uid, _labels(metadata)


def pod_selectors(
    cluster: str, claims: PodClaims, facts: PodFacts | None, of_namespace: Mapping[str, str]
) -> frozenset[Selector]:
    """Say what a pod is, for `k8s_pod`; labels only when it was looked up."""
    node = facts.node_name if facts else claims.node_name
    values = [
        f"cluster:{cluster}",
        f"ns:{claims.namespace}",
        f"sa:{claims.service_account}",
        f"pod-uid:{claims.pod_uid}",
        *([f"node:{node}"] if node else []),
        *(f"label:{key}:{value}" for key, value in (facts.labels if facts else {}).items()),
        *(f"ns-label:{key}:{value}" for key, value in of_namespace.items()),
    ]
    return selectors_of(K8S_POD, values)


def psat_selectors(
    cluster: str,
    claims: PodClaims,
    facts: PodFacts,
    node: tuple[str, Mapping[str, str]],
    pod_labels: Collection[str],
    node_labels: Collection[str],
) -> frozenset[Selector]:
    """Say what an agent's pod and its node are, in SPIRE's words; of labels those that the configuration lists."""
    values = [
        f"cluster:{cluster}",
        f"agent_ns:{claims.namespace}",
        f"agent_sa:{claims.service_account}",
        f"agent_pod_name:{claims.pod_name}",
        f"agent_pod_uid:{claims.pod_uid}",
        *([f"agent_node_ip:{facts.host_ip}"] if facts.host_ip else []),
        f"agent_node_name:{facts.node_name}",
        f"agent_node_uid:{node[0]}",
        *(f"agent_pod_label:{key}:{facts.labels[key]}" for key in pod_labels if key in facts.labels),
        *(f"agent_node_label:{key}:{node[1][key]}" for key in node_labels if key in node[1]),
    ]
    return selectors_of(K8S_PSAT, values)


def _labels(metadata: Mapping[str, Any]) -> Mapping[str, str]:
    found = {key: value for key, value in mapping(metadata.get("labels")).items() if isinstance(value, str)}
    if len(found) > _MAX_LABELS:
        raise PodTokenError("too_many_labels")
    return found
