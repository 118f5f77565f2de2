# SPDX-License-Identifier: Apache-2.0
"""Nodes that ask for what is not theirs: a token that was spent, another's entry."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import grpc

from firedoor.certs import X509Svid
from firedoor.wire import agent_grpc, agent_pb2, bundle_grpc, bundle_pb2, types
from tests.broker.harness import AgentClient
from tests.chaos.observed import Attested

if TYPE_CHECKING:
    from tests.chaos.world import ChaosWorld

BROKERS = ("one", "two")


async def _node(world: ChaosWorld, broker: str) -> AgentClient:
    """Make a node that trusts the brokers as they are now, and knows one of them."""
    bundle = await asyncio.to_thread(
        world.ask, lambda channel: bundle_grpc.BundleStub(channel).GetBundle(bundle_pb2.GetBundleRequest(), timeout=10)
    )
    roots = [one.asn1 for one in bundle.x509_authorities]
    known = SimpleNamespace(broker=SimpleNamespace(listen=world.listening[broker]), roots=lambda: roots)
    return AgentClient(known, Path(tempfile.mkdtemp(dir=world.folder)))  # type: ignore[arg-type]


async def _spend(world: ChaosWorld, node: AgentClient, token: str, broker: str) -> X509Svid | None:
    """Try a token; None when it is refused, or nobody answers."""
    try:
        async with asyncio.timeout(20):
            svid = await node.attest(token)
    except (grpc.aio.AioRpcError, TimeoutError):
        return None
    world.journal.attested.append(Attested(token, broker))
    return svid


async def spend_twice(world: ChaosWorld) -> int:
    """Spend one token at both brokers at once, and once more after that; return how often it was taken."""
    token = await asyncio.to_thread(world.token)
    nodes = [await _node(world, name) for name in BROKERS]
    found: list[X509Svid | None] = []
    try:
        for _ in range(2):
            tries = (_spend(world, node, token, name) for node, name in zip(nodes, BROKERS, strict=True))
            found += await asyncio.gather(*tries)
    finally:
        for node in nodes:
            await node.close()
    await asyncio.to_thread(_forget, world, f"/spire/agent/join_token/{token}")
    return sum(one is not None for one in found)


async def ask_for_anothers(world: ChaosWorld, whose: str) -> bool:
    """Become an agent and ask for an SVID by an entry of another one's; say whether there was any answer."""
    token = await asyncio.to_thread(world.token)
    for name in BROKERS:
        node = await _node(world, name)
        try:
            svid = await _spend(world, node, token, name)
            if svid is None:
                continue
            node.use(svid, node.key)
            async with asyncio.timeout(20):
                await node.sign(f"entry-{whose}")
            return True
        except (grpc.aio.AioRpcError, TimeoutError):
            return False
        finally:
            await node.close()
            await asyncio.to_thread(_forget, world, f"/spire/agent/join_token/{token}")
    return False


def _forget(world: ChaosWorld, path: str) -> None:
    """Evict who is not needed any more, or rotations wait for it."""
    agent = types.SPIFFEID(trust_domain=world.trust_domain, path=path)
    try:
        world.ask(
            lambda channel: agent_grpc.AgentStub(channel).DeleteAgent(
                agent_pb2.DeleteAgentRequest(id=agent), timeout=10
            )
        )
    except grpc.RpcError as error:
        # Otherwise it never became one.
        if error.code() != grpc.StatusCode.NOT_FOUND:
            raise
