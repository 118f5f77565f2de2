# SPDX-License-Identifier: Apache-2.0
"""Workload attestor of a sidecar that serves a Kubernetes node: to what a process is, it adds which pod it is of.

The kernel says in which container's cgroup the process is, the kubelet (or the API server) what that container is. A
process of no pod has the selectors that it has anywhere. One of a pod that cannot be told just now has to ask again: it
is never taken for a process of no pod.
"""

from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field
from typing import Final

from firedoor.certs import Selector
from firedoor.sidecar import proc
from firedoor.sidecar.attestor import LiveCaller, WorkloadAttestor
from firedoor.sidecar.errors import CallerRefused
from firedoor.sidecar.pod_cgroup import CgroupUnreadable, Places, PodContainer
from firedoor.sidecar.pod_finder import PodFinder

_UNTELLABLE: Final = "a pod that cannot be told"


@dataclass(frozen=True, slots=True)
class _Pod:
    """With whom a process of a pod is counted; which container it was in then, so that this is not read again."""

    uid: str
    container: PodContainer = field(compare=False)


class NodeAttestor:
    """Attests the processes of a node. `unix` says what they are apart from pods."""

    def __init__(
        self,
        unix: WorkloadAttestor,
        finder: PodFinder,
        places: Places,
        read: Callable[[int], bytes] = proc.read_cgroup,
    ) -> None:
        self._unix, self._finder, self._places, self._read = unix, finder, places, read

    async def attest(self, caller: LiveCaller, keys: Collection[str], counted: Hashable = None) -> frozenset[Selector]:
        """Return a caller's selectors. Raise CallerRefused when it ends or changes, NotReady for want of facts.

        The process itself is looked at last: it may have waited long for its pod to be known.
        """
        if caller.pid is None or caller.pid <= 0:
            return await self._unix.attest(caller, keys)
        before = counted.container if isinstance(counted, _Pod) else self._container(caller, caller.pid)
        found = None if before is None else await self._finder.container(before)
        own = await self._unix.attest(caller, keys)
        if self._container(caller, caller.pid) != before:
            raise CallerRefused("the calling process has moved to another container since it asked")
        if found is None:
            return own
        pod, container = found
        return own | pod.selectors_in(container)

    def counted_as(self, caller: LiveCaller) -> Hashable:
        """Return the pod, or the user of a process of none. Raise CallerRefused when it has ended.

        Not the user within the pod: pods of many tenants have uid 0, and a pod that may change its user has all of
        them. Nor the path of the cgroup, below which a pod makes as many as it likes: those in pods that cannot be told
        are counted together, and get no identity anyway.
        """
        if caller.pid is None or caller.pid <= 0:
            return self._unix.counted_as(caller)
        try:
            found = self._places.find(self._read(caller.pid))
        except CgroupUnreadable:
            return _UNTELLABLE
        except proc.ProcError as error:
            raise CallerRefused(str(error)) from error
        if not caller.alive():
            raise CallerRefused("the calling process has ended")
        return self._unix.counted_as(caller) if found is None else _Pod(found.pod_uid, found)

    def _container(self, caller: LiveCaller, pid: int) -> PodContainer | None:
        try:
            found = self._places.find(self._read(pid))
        except (proc.ProcError, CgroupUnreadable) as error:
            raise CallerRefused(str(error)) from error
        if not caller.alive():
            raise CallerRefused("the calling process has ended")
        return found
