# SPDX-License-Identifier: Apache-2.0
"""What registration keeps of pods, nodes and namespaces: small records, for there are thousands. Pure.

`said` has what ClusterSPIFFEIDs' templates may name beside names and labels: single values, and annotations.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, final

from firedoor.broker.kubernetes.certificates_api import SIGNER
from firedoor.cluster.objects import Seen, mapping, metadata, text
from firedoor.segments.well_known import SEGMENT

_ENDED: Final = ("Succeeded", "Failed")
# What the pods have that a kubelet shows of its own, from files of its node; nobody can take it away.
_STATIC: Final = "kubernetes.io/config.mirror"
# Kubernetes bounds all annotations of an object, and its labels only by its size.
_MAX_LABELS: Final = 256
# A template that names a longer value names none.
_MAX_VALUE: Final = 1024
# A UID has 36 characters.
_MAX_UID: Final = 64
Scalar = str | int | bool
# By the name that templates have for the part: its single values.
Said = Mapping[str, Scalar]


@final
@dataclass(frozen=True, slots=True)
class Pod:
    """One pod that has not ended."""

    uid: str
    namespace: str
    name: str
    account: str
    # Empty until it is bound.
    node: str
    labels: Mapping[str, str]
    # What it says that its segment is; its namespace's name unless it says something.
    segment: str
    # It is its own agent: it has a token that was made for that, or a certificate of ours that its kubelet asks for.
    own_agent: bool
    annotations: Mapping[str, str] = field(default_factory=dict)
    meta: Said = field(default_factory=dict)
    spec: Said = field(default_factory=dict)
    # Why nothing is registered for it, whatever selects it. It is there all the same.
    trouble: str = ""


@final
@dataclass(frozen=True, slots=True)
class Node:
    """One node."""

    uid: str
    name: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str] = field(default_factory=dict)
    meta: Said = field(default_factory=dict)
    spec: Said = field(default_factory=dict)


@final
@dataclass(frozen=True, slots=True)
class Slice:
    """Which pods, by UID, stand behind a Service, as one EndpointSlice says."""

    namespace: str
    service: str
    pods: frozenset[str]


def read_slice(seen: Seen) -> Slice | None:
    """Read an EndpointSlice; None when it is of no Service."""
    meta = metadata(seen)
    service = text(mapping(meta.get("labels")).get("kubernetes.io/service-name"))
    if not service:
        return None
    endpoints = seen.get("endpoints")
    targets = [mapping(mapping(one).get("targetRef")) for one in endpoints] if isinstance(endpoints, list) else []
    uids = frozenset(text(one.get("uid")) for one in targets if one.get("kind") == "Pod")
    return Slice(text(meta.get("namespace")), service, frozenset(uid for uid in uids if 0 < len(uid) <= _MAX_UID))


def read_pod(seen: Seen, audience: str, *, certificates: bool = False, whole: bool = False) -> Pod | None:
    """Read a pod; None when it has ended, and for a static pod: its node alone says which namespace it is in.

    `audience`: of tokens that pods attest with. `certificates`: whether those of pods are signed here. `whole`: with
    what is `said`.
    """
    meta, spec = metadata(seen), mapping(seen.get("spec"))
    if mapping(seen.get("status")).get("phase") in _ENDED or _STATIC in mapping(meta.get("annotations")):
        return None
    namespace, labels, annotations, trouble = text(meta.get("namespace")), dict[str, str](), dict[str, str](), ""
    try:
        labels, annotations = _texts(meta, "labels"), _texts(meta, "annotations")
        said = _said(meta, spec) if whole else {}
    except ValueError as error:
        trouble, said = str(error), {}
    return Pod(
        uid=text(meta.get("uid")),
        namespace=sys.intern(namespace),
        name=text(meta.get("name")),
        account=sys.intern(text(spec.get("serviceAccountName")) or "default"),
        node=sys.intern(text(spec.get("nodeName"))),
        labels=labels,
        segment=labels.get(SEGMENT) or annotations.get(SEGMENT) or namespace,
        own_agent=_has_source(spec, audience, certificates=certificates),
        trouble=trouble,
        **said,
    )


def read_node(seen: Seen, *, whole: bool = False) -> Node:
    """Read a node."""
    meta, spec = metadata(seen), mapping(seen.get("spec"))
    name, said = text(meta.get("name")), _said(meta, spec) if whole else {}
    return Node(text(meta.get("uid")), name, _texts(meta, "labels"), **said)


def read_labels(seen: Seen) -> Mapping[str, str]:
    """Read an object's labels."""
    return _texts(metadata(seen), "labels")


def _has_source(spec: Mapping[str, Any], audience: str, *, certificates: bool) -> bool:
    for volume in spec.get("volumes") or ():
        for source in mapping(mapping(volume).get("projected")).get("sources") or ():
            token, certificate = (
                mapping(mapping(source).get(key)) for key in ("serviceAccountToken", "podCertificate")
            )
            if audience and token.get("audience") == audience:
                return True
            if certificates and certificate.get("signerName") == SIGNER:
                return True
    return False


def _said(meta: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    return {"annotations": _texts(meta, "annotations"), "meta": _scalars(meta), "spec": _scalars(spec)}


# These change all the time, or are what the API server is about.
_LEFT_OUT: Final = frozenset({"resourceVersion", "generation", "managedFields", "selfLink"})


def _scalars(found: Mapping[str, Any]) -> dict[str, Scalar]:
    return {
        sys.intern(key): value
        for key, value in found.items()
        if key not in _LEFT_OUT and isinstance(value, str | int | bool) and _is_short(value)
    }


def _texts(meta: Mapping[str, Any], kind: str) -> dict[str, str]:
    found = mapping(meta.get(kind))
    if len(found) > _MAX_LABELS:
        raise ValueError(f"it has more than {_MAX_LABELS} {kind}")
    return {sys.intern(key): value for key, value in found.items() if isinstance(value, str) and _is_short(value)}


def _is_short(value: object) -> bool:
    return not isinstance(value, str) or len(value) <= _MAX_VALUE
