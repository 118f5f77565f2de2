# SPDX-License-Identifier: Apache-2.0
"""Addresses, ports and labels that exports name beside the policy's own."""

from __future__ import annotations

from typing import Any, Final

from firedoor.segments.well_known import FLOWS

# Where clouds hand credentials to whoever asks; tests/vectors/metadata_addresses.json, as capture refuses them.
METADATA_V4: Final = (
    "100.100.100.200/32",
    "168.63.129.16/32",
    "169.254.169.254/32",
    "169.254.170.2/32",
    "169.254.170.23/32",
)
METADATA_V6: Final = ("fd00:c1::a9fe:a9fe/128", "fd00:ec2::23/128", "fd00:ec2::254/128", "fd20:ce::254/128")
ALL_V4: Final = "0.0.0.0/0"
ALL_V6: Final = "::/0"
# NodeLocal DNSCache listens there on every node.
NODE_DNS: Final = "169.254.20.10/32"
DNS_PORT: Final = 53
DNS_NAMESPACE: Final = "kube-system"
DNS_LABEL: Final = ("k8s-app", "kube-dns")
# Istio's ambient mesh sends kubelets' probes from there.
AMBIENT_PROBES: Final = "169.254.7.127/32"
# Set by the API server itself, so nobody names a namespace by it who does not own it.
NAMESPACE_LABEL: Final = "kubernetes.io/metadata.name"
BROKER_LABEL: Final = ("app.kubernetes.io/name", "firedoor-broker")
MANAGED: Final = {"app.kubernetes.io/managed-by": "firedoor"}
# All annotations of an object together may have 256 KiB; a reader has given up before.
_MAX_FLOWS: Final = 200

Object = dict[str, Any]


def metadata(name: str, namespace: str | None, flows: tuple[str, ...] = ()) -> Object:
    """Return the metadata of an exported object, with the flows that it comes from."""
    made: Object = {"name": name}
    if namespace is not None:
        made["namespace"] = namespace
    made["labels"] = dict(MANAGED)
    if flows:
        more = f" and {len(flows) - _MAX_FLOWS} more" if len(flows) > _MAX_FLOWS else ""
        made["annotations"] = {FLOWS: " ".join(flows[:_MAX_FLOWS]) + more}
    return made
