# SPDX-License-Identifier: Apache-2.0
"""Runs what keeps a cluster's objects, and what follows from them, as they should be.

A broker that is told of a cluster runs the controllers that its configuration names. All brokers follow the cluster;
the one that holds the Lease writes.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from firedoor.broker.kubernetes.lease import Lease
from firedoor.broker.kubernetes.registration_config import RegistrationRules
from firedoor.broker.kubernetes.rights import cluster_api
from firedoor.broker.kubernetes.trust_config import BundleRules
from firedoor.cluster.access import Access

if TYPE_CHECKING:
    from firedoor.broker.audit import Audit
    from firedoor.broker.federation import Federation
    from firedoor.broker.issuing import Signer
    from firedoor.broker.metrics import Metrics
    from firedoor.broker.policy import PolicyKeeper
    from firedoor.broker.state import State

LEASE: Final = "firedoor-controllers"
Loop = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class ControllerRules:
    """Which controllers run, and where. Nothing runs that is not named."""

    # As `k8s_pod` calls it.
    cluster: str
    access: Access
    # Where the Lease is.
    namespace: str
    # None: off.
    bundle: BundleRules | None = None
    registration: RegistrationRules | None = None
    # How long certificates of pods live that kubelets ask for, in seconds. 0: off.
    certificate_ttl: int = 0
    # Whether services are derived from its objects.
    directory: bool = False


@dataclass(frozen=True, slots=True)
class BrokerParts:
    """What controllers use of the broker that runs them. `listening`: how many sidecars are told of each generation."""

    state: State
    policy: PolicyKeeper
    signer: Signer
    audit: Audit
    metrics: Metrics
    federation: Federation
    listening: Callable[[], int]


class Controllers:
    """The controllers of one cluster. `run` until cancelled, then `stop` once."""

    def __init__(self, rules: ControllerRules) -> None:
        self.rules = rules
        self.api = cluster_api(rules.cluster, rules.access)
        # Host names are not unique, and a broker that is started again is another.
        self.lease = Lease(self.api, rules.namespace, LEASE, f"{socket.gethostname()}_{secrets.token_hex(8)}")
        self._loops: list[Loop] = []

    def add(self, *loops: Loop) -> None:
        """Have these run too; before `run`."""
        self._loops += loops

    async def run(self) -> None:
        """Run all of them."""
        loops: Sequence[Loop] = (self.lease.run, *self._loops)
        async with asyncio.TaskGroup() as group:
            for loop in loops:
                group.create_task(loop())

    async def stop(self) -> None:
        """Give up the Lease, and close."""
        await self.lease.release()
        await self.api.close()
