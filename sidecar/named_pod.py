# SPDX-License-Identifier: Apache-2.0
"""A pod of this node that another program refers to as an object of Kubernetes.

A name means whichever pod has it now, so the UID of the one that was found first is held on to: when it is gone, so is
what was referred to, whatever has its name by then.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from firedoor.certs.pod_token import is_namespace, is_object_name
from firedoor.sidecar.errors import ReferenceInvalid, RequestRefused, WorkloadGone
from firedoor.sidecar.pod_objects import UID, Pod
from firedoor.sidecar.pod_source import PodSource
from firedoor.sidecar.streams import Selectors
from firedoor.wire import brokerapi_pb2

# Nobody tells when a pod changes or is gone: a stream about it looks again this often.
RECHECK_SECONDS: Final = 5.0
# What is known of a pod may be so old when somebody asks.
_KNOWN_SECONDS: Final = 1.0
# As the API names the group without a name.
_CORE: Final = "core"


@dataclass(frozen=True, slots=True)
class ObjectReference:
    """A pod by namespace and name, by UID, or by both, of which both must hold. What is not given is empty."""

    namespace: str
    name: str
    uid: str

    @classmethod
    def read(cls, given: brokerapi_pb2.KubernetesObjectReference) -> "ObjectReference":
        """Check what a client refers to. Raise ReferenceInvalid, or RequestRefused for another kind than pods."""
        kind, key = given.type, given.key
        if not kind.plural or not kind.group:
            raise ReferenceInvalid(f"type.plural and type.group must be given; the group of the core API is `{_CORE}`")
        if (kind.plural, kind.group) != ("pods", _CORE):
            raise RequestRefused("this sidecar knows pods, and no other objects of Kubernetes")
        if not given.HasField("key") and not given.uid:
            raise ReferenceInvalid("key, uid or both must be given")
        if given.HasField("key") and not (is_namespace(key.namespace) and is_object_name(key.name)):
            raise ReferenceInvalid("key must have the namespace and the name of a pod")
        if given.uid and not UID.fullmatch(given.uid):
            raise ReferenceInvalid("uid is none of Kubernetes")
        return cls(key.namespace, key.name, given.uid)

    def means(self, pod: Pod) -> bool:
        """Say whether this is the pod."""
        by_key = not self.name or (pod.namespace, pod.name) == (self.namespace, self.name)
        return by_key and (not self.uid or pod.uid == self.uid)


class NamedPod:
    """The pod. Made by `find_pod`."""

    # Nobody tells when it ends.
    ended = None
    recheck_seconds: float | None = RECHECK_SECONDS

    def __init__(self, source: PodSource, found: Pod) -> None:
        self._source, self._reference = source, ObjectReference("", "", found.uid)

    async def attest(self) -> Selectors:
        """Return its selectors as they are now. Raise WorkloadGone, or NotReady when nobody can be asked for long."""
        return _one(self._reference, await self._source.pods(_KNOWN_SECONDS)).selectors

    async def confirm(self) -> None:
        """Raise WorkloadGone when it is gone."""
        await self.attest()


async def find_pod(source: PodSource, reference: ObjectReference) -> NamedPod:
    """Look a pod up. Raise WorkloadGone, or NotReady when nobody can be asked."""
    return NamedPod(source, _one(reference, await source.pods(_KNOWN_SECONDS)))


def _one(reference: ObjectReference, pods: Sequence[Pod]) -> Pod:
    found = next((pod for pod in pods if reference.means(pod) and not pod.ended), None)
    if found is None:
        raise WorkloadGone("there is no such pod on this node")
    return found
