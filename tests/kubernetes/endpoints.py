# SPDX-License-Identifier: Apache-2.0
"""A namespace's Services, pods and EndpointSlices, as the controllers that are not there would keep them."""

from __future__ import annotations

from typing import Any

from tests.kubernetes.api import AlreadyExists
from tests.kubernetes.cluster import Cluster

SLICES = "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices"
Seen = dict[str, Any]


class Endpoints:
    """One namespace of a cluster."""

    def __init__(self, cluster: Cluster, prefix: str) -> None:
        self.cluster, self.namespace = cluster, cluster.namespace(prefix)

    def pod(self, name: str, address: str, segment: str = "registry", **how: Any) -> Seen:
        """Have a pod run at an address, in a segment."""
        annotations = {"firedoor.dev/ports": how.pop("ports", "9000/http")}
        labels = {"firedoor.dev/segment": segment}
        return self.cluster.pod(
            self.namespace, name, node="worker", address=address, labels=labels, annotations=annotations, **how
        )

    def service(self, name: str, port: int = 80, **spec: Any) -> list[str]:
        """Make a Service; return its ClusterIPs."""
        ports = [{"port": port, "targetPort": 9000, "protocol": "TCP"}]
        body = {"metadata": {"name": name}, "spec": {"ports": ports, "ipFamilyPolicy": "PreferDualStack", **spec}}
        made = self.cluster.api().post(f"/api/v1/namespaces/{self.namespace}/services", body)
        return [str(one) for one in made["spec"].get("clusterIPs", ())]

    def slice(self, of: str, *pods: Seen, name: str = "", port: int = 9000) -> None:
        """Say who is behind a Service; what was said before under that name counts no more."""
        found = [
            {
                "addresses": [pod["status"]["podIP"]],
                "conditions": {"ready": True},
                "targetRef": {"kind": "Pod", **{key: pod["metadata"][key] for key in ("name", "namespace", "uid")}},
            }
            for pod in pods
        ]
        self.write(of, found, name or f"{of}-1", port)

    def write(self, of: str, endpoints: list[Seen], name: str, port: int = 9000) -> None:
        """Write a slice with any endpoints."""
        labels = {"kubernetes.io/service-name": of}
        body = {
            "metadata": {"name": name, "labels": labels},
            "addressType": "IPv4",
            "ports": [{"name": "", "port": port, "protocol": "TCP"}],
            "endpoints": endpoints,
        }
        path = SLICES.format(self.namespace)
        try:
            self.cluster.api().post(path, body)
        except AlreadyExists:
            self.cluster.api().put(f"{path}/{name}", body)

    def add(self, name: str, pod: Seen) -> None:
        """Add a pod to a slice, as the controller does it: in place."""
        path = f"{SLICES.format(self.namespace)}/{name}"
        now = self.cluster.api().get(path)
        target = {"kind": "Pod", **{key: pod["metadata"][key] for key in ("name", "namespace", "uid")}}
        added = {"addresses": [pod["status"]["podIP"]], "conditions": {"ready": True}, "targetRef": target}
        self.cluster.api().put(path, {**now, "endpoints": [*(now.get("endpoints") or []), added]})
