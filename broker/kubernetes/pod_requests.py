# SPDX-License-Identifier: Apache-2.0
"""What a PodCertificateRequest asks for, and which pod the cluster's objects show it to be for. Pure.

A kubelet makes the request; the pod, its service account and its node are looked up, and have to be the very ones. What
the pod is then said to be is what its own sidecar would be attested as: nothing of it is what the request says.

| condition | reason | |
|---|---|---|
| `Denied` | `UnsupportedKeyType` | KEP-4317's |
| `Denied` | `InvalidUnverifiedUserAnnotations` | KEP-4317's: an annotation that nobody knows |
| `Denied` | `PodDiffers` | pod, account or node is gone, ending, or another |
| `Denied` | `NotAdmitted` | no entry gives the ID to this pod, its segment does not admit it, or it is banned |
| `Failed` | `InvalidRequest` | it holds no key, or no proof that somebody has it |
"""

from __future__ import annotations

import base64
import binascii
import calendar
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, Final, final

from firedoor.broker.injector import InjectionRefused, wishes
from firedoor.broker.kubernetes.pod_facts import PodFacts, namespace_labels, pod_selectors
from firedoor.certs import K8S_POD, PodClaims, PodTokenError, Selector, SpiffeId, TrustDomain
from firedoor.certs.selectors import selectors_of
from firedoor.cluster.errors import ObjectsUnreadable
from firedoor.cluster.objects import mapping
from firedoor.segments.well_known import FORM

UNSUPPORTED_KEY: Final = "UnsupportedKeyType"
ANNOTATIONS: Final = "InvalidUnverifiedUserAnnotations"
DIFFERS: Final = "PodDiffers"
NOT_ADMITTED: Final = "NotAdmitted"
INVALID: Final = "InvalidRequest"
# What an author of pods may say in `userAnnotations` by FORM, which of the two its ID has.
ISTIO: Final = "istio"
# The API's own bounds: of a request and of what was in its place, and of names.
_MAX_BYTES: Final = 10 * 1024
_MAX_TEXT: Final = 253
# One may be there. Of two one is refused.
_MOST_ANNOTATIONS: Final = 2
_SETTLED: Final = ("Issued", "Denied", "Failed")
# The type of selectors that workloads have.
_K8S: Final = "k8s"
_SENTENCES: Final = {
    "pod_gone": "there is no pod of that name any more",
    "pod_ended": "the pod has ended or is being deleted",
    "pod_differs": "the pod of that name has another UID, service account or node than the request says",
    "namespace_gone": "the namespace is being deleted",
}


class RequestRefused(Exception):
    """The request gets no certificate, whoever asks again. `str()` is a sentence for whoever deploys the pod."""

    condition: ClassVar[str] = "Denied"

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class RequestFailed(RequestRefused):
    """Nothing could be made of the request."""

    condition = "Failed"


@final
@dataclass(frozen=True, slots=True)
class PodRequest:
    """One request as it is stored. Nothing of it is proved."""

    namespace: str
    name: str
    uid: str
    version: str
    pod: str
    pod_uid: str
    account: str
    account_uid: str
    node: str
    node_uid: str
    # Seconds.
    max_life: int
    # Unix seconds, by the API server's clock.
    created_at: int
    # A PKCS#10 request; before Kubernetes 1.36 a public key, and a signature of the pod's UID.
    csr: bytes
    public_key: bytes
    proof: bytes
    annotations: Mapping[str, str]

    @property
    def key(self) -> str:
        """What tells it from others."""
        return f"{self.namespace}/{self.name}"


def read(seen: Mapping[str, Any]) -> tuple[str, PodRequest | None]:
    """Return a request's key, and what it asks for; None when it has its answer. Raise ObjectsUnreadable."""
    metadata, spec, status = (mapping(seen.get(part)) for part in ("metadata", "spec", "status"))
    namespace, name = _text(metadata.get("namespace")), _text(metadata.get("name"))
    if not namespace or not name:
        raise ObjectsUnreadable("it showed a PodCertificateRequest without a name")
    conditions = status.get("conditions")
    if isinstance(conditions, list) and any(mapping(one).get("type") in _SETTLED for one in conditions):
        return f"{namespace}/{name}", None
    life = spec.get("maxExpirationSeconds")
    annotations = mapping(spec.get("unverifiedUserAnnotations"))
    made = PodRequest(
        namespace=namespace,
        name=name,
        uid=_text(metadata.get("uid")),
        version=_text(metadata.get("resourceVersion")),
        pod=_text(spec.get("podName")),
        pod_uid=_text(spec.get("podUID")),
        account=_text(spec.get("serviceAccountName")),
        account_uid=_text(spec.get("serviceAccountUID")),
        node=_text(spec.get("nodeName")),
        node_uid=_text(spec.get("nodeUID")),
        max_life=life if isinstance(life, int) else 0,
        created_at=_time(metadata.get("creationTimestamp")),
        csr=_bytes(spec.get("stubPKCS10Request")),
        public_key=_bytes(spec.get("pkixPublicKey")),
        proof=_bytes(spec.get("proofOfPossession")),
        annotations={key[:_MAX_TEXT]: _text(value) for key, value in islice(annotations.items(), _MOST_ANNOTATIONS)},
    )
    return made.key, made


