# SPDX-License-Identifier: Apache-2.0
"""Keeps the trust bundle in a ConfigMap of each namespace that has sidecars, where their pods find it.

A new authority is in the bundle before anything is signed by it, so that pods which start meanwhile know it in time.
A ConfigMap that is edited or deleted is put right; one of somebody else is left alone, and said. The name is the same
in all namespaces, so that the API server shows those alone, and so that a broker may touch no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, final
from urllib.parse import quote

from firedoor.broker.kubernetes.kept import Kept
from firedoor.broker.kubernetes.ownership import is_ours, mark
from firedoor.cluster.errors import ClusterError, ObjectsUnreadable, WrittenMeanwhile
from firedoor.cluster.objects import Seen
from firedoor.cluster.watch import Watch

if TYPE_CHECKING:
    from firedoor.broker.kubernetes.lease import Lease
    from firedoor.broker.kubernetes.trust_config import BundleRules
    from firedoor.broker.metrics import Metrics
    from firedoor.certs import TrustBundle, TrustDomain
    from firedoor.cluster.api import ClusterApi

_log = logging.getLogger("firedoor.broker.trust_bundle")
JSON: Final = "bundle.json"
PEM: Final = "bundle.pem"
# Seconds between two looks whether it is our turn to write, and at least between two at what changed; until what failed
# is tried again.
_EVERY: Final = 1.0
_PAUSE: Final = 0.1
_AGAIN: Final = 5.0
_AT_ONCE: Final = 8
# Kubernetes itself is made for 10,000.
_MOST: Final = 50_000


@dataclass(frozen=True, slots=True)
class Map:
    """What is kept of a ConfigMap. `data` is None unless it is ours."""

    uid: str
    version: str
    data: Mapping[str, Any] | None


@final
class BundleMaps:
    """The ConfigMaps of one cluster. `run` until cancelled."""

    def __init__(
        self,
        api: ClusterApi,
        lease: Lease,
        rules: BundleRules,
        trust_domain: TrustDomain,
        bundle: Callable[[], TrustBundle],
        metrics: Metrics,
    ) -> None:
        self._api, self._lease, self._trust_domain = api, lease, trust_domain
        self._bundle, self._metrics, self._name = bundle, metrics, rules.config_map
        self._due = asyncio.Event()
        self._namespaces = Kept(_namespace, self._due.set, "namespaces", _MOST)
        self._maps = Kept(self._map, self._due.set, f"ConfigMaps {self._name}", _MOST)
        selected = f"?labelSelector={quote(rules.namespaces)}" if rules.namespaces else ""
        named = f"?fieldSelector={quote(f'metadata.name={self._name}')}"
        self._watches = (
            Watch(api, f"/api/v1/namespaces{selected}", "Namespace", "namespaces", self._namespaces),
            Watch(api, f"/api/v1/configmaps{named}", "ConfigMap", f"ConfigMaps {self._name}", self._maps),
        )
        self._said: dict[str, str] = {}

    def changed(self) -> None:
        """Look at the trust bundle again."""
        self._due.set()

    async def run(self) -> None:
        """Keep them as they should be."""
        async with asyncio.TaskGroup() as group:
            for watch in self._watches:
                group.create_task(watch.run())
            group.create_task(self._keep())

    async def _keep(self) -> None:
        while True:
            if not self._lease.held:
                # Another broker counts.
                self._metrics.bundle_maps.clear()
                await asyncio.sleep(_EVERY)
                continue
            self._due.clear()
            all_well = await self._write()
            # Whoever edits one without end makes no more work than this.
            await asyncio.sleep(_PAUSE)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if all_well else _AGAIN):
                    await self._due.wait()

    async def _write(self) -> bool:
        """Write what is not as it should be; say whether all is, as far as this broker may write."""
        namespaces, maps = self._namespaces.seen, self._maps.seen
        if namespaces is None or maps is None:
            # Who was not listed is not known to be gone.
            return True
        wanted = self._wanted()
        due = [*self._missing(namespaces, maps, wanted), *self._left_over(namespaces, maps)]
        foreign = [name for name in namespaces if name in maps and maps[name].data is None]
        for name in foreign:
            self._say(name, f"ConfigMap {name}/{self._name} is not this broker's: it stays as it is")
        done = 0
        for at in range(0, len(due), _AT_ONCE):
            if not self._lease.held:
                break
            done += sum(await asyncio.gather(*(self._try(name, step) for name, step in due[at : at + _AT_ONCE])))
        states = {"kept": len(namespaces) - len(foreign), "foreign": len(foreign), "behind": len(due) - done}
        for state, count in states.items():
            self._metrics.bundle_maps.labels(state).set(count)
        return done == len(due)

    def _missing(
        self, namespaces: Mapping[str, bool], maps: Mapping[str, Map], wanted: Mapping[str, str]
    ) -> list[tuple[str, Callable[[], Coroutine[Any, Any, None]]]]:
        found: list[tuple[str, Callable[[], Coroutine[Any, Any, None]]]] = []
        for name, ends in namespaces.items():
            there = maps.get(name)
            if there is None and not ends:
                found.append((name, partial(self._create, name, wanted)))
            elif there is not None and there.data is not None and there.data != wanted:
                found.append((name, partial(self._change, name, there, wanted)))
        return found

    def _left_over(
        self, namespaces: Mapping[str, bool], maps: Mapping[str, Map]
    ) -> list[tuple[str, Callable[[], Coroutine[Any, Any, None]]]]:
        return [
            (name, partial(self._delete, name, one))
            for name, one in maps.items()
            if name not in namespaces and one.data is not None
        ]

    async def _try(self, name: str, step: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        try:
            await step()
        except WrittenMeanwhile:
            # The watch shows what it is.
            return False
        except ClusterError as error:
            self._say(name, f"ConfigMap {name}/{self._name} cannot be written: {error}")
            return False
        self._said.pop(name, None)
        return True

    async def _create(self, name: str, wanted: Mapping[str, str]) -> None:
        metadata = {"name": self._name, **mark(self._trust_domain)}
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": dict(wanted)}
        self._maps.put(await self._api.create(f"/api/v1/namespaces/{name}/configmaps", body))

    async def _change(self, name: str, there: Map, wanted: Mapping[str, str]) -> None:
        # What somebody put beside them goes: a reader might take it for ours.
        others = dict.fromkeys((there.data or {}).keys() - wanted.keys())
        body = {"metadata": {"resourceVersion": there.version}, "data": {**others, **wanted}}
        found = await self._api.merge(self._path(name), body)
        if found is not None:
            self._maps.put(found)

    async def _delete(self, name: str, there: Map) -> None:
        only = {"uid": there.uid, "resourceVersion": there.version}
        await self._api.delete(self._path(name), {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": only})
        _log.info("ConfigMap %s/%s is deleted: its namespace is not selected", name, self._name)

    def _path(self, namespace: str) -> str:
        return f"/api/v1/namespaces/{namespace}/configmaps/{self._name}"

    def _wanted(self) -> dict[str, str]:
        bundle = self._bundle()
        return {JSON: bundle.to_json().decode(), PEM: bundle.to_pem()}

    def _say(self, name: str, what: str) -> None:
        if self._said.get(name) != what:
            _log.warning("%s", what)
        self._said[name] = what

    def _map(self, seen: Seen) -> tuple[str, Map]:
        metadata = _metadata(seen, "ConfigMap")
        data = (seen.get("data") or {}) if is_ours(metadata, self._trust_domain) else None
        return str(metadata.get("namespace")), Map(str(metadata.get("uid")), str(metadata["resourceVersion"]), data)


def _namespace(seen: Seen) -> tuple[str, bool]:
    """Return a namespace's name, and whether it is about to go: nothing is made there any more."""
    metadata = _metadata(seen, "namespace")
    return str(metadata["name"]), metadata.get("deletionTimestamp") is not None


def _metadata(seen: Seen, what: str) -> Mapping[str, Any]:
    metadata = seen.get("metadata")
    if not isinstance(metadata, dict) or not metadata.get("name") or not metadata.get("resourceVersion"):
        raise ObjectsUnreadable(f"it showed a {what} without a name or a version")
    return metadata
