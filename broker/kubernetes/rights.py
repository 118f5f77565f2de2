# SPDX-License-Identifier: Apache-2.0
"""An API server as the broker asks it: what its service account may not do is said in the ClusterRole's words."""

from __future__ import annotations

from typing import Final

from firedoor.cluster.access import Access
from firedoor.cluster.api import ClusterApi

# Steps of the path of a kind of the core API in all namespaces: `/api/v1/pods`.
_LISTED: Final = 3


def cluster_api(name: str, access: Access) -> ClusterApi:
    """Return a client of the API server of a cluster."""
    return ClusterApi(f"the API server of cluster {name}", access, missing_right)


def missing_right(method: str, path: str) -> str:
    """Say what was refused, and where it is written down."""
    plural = _plural(path)
    verb = {"GET": "read", "POST": "create", "PATCH": "change", "DELETE": "delete"}[method]
    if path.endswith("/status"):
        verb = "write the status of"
    what = "review tokens" if plural == "tokenreviews" else f"{verb} {plural}"
    # Who attests reads objects by their names; who follows a kind lists it.
    named = len(path.strip("/").split("/")) > _LISTED
    where = "docs/nodes.md" if method == "GET" and path.startswith("/api/v1/") and named else "docs/kubernetes.md"
    where = "docs/nodes.md" if plural == "tokenreviews" else where
    return f"the broker's service account may not {what} ({where} has the ClusterRole)"


def _plural(path: str) -> str:
    """Return what a path leads to, in the API's word: `/api/v1/pods`, `/apis/<group>/<version>/flows/<name>`."""
    parts = path.strip("/").split("/")[2 if path.startswith("/api/") else 3 :]
    if not parts:
        return "which kinds there are"
    # Objects of a namespace are named below it.
    return parts[2] if parts[0] == "namespaces" and len(parts) > 2 else parts[0]
