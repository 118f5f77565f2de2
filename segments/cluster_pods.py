# SPDX-License-Identifier: Apache-2.0
"""What runs in a cluster, read from the objects that `kubectl get -o json` prints.

A list of a cluster is long and written by many; what has another shape than the API gives it is left out, and counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

from firedoor.segments.errors import InventoryError
from firedoor.segments.pod_ports import PodPort, port_words
from firedoor.segments.well_known import (
    CAPTURE,
    CONTAINERS,
    EXCLUDE,
    INJECT,
    LEFT,
    PORTS,
    REQUIRED,
    SEGMENT,
    SIDECAR_CONTAINER,
    STATUS,
    UDP,
)

# Of a ReplicaSet's name, what is not its Deployment's.
_TEMPLATE: Final = "pod-template-hash"
_OVER: Final = ("Succeeded", "Failed")
Object = Mapping[str, Any]


@final
@dataclass(frozen=True, slots=True)
class Pod:
    """One pod that has not ended. `owner`: who makes such pods, such as `Deployment/vllm`; the pod itself if nobody."""

    namespace: str
    name: str
    owner: str
    account: str
    segment: str
    has_sidecar: bool
    captured: bool
    opted_out: bool
    wanted: bool
    # Its namespace lets no pod be without; what of it is not captured all the same, by annotation; containers that may
    # be the sidecar's user, or become it.
    required: bool
    left_out: tuple[str, ...]
    loose: tuple[str, ...]
    host_network: bool
    # The ports whose annotation says that they take connections without TLS.
    audited: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True)
class Cluster:
    """What a list holds of what matters here. `unread`: objects of the three kinds without the API's shape."""

    pods: tuple[Pod, ...]
    policies: tuple[Object, ...]
    unread: int


def read_cluster(text: str | bytes) -> Cluster:
    """Read a List of Namespaces, Pods and packet filters. Raise InventoryError when it is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise InventoryError("this is no JSON: give what `kubectl get … --output json` prints") from None
    items = found.get("items") if isinstance(found, dict) else None
    if not isinstance(items, list):
        raise InventoryError("this is no List of objects: give what `kubectl get … --output json` prints")
    kinds: dict[str, list[Object]] = {}
    unread = 0
    for item in items:
        if _is_object(item):
            kinds.setdefault(item["kind"], []).append(item)
        else:
            unread += 1
    for kind in ("Namespace", "Pod"):
        if kind not in kinds:
            raise InventoryError(f"the list has no {kind}s, and this needs them: namespaces,pods,networkpolicies")
    spaces = {_name(one): _texts(one, "labels") for one in kinds["Namespace"]}
    pods = [_pod(one, spaces) for one in kinds["Pod"]]
    policies = [one for kind, found in kinds.items() if kind.endswith("NetworkPolicy") for one in found]
    unread += sum(one is None for one in pods)
    running = tuple(one for one in pods if isinstance(one, Pod))
    return Cluster(running, tuple(policies), unread)


def _is_object(item: object) -> bool:
    metadata = item.get("metadata") if isinstance(item, dict) else None
    return (
        isinstance(item, dict)
        and isinstance(item.get("kind"), str)
        and isinstance(metadata, dict)
        and isinstance(metadata.get("name"), str)
        and isinstance(metadata.get("namespace") or "", str)
    )


def _pod(one: Object, spaces: Mapping[str, Mapping[str, str]]) -> Pod | bool | None:
    """Return a pod; False for one that has ended, None for what is none."""
    spec, status = one.get("spec"), one.get("status") or {}
    if not isinstance(spec, dict) or not isinstance(status, dict):
        return None
    if status.get("phase") in _OVER:
        return False
    labels, annotations = _texts(one, "labels"), _texts(one, "annotations")
    namespace = str(one["metadata"].get("namespace") or "default")
    said, space = labels.get(INJECT), spaces.get(namespace, {})
    required = space.get(INJECT) == REQUIRED
    left = LEFT.get(space.get(CAPTURE, ""), frozenset())
    return Pod(
        namespace=namespace,
        name=_name(one),
        owner=_owner(one, labels),
        account=str(spec.get("serviceAccountName") or "default"),
        segment=labels.get(SEGMENT, ""),
        has_sidecar=_has_sidecar(spec),
        captured=_captured(annotations.get(STATUS, "")),
        opted_out=said == "disabled",
        wanted=required or said == "enabled" or (space.get(INJECT) == "enabled" and said != "disabled"),
        required=required,
        left_out=tuple(key for key in (CAPTURE, EXCLUDE, UDP) if key not in left and annotations.get(key, "").strip()),
        loose=tuple(_loose(spec)),
        host_network=spec.get("hostNetwork") is True,
        audited=tuple(
            word for word in port_words(annotations.get(PORTS, "")) if (p := PodPort.parse(word)) and p.audit
        ),
    )


def _has_sidecar(spec: Object) -> bool:
    found = spec.get("initContainers")
    return isinstance(found, list) and any(
        isinstance(one, dict) and one.get("name") == SIDECAR_CONTAINER and one.get("restartPolicy") == "Always"
        for one in found
    )


def _loose(spec: Object) -> Iterator[str]:
    """Name the containers whose user only their image says, and those that may become another."""
    whole = _mapping(spec.get("securityContext"))
    for kind in ("initContainers", "containers"):
        found = spec.get(kind)
        for one in found if isinstance(found, list) else ():
            own = _mapping(_mapping(one).get("securityContext"))
            user, capabilities = own.get("runAsUser", whole.get("runAsUser")), _mapping(own.get("capabilities"))
            added = {name.removeprefix("CAP_") for name in _capitals(capabilities.get("add"))}
            # As it is read by a runtime, which knows no CAP_ALL.
            stays = "ALL" in _capitals(capabilities.get("drop")) and "SETUID" not in added
            keeps = own.get("allowPrivilegeEscalation") is False and stays
            name = str(_mapping(one).get("name", ""))[:63]
            if name not in CONTAINERS and not (isinstance(user, int) and keeps):
                yield name


def _capitals(found: object) -> set[str]:
    return {str(one).upper() for one in found} if isinstance(found, list) else set()


def _mapping(value: object) -> Object:
    return value if isinstance(value, dict) else {}


def _captured(status: str) -> bool:
    try:
        found = json.loads(status)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("captured") is True


def _owner(one: Object, labels: Mapping[str, str]) -> str:
    references = one["metadata"].get("ownerReferences")
    for reference in references if isinstance(references, list) else ():
        if isinstance(reference, dict) and reference.get("controller") is True:
            kind, name = str(reference.get("kind")), str(reference.get("name"))
            template = labels.get(_TEMPLATE)
            if kind == "ReplicaSet" and template and name.endswith(f"-{template}"):
                return f"Deployment/{name.removesuffix(f'-{template}')}"
            return f"{kind}/{name}"
    return f"Pod/{_name(one)}"


def _name(one: Object) -> str:
    return str(one["metadata"]["name"])


def _texts(one: Object, key: str) -> dict[str, str]:
    found = one["metadata"].get(key)
    return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}
