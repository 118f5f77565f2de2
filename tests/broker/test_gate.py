# SPDX-License-Identifier: Apache-2.0
"""The gate: who a caller is, what it learns from a refusal, what is kept of it. test_matrix.py walks the table."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from firedoor.certs import KeyType, generate_key, make_csr, parse_x509_svid
from firedoor.wire import agent_pb2, bundle_grpc, bundle_pb2, entry_grpc, entry_pb2, health_pb2
from tests.broker.harness import RunningBroker, spiffe_id, status

LIST = "/spire.api.server.entry.v1.Entry/ListEntries"


async def test_an_admin_entry_makes_an_administrator(broker: RunningBroker) -> None:
    agent = await broker.attest()
    user = ["unix:user:registry"]
    made = await broker.entry("/segment/registry/boss", agent.path, user, admin=True)
    twin = await broker.entry("/segment/registry/clerk", agent.path, user)
    workloads = []
    for entry_id, expected in ((made.id, "OK"), (twin.id, "PERMISSION_DENIED")):
        key = generate_key(KeyType.EC_P256)
        (result,) = await agent.sign(entry_id, csr=make_csr(key))
        workload = broker.client()
        workload.use(parse_x509_svid(tuple(result.svid.cert_chain)), key)
        workloads.append(workload)
        assert await status(workload.channel, LIST) == expected
        # Neither is an agent.
        assert await status(workload.channel, "/spire.api.server.entry.v1.Entry/GetAuthorizedEntries") == (
            "PERMISSION_DENIED"
        )
    # With the entry, the SVID is revoked: not even a handshake.
    await broker.entries.BatchDeleteEntry(entry_pb2.BatchDeleteEntryRequest(ids=[made.id]))
    boss, clerk = workloads
    assert await status(boss.connect(), LIST) == "UNAVAILABLE"
    assert await status(clerk.connect(), LIST) == "PERMISSION_DENIED"


async def test_what_is_not_served_says_so_to_those_who_may_ask(broker: RunningBroker) -> None:
    publish = "/spire.api.server.bundle.v1.Bundle/PublishJWTAuthority"
    assert await status(broker.client().channel, publish) == "PERMISSION_DENIED"
    assert await status(broker.admin, "/spire.api.server.entry.v1.Entry/Nothing") == "UNIMPLEMENTED"


async def test_a_connection_past_the_front_is_nobody(broker: RunningBroker) -> None:
    """Whoever reaches a private address has no name that is live, whatever headers it sends."""
    assert len(broker.broker.backends) == 2
    for backend in broker.broker.backends:
        async with grpc.aio.insecure_channel(backend, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await bundle_grpc.BundleStub(channel).GetBundle(
                    bundle_pb2.GetBundleRequest(), metadata=(("x-spiffe-id", "spiffe://example.org/spire/server"),)
                )
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_open_streams_are_authorized_anew(broker: RunningBroker) -> None:
    agent = await broker.attest()
    call = entry_grpc.EntryStub(agent.channel).SyncAuthorizedEntries()
    await call.write(entry_pb2.SyncAuthorizedEntriesRequest())
    assert (await call.read()).entries == []
    await broker.agents.DeleteAgent(agent_pb2.DeleteAgentRequest(id=spiffe_id(agent.path)))
    # Its connections are closed, and its certificate is revoked: it is told nothing more on the stream that it had.

    async def ask() -> None:
        await call.write(entry_pb2.SyncAuthorizedEntriesRequest(ids=["x"]))
        await call.read()

    with pytest.raises((grpc.aio.AioRpcError, asyncio.InvalidStateError)):
        await ask()


async def test_health_is_asked_locally(broker: RunningBroker) -> None:
    answer = await broker.health.Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    watch = broker.health.Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


async def test_refusals_are_in_the_audit_log(broker: RunningBroker) -> None:
    before = len(broker.audit())
    await status(broker.client().channel, "/spire.api.server.entry.v1.Entry/ListEntries")
    (record,) = broker.audit()[before:]
    assert record["status"] == "PERMISSION_DENIED"
    assert record["caller_id"] == ""
    assert record["caller_addr"].startswith("127.0.0.1:")


async def test_the_admin_socket_is_its_owners_alone(broker: RunningBroker) -> None:
    config = broker.broker.config
    assert config.admin_socket.stat().st_mode & 0o777 == 0o600
