# SPDX-License-Identifier: Apache-2.0
"""Administrators that the configuration names, of other trust domains too."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest

from firedoor import mtls
from firedoor.broker import config
from firedoor.broker.errors import ConfigError
from firedoor.certs import KeyType, generate_key, make_csr, parse_x509_svid
from firedoor.wire import agent_grpc, agent_pb2, bundle_pb2, entry_grpc, entry_pb2
from tests.broker.harness import CHANNEL, POLICY, SERVER, TD, RunningBroker, code_of, flags, running
from tests.broker.test_federation import give
from tests.simulator import SimulatedTrustDomain
from tests.waiting import PATIENCE

ADMIN = "/operations/alice"


@pytest.fixture
def other() -> SimulatedTrustDomain:
    return SimulatedTrustDomain("other.org", at=int(time.time()))


@pytest.fixture
async def broker(folder: Path) -> AsyncIterator[RunningBroker]:
    async with running(folder, POLICY, admin_ids=f"spiffe://other.org{ADMIN}") as found:
        yield found


@contextlib.contextmanager
def calling(broker: RunningBroker, trust: SimulatedTrustDomain, path: str) -> Iterator[grpc.aio.Channel]:
    """Call the broker over the network with an SVID of another trust domain."""
    svid, core = trust.svid(path), mtls.Core()
    try:
        bundles = {TD: broker.roots(), trust.td.name: [root.der for root in trust.roots]}
        held = mtls.Svid(id=str(svid.id), chain=svid.chain, key=svid.key_der, federates_with=[TD])
        core.publish(mtls.Material(trust_domain=trust.td.name, bundles=bundles, svids=[held]))
        connector = core.connector(
            path=str(broker.folder / f"{time.monotonic_ns()}.sock"),
            addresses=[broker.broker.listen],
            expect=SERVER,
            as_id=str(svid.id),
        )
        yield grpc.aio.insecure_channel(f"unix:{connector.path}", options=CHANNEL)
    finally:
        core.stop()


async def count(channel: grpc.aio.Channel) -> str:
    try:
        await entry_grpc.EntryStub(channel).CountEntries(entry_pb2.CountEntriesRequest(), timeout=PATIENCE)
    except grpc.aio.AioRpcError as error:
        return code_of(error)
    finally:
        await channel.close()
    return "OK"


async def refusal(stub: entry_grpc.EntryStub) -> str:
    """Ask until it is refused, and return how."""
    while True:
        try:
            await stub.CountEntries(entry_pb2.CountEntriesRequest(), timeout=60)
        except grpc.aio.AioRpcError as error:
            return code_of(error)


async def test_who_is_named_administers_and_nobody_else(broker: RunningBroker, other: SimulatedTrustDomain) -> None:
    """SPIRE's suite admin-endpoints has one of another trust domain, and a regular one."""
    await give(broker, other)
    with calling(broker, other, ADMIN) as channel:
        assert await count(channel) == "OK"
    with calling(broker, other, f"{ADMIN}/twin") as channel:
        assert await count(channel) == "PERMISSION_DENIED"
    # Nothing but administration: it is no agent, and not the broker's own user.
    with calling(broker, other, ADMIN) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await agent_grpc.AgentStub(channel).PostStatus(agent_pb2.PostStatusRequest())
        assert code_of(refused.value) == "PERMISSION_DENIED"
        await channel.close()


async def test_another_root_cannot_make_that_name(broker: RunningBroker, other: SimulatedTrustDomain) -> None:
    await give(broker, other)
    stranger = SimulatedTrustDomain("other.org", at=other.at)
    with calling(broker, stranger, ADMIN) as channel:
        assert await count(channel) == "UNAVAILABLE"


async def test_without_the_bundle_nobody_comes_in(broker: RunningBroker, other: SimulatedTrustDomain) -> None:
    with calling(broker, other, ADMIN) as channel:
        assert await count(channel) == "UNAVAILABLE"
    await give(broker, other)
    with calling(broker, other, ADMIN) as channel:
        stub = entry_grpc.EntryStub(channel)
        await stub.CountEntries(entry_pb2.CountEntriesRequest(), timeout=PATIENCE)
        # The bundle goes: so does a connection that is open, as soon as the listener's thread has its turn.
        await broker.bundles.BatchDeleteFederatedBundle(
            bundle_pb2.BatchDeleteFederatedBundleRequest(trust_domains=["other.org"])
        )
        assert await asyncio.wait_for(refusal(stub), PATIENCE) == "UNAVAILABLE"
        await channel.close()


async def test_a_federated_trust_domain_that_is_not_named_opens_no_door(
    broker: RunningBroker, other: SimulatedTrustDomain
) -> None:
    third = SimulatedTrustDomain("third.org", at=other.at)
    await give(broker, third)
    with calling(broker, third, ADMIN) as channel:
        assert await count(channel) == "UNAVAILABLE"


async def test_one_of_our_own_needs_no_entry_that_says_so(folder: Path) -> None:
    async with running(folder, POLICY, admin_ids=f"spiffe://{TD}/segment/registry/x") as broker:
        for path, answer in (("x", "OK"), ("y", "PERMISSION_DENIED")):
            agent = await broker.attest()
            made = await broker.entry(f"/segment/registry/{path}", agent.path, ["unix:user:registry"])
            key = generate_key(KeyType.EC_P256)
            (result,) = await agent.sign(made.id, csr=make_csr(key))
            agent.use(parse_x509_svid(tuple(result.svid.cert_chain)), key)
            assert await count(agent.channel) == answer


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("alice", "'alice' is no SPIFFE ID"),
        ("spiffe://other.org", "is no SPIFFE ID and no pattern"),
        (f"spiffe://{TD}/spire/agent/join_token/x", "lies below /spire"),
        (f"spiffe://{TD}/spire/agent/**", "lies below /spire"),
        ("spiffe://{td}/**", "every ID of its trust domain"),
    ],
)
def test_what_is_no_administrators_id(folder: Path, text: str, words: str) -> None:
    for key in ("admin_ids", "operator_ids", "policy_ids", "viewer_ids"):
        with pytest.raises(ConfigError, match=words):
            config.load(None, {}, flags(folder, POLICY, **{key: text}))
