# SPDX-License-Identifier: Apache-2.0
"""What a cluster's objects say of the pods of a node, and what becomes selectors, in SPIRE's words. Pure.

    k8s:ns:inference            k8s:sa:vllm                  k8s:node-name:gpu-1
    k8s:pod-name:vllm-0         k8s:pod-uid:0b3f…            k8s:pod-label:app:vllm
    k8s:pod-owner:Job:train     k8s:pod-owner-uid:Job:77c1…
    k8s:pod-image:<image>       k8s:pod-image-count:2        and the same with pod-init-image
    k8s:container-name:app      k8s:container-image:<image>

Labels and owners are chosen by whoever may write the pod. An image is there twice: as the pod asks for it, and by the
digest that the runtime found.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from firedoor.certs import Selector
from firedoor.certs.pod_token import is_namespace, is_object_name
from firedoor.certs.selectors import selectors_of
from firedoor.sidecar.pod_cgroup import PodContainer

TYPE: Final = "k8s"
# A kubelet has some hundred at most.
MAX_PODS: Final = 5000
UID: Final = re.compile(r"[a-zA-Z0-9-]{1,63}")
_ID: Final = re.compile(r"[a-z0-9-]{1,32}://(?P<id>[0-9a-f]{64})")
_ENDED: Final = ("Succeeded", "Failed")
# What the kubelet writes into the object that stands for a pod of a file: the hash that its cgroup is named by.
_HASH: Final = "kubernetes.io/config.hash"
_MIRROR: Final = "kubernetes.io/config.mirror"


class PodUnreadable(Exception):
    """An object that is no pod as the API has it."""


@dataclass(frozen=True, slots=True)
class Container:
    """A container as the kubelet reports it. `id` is empty before the runtime has made it."""

    id: str
    name: str
    images: frozenset[str]
    running: bool

    @property
    def values(self) -> Iterator[str]:
        """The selectors that are this container's own."""
        yield f"container-name:{self.name}"
        yield from (f"container-image:{image}" for image in self.images)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pod:
    """A pod as it is now. `cgroup_uid`: what its cgroup is named by, the UID but for pods of files."""

    uid: str
    cgroup_uid: str
    namespace: str
    name: str
    service_account: str
    node: str
    ended: bool
    labels: tuple[tuple[str, str], ...]
    # Kind, name, UID.
    owners: tuple[tuple[str, str, str], ...]
    containers: tuple[Container, ...]
    init_containers: tuple[Container, ...]
    # Containers that somebody put into the pod while it ran (`kubectl debug`), by ID.
    ephemeral: frozenset[str]

    @property
    def selectors(self) -> frozenset[Selector]:
        """What the pod is, whichever of its containers asks."""
        return selectors_of(TYPE, self._values())

    def selectors_in(self, container: Container) -> frozenset[Selector]:
        """What the pod is, and which container of it."""
        return self.selectors | selectors_of(TYPE, container.values)

    def container(self, container_id: str) -> Container | None:
        """Return the container with this ID, if it runs."""
        every = (*self.containers, *self.init_containers)
        return next((one for one in every if one.id == container_id and one.running), None)

    def _values(self) -> Iterator[str]:
        yield from (f"ns:{self.namespace}", f"sa:{self.service_account}", f"node-name:{self.node}")
        yield from (f"pod-name:{self.name}", f"pod-uid:{self.uid}")
        for prefix, group in (("pod", self.containers), ("pod-init", self.init_containers)):
            yield f"{prefix}-image-count:{len(group)}"
            yield from (f"{prefix}-image:{image}" for one in group for image in one.images)
        yield from (f"pod-label:{key}:{value}" for key, value in self.labels)
        for kind, name, uid in self.owners:
            yield from (f"pod-owner:{kind}:{name}", f"pod-owner-uid:{kind}:{uid}")


