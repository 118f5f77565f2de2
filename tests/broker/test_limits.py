# SPDX-License-Identifier: Apache-2.0
"""Rates at their borders, through the whole broker; and what SIGHUP reads again."""

from __future__ import annotations

import signal
from pathlib import Path

import grpc
import pytest

from firedoor.certs import KeyType, generate_key
from firedoor.wire import agent_grpc, agent_pb2, bundle_grpc, bundle_pb2
from tests.broker.harness import running, until
from tests.broker.test_issuing import OK, USER
from tests.broker.test_restart import process

# So slow that nothing comes back during a test.
RATE = "0.01"


async def test_signatures_are_counted_one_by_one(folder: Path) -> None:
    async with running(folder, rate_limits_signing=RATE, rate_limits_signing_burst="5") as broker:
        agent = await broker.attest()
        made = await broker.entry("/segment/registry/x", agent.path, USER)
        assert [r.status.code for r in await agent.sign(made.id, made.id, made.id)] == [OK] * 3
        with pytest.raises(grpc.aio.AioRpcError, match="signing rate limiting") as refused:
            await agent.sign(made.id, made.id, made.id)
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        # The twin has as many as are left: what was refused was not counted.
        assert [r.status.code for r in await agent.sign(made.id, made.id)] == [OK] * 2
        with pytest.raises(grpc.aio.AioRpcError, match="rate limiting"):
            await agent.renew(generate_key(KeyType.EC_P256))
        # Reading costs nothing.
        assert [e.id for e in await agent.entries()] == [made.id]


async def test_a_renewal_counts_as_one_signature(folder: Path) -> None:
    async with running(folder, rate_limits_signing=RATE, rate_limits_signing_burst="2") as broker:
        agent = await broker.attest()
        for _ in range(2):
            await agent.renew(generate_key(KeyType.EC_P256))
        with pytest.raises(grpc.aio.AioRpcError, match="rate limiting"):
            await agent.renew(generate_key(KeyType.EC_P256))


async def test_a_refused_attestation_leaves_its_token(folder: Path) -> None:
    async with running(folder, rate_limits_attestation=RATE, rate_limits_attestation_burst="1") as broker:
        tokens = [await broker.token() for _ in range(2)]
        client = broker.client()
        await client.attest(tokens[0])
        with pytest.raises(grpc.aio.AioRpcError, match="attestation rate limiting"):
            await client.attest(tokens[1])
        # Nothing was used up: a token is there until somebody attests with it.
        with pytest.raises(grpc.aio.AioRpcError, match="already exists"):
            await broker.token(token=tokens[1])
        assert await broker.token(token=tokens[0]) == tokens[0]


async def test_hang_up_opens_the_audit_log_anew_and_keeps_a_policy_that_is_broken(folder: Path) -> None:
    log, moved = folder / "data" / "audit.jsonl", folder / "data" / "audit.1"
    async with process(folder) as one:
        await one.ready()
        async with one.channel() as channel:
            stub = agent_grpc.AgentStub(channel)
            await stub.CreateJoinToken(agent_pb2.CreateJoinTokenRequest(ttl=60))
            log.rename(moved)
            before = moved.read_text()
            await stub.CreateJoinToken(agent_pb2.CreateJoinTokenRequest(ttl=60))
            assert moved.read_text() != before
            (folder / "policy" / "segments.yaml").write_text("kind: nonsense")
            one.popen.send_signal(signal.SIGHUP)
            await until(log.exists)
            before = moved.read_text()
            await stub.CreateJoinToken(agent_pb2.CreateJoinTokenRequest(ttl=60))
            assert moved.read_text() == before
            assert "CreateJoinToken" in log.read_text()
            await bundle_grpc.BundleStub(channel).GetBundle(bundle_pb2.GetBundleRequest())
        code, _ = await one.end()
        assert code == 0
