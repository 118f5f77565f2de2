# SPDX-License-Identifier: Apache-2.0
"""Which version of `certificates.k8s.io` a cluster has for a kind of ours: v1 from Kubernetes 1.37, v1beta1 before."""

from __future__ import annotations

from typing import Final

from firedoor.cluster.api import ClusterApi

GROUP: Final = "/apis/certificates.k8s.io"
VERSIONS: Final = ("v1", "v1beta1")
# Whose certificates and roots ours are, for whoever projects them.
SIGNER: Final = "firedoor.dev/segment"
BUNDLES: Final = "clustertrustbundles"
REQUESTS: Final = "podcertificaterequests"


async def served(api: ClusterApi, plural: str) -> str:
    """Return the latest version that has the kind, nothing when none has. Raise ClusterUnavailable."""
    for version in VERSIONS:
        found = await api.get(f"{GROUP}/{version}")
        kinds = found.get("resources") if found is not None else None
        if isinstance(kinds, list) and any(isinstance(one, dict) and one.get("name") == plural for one in kinds):
            return version
    return ""
