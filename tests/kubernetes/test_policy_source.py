# SPDX-License-Identifier: Apache-2.0
"""A broker whose policy is a cluster's Segments, Flows and Services."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from firedoor.broker.kubernetes import policy_resources
from firedoor.wire import admin_pb2
from tests.broker.following import following
from tests.broker.harness import RunningBroker, running
from tests.kubernetes.api import AlreadyExists
from tests.kubernetes.asking import until_answer
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.controllers import follow
from tests.kubernetes.rights import account
from tests.kubernetes.test_crds import FLOW, GROUP, PLURALS, SEGMENT, put, resources
from tests.waiting import async_until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
__all__ = ["resources"]
Resource = dict[str, Any]
Broker = Callable[[], AbstractAsyncContextManager[RunningBroker]]
OTHER = put(put(SEGMENT, "metadata.name", "registry"), "spec.members", ["spiffe://{td}/segment/registry/**"])
PULLS = put(put(FLOW, "metadata.name", "pulls"), "spec.to", {"segment": "registry", "port": 9000})


@pytest.fixture
def objects(resources: Cluster) -> Iterator[Cluster]:
    """A cluster with the role of the manifest, and no policy before and after."""
    _clear(resources)
    with suppress(AlreadyExists):
        resources.namespace("firedoor-system", exact=True)
        resources.service_account("firedoor-system", "firedoor-broker")
    manifest = ROOT / "deploy/kubernetes/policy-source.yaml"
    applied = resources.kubectl("apply", "--filename", str(manifest))
    assert applied.code == 0, applied
    given = list(yaml.safe_load_all(manifest.read_text()))
    follow(resources, given, account("firedoor-system", "firedoor-broker"))
    yield resources
    _clear(resources)


def _clear(cluster: Cluster) -> None:
    for plural in PLURALS.values():
        cluster.api().delete(f"{GROUP}/{plural}")


@pytest.fixture
def broker(objects: Cluster, tmp_path: Path) -> Broker:
    """Run a broker that comes to the cluster with a token of its service account."""
    token = tmp_path / "token"
    token.write_text(objects.token("firedoor-system", "firedoor-broker"))

    @asynccontextmanager
    async def run() -> AsyncIterator[RunningBroker]:
        (tmp_path / "broker").mkdir(exist_ok=True)
        where = {"server": objects.url, "ca": str(objects.ca_file), "token": str(token)}
        given = {f"kubernetes_policy_{key}": value for key, value in {"cluster": "test", **where}.items()}
        async with running(tmp_path / "broker", None, **given) as found:
            yield found

    return run


def create(cluster: Cluster, resource: Resource) -> Resource:
    return cluster.api().post(f"{GROUP}/{PLURALS[resource['kind']]}", resource)


def condition(cluster: Cluster, resource: Resource, kind: str) -> dict[str, Any]:
    path = f"{GROUP}/{PLURALS[resource['kind']]}/{resource['metadata']['name']}"
    conditions = cluster.api().get(path).get("status", {}).get("conditions", [])
    return next((one for one in conditions if one["type"] == kind), {"status": "", "message": ""})


async def status_is(cluster: Cluster, resource: Resource, kind: str, status: str, word: str) -> None:
    name = f"{kind} of {resource['metadata']['name']} is {status}: {word}"
    await until_answer(
        lambda: condition(cluster, resource, kind),
        lambda found: found["status"] == status and word in found["message"],
        name,
    )


async def flows(broker: RunningBroker) -> list[str]:
    policy = await broker.policy.GetPolicy(admin_pb2.GetPolicyRequest())
    return [flow.name for flow in policy.table.flows]


async def flows_are(broker: RunningBroker, *names: str) -> None:
    await async_until(lambda: flows(broker), f"the flows are {names}", when=lambda found: found == sorted(names))


async def test_the_objects_are_the_policy(objects: Cluster, broker: Broker) -> None:
    create(objects, SEGMENT)
    create(objects, FLOW)
    async with broker() as found:
        policy = await found.policy.GetPolicy(admin_pb2.GetPolicyRequest())
        assert policy.source == "kubernetes: test"
        await flows_are(found, "talks")
        create(objects, OTHER)
        create(objects, PULLS)
        await flows_are(found, "pulls", "talks")
        await status_is(objects, PULLS, "Accepted", "True", "part of the policy in force")
        objects.api().delete(f"{GROUP}/flows/talks")
        await flows_are(found, "pulls")
        with pytest.raises(grpc.aio.AioRpcError, match="the policy comes from kubernetes: test; edit it there"):
            await found.apply("")


async def test_an_error_changes_nothing_and_is_said_where_it_is(objects: Cluster, broker: Broker) -> None:
    create(objects, SEGMENT)
    create(objects, FLOW)
    async with broker() as found:
        await status_is(objects, FLOW, "Accepted", "True", "part of the policy in force")
        # Its segment is not there yet; and another object of the same set has no error of its own.
        create(objects, PULLS)
        later = create(objects, put(SEGMENT, "metadata.name", "later") | {"spec": {**SEGMENT["spec"], "members": []}})
        await status_is(objects, PULLS, "Accepted", "False", "registry")
        await status_is(objects, PULLS, "Enforced", "False", "not in force")
        await status_is(objects, later, "Accepted", "False", "another object of the set has an error")
        await status_is(objects, FLOW, "Accepted", "True", "part of the policy in force")
        assert await flows(found) == ["talks"]
        create(objects, OTHER)
        await status_is(objects, PULLS, "Accepted", "True", "part of the policy in force")
        await flows_are(found, "pulls", "talks")


async def test_enforced_once_every_sidecar_has_acknowledged(objects: Cluster, broker: Broker) -> None:
    create(objects, SEGMENT)
    async with broker() as found:
        agent = await found.attest()
        async with following(agent=agent, acknowledges=False) as sidecar:
            create(objects, FLOW)
            await status_is(objects, FLOW, "Accepted", "True", "part of the policy in force")
            await status_is(objects, FLOW, "Enforced", "False", agent.id)
            sidecar.acknowledges = True
            # It is asked for again at the next generation, as a sidecar that comes back is.
            create(objects, OTHER)
            await status_is(objects, FLOW, "Enforced", "True", "every sidecar has acknowledged it")
        assert condition(objects, FLOW, "Enforced")["observedGeneration"] == 1


async def test_it_outlives_an_api_server_that_restarts(objects: Cluster, broker: Broker) -> None:
    create(objects, SEGMENT)
    create(objects, FLOW)
    async with broker() as found:
        await flows_are(found, "talks")
        await asyncio.to_thread(objects.stop_server)
        assert found.broker.resources is not None
        await until_answer(lambda: found.broker.resources.trouble, bool, "the broker notices")  # type: ignore[union-attr]
        assert await flows(found) == ["talks"]
        assert await asyncio.to_thread(objects.start_server)
        create(objects, OTHER)
        create(objects, PULLS)
        await flows_are(found, "pulls", "talks")
        await status_is(objects, PULLS, "Accepted", "True", "part of the policy in force")
        assert found.broker.resources.trouble == {}


async def test_a_broker_that_starts_without_the_api_server_goes_on_with_what_was_in_force(
    objects: Cluster, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(objects, SEGMENT)
    create(objects, FLOW)
    async with broker() as found:
        await flows_are(found, "talks")
    monkeypatch.setattr(policy_resources, "READY_SECONDS", 1.0)
    await asyncio.to_thread(objects.stop_server)
    try:
        async with broker() as found:
            assert await flows(found) == ["talks"]
    finally:
        assert await asyncio.to_thread(objects.start_server)
