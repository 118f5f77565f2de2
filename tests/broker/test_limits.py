# SPDX-License-Identifier: Apache-2.0
"""Rates at their borders, through the whole broker; and what SIGHUP reads again."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from firedoor.broker import limits
from firedoor.certs import KeyType, generate_key, make_csr, parse_x509_svid
from firedoor.wire import agent_grpc, agent_pb2, bundle_grpc, bundle_pb2, svid_grpc, svid_pb2
from tests.broker.harness import running, spiffe_id, write_whole
from tests.broker.test_issuing import OK, USER
from tests.broker.test_restart import process
from tests.broker.test_tokens import ID, KEY, MINT, PATH
from tests.waiting import async_until

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


async def test_an_agent_says_its_version_a_hundred_times_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_STATUS", replace(limits._STATUS, per_second=float(RATE)))
    async with running(folder) as broker:
        agent = await broker.attest()
        stub = agent_grpc.AgentStub(agent.channel)
        request = agent_pb2.PostStatusRequest(agent_version="1")
        answers = await asyncio.gather(*(stub.PostStatus(request) for _ in range(300)), return_exceptions=True)
        refused = [one for one in answers if isinstance(one, grpc.aio.AioRpcError)]
        assert len(answers) - len(refused) == 100
        assert {one.details() for one in refused} == {"rejecting request due to status posting rate limiting"}


MINTS = {
    "X.509": lambda stub: stub.MintX509SVID(svid_pb2.MintX509SVIDRequest(csr=make_csr(KEY, uris=[ID]))),
    "JWT": lambda stub: stub.MintJWTSVID(svid_pb2.MintJWTSVIDRequest(id=spiffe_id(PATH), audience=["a"])),
}


@pytest.mark.parametrize("kind", MINTS)
async def test_minting_from_elsewhere_counts_and_at_the_admin_socket_it_does_not(folder: Path, kind: str) -> None:
    async with running(folder, MINT, rate_limits_signing=RATE, rate_limits_signing_burst="3") as broker:
        agent = await broker.attest()
        made = await broker.entry(PATH, agent.path, USER, admin=True)
        key = generate_key(KeyType.EC_P256)
        (result,) = await agent.sign(made.id, csr=make_csr(key))
        admin = broker.client()
        admin.use(parse_x509_svid(tuple(result.svid.cert_chain)), key)
        stub, left = svid_grpc.SVIDStub(admin.channel), 2 if kind == "X.509" else 3
        for _ in range(left):
            await MINTS[kind](stub)
        with pytest.raises(grpc.aio.AioRpcError, match=f"{kind} signing rate limiting"):
            await MINTS[kind](stub)
        for _ in range(5):
            await MINTS[kind](broker.svids)


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
            write_whole(folder / "policy" / "segments.yaml", "kind: nonsense")
            one.popen.send_signal(signal.SIGHUP)
            await async_until(log.exists)
            before = moved.read_text()
            await stub.CreateJoinToken(agent_pb2.CreateJoinTokenRequest(ttl=60))
            assert moved.read_text() == before
            assert "CreateJoinToken" in log.read_text()
            await bundle_grpc.BundleStub(channel).GetBundle(bundle_pb2.GetBundleRequest())
        code, _ = await one.end()
        assert code == 0
