# SPDX-License-Identifier: Apache-2.0
"""Attestation by join token, renewal, bans and evictions, over the network."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from firedoor.certs import KeyType, generate_key, make_csr
from firedoor.wire import agent_grpc, agent_pb2, details, types
from tests.broker.harness import RunningBroker, spiffe_id

ENGINES = ("sqlite", "postgresql")

NO_TOKEN = "failed to attest: join token does not exist or has already been used"
Denied = types.PermissionDeniedDetails


def reason(error: grpc.aio.AioRpcError) -> int:
    return details.permission_denied_reason(tuple(error.trailing_metadata()))


async def test_a_token_attests_once(broker: RunningBroker) -> None:
    token = await broker.token()
    agent = await broker.attest(token)
    assert agent.id == f"spiffe://example.org/spire/agent/join_token/{token}"
    assert await agent.entries() == []
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await broker.client().attest(token)
    assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, NO_TOKEN)


async def test_fifty_at_once_use_one_token(broker: RunningBroker) -> None:
    token = await broker.token()
    client = broker.client()
    results = await asyncio.gather(*(client.attest(token) for _ in range(50)), return_exceptions=True)
    refused = [r for r in results if isinstance(r, grpc.aio.AioRpcError)]
    assert len(results) - len(refused) == 1
    assert {r.details() for r in refused} == {NO_TOKEN}
    assert len(refused) == 49


async def test_an_expired_token_is_refused(broker: RunningBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    token, twin = await broker.token(ttl=60), await broker.token(ttl=120)
    now = broker.broker.clock.now()
    monkeypatch.setattr(broker.broker.clock, "_last", float(now + 61))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await broker.client().attest(token)
    assert refused.value.details() == "join token expired"
    assert await broker.client().attest(twin)


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (lambda p: p.ClearField("data"), "INVALID_ARGUMENT", "missing attestation data"),
        (lambda p: p.data.ClearField("type"), "INVALID_ARGUMENT", "missing attestation data type"),
        (lambda p: p.ClearField("params"), "INVALID_ARGUMENT", "missing X509-SVID parameters"),
        (lambda p: p.params.ClearField("csr"), "INVALID_ARGUMENT", "missing CSR"),
        (lambda p: setattr(p.params, "csr", b"no csr"), "INVALID_ARGUMENT", "malformed CSR"),
        (lambda p: setattr(p.params, "csr", b"x" * 100_000), "INVALID_ARGUMENT", "malformed CSR"),
        (lambda p: setattr(p.data, "payload", b"\xff" * 300), "INVALID_ARGUMENT", NO_TOKEN),
        (lambda p: setattr(p.data, "payload", b"a/b"), "INVALID_ARGUMENT", NO_TOKEN),
        (lambda p: setattr(p.data, "payload", b".."), "INVALID_ARGUMENT", NO_TOKEN),
        (lambda p: setattr(p.data, "payload", b"a" * 100_000), "INVALID_ARGUMENT", "payload is too long"),
        (
            lambda p: setattr(p.data, "type", "aws_iid"),
            "FAILED_PRECONDITION",
            'error getting node attestor: could not find node attestor type "aws_iid"',
        ),
    ],
)
async def test_what_is_missing_or_wrong_is_said(broker: RunningBroker, make, code: str, words: str) -> None:
    client, token = broker.client(), await broker.token()
    params = agent_pb2.AttestAgentRequest.Params(
        data=types.AttestationData(type="join_token", payload=token.encode()),
        params=agent_pb2.AgentX509SVIDParams(csr=make_csr(client.key)),
    )
    twin = agent_pb2.AttestAgentRequest.Params()
    twin.CopyFrom(params)
    make(params)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.attest_with(params)
    assert refused.value.code().name == code
    assert words in refused.value.details()
    # The token was not used up by any of it.
    assert await client.attest_with(twin)


async def test_a_csr_that_another_key_signed_is_refused(broker: RunningBroker) -> None:
    client = broker.client()
    good = make_csr(client.key)
    forged = bytearray(good)
    forged[-1] ^= 1
    token = await broker.token()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.attest(token, bytes(forged))
    assert refused.value.details() == "invalid CSR signature"
    assert await client.attest(token, good)


async def test_bytes_that_are_no_message_are_refused(broker: RunningBroker) -> None:
    call = broker.client().channel.unary_unary("/spire.api.server.bundle.v1.Bundle/GetBundle")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call(b"\xff\xff\xff")
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert await call(b"")


async def test_a_renewed_certificate_counts_beside_the_old_one_until_it_is_used(broker: RunningBroker) -> None:
    agent = await broker.attest()
    old = agent.svid
    old_key, old_channel = agent.key, agent.channel
    new_key = generate_key(KeyType.EC_P256)
    new = await agent.renew(new_key)
    assert old is not None
    assert new.id == old.id
    assert new.serial != old.serial
    # Not used yet: the old one still counts.
    await agent.entries()
    agent.use(new, new_key)
    await agent.entries()
    stub = agent_grpc.AgentStub(old_channel)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.RenewAgent(agent_pb2.RenewAgentRequest(params=agent_pb2.AgentX509SVIDParams(csr=make_csr(old_key))))
    assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert reason(refused.value) == Denied.AGENT_NOT_ACTIVE
    await agent.entries()


async def test_a_banned_agent_is_cut_off_and_cannot_come_back(broker: RunningBroker) -> None:
    agent, twin = await broker.attest(), await broker.attest()
    await agent.entries()
    await broker.ban(agent.id)
    # Its connections are closed; on a new one it is told why, so that it gives up.
    agent.channel = agent.connect()
    with pytest.raises(grpc.aio.AioRpcError) as told:
        await agent.entries()
    assert reason(told.value) == Denied.AGENT_BANNED
    again = broker.client()
    token = agent.id.rpartition("/")[2]
    await broker.token(token=token)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await again.attest(token)
    assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert refused.value.details() == "failed to attest: agent is banned"
    assert reason(refused.value) == Denied.AGENT_BANNED
    assert await twin.entries() == []


async def test_an_evicted_agent_may_attest_again(broker: RunningBroker) -> None:
    token = await broker.token("/node/gpu-1")
    agent = await broker.attest(token)
    assert len(broker.broker.state.entries) == 1
    await broker.agents.DeleteAgent(agent_pb2.DeleteAgentRequest(id=spiffe_id(agent.path)))
    assert len(broker.broker.state.entries) == 0
    with pytest.raises(grpc.aio.AioRpcError):
        await agent.entries()
    await broker.token(token=token)
    assert await (await broker.attest(token)).entries() == []
    with pytest.raises(grpc.aio.AioRpcError) as missing:
        await broker.agents.DeleteAgent(agent_pb2.DeleteAgentRequest(id=spiffe_id("/spire/agent/join_token/other")))
    assert (missing.value.code().name, missing.value.details()) == ("NOT_FOUND", "agent not found")


async def test_attestation_is_limited_by_address(folder) -> None:
    from tests.broker.harness import running

    # So slow that nothing comes back during a test.
    async with running(folder, rate_limits_attestation="0.01", rate_limits_attestation_burst="3") as broker:
        client = broker.client()
        tokens = [await broker.token() for _ in range(4)]
        for token in tokens[:3]:
            await client.attest(token)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.attest(tokens[3])
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "rate limiting" in refused.value.details()


async def test_post_status_is_kept(broker: RunningBroker) -> None:
    agent = await broker.attest()
    stub = agent_grpc.AgentStub(agent.channel)
    await stub.PostStatus(agent_pb2.PostStatusRequest(agent_version="1.15.3"))
    shown = await broker.agents.GetAgent(agent_pb2.GetAgentRequest(id=spiffe_id(agent.path)))
    assert shown.agent_version == "1.15.3"
    assert shown.x509svid_serial_number == str(int(agent.svid.serial, 16))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.PostStatus(agent_pb2.PostStatusRequest(agent_version="x" * 256))
    assert refused.value.details() == "agent version is too long (max 255 characters)"
