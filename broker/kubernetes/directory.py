# SPDX-License-Identifier: Apache-2.0
"""The directory from a cluster's Services and EndpointSlices: all brokers follow them, the one with the Lease writes.

What is derived stands in the database, so that it is one sequence with the generation and the same at all brokers, and
is there when a broker starts that cannot ask the API server. Until all kinds were listed nothing is written.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, final
from urllib.parse import quote

from firedoor.broker.db.directory_rows import KIND, put_directory
from firedoor.broker.errors import BrokerError, Stale
from firedoor.broker.kubernetes.endpoint_index import EndpointIndex
from firedoor.broker.kubernetes.endpoint_records import (
    Seen,
    SliceRecord,
    key_of,
    read_pod,
    read_service,
    read_slice,
    uid_of,
)
from firedoor.cluster.watch import Watch
from firedoor.segments.well_known import SEGMENT

if TYPE_CHECKING:
    from firedoor.broker.kubernetes.lease import Lease
    from firedoor.broker.metrics import Metrics
    from firedoor.broker.state import State
    from firedoor.cluster.api import ClusterApi

_log = logging.getLogger("firedoor.broker.directory")
# Seconds: for events that come together, between two looks when nothing happens, and before another generation; with
# many sidecars, each of which is told, more.
_TOGETHER: Final = 0.1
_LOOK: Final = 1.0
_PAUSE: Final = 0.25
_SIDECARS_A_SECOND: Final = 5000
# Objects that are read at once; an EndpointSlice has up to 1000 endpoints, and seldom more than 100.
_PAGE: Final = 25
# Seconds of work before other calls get a turn, and how many times as long as all of it took we rest, at most.
_SLICE: Final = 0.001
_RESTS: Final = 4
_LONGEST_REST: Final = 2.0
# What one namespace may have of each kind, so that none eats the memory and the time of all: pods, ports of Services,
# and endpoints times their ports.
_MAX_PODS: Final = 20_000
_MAX_PORTS: Final = 20_000
_MAX_ENDPOINTS: Final = 100_000
P = TypeVar("P", bound=Hashable)
R = TypeVar("R")


@final
class _Kind(Generic[P, R]):
    """A watch's objects of one kind, on their way into the index, where they come with `news`, some at once."""

    def __init__(
        self,
        kind: str,
        most: int,
        place: Callable[[Seen], P],
        read: Callable[[Seen], R | None],
        take: Callable[[P, R | None], None],
        weigh: Callable[[R], int],
        changed: Callable[[], None],
    ) -> None:
        self.kind, self.name = kind, f"{kind}s"
        self._most, self._place, self._changed = most, place, changed
        self._read, self._take, self._weigh = read, take, weigh
        # What the index was not told yet.
        self._pending: dict[P, R | None] = {}
        # What it has, or will: its namespace and weight.
        self._held: dict[P, tuple[str, int]] = {}
        self._weights: Counter[str] = Counter()
        self._listing: set[P] = set()
        # Namespaces of which not all was taken.
        self.full: set[str] = set()

    def begin(self) -> None:
        self._listing = set()
        self.full.clear()

    def page(self, items: Sequence[Seen]) -> None:
        for item in items:
            self._listing.add(self._place(item))
            self._keep(item)
        self._changed()

    def end(self) -> None:
        for place in [place for place in self._held if place not in self._listing]:
            self._forget(place)
        self._listing = set()
        self._changed()

    def put(self, seen: Seen) -> None:
        self._keep(seen)
        self._changed()

    def drop(self, seen: Seen) -> None:
        self._forget(self._place(seen))
        self._changed()

    def _keep(self, seen: Seen) -> None:
        place, namespace = self._place(seen), key_of(seen)[0]
        if (record := self._read(seen)) is None:
            self._forget(place)
            return
        weight = self._weigh(record)
        held = self._held.get(place, (namespace, 0))[1]
        if self._weights[namespace] - held + weight > self._most:
            if namespace not in self.full:
                _log.warning("namespace %s has too many %s for the directory; some are left out", namespace, self.name)
            self.full.add(namespace)
            self._forget(place)
            return
        self._held[place] = namespace, weight
        self._weights[namespace] += weight - held
        self._pending[place] = record

    def _forget(self, place: P) -> None:
        if place not in self._held:
            return
        namespace, weight = self._held.pop(place)
        self._weights[namespace] -= weight
        if not self._weights[namespace]:
            del self._weights[namespace]
        self._pending[place] = None

    def news(self) -> Iterator[None]:
        """Tell the index what has come until now, and yield after each."""
        pending, self._pending = self._pending, {}
        return self._told(pending)

    def _told(self, pending: dict[P, R | None]) -> Iterator[None]:
        for place, record in pending.items():
            self._take(place, record)
            yield

    def trouble(self) -> list[str]:
        """Say what was not taken."""
        return [f"namespace {one} has too many {self.name}; some are left out" for one in sorted(self.full)]


