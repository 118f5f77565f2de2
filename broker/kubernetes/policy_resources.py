# SPDX-License-Identifier: Apache-2.0
"""The policy as a cluster's custom resources: Segments, Flows and Services, listed once and then watched.

What was seen last counts while the API server is away: a broker denies nothing, and allows nothing, because it cannot
be asked. A kind that cannot be listed at all is no empty kind; until all three were seen there is no set.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from firedoor.broker.errors import ConfigError
from firedoor.broker.kubernetes.conditions import known
from firedoor.broker.policy_origin import MAX_TOTAL_BYTES
from firedoor.cluster.api import ClusterApi
from firedoor.cluster.errors import ObjectsUnreadable
from firedoor.cluster.objects import Seen
from firedoor.cluster.watch import Watch
from firedoor.segments import API_VERSION, Document
from firedoor.segments.parse import MAX_OBJECTS

_log = logging.getLogger("firedoor.broker.policy")
ROOT: Final = f"/apis/{API_VERSION}"
PLURALS: Final = {"Segment": "segments", "Flow": "flows", "Service": "services"}
# How long a broker that starts waits for the first list.
READY_SECONDS: Final = 15.0


@final
@dataclass(frozen=True, slots=True)
class Resource:
    """One object as it was seen: what it says, and what its status says of it."""

    kind: str
    name: str
    generation: int
    document: Document
    conditions: tuple[Mapping[str, Any], ...]

    @property
    def path(self) -> str:
        """Where the API has it."""
        return f"{ROOT}/{PLURALS[self.kind]}/{self.name}"

    @classmethod
    def of(cls, kind: str, seen: Mapping[str, Any]) -> Resource:
        """Read an object. Raise ObjectsUnreadable when it is none."""
        metadata, status = seen.get("metadata"), seen.get("status") or {}
        name = metadata.get("name") if isinstance(metadata, dict) else None
        if not isinstance(metadata, dict) or not isinstance(name, str) or not isinstance(status, dict):
            raise ObjectsUnreadable(f"it showed a {kind} without a name")
        said = {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": seen.get("spec")}
        # Written as it is, not escaped, so that what cannot be seen is refused as in a file.
        text = json.dumps(said, ensure_ascii=False, indent=1, sort_keys=True)
        generation = metadata.get("generation")
        number = generation if isinstance(generation, int) else 0
        return cls(kind, name, number, Document(f"{kind}/{name}", text), known(status))


@final
class _Kind:
    """The objects of one kind, as a watch shows them."""

    def __init__(self, kind: str, changed: Callable[[bool], None]) -> None:
        self._kind, self._changed = kind, changed
        # None before they were listed. Replaced, never changed: other threads read it.
        self.seen: dict[str, Resource] | None = None
        self._listing: dict[str, Resource] = {}

    def begin(self) -> None:
        self._listing = {}

    def page(self, items: Sequence[Seen]) -> None:
        for item in items:
            one = Resource.of(self._kind, item)
            self._listing[one.name] = one
        if len(self._listing) > MAX_OBJECTS:
            raise ObjectsUnreadable(f"there are more than {MAX_OBJECTS} {self._kind}s")

    def end(self) -> None:
        before, self.seen = self.seen, self._listing
        self._changed(_texts(before) != _texts(self.seen))

    def put(self, seen: Seen) -> None:
        one, now = Resource.of(self._kind, seen), self.seen or {}
        before = now.get(one.name)
        self.seen = {**now, one.name: one}
        # A status that was written, by us or by another broker, is no change of the policy.
        self._changed(before is None or before.document != one.document)

    def drop(self, seen: Seen) -> None:
        gone = Resource.of(self._kind, seen).name
        self.seen = {name: one for name, one in (self.seen or {}).items() if name != gone}
        self._changed(True)


@final
class Resources:
    """All objects of a cluster that are policy. `run` until cancelled; it is an `Origin`."""

    def __init__(self, api: ClusterApi, source: str) -> None:
        self._source = source
        self._changes = 0
        # How often anything was seen, a status too.
        self.looks = 0
        self._kinds = {kind: _Kind(kind, self._look) for kind in PLURALS}
        self._watches = {kind: _watch(api, kind, source, sink) for kind, sink in self._kinds.items()}

    def _look(self, changed: bool) -> None:
        self.looks += 1
        self._changes += changed

    @property
    def source(self) -> str:
        """Say where it comes from."""
        return self._source

    @property
    def trouble(self) -> dict[str, str]:
        """Say why kinds cannot be followed just now."""
        return {kind: watch.trouble for kind, watch in self._watches.items() if watch.trouble}

    def fingerprint(self) -> tuple[object, ...]:
        """Return how much was seen."""
        return (self._changes,)

    def read(self) -> tuple[Document, ...]:
        """Return what was seen last. Raise ConfigError before all kinds were."""
        if missing := sorted(kind for kind, sink in self._kinds.items() if sink.seen is None):
            why = "; ".join(self.trouble.get(kind, "not yet") for kind in missing)
            raise ConfigError(f"the policy in {self._source} cannot be read: {', '.join(missing)}: {why}")
        documents = tuple(one.document for one in self.resources())
        if len(documents) > MAX_OBJECTS or sum(len(one.text) for one in documents) > MAX_TOTAL_BYTES:
            raise ConfigError(
                f"the policy in {self._source} is larger than {MAX_TOTAL_BYTES // 2**20} MiB or {MAX_OBJECTS} objects"
            )
        return documents

    def resources(self) -> list[Resource]:
        """Return all objects, by kind and name."""
        seen = {kind: sink.seen or {} for kind, sink in self._kinds.items()}
        return [seen[kind][name] for kind in sorted(seen) for name in sorted(seen[kind])]

    async def ready(self) -> None:
        """Wait until all kinds were listed, for a while."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                for watch in self._watches.values():
                    await watch.listed.wait()
        except TimeoutError:
            _log.warning("the policy in %s was not seen within %.0f s", self._source, READY_SECONDS)

    async def run(self) -> None:
        """Follow all kinds until cancelled."""
        async with asyncio.TaskGroup() as group:
            for watch in self._watches.values():
                group.create_task(watch.run())


def _watch(api: ClusterApi, kind: str, source: str, sink: _Kind) -> Watch:
    absent = f"the cluster has no {kind}s: apply deploy/kubernetes/crds"
    return Watch(api, f"{ROOT}/{PLURALS[kind]}", kind, f"the {kind}s of {source}", sink, absent=absent)


def _texts(resources: Mapping[str, Resource] | None) -> dict[str, Document] | None:
    return None if resources is None else {name: one.document for name, one in resources.items()}
