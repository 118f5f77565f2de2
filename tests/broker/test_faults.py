# SPDX-License-Identifier: Apache-2.0
"""Kills, a full disk and a wrong clock, through the whole broker.

FIREDOOR_KILLS=100 kills at more points than the few of every run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest

from firedoor.broker import config
from firedoor.broker.broker import Broker
from firedoor.broker.clock import Clock
from firedoor.certs import parse_x509_svid
from firedoor.wire import agent_grpc, agent_pb2, bundle_grpc, bundle_pb2, entry_grpc, entry_pb2, types
from tests.broker.harness import POLICY, AgentClient, RunningBroker, entry, flags
from tests.broker.test_database import small_disk
from tests.broker.test_issuing import OK, USER
from tests.broker.test_restart import process
from tests.waiting import PATIENCE, async_until

KILLS = int(os.environ.get("FIREDOOR_KILLS", "4"))
CLIENTS = 3


@dataclass
class Wanted:
    """What was acknowledged, and so must be there."""

    entries: set[str] = field(default_factory=set)
    tokens: list[str] = field(default_factory=list)
    spent: dict[str, AgentClient] = field(default_factory=dict)


class Admin:
    """The admin APIs of a broker process."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.agents = agent_grpc.AgentStub(channel)
        self.entries = entry_grpc.EntryStub(channel)
        self.bundles = bundle_grpc.BundleStub(channel)

    async def token(self) -> str:
        return (await self.agents.CreateJoinToken(agent_pb2.CreateJoinTokenRequest(ttl=600))).value

    async def entry(self, name: str, parent: str = "/spire/agent/a") -> types.Entry:
        made = entry(f"/segment/registry/{name}", parent, USER)
        (result,) = (await self.entries.BatchCreateEntry(entry_pb2.BatchCreateEntryRequest(entries=[made]))).results
        if result.status.code != OK:
            raise OSError(result.status.message)
        return result.entry

    async def roots(self) -> list[bytes]:
        bundle = await self.bundles.GetBundle(bundle_pb2.GetBundleRequest())
        return [one.asn1 for one in bundle.x509_authorities]


def node(folder: Path, line: str, roots: list[bytes]) -> AgentClient:
    """Return a node of a broker in another process."""
    listen = line.split("listen=")[1].split()[0]
    found = SimpleNamespace(broker=SimpleNamespace(listen=listen), roots=lambda: roots)
    folder.mkdir(mode=0o700)
    return AgentClient(found, folder)  # type: ignore[arg-type]


async def write(admin: Admin, number: int, wanted: Wanted) -> None:
    with contextlib.suppress(grpc.aio.AioRpcError, OSError):
        for i in range(1000):
            wanted.entries.add((await admin.entry(f"w{number}-{i}")).id)
            wanted.tokens.append(await admin.token())


async def attest(client: AgentClient, admin: Admin, tokens: list[str], wanted: Wanted) -> None:
    """Attest again and again, each time with another token, and have something issued."""
    with contextlib.suppress(grpc.aio.AioRpcError, OSError):
        for token in tokens:
            svid = await client.attest(token)
            client.use(svid, client.key)
            wanted.spent[token] = client
            made = await admin.entry("x", svid.id.path)
            wanted.entries.add(made.id)
            await client.sign(made.id)


@pytest.mark.parametrize("seed", range(KILLS))
async def test_kill_9_under_writes_attestation_and_issuing(folder: Path, seed: int) -> None:
    chosen, wanted = random.Random(seed), Wanted()
    clients: list[AgentClient] = []
    async with process(folder) as one:
        line = await one.ready()
        async with one.channel() as channel:
            admin = Admin(channel)
            roots = await admin.roots()
            tokens = [[await admin.token() for _ in range(20)] for _ in range(CLIENTS)]
            clients = [node(folder / f"n{i}", line, roots) for i in range(CLIENTS)]
            work = [asyncio.create_task(write(admin, i, wanted)) for i in range(4)]
            work += [
                asyncio.create_task(attest(*each, wanted))
                for each in zip(clients, [admin] * CLIENTS, tokens, strict=True)
            ]
            await async_until(lambda: wanted.entries and wanted.tokens and wanted.spent)
            await asyncio.sleep(chosen.uniform(0, 0.5))
            one.popen.kill()
            _, pending = await asyncio.wait(work, timeout=PATIENCE)
            assert not pending
    try:
        await check(folder, wanted, roots, clients)
    finally:
        for client in clients:
            await client.close()


