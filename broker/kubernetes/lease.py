# SPDX-License-Identifier: Apache-2.0
"""Which of several brokers writes into a cluster: whoever holds a Lease (coordination.k8s.io/v1).

Nobody's clock is compared with another's. A holder counts as gone when its Lease has not changed for the Lease's
duration, by our own monotonic clock since we saw it change; a holder itself stops 5 s earlier, when it could not renew.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, final

from firedoor.cluster.api import ClusterApi
from firedoor.cluster.errors import ClusterUnavailable, WrittenMeanwhile

_log = logging.getLogger("firedoor.broker.kubernetes")
# Seconds: how long a Lease holds, after which we no longer count on ours, and between two looks.
DURATION: Final = 15
_SURE: Final = 10
_EVERY: Final = 3.0
# What a Lease of somebody else may say at most, or a stranger's typing error would keep all away.
_LONGEST: Final = 300


@final
class Lease:
    """One Lease. `run` until cancelled, then `release`; `held` says whether it is ours."""

    def __init__(
        self,
        api: ClusterApi,
        namespace: str,
        name: str,
        holder: str,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`holder` must be nobody else's: two brokers of one name would both hold it."""
        self._api, self._holder, self._monotonic = api, holder, monotonic
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._name, self._where = name, f"Lease {namespace}/{name}"
        # Until when we are sure to hold it.
        self._until = float("-inf")
        # What was seen of somebody else's, and when it was seen to change.
        self._seen: tuple[object, float] | None = None
        self._trouble = ""

    @property
    def held(self) -> bool:
        """Say whether we hold it, and nobody else can."""
        return self._monotonic() < self._until

    async def run(self) -> None:
        """Take it when it is free, and keep it."""
        was = False
        while True:
            try:
                await self.look()
                self._trouble = ""
            except ClusterUnavailable as error:
                if str(error) != self._trouble:
                    _log.warning("%s cannot be taken or kept: %s", self._where, error)
                self._trouble = str(error)
            if self.held != was:
                was = self.held
                _log.info("%s is %s", self._where, "ours: this broker writes" if was else "not ours")
            await asyncio.sleep(_EVERY)

    async def look(self) -> None:
        """See who has it, and take or keep it where that is right. Raise ClusterUnavailable."""
        asked = self._monotonic()
        there = await self._api.get(f"{self._path}/{self._name}")
        try:
            if there is None:
                await self._api.create(self._path, self._written({}))
            elif self._is_free(there):
                await self._api.merge(f"{self._path}/{self._name}", self._written(there))
            else:
                self._until = float("-inf")
                return
        except WrittenMeanwhile:
            # Somebody else was faster; who, is seen at the next look.
            self._until = float("-inf")
            return
        self._until = asked + _SURE

    async def release(self) -> None:
        """Give it up, so that others need not wait. What goes wrong is of no consequence."""
        if not self.held:
            return
        self._until = float("-inf")
        try:
            there = await self._api.get(f"{self._path}/{self._name}")
            if there is not None and _spec(there).get("holderIdentity") == self._holder:
                version = there["metadata"]["resourceVersion"]
                body = {"metadata": {"resourceVersion": version}, "spec": {"holderIdentity": ""}}
                await self._api.merge(f"{self._path}/{self._name}", body)
        except ClusterUnavailable:
            _log.info("%s was not given up; it ends by itself", self._where)

    def _is_free(self, there: Mapping[str, Any]) -> bool:
        spec = _spec(there)
        if spec.get("holderIdentity") in (None, "", self._holder):
            return True
        version, now = there.get("metadata", {}).get("resourceVersion"), self._monotonic()
        if self._seen is None or self._seen[0] != version:
            self._seen = (version, now)
        seconds = spec.get("leaseDurationSeconds")
        lasts = min(seconds, _LONGEST) if isinstance(seconds, int) and seconds > 0 else DURATION
        return now - self._seen[1] > lasts

    def _written(self, there: Mapping[str, Any]) -> dict[str, Any]:
        """Return the Lease as ours."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        before = _spec(there)
        spec: dict[str, Any] = {"holderIdentity": self._holder, "leaseDurationSeconds": DURATION, "renewTime": now}
        metadata: dict[str, Any] = {"name": self._name}
        if there:
            metadata["resourceVersion"] = there["metadata"]["resourceVersion"]
        if before.get("holderIdentity") != self._holder:
            changes = before.get("leaseTransitions")
            spec |= {"acquireTime": now, "leaseTransitions": changes + 1 if isinstance(changes, int) else 0}
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}


def _spec(there: Mapping[str, Any]) -> Mapping[str, Any]:
    spec = there.get("spec")
    return spec if isinstance(spec, dict) else {}
