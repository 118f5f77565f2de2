# SPDX-License-Identifier: Apache-2.0
"""Segments that admit pods of the tests' cluster, `prod`, by what the broker attests of them."""

from __future__ import annotations

import yaml


def pod_segment(name: str, *node: str, trust: str = "high", members: tuple[str, ...] = ()) -> str:
    """Return a document. `node`: selectors that pods need beside the cluster; `members`: beside the usual IDs."""
    spec = {
        "function": name,
        "trust": trust,
        "members": [f"spiffe://{{td}}/segment/{name}/**", *members],
        "admission": {"node": ["k8s_pod:cluster:prod", *node]},
    }
    return yaml.safe_dump(
        {"apiVersion": "firedoor.dev/v1alpha1", "kind": "Segment", "metadata": {"name": name}, "spec": spec},
        sort_keys=False,
    )


# For pods of namespaces with the label `segment: inference`.
INFERENCE = pod_segment("inference", "k8s_pod:ns-label:segment:inference")
