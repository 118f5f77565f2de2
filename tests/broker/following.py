# SPDX-License-Identifier: Apache-2.0
"""A sidecar reduced to what a rotation asks of it: it acknowledges, is re-issued when it is called, and renews itself.

async with following(entry.id, agent=agent) as one: ...
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from firedoor.certs import NOT_BEFORE_CUSHION, KeyType, X509Svid, generate_key, parse_x509_svid
from firedoor.certs.certificate import read_certificate
from firedoor.wire import control_pb2
from tests.broker.harness import AgentClient
from tests.broker.test_control import Stream, entries, part


@dataclass
class Following:
    """What one sidecar holds, and how well it behaves."""

    agent: AgentClient
    entry_ids: tuple[str, ...]
    acknowledges: bool = True
    reissues: bool = True
    renews: bool = True
    svids: dict[str, X509Svid] = field(default_factory=dict)
    revisions: dict[str, int] = field(default_factory=dict)

    async def run(self) -> None:
        """Follow the broker until cancelled."""
        stream = Stream(self.agent)
        try:
            while True:
                stream.poll()
                for update in stream.updates[-1:]:
                    stream.updates.clear()
                    if await self._take(update):
                        stream.stop()
                        stream = Stream(self.agent)
                    elif self.acknowledges:
                        self._acknowledge(stream, update)
                await asyncio.sleep(0.02)
        finally:
            stream.stop()

    async def _take(self, update: control_pb2.Update) -> bool:
        """Do what an update calls for; say whether the agent is another one now, and must connect again."""
        bundle = part(update, "bundles").bundles[0]
        self.agent.publish()
        bad = {read_certificate(one.asn1).authority_id for one in bundle.x509_authorities if one.tainted}
        for entry in entries(update):
            if entry.id not in self.entry_ids:
                continue
            held = self.svids.get(entry.id)
            stale = held is None or self.revisions[entry.id] != entry.revision_number or held.authority_id in bad
            if stale and (self.reissues or held is None):
                (result,) = await self.agent.sign(entry.id)
                self.svids[entry.id] = parse_x509_svid(tuple(result.svid.cert_chain))
                self.revisions[entry.id] = entry.revision_number
        own = self.agent.svid
        if own is None or own.authority_id not in bad or not self.renews:
            return False
        key = generate_key(KeyType.EC_P256)
        self.agent.use(await self.agent.renew(key), key)
        # Its first use makes it the one that counts.
        await self.agent.entries()
        return True

    def _acknowledge(self, stream: Stream, update: control_pb2.Update) -> None:
        svids = [
            control_pb2.SvidState(
                entry_id=entry_id,
                not_after=one.not_after,
                authority_id=one.authority_id,
                issued_at=one.not_before + NOT_BEFORE_CUSHION,
            )
            for entry_id, one in self.svids.items()
        ]
        ack = control_pb2.Ack(generation=update.generation, view_hash=update.view_hash, svids=svids)
        stream._client.send(control_pb2.FromSidecar(ack=ack).SerializeToString())


@contextlib.asynccontextmanager
async def following(*entry_ids: str, agent: AgentClient, **habits: bool) -> AsyncIterator[Following]:
    """Run a sidecar that holds the SVIDs of these entries."""
    one = Following(agent, entry_ids, **habits)
    task = asyncio.create_task(one.run())
    try:
        yield one
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