@final
@dataclass(frozen=True, slots=True, init=False)
class RequestingPod:
    """A pod that the cluster's objects show to be the one of a request. Made by `requesting_pod` alone."""

    # As its own sidecar would be called.
    agent_id: SpiffeId
    # What it asks for; whether it may have that, entry and segment say.
    spiffe_id: SpiffeId
    # As the broker attests pods (`k8s_pod`), and as workloads of pods are seen (`k8s`).
    attested: frozenset[Selector]
    workload: frozenset[Selector]

    def __init__(self) -> None:
        raise TypeError("RequestingPod is made by requesting_pod()")


@dataclass(frozen=True, slots=True)
class Objects:
    """What the API server has under the names of a request; None: nothing."""

    pod: Mapping[str, Any] | None
    account: Mapping[str, Any] | None
    node: Mapping[str, Any] | None
    namespace: Mapping[str, Any] | None


def requesting_pod(trust_domain: TrustDomain, cluster: str, asked: PodRequest, there: Objects) -> RequestingPod:
    """Hold a request against what is there. Raise RequestRefused."""
    istio = _wants_istio(asked.annotations)
    claims = PodClaims("", "", 0, 0, asked.namespace, asked.account, asked.pod, asked.pod_uid, asked.node)
    try:
        facts = PodFacts.read(there.pod, claims)
        of_namespace = namespace_labels(there.namespace)
    except PodTokenError as error:
        raise RequestRefused(DIFFERS, _SENTENCES.get(error.code, str(error))) from None
    for what, found, uid in (
        ("service account", there.account, asked.account_uid),
        ("node", there.node, asked.node_uid),
    ):
        if not uid or mapping((found or {}).get("metadata")).get("uid") != uid:
            raise RequestRefused(DIFFERS, f"the {what} of that name has another UID than the request says, or is gone")
    made = object.__new__(RequestingPod)
    values = {
        "agent_id": trust_domain.with_path(f"/spire/agent/{K8S_POD}/{cluster}/{asked.pod_uid}"),
        "spiffe_id": trust_domain.with_path(_path(asked, there.pod or {}, istio=istio)),
        "attested": pod_selectors(cluster, claims, facts, of_namespace),
        "workload": _workload(asked, facts),
    }
    for name, value in values.items():
        object.__setattr__(made, name, value)
    return made


def _wants_istio(annotations: Mapping[str, str]) -> bool:
    for key, value in annotations.items():
        if key != FORM or value != ISTIO:
            raise RequestRefused(ANNOTATIONS, f"userAnnotations may say `{FORM}: {ISTIO}`, and nothing else")
    return bool(annotations)


def _path(asked: PodRequest, pod: Mapping[str, Any], *, istio: bool) -> str:
    tail = f"/ns/{asked.namespace}/sa/{asked.account}"
    if istio:
        return tail
    try:
        return f"/segment/{wishes.segment_of(pod, asked.namespace)}{tail}"
    except InjectionRefused as error:
        raise RequestRefused(NOT_ADMITTED, f"which segment the pod is in cannot be told: {error}") from None


def _workload(asked: PodRequest, facts: PodFacts) -> frozenset[Selector]:
    """Return what an agent would see of a workload in the pod, in SPIRE's words."""
    values = [
        f"ns:{asked.namespace}",
        f"sa:{asked.account}",
        f"pod-name:{asked.pod}",
        f"pod-uid:{asked.pod_uid}",
        f"node-name:{facts.node_name}",
        *(f"pod-label:{key}:{value}" for key, value in facts.labels.items()),
    ]
    return selectors_of(_K8S, values)


def _bytes(value: object) -> bytes:
    """Read base64; what is none, or longer than the API takes, is nothing."""
    if not isinstance(value, str) or len(value) > 2 * _MAX_BYTES:
        return b""
    try:
        found = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return b""
    return found if len(found) <= _MAX_BYTES else b""


def _time(value: object) -> int:
    try:
        return calendar.timegm(time.strptime(_text(value), "%Y-%m-%dT%H:%M:%SZ"))
    except ValueError:
        return 0


def _text(value: object) -> str:
    return value if isinstance(value, str) and len(value) <= _MAX_TEXT else ""
