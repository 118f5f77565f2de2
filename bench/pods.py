# SPDX-License-Identifier: Apache-2.0
"""(pods) How long a kubelet waits for the certificate of a pod, in a cluster of thousands of pods.

A real API server and etcd on loopback, as `make peers` builds them, have the pods; nothing runs them. The broker makes
an entry for each (registration) and signs. The clock runs from before a PodCertificateRequest is created until a watch
shows that it is issued: first one at a time, then hundreds at once, as when a deployment starts.
"""

import base64
import importlib
import json
import ssl
import statistics
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

from bench.options import Options
from bench.processes import Failed, until
from bench.progress import say
from bench.table import Table
from bench.world import World
from firedoor.certs import KeyType, generate_key, make_csr
from tests.pod_policy import INFERENCE

PODS, NODES, NAMESPACES = 5000, 50, 10
ALONE, AT_ONCE = 30, 500
_THREADS = 8
_SIGNER = "firedoor.dev/segment"
_ROOT = "/apis/certificates.k8s.io/v1"
_CRDS = Path(__file__).parents[1] / "deploy/kubernetes/crds"
# Seconds for thousands of objects, on a machine that does other things as well.
_PATIENCE = 600.0
GOAL = "issued within a second"
_VOLUME = {
    "name": "identity",
    "projected": {
        "sources": [
            {"podCertificate": {"signerName": _SIGNER, "keyType": "ECDSAP256", "credentialBundlePath": "c.pem"}}
        ]
    },
}
_SPEC = {"containers": [{"name": "app", "image": "registry.example/app:1"}], "volumes": [_VOLUME]}


def tables(_options: Options, folder: Path) -> Iterator[Table]:
    """Measure and return the table."""
    with ExitStack() as stack:
        cluster = stack.enter_context(_cluster(folder))
        say(f"pods: making {PODS} pods")
        pods = _pods(cluster)
        taken = importlib.import_module("tests.kubernetes.controllers").flags(cluster, folder / "account")
        words = [word for key, value in taken.items() for word in (f"--{key.replace('_', '-')}", value)]
        for name in ("trust-bundle", "registration", "pod-certificates"):
            words += [f"--kubernetes-controllers-{name}", "true"]
        world = World(folder, *words, "--metrics", "127.0.0.1:0", policy="database")
        stack.callback(world.stop)
        began = time.perf_counter()
        world.apply({"policy.yaml": INFERENCE})
        until(lambda: world.metrics()["firedoor_broker_entries"] >= PODS, "all pods are registered", _PATIENCE, 0.5)
        registered = time.perf_counter() - began
        say(f"pods: {PODS} entries after {registered:.1f} s; asking")
        seen = stack.enter_context(_Issued(cluster))
        alone = [seen.wait(*_ask(cluster, pod)) for pod in pods[:ALONE]]
        cpu, start = world.broker.cpu_seconds(), time.perf_counter()
        with ThreadPoolExecutor(_THREADS) as pool:
            asked = list(pool.map(lambda pod: _ask(cluster, pod), pods[ALONE : ALONE + AT_ONCE]))
        burst = [seen.wait(*one) for one in asked]
        took, cpu = time.perf_counter() - start, world.broker.cpu_seconds() - cpu
        memory = world.broker.resident_bytes() / 2**20
    yield _table(alone, burst, registered, took, cpu, memory)


def _cluster(folder: Path) -> Any:
    build = importlib.import_module("tests.peers.build")
    try:
        build.binary("kubernetes", "kube-apiserver")
        build.binary("etcd", "etcd")
    except build.Missing as error:
        raise Failed(str(error)) from None
    place = folder / "cluster"
    place.mkdir()
    return importlib.import_module("tests.kubernetes.cluster").running_cluster(place)


