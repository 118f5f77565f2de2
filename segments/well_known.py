# SPDX-License-Identifier: Apache-2.0
"""What objects of a cluster carry of ours: the keys of labels and annotations, and names of containers.

Each key stands here alone. What a pod asks for by them, the broker's injector documents and reads. Templates and
manifests cannot import: a test holds what they name to what stands here.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

PREFIX: Final = "firedoor.dev/"
"""What all of our keys begin with."""

INJECT: Final = f"{PREFIX}inject"
"""Label of namespaces and pods: whether pods have a sidecar."""
NODE_SOCKET: Final = f"{PREFIX}node-socket"
"""Label of namespaces: pods may mount the socket of their node's sidecar, and no other folder of the node."""
SEGMENT: Final = f"{PREFIX}segment"
"""Label and annotation of pods: the segment. Packet filters go by the label, which the injector writes."""
ENFORCING: Final = f"{PREFIX}enforcing"
"""Label of pods, which the injector writes: whether what arrives and leaves is captured, for `kubectl get pods -L`."""
CAPTURE: Final = f"{PREFIX}capture"
"""Annotation of pods: `none` captures nothing. Label of namespaces that require sidecars: one of LEFT."""
PORTS: Final = f"{PREFIX}ports"
"""Annotation of pods: what arrives, by port; `pod_ports` reads it."""
EXCLUDE: Final = f"{PREFIX}capture.exclude"
"""Annotation of pods: what passes by the sidecar, and why."""
UDP: Final = f"{PREFIX}udp"
"""Annotation of pods: `pass` lets UDP and ICMP pass by the sidecar."""
DNS: Final = f"{PREFIX}dns"
"""Annotation of pods: the only names that may be asked for."""
OUTBOUND: Final = f"{PREFIX}outbound"
"""Annotation of pods: listeners for what leaves, where nothing is captured."""
STATUS: Final = f"{PREFIX}status"
"""Annotation of pods, which the injector writes: the version of the layout, the identity, whether all is captured."""
FORM: Final = f"{PREFIX}id"
"""`userAnnotations` of a pod's certificate volume: which form its ID has."""
TRUST_DOMAIN: Final = f"{PREFIX}trust-domain"
"""Annotation of what a broker writes: the trust domain whose it is."""
FLOWS: Final = f"{PREFIX}flows"
"""Annotation of exported packet filters: the flows that they come from."""

REQUIRED: Final = "required"
"""INJECT of a namespace where no pod is without a sidecar."""
EXCLUSIONS: Final = "exclusions"
"""CAPTURE of such a namespace: pods may say what passes by."""
OPTIONAL: Final = "optional"
"""CAPTURE of such a namespace: that, and pods may have nothing captured."""
LEFT: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {EXCLUSIONS: frozenset({EXCLUDE, UDP}), OPTIONAL: frozenset({EXCLUDE, UDP, CAPTURE})}
)
"""Which annotations CAPTURE leaves to the pods of such a namespace."""

SIDECAR_CONTAINER: Final = "firedoor-sidecar"
"""The container that stays."""
CAPTURE_CONTAINER: Final = "firedoor-capture"
"""The container before it, which writes the rules and ends."""
CONTAINERS: Final = frozenset({SIDECAR_CONTAINER, CAPTURE_CONTAINER})
"""What the injector adds to a pod."""
