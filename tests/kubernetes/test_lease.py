# SPDX-License-Identifier: Apache-2.0
"""Who of several brokers writes, by a Lease of a real API server."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from firedoor.broker.kubernetes.lease import DURATION, Lease
from firedoor.broker.kubernetes.rights import cluster_api
from firedoor.cluster.access import Access
from firedoor.cluster.api import ClusterApi
from tests.kubernetes.cluster import Cluster

# The first test waits until the control plane is up.
pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]


class Time:
    """A monotonic clock that goes as it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def api(cluster: Cluster, tmp_path: Path) -> AsyncIterator[ClusterApi]:
    (tmp_path / "token").write_text(cluster.tokens["admin"])
    found = cluster_api("test", Access(cluster.url, cluster.ca_file, tmp_path / "token"))
    yield found
    await found.close()


class Two:
    """Two brokers that want the same Lease."""

    def __init__(self, cluster: Cluster, api: ClusterApi) -> None:
        self.namespace, self.name = cluster.namespace("lease"), f"one-{secrets.token_hex(4)}"
        self.cluster, self.time = cluster, Time()
        self.a, self.b = (Lease(api, self.namespace, self.name, who, self.time) for who in ("a", "b"))

    def spec(self) -> dict[str, Any]:
        path = f"/apis/coordination.k8s.io/v1/namespaces/{self.namespace}/leases/{self.name}"
        spec: dict[str, Any] = self.cluster.api().get(path)["spec"]
        return spec


async def test_one_holds_it_and_the_other_takes_over(cluster: Cluster, api: ClusterApi) -> None:
    two = Two(cluster, api)
    await two.a.look()
    await two.b.look()
    assert (two.a.held, two.b.held) == (True, False)
    assert two.spec()["holderIdentity"] == "a"
    # It is renewed, so it does not end.
    for _ in range(4):
        two.time.now += DURATION - 1
        await two.a.look()
        await two.b.look()
        assert (two.a.held, two.b.held) == (True, False)
    # A is silent: it stops by itself before B may begin.
    two.time.now += DURATION - 1
    assert not two.a.held
    await two.b.look()
    assert not two.b.held
    two.time.now += 2
    await two.b.look()
    assert two.b.held
    assert two.spec()["leaseTransitions"] == 1
    await two.a.look()
    assert not two.a.held


async def test_it_is_given_up_at_the_end(cluster: Cluster, api: ClusterApi) -> None:
    two = Two(cluster, api)
    await two.a.look()
    await two.a.release()
    assert not two.a.held
    await two.b.look()
    assert two.b.held
    # Who does not hold it gives up nothing.
    await two.a.release()
    assert two.spec()["holderIdentity"] == "b"


async def test_of_two_at_once_one_gets_it(cluster: Cluster, api: ClusterApi) -> None:
    two = Two(cluster, api)
    await two.a.look()
    await two.a.release()
    # Both have read it before either writes.
    path = f"/apis/coordination.k8s.io/v1/namespaces/{two.namespace}/leases/{two.name}"
    there = await api.get(path)

    class Late:
        """Shows what was there, and writes as it should."""

        async def get(self, _path: str) -> object:
            return there

        def __getattr__(self, name: str) -> Any:
            return getattr(api, name)

    late = Lease(Late(), two.namespace, two.name, "late", two.time)  # type: ignore[arg-type]
    await two.b.look()
    await late.look()
    assert (two.b.held, late.held) == (True, False)
    first = Lease(Late(), two.namespace, f"{two.name}-new", "first", two.time)  # type: ignore[arg-type]
    there = None
    await first.look()
    second = Lease(Late(), two.namespace, f"{two.name}-new", "second", two.time)  # type: ignore[arg-type]
    await second.look()
    assert (first.held, second.held) == (True, False)