def read_pods(answer: Mapping[str, Any], node: str) -> tuple[Pod, ...]:
    """Read a PodList; pods that are on no node, or on another one, are none of ours. Raise PodUnreadable.

    An object that is no pod is left out: one that nobody understands takes nothing from the others.
    """
    items = answer.get("items")
    # A kubelet without pods says null; who says nothing at all has not said that there are none.
    if items is None and "items" in answer:
        items = []
    if answer.get("kind") != "PodList" or not isinstance(items, list):
        raise PodUnreadable("the answer is no list of pods")
    if len(items) > MAX_PODS:
        raise PodUnreadable(f"the answer has more than {MAX_PODS} pods")
    return tuple(pod for item in items if (pod := pod_of(item, node)) is not None)


def pod_of(item: object, node: str) -> Pod | None:
    """Read one pod; None when it is no pod of this node."""
    try:
        return read_pod(item, node)
    except PodUnreadable:
        return None


def read_pod(item: object, node: str) -> Pod:
    """Read a pod of this node. Raise PodUnreadable."""
    whole = _object(item)
    metadata, spec, status = (_object(whole.get(key)) for key in ("metadata", "spec", "status"))
    uid, name, namespace = (_text(metadata, key) for key in ("uid", "name", "namespace"))
    account = str(spec.get("serviceAccountName") or "")
    if not UID.fullmatch(uid) or not is_object_name(name) or not is_namespace(namespace):
        raise PodUnreadable("a pod without a name")
    if _text(spec, "nodeName") != node or (account and not is_object_name(account)):
        raise PodUnreadable("a pod of another node")
    return Pod(
        uid=uid,
        cgroup_uid=_cgroup_uid(metadata) or uid,
        namespace=namespace,
        name=name,
        service_account=account,
        node=node,
        ended=status.get("phase") in _ENDED,
        labels=tuple((k, v) for k, v in _object(metadata.get("labels")).items() if isinstance(v, str)),
        owners=tuple(_owners(metadata)),
        containers=tuple(_containers(status, "containerStatuses")),
        init_containers=tuple(_containers(status, "initContainerStatuses")),
        ephemeral=frozenset(one.id for one in _containers(status, "ephemeralContainerStatuses") if one.id),
    )


def find_container(pods: Sequence[Pod], seen: PodContainer) -> tuple[Pod, Container] | None:
    """Return the container that a cgroup names: in the very pod, and running. None also when two pods claim it."""
    found = [
        (pod, one)
        for pod in pods
        if pod.cgroup_uid == seen.pod_uid and not pod.ended and (one := pod.container(seen.container_id))
    ]
    return found[0] if len(found) == 1 else None


def _cgroup_uid(metadata: Mapping[str, Any]) -> str:
    """Return the hash of a pod of a file, from the object that stands for it; empty for others.

    Anybody may write annotations; that the container is one of the pod's as well, the kubelet says.
    """
    notes = _object(metadata.get("annotations"))
    found = notes.get(_HASH)
    return found if isinstance(found, str) and found == notes.get(_MIRROR) and UID.fullmatch(found) else ""


def _owners(metadata: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for one in _list(metadata.get("ownerReferences")):
        yield _text(one, "kind"), _text(one, "name"), _text(one, "uid")


def _containers(status: Mapping[str, Any], key: str) -> Iterator[Container]:
    for one in _list(status.get(key)):
        found = _ID.fullmatch(str(one.get("containerID") or ""))
        images = (one.get("image"), one.get("imageID"))
        yield Container(
            id=found["id"] if found else "",
            name=_text(one, "name"),
            images=frozenset(image for image in images if isinstance(image, str) and image),
            running=isinstance(_object(one.get("state")).get("running"), dict),
        )


def _object(found: object) -> Mapping[str, Any]:
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise PodUnreadable("a field of a pod is no object")
    return found


def _list(found: object) -> Iterator[Mapping[str, Any]]:
    if found is not None and not isinstance(found, list):
        raise PodUnreadable("a field of a pod is no list")
    return (_object(one) for one in found or ())


def _text(found: Mapping[str, Any], key: str) -> str:
    value = found.get(key)
    if not isinstance(value, str):
        raise PodUnreadable(f"a pod without {key}")
    return value