def _weight(one: SliceRecord) -> int:
    return len(one.endpoints) * len(one.ports)


@final
class ClusterDirectory:
    """Follows a cluster, and writes what follows from it. `run` until cancelled."""

    def __init__(
        self, api: ClusterApi, lease: Lease, state: State, metrics: Metrics, listening: Callable[[], int]
    ) -> None:
        """`listening`: how many sidecars are told of each generation."""
        self._lease, self._state, self._metrics, self._listening = lease, state, metrics, listening
        self._index = index = EndpointIndex(state.trust_domain)
        self._changed = asyncio.Event()
        changed = self._changed.set
        self._kinds: dict[str, _Kind[Any, Any]] = {
            "/api/v1/services": _Kind(
                "Service", _MAX_PORTS, key_of, read_service, index.service, lambda one: len(one.ports), changed
            ),
            "/apis/discovery.k8s.io/v1/endpointslices": _Kind(
                "EndpointSlice",
                _MAX_ENDPOINTS,
                key_of,
                read_slice,
                index.slice,
                _weight,
                changed,
            ),
            # Without a segment nobody is expected, so that others need not be shown.
            f"/api/v1/pods?labelSelector={quote(SEGMENT, safe='')}": _Kind(
                "Pod", _MAX_PODS, uid_of, read_pod, index.pod, lambda _: 1, changed
            ),
        }
        self._watches = [Watch(api, path, kind.kind, kind.name, kind, most=_PAGE) for path, kind in self._kinds.items()]
        # What the database was last seen to have all of.
        self._written: tuple[int, Mapping[str, object]] | None = None
        self._trouble = ""
        self._said: list[str] = []
        # Seconds of work that the last look took.
        self._took = 0.0

    async def run(self) -> None:
        """Follow all kinds, and write."""
        async with asyncio.TaskGroup() as group:
            for watch in self._watches:
                group.create_task(watch.run())
            group.create_task(self._write_on())

    def trouble(self) -> list[str]:
        """Say why the directory is not as the cluster's objects would have it; nothing when it is."""
        away = [f"{one.what} cannot be followed: {one.trouble}" for one in self._watches if one.trouble]
        full = [said for kind in self._kinds.values() for said in kind.trouble()]
        return [*away, *([self._trouble] if self._trouble else []), *full, *self._said]

    async def _write_on(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await self._changed.wait()
                    await asyncio.sleep(_TOGETHER)
            self._changed.clear()
            try:
                wrote = await self._write()
                self._trouble = ""
            except Stale:
                # Another broker wrote; what is left to be done is seen anew.
                wrote = True
            except BrokerError as error:
                wrote = False
                if str(error) != self._trouble:
                    _log.warning("the directory cannot be written: %s", error)
                self._trouble = str(error)
            self._metrics.directory_services.set(len(self._state.directory))
            self._metrics.directory_trouble.set(len(self.trouble()))
            rest = min(_RESTS * self._took, _LONGEST_REST)
            await asyncio.sleep(rest + (_PAUSE + self._listening() / _SIDECARS_A_SECOND if wrote else 0))

    async def _write(self) -> bool:
        """Bring the database up to the cluster, where that is ours; say whether anything changed. Raise BrokerError."""
        if not all(watch.listed.is_set() for watch in self._watches):
            return False
        await self._derive()
        # From here on nothing is awaited before the change is made up: it is of one moment.
        there, changes = self._state.directory, self._index.changes
        written = self._written is not None and self._written[0] == changes and self._written[1] is there
        if written or not self._lease.held:
            return False
        basis, wanted = self._state.database.basis(KIND), self._index.derived()
        self._say(self._index.trouble())
        put = {name: one for name, one in wanted.items() if there.get(name) != one}
        gone = [name for name in there if name not in wanted]

        def apply(_: None) -> None:
            self._state.change_directory(put, gone)
            self._written = changes, self._state.directory

        if put or gone:
            await self._state.change(
                lambda connection: put_directory(connection, put.values(), gone), apply, basis=basis
            )
            return True
        self._written = changes, there
        return False

    async def _derive(self) -> None:
        """Take what has come until now and derive what that changes, in slices. What comes meanwhile waits."""
        began, self._took = time.perf_counter(), 0.0
        for _ in chain(*[kind.news() for kind in self._kinds.values()], self._index.derive()):
            if (passed := time.perf_counter() - began) > _SLICE:
                self._took += passed
                await asyncio.sleep(0)
                began = time.perf_counter()
        self._took += time.perf_counter() - began

    def _say(self, said: list[str]) -> None:
        for one in said:
            if one not in self._said:
                _log.warning("the directory: %s", one)
        self._said = said
