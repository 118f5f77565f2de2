# SPDX-License-Identifier: Apache-2.0
"""Whom a node's sidecar asks which pods there are: the node's kubelet, or the cluster's API server.

Both answer with a PodList over TLS, to whoever shows a token; a kubelet has a certificate of its own.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import quote

from firedoor.cluster.access import Access
from firedoor.cluster.api import ClusterApi

_RIGHTS: Final = {
    "kubelet": "get nodes/pods, or nodes/proxy before Kubernetes 1.33",
    "api-server": "list and watch pods",
}


@dataclass(frozen=True, slots=True)
class PodAccess:
    """Whom to ask for the pods of which node, and as whom. `server_name`: whose certificate it shows."""

    node: str
    asks: Literal["kubelet", "api-server"]
    # host:port of the kubelet; URL of the API server, empty for that of our own cluster.
    address: str
    server_name: str
    ca: Path
    token: Path

    @property
    def access(self) -> Access:
        """Where it is, and as whom we come."""
        server = f"https://{self.address}" if self.asks == "kubelet" else self.address
        return Access(server, self.ca, self.token, self.server_name)

    @property
    def path(self) -> str:
        """Where the pods of the node are listed."""
        if self.asks == "kubelet":
            return "/pods"
        # Anybody may name a node in pods of his own: those that its kubelet does not take have failed, and are no news.
        fields = f"spec.nodeName={self.node},status.phase!=Failed,status.phase!=Succeeded"
        return f"/api/v1/pods?fieldSelector={quote(fields, safe='')}"

    def api(self) -> ClusterApi:
        """Return what asks. To be closed."""
        who = f"the kubelet at {self.address}" if self.asks == "kubelet" else "the API server"
        right = f"the account of this sidecar needs the right to {_RIGHTS[self.asks]} (docs/kubernetes-nodes.md)"
        return ClusterApi(f"{who} does not tell the pods of this node", self.access, lambda *_: right)

    def check(self) -> None:
        """Read what is needed, as it is now. Raise AccessUnusable."""
        self.access.check()
