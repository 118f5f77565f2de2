# SPDX-License-Identifier: Apache-2.0
"""The trust bundle reaches ConfigMaps and a ClusterTrustBundle of a real API server, and stays right there."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from firedoor.broker.kubernetes.certificates_api import SIGNER
from firedoor.broker.kubernetes.cluster_bundle import NAME
from firedoor.certs import TrustBundle, TrustDomain
from firedoor.cluster.api import ClusterApi
from firedoor.cluster.errors import WrittenMeanwhile
from tests.broker.harness import TD, RunningBroker, running
from tests.kubernetes import controllers
from tests.kubernetes.api import ApiError
from tests.kubernetes.asking import until_answer, until_here
from tests.kubernetes.cluster import Cluster, running_cluster

pytestmark = [pytest.mark.peer, pytest.mark.timeout(400)]
MAP = "firedoor-bundle"
BUNDLES = "/apis/certificates.k8s.io/v1/clustertrustbundles"


class Delivery:
    """A cluster whose namespaces with a label of this test's own have the bundle of some brokers."""

    def __init__(self, cluster: Cluster, folder: Path, database: str = "") -> None:
        self.cluster, self.folder = cluster, folder
        self.label = f"team-{secrets.token_hex(4)}"
        self.flags = {
            **controllers.flags(cluster, folder / "account"),
            "kubernetes_controllers_trust_bundle": "true",
            "kubernetes_controllers_bundle_namespaces": f"{self.label}=yes",
        }

    @asynccontextmanager
    async def broker(self, name: str = "b", **more: str) -> AsyncIterator[RunningBroker]:
        (self.folder / name).mkdir(exist_ok=True)
        async with running(self.folder / name, None, **self.flags, **more) as found:
            yield found

    def namespace(self) -> str:
        return self.cluster.namespace("inference", {self.label: "yes"})

    def path(self, namespace: str) -> str:
        return f"/api/v1/namespaces/{namespace}/configmaps/{MAP}"

    def map(self, namespace: str) -> dict[str, Any]:
        """Return a namespace's ConfigMap, an empty mapping when there is none."""
        return _get(self.cluster, self.path(namespace))

    async def has(self, broker: RunningBroker, *namespaces: str) -> None:
        """Wait until each has the bundle of the broker."""
        for namespace in namespaces:
            await until_answer(
                lambda namespace=namespace: self.map(namespace).get("data"),
                lambda data: data == wanted(broker),
                f"the bundle is in {namespace}",
            )

    async def roots_are(self, broker: RunningBroker) -> dict[str, Any]:
        """Wait until the ClusterTrustBundle has the broker's roots, and return it."""
        roots = bundle(broker).to_pem()
        found = await until_answer(
            lambda: _get(self.cluster, f"{BUNDLES}/{NAME}"),
            lambda one: one.get("spec", {}).get("trustBundle") == roots,
            "the ClusterTrustBundle has the roots",
        )
        return dict(found)


def _get(cluster: Cluster, path: str) -> dict[str, Any]:
    with suppress(ApiError):
        return cluster.api().get(path)
    return {}


def bundle(broker: RunningBroker) -> TrustBundle:
    state = broker.broker.state
    return state.bundles[state.trust_domain]


def wanted(broker: RunningBroker) -> dict[str, str]:
    return {"bundle.json": bundle(broker).to_json().decode(), "bundle.pem": bundle(broker).to_pem()}


@pytest.fixture
def delivery(cluster: Cluster, tmp_path: Path) -> Iterator[Delivery]:
    yield Delivery(cluster, tmp_path)
    _forget(cluster)


def _forget(cluster: Cluster) -> None:
    with suppress(ApiError):
        cluster.api().delete(f"{BUNDLES}/{NAME}")