async def check(folder: Path, wanted: Wanted, roots: list[bytes], clients: list[AgentClient]) -> None:
    """All that was acknowledged is there, no token counts twice, and the authority still signs."""
    async with process(folder) as two:
        line = await two.ready()
        async with two.channel() as channel:
            admin = Admin(channel)
            assert await admin.roots() == roots
            listed = await admin.entries.ListEntries(entry_pb2.ListEntriesRequest())
            assert wanted.entries <= {one.id for one in listed.entries}
            agents = await admin.agents.ListAgents(agent_pb2.ListAgentsRequest())
            present = {one.id.path for one in agents.agents}
            assert {f"/spire/agent/join_token/{token}" for token in wanted.spent} <= present
            fresh = node(folder / "fresh", line, roots)
            try:
                for token in wanted.spent:
                    with pytest.raises(grpc.aio.AioRpcError, match="has already been used"):
                        await fresh.attest(token)
                # One that nobody used works once.
                unused = wanted.tokens[-1]
                fresh.use(await fresh.attest(unused), fresh.key)
                made = await admin.entry("after", fresh.path)
                (result,) = await fresh.sign(made.id)
                assert parse_x509_svid(tuple(result.svid.cert_chain)).not_after > time.time()
            finally:
                await fresh.close()


def fill(folder: Path) -> Path:
    """Leave nothing free on the disk of a folder."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"\0" * 512):
            pass
    return filler


async def test_a_full_disk_refuses_writes_clearly_and_serves_reads(folder: Path) -> None:
    with small_disk(folder / "disk"):
        data = folder / "disk" / "data"
        async with process(folder, data_dir=str(data)) as one:
            await one.ready()
            async with one.channel() as channel:
                await on_a_full_disk(Admin(channel), data)
            assert one.popen.poll() is None
            await one.end()
        async with process(folder, data_dir=str(data)) as again:
            await again.ready()


async def on_a_full_disk(admin: Admin, data: Path) -> None:
    kept = await admin.entry("kept")
    filler = fill(data.parent)
    said = ""
    for number in range(200):
        try:
            await admin.token()
            await admin.entry(f"more-{number}")
        except (grpc.aio.AioRpcError, OSError) as error:
            said = str(error)
            break
    assert "the disk is full" in said or "No space left" in said, said
    listed = await admin.entries.ListEntries(entry_pb2.ListEntriesRequest())
    assert kept.id in {one.id for one in listed.entries}
    assert await admin.roots()
    filler.unlink()
    assert (await admin.entry("room-again")).id


async def test_a_clock_that_steps_back_stops_issuing_until_it_has_caught_up(folder: Path) -> None:
    back = 0.0
    broker = Broker(config.load(None, {}, flags(folder, POLICY)))
    broker.clock = Clock(lambda: time.time() - back)
    await broker.start()
    found = RunningBroker(folder, broker)
    try:
        agent = await found.attest()
        made = await found.entry("/segment/registry/x", agent.path, USER)
        before = await agent.sign(made.id)
        assert before[0].status.code == OK
        back = 3600.0
        for call in (agent.sign(made.id), agent.renew(agent.key), found.client().attest(await found.token())):
            with pytest.raises(grpc.aio.AioRpcError, match="clock was set back") as refused:
                await call
            assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        # Reading goes on; and nothing was made that begins later than the present by that clock.
        assert [e.id for e in await agent.entries()] == [made.id]
        # A little behind is no fault, and what is issued then begins before the present by either clock.
        back = 8.0
        (result,) = await agent.sign(made.id)
        assert result.status.code == OK
        assert parse_x509_svid(tuple(result.svid.cert_chain)).not_before <= time.time() - back
    finally:
        await found.close()