def _pods(cluster: Any) -> list[dict[str, Any]]:
    """Make nodes, namespaces and pods; return what a request for each names."""
    api = cluster.api()
    applied = cluster.kubectl("apply", "--server-side", "--filename", str(_CRDS))
    if applied.code:
        raise Failed(applied.err)
    nodes = [api.post("/api/v1/nodes", {"metadata": {"name": f"node-{one}"}})["metadata"] for one in range(NODES)]
    spaces = [cluster.namespace("serving", {"segment": "inference"}) for _ in range(NAMESPACES)]
    accounts = [api.get(f"/api/v1/namespaces/{one}/serviceaccounts/default")["metadata"]["uid"] for one in spaces]

    def make(number: int) -> dict[str, Any]:
        namespace, node = spaces[number % NAMESPACES], nodes[number % NODES]
        metadata = {"name": f"pod-{number}", "labels": {"firedoor.dev/segment": "inference"}}
        spec = {**_SPEC, "nodeName": node["name"]}
        made = cluster.api().post(f"/api/v1/namespaces/{namespace}/pods", {"metadata": metadata, "spec": spec})
        return {
            "namespace": namespace,
            "podName": made["metadata"]["name"],
            "podUID": made["metadata"]["uid"],
            "serviceAccountName": "default",
            "serviceAccountUID": accounts[number % NAMESPACES],
            "nodeName": node["name"],
            "nodeUID": node["uid"],
        }

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(make, range(PODS)))


def _ask(cluster: Any, pod: dict[str, Any]) -> tuple[str, float]:
    """Create a request; return its name, and when that began."""
    csr = base64.b64encode(make_csr(generate_key(KeyType.EC_P256))).decode()
    spec = {"signerName": _SIGNER, "maxExpirationSeconds": 86400, "stubPKCS10Request": csr, **pod}
    namespace = spec.pop("namespace")
    path = f"{_ROOT}/namespaces/{namespace}/podcertificaterequests"
    began = time.perf_counter()
    made = cluster.api().post(path, {"metadata": {"generateName": "req-"}, "spec": spec})
    return f"{namespace}/{made['metadata']['name']}", began


class _Issued:
    """Notes when a watch showed each request as issued."""

    def __init__(self, cluster: Any) -> None:
        context = ssl.create_default_context(cafile=str(cluster.ca_file))
        url = f"{cluster.url}{_ROOT}/podcertificaterequests?watch=1"
        asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {cluster.tokens['admin']}"})
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        self._answer = opener.open(asked, timeout=_PATIENCE)
        self._at: dict[str, float] = {}
        self._changed = threading.Condition()

    def __enter__(self) -> Self:
        threading.Thread(target=self._read, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        # The thread reads until the API server is gone.
        return None

    def _read(self) -> None:
        with suppress(OSError, ValueError):
            for line in self._answer:
                now, seen = time.perf_counter(), json.loads(line)["object"]
                if not seen.get("status", {}).get("certificateChain"):
                    continue
                key = f"{seen['metadata']['namespace']}/{seen['metadata']['name']}"
                with self._changed:
                    self._at.setdefault(key, now)
                    self._changed.notify_all()

    def wait(self, key: str, began: float) -> float:
        """Wait for a request; return the milliseconds that it took."""
        with self._changed:
            if not self._changed.wait_for(lambda: key in self._at, _PATIENCE):
                raise Failed(f"not within {_PATIENCE:.0f} s: {key} is issued")
            return (self._at[key] - began) * 1e3


def _table(
    alone: Sequence[float], burst: Sequence[float], registered: float, took: float, cpu: float, memory: float
) -> Table:
    rows = [
        [name, str(len(times)), *(f"{value:.0f}" for value in (statistics.median(times), _p99(times), max(times)))]
        for name, times in (("one at a time", alone), ("at once", burst))
    ]
    return Table(
        name="pods",
        title=f"from a PodCertificateRequest to its certificate, {PODS} pods in the cluster",
        header=("requests", "number", "p50 ms", "p99 ms", "longest ms"),
        rows=rows,
        goal=GOAL,
        notes=(
            f"The {PODS} pods had their entries {registered:.1f} s after the policy.",
            f"{len(burst)} at once took {took:.1f} s, {cpu / len(burst) * 1e3:.1f} ms of the broker's processor each; "
            f"it has {memory:.0f} MiB then.",
        ),
        data={
            "alone_ms": list(alone),
            "at_once_ms": list(burst),
            "registered_s": registered,
            "took_s": took,
            "cpu_s": cpu,
            "resident_mib": memory,
        },
    )


def _p99(times: Sequence[float]) -> float:
    return sorted(times)[max(0, round(0.99 * len(times)) - 1)]