async def test_selected_namespaces_have_it_and_no_others(delivery: Delivery) -> None:
    first, other = delivery.namespace(), delivery.cluster.namespace("other")
    async with delivery.broker() as broker:
        await delivery.has(broker, first)
        read = TrustBundle.parse(TrustDomain.parse(TD), delivery.map(first)["data"]["bundle.json"].encode())
        assert [root.der for root in read.x509_roots] == broker.roots()
        later = await asyncio.to_thread(delivery.namespace)
        await delivery.has(broker, later)
        assert delivery.map(other) == {}
        # The label is taken from one and given to the other.
        api = delivery.cluster.api()
        api.patch(f"/api/v1/namespaces/{first}", {"metadata": {"labels": {delivery.label: None}}})
        api.patch(f"/api/v1/namespaces/{other}", {"metadata": {"labels": {delivery.label: "yes"}}})
        await delivery.has(broker, other)
        await until_answer(lambda: delivery.map(first), lambda found: not found, "the ConfigMap is deleted")


async def test_what_is_edited_or_deleted_is_put_right(delivery: Delivery) -> None:
    namespace = delivery.namespace()
    async with delivery.broker() as broker:
        await delivery.has(broker, namespace)
        api = delivery.cluster.api()
        await asyncio.to_thread(api.patch, delivery.path(namespace), {"data": {"bundle.json": "{}", "more": "x"}})
        await delivery.has(broker, namespace)
        uid = delivery.map(namespace)["metadata"]["uid"]
        await asyncio.to_thread(api.delete, delivery.path(namespace))
        await until_answer(
            lambda: delivery.map(namespace).get("metadata", {}).get("uid"),
            lambda found: found not in (None, uid),
            "it is made again",
        )
        await delivery.has(broker, namespace)


async def test_a_config_map_of_somebody_else_stays(delivery: Delivery, caplog: pytest.LogCaptureFixture) -> None:
    namespace, other = delivery.namespace(), delivery.namespace()
    own = {"metadata": {"name": MAP}, "data": {"bundle.json": "mine"}}
    delivery.cluster.api().post(f"/api/v1/namespaces/{namespace}/configmaps", own)
    async with delivery.broker() as broker:
        await delivery.has(broker, other)
        await until_here(
            lambda: caplog.text, lambda text: f"{namespace}/{MAP} is not this broker's" in text, "it is said"
        )
        assert delivery.map(namespace)["data"] == own["data"]
        counted = 'firedoor_broker_bundle_config_maps{state="foreign"} 1.0'
        await until_here(lambda: broker.broker.metrics.text().decode(), lambda text: counted in text, "it is counted")
        # Nor is it deleted when the namespace is not selected any more, which the other one's shows.
        api = delivery.cluster.api()
        for one in (namespace, other):
            api.patch(f"/api/v1/namespaces/{one}", {"metadata": {"labels": {delivery.label: None}}})
        await until_answer(lambda: delivery.map(other), lambda found: not found, "the ConfigMap is deleted")
        assert delivery.map(namespace)["data"] == own["data"]


async def test_an_authority_is_there_before_it_signs(delivery: Delivery) -> None:
    namespace = delivery.namespace()
    async with delivery.broker() as broker:
        await delivery.has(broker, namespace)
        authority = broker.broker.authority
        prepared = await authority.prepare()
        assert len(broker.roots()) == 2
        await delivery.has(broker, namespace)
        assert authority.active().authority_id != prepared.authority_id
        found = await delivery.roots_are(broker)
        assert found["spec"]["trustBundle"].count("BEGIN CERTIFICATE") == 2
        old = authority.active().authority_id
        await authority.activate(prepared.authority_id)
        await authority.taint(old)
        # What a tainted one signed is still verified.
        await delivery.roots_are(broker)
        await authority.revoke(old)
        assert len(broker.roots()) == 1
        await delivery.has(broker, namespace)
        await delivery.roots_are(broker)


