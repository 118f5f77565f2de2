# SPDX-License-Identifier: Apache-2.0
"""Workload attestor of a pod's own auth socket: whoever reaches it is that pod.

    k8s:ns:inference  k8s:sa:vllm  k8s:pod-name:vllm-0  k8s:pod-uid:0b3f…  k8s:node-name:worker-1

The socket lies on a volume of this pod alone, and its programs are in PID namespaces of their own, where nobody here
could tell them apart. What the pod is, its projected token says. The broker takes none of this on trust: it admits a
pod's sidecar by what it attested itself.
"""

import asyncio
from collections.abc import Collection, Hashable
from typing import Final

from firedoor.certs import PodClaims, Selector
from firedoor.sidecar.attestor import LiveCaller
from firedoor.sidecar.errors import CallerRefused, NotReady, PodTokenUnusable
from firedoor.sidecar.pod_token import ClusterToken

TYPE: Final = "k8s"


def pod_selectors(claims: PodClaims) -> frozenset[Selector]:
    """Say what a pod is, in the words of SPIRE's attestor `k8s`."""
    values = {
        "ns": claims.namespace,
        "sa": claims.service_account,
        "pod-name": claims.pod_name,
        "pod-uid": claims.pod_uid,
        "node-name": claims.node_name,
    }
    return frozenset(Selector.of(TYPE, f"{key}:{value}") for key, value in values.items() if value)


class PodWorkload:
    """Attests callers of the pod's auth socket."""

    def __init__(self, proof: ClusterToken) -> None:
        self._proof = proof
        # A pod is the same until it ends.
        self._selectors: frozenset[Selector] | None = None

    async def attest(self, caller: LiveCaller, _: Collection[str], __: Hashable = None) -> frozenset[Selector]:
        """Return the pod's selectors. Raise NotReady, or CallerRefused for a process that is known to have ended."""
        if self._selectors is None:
            try:
                self._selectors = pod_selectors(await asyncio.to_thread(self._proof.claims))
            except PodTokenUnusable as error:
                raise NotReady(str(error)) from error
        if not caller.alive():
            raise CallerRefused("the calling process has ended")
        return self._selectors

    def counted_as(self, caller: LiveCaller) -> Hashable:
        """Return the user: containers of a pod can have users of their own."""
        return caller.uid
