# SPDX-License-Identifier: Apache-2.0
"""Those who change a broker's state without end, and the ledger of what it has told them.

What was acknowledged must be there after a kill; what was not may be there or not, but a token counts once either way.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import grpc

from firedoor.certs import X509Svid
from firedoor.wire import agent_grpc, agent_pb2, bundle_grpc, bundle_pb2, entry_grpc, entry_pb2, types
from tests.broker.harness import CHANNEL, AgentClient, entry
from tests.e2e.conftest import UID
from tests.waiting import PATIENCE

# Between two changes of one writer: more of them would say nothing more.
PAUSE = 0.02
OK = 0
USED = "has already been used"


@dataclass
class Ledger:
    """What the broker has acknowledged."""

    # Paths of entries.
    present: set[str] = field(default_factory=set)
    going: set[str] = field(default_factory=set)
    absent: set[str] = field(default_factory=set)
    made: set[str] = field(default_factory=set)
    # How often each token made somebody an agent.
    tokens: dict[str, int] = field(default_factory=dict)
    # Calls that had no answer.
    unheard: int = 0
    signed: int = 0


class Admin:
    """The admin APIs, whichever broker process serves them now."""

    def __init__(self, socket: Path) -> None:
        self.channel = grpc.aio.insecure_channel(f"unix:{socket}", options=CHANNEL)
        self._agents = agent_grpc.AgentStub(self.channel)
        self._entries = entry_grpc.EntryStub(self.channel)
        self._bundles = bundle_grpc.BundleStub(self.channel)

    async def create(self, path: str, parent: str = "/spire/agent/a") -> str:
        made = entry(path, parent, [f"unix:{UID}"])
        (result,) = (await self._entries.BatchCreateEntry(entry_pb2.BatchCreateEntryRequest(entries=[made]))).results
        assert result.status.code == OK, result.status.message
        return result.entry.id

    async def delete(self, entry_id: str) -> None:
        request = entry_pb2.BatchDeleteEntryRequest(ids=[entry_id])
        (result,) = (await self._entries.BatchDeleteEntry(request)).results
        assert result.status.code == OK, result.status.message

    async def listed(self) -> set[str]:
        """Return the paths of all entries."""
        found: set[str] = set()
        token = ""
        while True:
            request = entry_pb2.ListEntriesRequest(page_size=1000, page_token=token)
            page = await self._entries.ListEntries(request, wait_for_ready=True, timeout=PATIENCE)
            found.update(one.spiffe_id.path for one in page.entries)
            token = page.next_page_token
            if not token:
                return found

    async def token(self) -> str:
        return str((await self._agents.CreateJoinToken(agent_pb2.CreateJoinTokenRequest(ttl=3600))).value)

    async def bundle(self) -> types.Bundle:
        return await self._bundles.GetBundle(bundle_pb2.GetBundleRequest(), wait_for_ready=True, timeout=PATIENCE)

    async def roots(self) -> list[bytes]:
        return [one.asn1 for one in (await self.bundle()).x509_authorities]


async def writes(admin: Admin, ledger: Ledger, name: str) -> None:
    """Create an entry, delete the one before, without end."""
    before: tuple[str, str] | None = None
    number = 0
    while True:
        number += 1
        path = f"/segment/registry/{name}/{number}"
        try:
            entry_id = await admin.create(path)
            ledger.made.add(path)
            ledger.present.add(path)
            if before is not None:
                ledger.going.add(before[0])
                await admin.delete(before[1])
                ledger.absent.add(before[0])
            before = path, entry_id
        except grpc.aio.AioRpcError:
            ledger.unheard += 1
            before = None
        await asyncio.sleep(PAUSE)


class Node:
    """A node that becomes an agent again and again, by a token each time, and has something signed."""

    def __init__(self, address: str, folder: Path, admin: Admin, ledger: Ledger) -> None:
        self._address, self._folder, self._admin, self._ledger = address, folder, admin, ledger

    async def run(self) -> None:
        """Go on without end."""
        while True:
            try:
                token = await self._admin.token()
                self._ledger.tokens[token] = 0
                async with self.client() as client:
                    await self._be_agent(client, token)
            except grpc.aio.AioRpcError:
                self._ledger.unheard += 1
            await asyncio.sleep(PAUSE)

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[AgentClient]:
        """Make a node that trusts the broker as it is now."""
        roots = await self._admin.roots()
        broker = SimpleNamespace(broker=SimpleNamespace(listen=self._address), roots=lambda: roots)
        client = AgentClient(broker, Path(tempfile.mkdtemp(dir=self._folder)))  # type: ignore[arg-type]
        try:
            yield client
        finally:
            await client.close()

    async def _be_agent(self, client: AgentClient, token: str) -> None:
        svid = await self._attest(client, token)
        if svid is None:
            return
        # Spent for good, also if the broker was killed since.
        assert await self.spend(client, token) is None
        client.use(svid, client.key)
        made = await self._admin.create(f"/segment/registry/of/{token}", svid.id.path)
        (result,) = await client.sign(made)
        assert result.status.code == OK, result.status.message
        self._ledger.signed += 1

    async def _attest(self, client: AgentClient, token: str) -> X509Svid | None:
        """Attest, however often the broker is killed; None when it was done before the answer could come."""
        while True:
            try:
                return await self.spend(client, token)
            except grpc.aio.AioRpcError:
                self._ledger.unheard += 1
                await asyncio.sleep(PAUSE)

    async def spend(self, client: AgentClient, token: str) -> X509Svid | None:
        """Try a token; None when it has been used. Raise AioRpcError when there is no answer."""
        try:
            svid = await client.attest(token)
        except grpc.aio.AioRpcError as error:
            if USED in (error.details() or ""):
                return None
            raise
        self._ledger.tokens[token] = self._ledger.tokens.get(token, 0) + 1
        return svid
