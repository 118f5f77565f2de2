# SPDX-License-Identifier: Apache-2.0
"""(registration) How long the pods of a cluster wait for their entries: thousands at a start, and one more.

A real API server and etcd on loopback have the pods, as in table pods, each with a token as the injector writes it. The
clock of one more runs from before it is created until the broker's admin socket shows its entry.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from bench.options import Options
from bench.processes import Failed, until
from bench.progress import say
from bench.table import Table
from bench.world import World
from firedoor.wire import entry_grpc, entry_pb2
from tests.kubernetes.cluster import Cluster, running_cluster
from tests.kubernetes.controllers import flags
from tests.pod_policy import INFERENCE

PODS, NODES, NAMESPACES, MORE = 5000, 50, 10, 30
GOAL = "one more pod has its entry within a second"
_THREADS: Final = 8
# Seconds for thousands of objects, on a machine that does other things as well.
_PATIENCE: Final = 600.0
MIB = 1 << 20
_CRDS: Final = Path(__file__).parents[1] / "deploy/kubernetes/crds"
_OBJECT: Final = {"apiVersion": "firedoor.dev/v1alpha1", "kind": "WorkloadIdentity"}
_ROOT: Final = "/apis/firedoor.dev/v1alpha1/workloadidentities"
_TOKEN: Final = {"serviceAccountToken": {"audience": "firedoor", "expirationSeconds": 600, "path": "token"}}
_SPEC: Final = {
    "containers": [{"name": "app", "image": "registry.example/app:1"}],
    "volumes": [{"name": "firedoor-token", "projected": {"sources": [_TOKEN]}}],
}


def tables(_options: Options, folder: Path) -> Iterator[Table]:
    """Measure and return the table."""
    with ExitStack() as stack:
        (home := folder / "cluster").mkdir()
        cluster = stack.enter_context(running_cluster(home))
        say(f"registration: making {PODS} pods")
        pods = Pods(cluster)
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(pods.make, range(PODS)))
        bare = _bare(folder / "bare")
        began = time.perf_counter()
        world = World(folder, *_words(cluster, folder), "--metrics", "127.0.0.1:0", policy="database")
        stack.callback(world.stop)
        world.apply({"policy.yaml": INFERENCE})
        with world.admin() as channel:
            seen = Seen(entry_grpc.EntryStub(channel))
            seen.wait(lambda: seen.count() >= PODS, "all pods are registered")
            whole, cpu = time.perf_counter() - began, world.broker.cpu_seconds()
            memory = world.broker.resident_bytes() - bare
            say(f"registration: {PODS} entries after {whole:.1f} s; one more")
            more = [seen.timed(pods.make, PODS + number, 1) for number in range(MORE)]
            gone = [seen.timed(pods.delete, PODS + number, -1) for number in range(MORE)]
            say("registration: an object that selects every pod")
            body = {**_OBJECT, "metadata": {"name": "all"}, "spec": {"hint": "all"}}
            began, before = time.perf_counter(), world.broker.cpu_seconds()
            cluster.api().post(_ROOT, body)
            seen.wait(lambda: seen.count("all") >= PODS, "every pod has the object's entry")
            changed = (time.perf_counter() - began, world.broker.cpu_seconds() - before)
    yield _table({"one more pod": more, "one pod less": gone}, whole, cpu, memory, changed)


def _bare(folder: Path) -> int:
    """Return what a broker has that registers nothing, in bytes."""
    folder.mkdir(0o700)
    world = World(folder, policy="database")
    try:
        world.apply({"policy.yaml": INFERENCE})
        return world.broker.resident_bytes()
    finally:
        world.stop()


def _words(cluster: Cluster, folder: Path) -> list[str]:
    given = flags(cluster, folder / "account")
    where = {key: given[f"kubernetes_controllers_{key}"] for key in ("server", "ca", "token")}
    given |= {
        "kubernetes_controllers_registration": "true",
        "k8s_pod_clusters": json.dumps([{"name": given["kubernetes_controllers_cluster"], **where}]),
    }
    return [word for key, value in given.items() for word in (f"--{key.replace('_', '-')}", value)]


class Pods:
    """The cluster's pods."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        applied = cluster.kubectl("apply", "--server-side", "--filename", str(_CRDS))
        if applied.code:
            raise Failed(applied.err)
        for number in range(NODES):
            cluster.api().post("/api/v1/nodes", {"metadata": {"name": f"node-{number}"}})
        self._spaces = [cluster.namespace("serving", {"segment": "inference"}) for _ in range(NAMESPACES)]

    def make(self, number: int) -> None:
        """Make one that is bound to a node."""
        metadata = {"name": f"pod-{number}", "labels": {"firedoor.dev/segment": "inference"}}
        spec = {**_SPEC, "nodeName": f"node-{number % NODES}"}
        self._cluster.api().post(self._path(number), {"metadata": metadata, "spec": spec})

    def delete(self, number: int) -> None:
        """Delete one at once."""
        self._cluster.delete_pod(self._spaces[number % NAMESPACES], f"pod-{number}")

    def _path(self, number: int) -> str:
        return f"/api/v1/namespaces/{self._spaces[number % NAMESPACES]}/pods"


class Seen:
    """What the broker's admin socket shows."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub

    def count(self, hint: str = "") -> int:
        """Count entries, those with a hint alone when one is given."""
        request = entry_pb2.CountEntriesRequest()
        if hint:
            request.filter.by_hint.value = hint
        return int(self._stub.CountEntries(request, timeout=60).count)

    @staticmethod
    def wait(holds: Callable[[], bool], what: str, every: float = 0.25) -> None:
        """Wait until something holds; to ask costs the broker time, too."""
        until(holds, what, _PATIENCE, every)

    def timed(self, work: Callable[[int], None], number: int, more: int) -> float:
        """Return the milliseconds until so many entries more are there."""
        before, began = self.count(), time.perf_counter()
        work(number)
        self.wait(lambda: self.count() == before + more, "the entry follows its pod", 0.01)
        return (time.perf_counter() - began) * 1e3


def _table(
    times: dict[str, list[float]], whole: float, cpu: float, memory: float, changed: tuple[float, float]
) -> Table:
    rows = [
        [name, str(len(some)), *(f"{value:.0f}" for value in (statistics.median(some), max(some)))]
        for name, some in times.items()
    ]
    return Table(
        name="registration",
        title=f"from a pod to its entry, {PODS} pods in the cluster",
        header=("what", "number", "p50 ms", "longest ms"),
        rows=rows,
        goal=GOAL,
        notes=(
            f"The {PODS} pods that were there had their entries {whole:.1f} s after the broker was started, for "
            f"{cpu:.1f} s of its processor, the start too; it has {memory / MIB:.0f} MiB more then than one that "
            "registers nothing.",
            f"An object that gives each of them one more is followed within {changed[0]:.1f} s, for {changed[1]:.1f} s "
            "of it.",
        ),
        data={**times, "registered_s": whole, "cpu_s": cpu, "memory_bytes": memory, "changed_s": changed[0]},
    )