async def test_the_cluster_trust_bundle(delivery: Delivery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firedoor.broker.kubernetes.cluster_bundle._LOOK", 0.2)
    async with delivery.broker() as broker:
        found = await delivery.roots_are(broker)
        assert found["spec"]["signerName"] == SIGNER
        api = delivery.cluster.api()
        other = "".join(controllers.root_pem() for _ in range(2))
        await asyncio.to_thread(api.patch, f"{BUNDLES}/{NAME}", {"spec": {"trustBundle": other}})
        await delivery.roots_are(broker)
        await asyncio.to_thread(api.delete, f"{BUNDLES}/{NAME}")
        await delivery.roots_are(broker)


async def test_a_cluster_trust_bundle_of_somebody_else_stays(
    delivery: Delivery, caplog: pytest.LogCaptureFixture
) -> None:
    spec = {"signerName": SIGNER, "trustBundle": controllers.root_pem()}
    delivery.cluster.api().post(BUNDLES, {"metadata": {"name": NAME}, "spec": spec})
    async with delivery.broker():
        await until_here(lambda: caplog.text, lambda text: f"{NAME} is not this broker's" in text, "it is said")
        assert _get(delivery.cluster, f"{BUNDLES}/{NAME}")["spec"] == spec


async def test_what_somebody_else_writes_at_the_same_moment(
    delivery: Delivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is answered with a conflict (409) by the API server, is read again, and nothing of the other's is lost."""
    namespace, later = delivery.namespace(), delivery.namespace()
    api = delivery.cluster.api()
    tried: set[str] = set()
    refused: set[str] = set()
    monkeypatch.setattr("firedoor.broker.kubernetes.cluster_bundle._LOOK", 0.2)

    def raced(call: Callable[..., Any], other: Callable[[str], object]) -> Callable[..., Any]:
        async def late(self: ClusterApi, path: str, body: Mapping[str, Any]) -> Any:
            if path in wanted_paths - tried:
                tried.add(path)
                await asyncio.to_thread(other, path)
            try:
                return await call(self, path, body)
            except WrittenMeanwhile:
                refused.add(path)
                raise

        return late

    changed = {delivery.path(namespace), f"{BUNDLES}/{NAME}"}
    made = f"/api/v1/namespaces/{later}/configmaps"
    wanted_paths = {*changed, made}
    label = {"metadata": {"labels": {"raced": "yes"}}}
    own = {"metadata": {"name": MAP}, "data": {"bundle.json": "mine"}}
    # The second is selected when it is too late.
    api.patch(f"/api/v1/namespaces/{later}", {"metadata": {"labels": {delivery.label: None}}})
    async with delivery.broker() as broker:
        await delivery.has(broker, namespace)
        await delivery.roots_are(broker)
        monkeypatch.setattr(ClusterApi, "merge", raced(ClusterApi.merge, lambda path: api.patch(path, label)))
        monkeypatch.setattr(ClusterApi, "create", raced(ClusterApi.create, lambda path: api.post(path, own)))
        await asyncio.to_thread(
            api.patch, f"/api/v1/namespaces/{later}", {"metadata": {"labels": {delivery.label: "yes"}}}
        )
        await broker.broker.authority.prepare()
        await delivery.has(broker, namespace)
        await delivery.roots_are(broker)
        await until_answer(lambda: made in refused, bool, "somebody was first")
        for path in changed:
            assert api.get(path)["metadata"]["labels"]["raced"] == "yes"
        assert delivery.map(later)["data"] == own["data"]
    assert refused == wanted_paths


async def test_one_of_two_brokers_writes_and_the_other_takes_over(delivery: Delivery) -> None:
    """Two that share nothing but the Lease: whose bundle is there says who writes."""
    namespace = delivery.namespace()
    async with AsyncExitStack() as stack:
        async with delivery.broker("a") as first:
            await delivery.has(first, namespace)
            second = await stack.enter_async_context(delivery.broker("b"))
            await first.broker.authority.prepare()
            await delivery.has(first, namespace)
            assert second.broker.controllers is not None
            assert not second.broker.controllers.lease.held
        await delivery.has(second, namespace)
        await delivery.roots_are(second)


async def test_it_outlives_an_api_server_that_restarts(tmp_path: Path) -> None:
    with running_cluster(tmp_path) as cluster:
        delivery = Delivery(cluster, tmp_path)
        namespace = delivery.namespace()
        async with delivery.broker() as broker:
            await delivery.has(broker, namespace)
            await asyncio.to_thread(cluster.stop_server)
            await broker.broker.authority.prepare()
            assert await asyncio.to_thread(cluster.start_server)
            await delivery.has(broker, namespace)
            await delivery.roots_are(broker)
