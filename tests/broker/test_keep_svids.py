# SPDX-License-Identifier: Apache-2.0
"""What was issued through an entry or an agent that goes away is revoked, unless the caller says to keep it."""

from __future__ import annotations

import pytest

from firedoor.broker.broker import CLOCKS_DIFFER
from firedoor.broker.db.rows import load_revocations
from firedoor.broker.rpc.gate import KEEP_SVIDS
from firedoor.certs import SpiffeId, parse_x509_svid
from firedoor.wire import agent_pb2, entry_pb2
from tests.broker.harness import RunningBroker, spiffe_id
from tests.broker.test_issuing import USER

ENGINES = ("sqlite", "postgresql")


@pytest.mark.parametrize(("said", "kept"), [("true", True), ("false", False), ("", False), (None, False)])
@pytest.mark.parametrize("what", ["entry", "agent"])
async def test_keep_svids(broker: RunningBroker, what: str, said: str | None, kept: bool) -> None:
    agent = await broker.attest()
    made = await broker.entry("/segment/registry/x", agent.path, USER)
    (result,) = await agent.sign(made.id)
    serial = parse_x509_svid(tuple(result.svid.cert_chain)).serial
    metadata = ((KEEP_SVIDS, said),) if said is not None else ()
    if what == "entry":
        await broker.entries.BatchDeleteEntry(entry_pb2.BatchDeleteEntryRequest(ids=[made.id]), metadata=metadata)
        assert broker.broker.state.entries.get(made.id) is None
    else:
        path = SpiffeId.parse(agent.id).path
        await broker.agents.BanAgent(agent_pb2.BanAgentRequest(id=spiffe_id(path)), metadata=metadata)
        assert broker.broker.state.agents[SpiffeId.parse(agent.id)].banned
    assert [value for _, value in broker.broker.state.revocations] == ([] if kept else [serial])
    assert broker.audit()[-1]["keep_svids"] is kept


async def test_revocations_go_when_nothing_they_mean_can_be_valid(
    broker: RunningBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await broker.attest()
    made = [await broker.entry(f"/segment/registry/{ttl}", agent.path, USER, x509_svid_ttl=ttl) for ttl in (100, 1000)]
    serials = []
    for one in made:
        (result,) = await agent.sign(one.id)
        serials.append(parse_x509_svid(tuple(result.svid.cert_chain)).serial)
    await broker.entries.BatchDeleteEntry(entry_pb2.BatchDeleteEntryRequest(ids=[one.id for one in made]))
    state, clock = broker.broker.state, broker.broker.clock
    kept = {value: one.expires_at for (_, value), one in state.revocations.items()}
    assert set(kept) == set(serials)
    first, second = (kept[serial] + CLOCKS_DIFFER for serial in serials)
    for when, left in ((first - 1, serials), (first, serials[1:]), (second, [])):
        # It stands: a second more would be another answer.
        monkeypatch.setattr(clock, "now", lambda when=when: when)
        await broker.broker._prune()
        stored = await state.database.read(load_revocations)
        assert {value for _, value in state.revocations} == {value for _, value in stored} == set(left)
