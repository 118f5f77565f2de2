# SPDX-License-Identifier: Apache-2.0
"""A policy edit does not promote what was issued before it, and cuts nobody who is entitled."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from firedoor import mtls
from firedoor.broker.db.rows import Generation
from firedoor.certs import NOT_BEFORE_CUSHION, SpiffeId, X509Svid, parse_x509_svid
from firedoor.wire import admin_pb2, control_pb2, entry_pb2, types
from tests.broker.harness import POLICY, TD, AgentClient, RunningBroker, running, selectors
from tests.broker.test_control import Stream, entries, part
from tests.broker.test_issuing import OK, PERMISSION_DENIED, USER
from tests.waiting import async_until

FALLBACK = (
    POLICY
    + """\
---
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {name: estate}
spec:
  function: estate
  trust: low
  mode: enforce
  fallback: true
  admission: {entry: []}
"""
)
# The registry claims an ID that the fallback had.
CLAIMED = FALLBACK.replace(
    '"spiffe://{td}/segment/registry/**"', '"spiffe://{td}/segment/registry/**", "spiffe://{td}/ns/**"'
)
OTHER = ["unix:user:other"]
assert CLAIMED != FALLBACK
# Longer than a test may take, seconds.
FOR_EVER = 3600.0


async def sign(agent: AgentClient, entry_id: str) -> X509Svid:
    (result,) = await agent.sign(entry_id)
    assert result.status.code == OK, result.status.message
    return parse_x509_svid(tuple(result.svid.cert_chain))


def ack(stream: Stream, update: control_pb2.Update, entry_id: str, svid: X509Svid) -> None:
    """Say that the sidecar runs on this SVID."""
    state = control_pb2.SvidState(
        entry_id=entry_id, not_after=svid.not_after, issued_at=svid.not_before + NOT_BEFORE_CUSHION
    )
    made = control_pb2.Ack(generation=update.generation, view_hash=update.view_hash, svids=[state])
    stream._client.send(control_pb2.FromSidecar(ack=made).SerializeToString())


def patterns(update: control_pb2.Update) -> list[tuple[str, str]]:
    return [(one.issued_before.pattern, one.reason) for one in part(update, "revocations").revocations]


def claims(update: control_pb2.Update) -> bool:
    """Say whether this update's registry claims the ID."""
    (found,) = [one for one in part(update, "policy").table.segments if one.name == "registry"]
    return f"spiffe://{TD}/ns/**" in found.members


def revoked(broker: RunningBroker, svid: X509Svid) -> bool:
    """Say whether a peer that has the broker's revocations refuses an SVID."""
    made = [
        mtls.Revocation(pattern=one.value, issued_before=one.issued_before, reason=one.reason)
        for one in broker.broker.state.revocations.values()
    ]
    try:
        mtls.verify_svid(svid.chain, {TD: broker.roots()}, at=int(time.time()), revocations=made)
    except mtls.VerifyError as error:
        return error.code == "revoked_id"
    return False


async def test_edit_and_revocation_come_in_one_generation_after_the_holder_has_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(folder, None) as broker:
        reissuer, found = broker.broker.policy.reissuer, list[bool]()
        reissuer.patience, has_other = FOR_EVER, reissuer._has_other

        def looked(*given: Any) -> bool:
            found.append(has_other(*given))
            return found[-1]

        monkeypatch.setattr(reissuer, "_has_other", looked)
        await broker.apply(FALLBACK)
        agent = await broker.attest()
        made = await broker.entry("/ns/a", agent.path, USER)
        old = await sign(agent, made.id)
        stream = Stream(agent)
        first = await stream.next()
        ack(stream, first, made.id, old)
        edit = asyncio.create_task(broker.apply(CLAIMED))
        called = await stream.next()
        # It is told to fetch another one, and nothing else has changed yet.
        assert entries(called)[0].revision_number == made.revision_number + 1
        assert (claims(called), patterns(called)) == (False, [])
        new = await sign(agent, made.id)
        # An acknowledgement with the old one does not count.
        ack(stream, called, made.id, old)
        heard = Generation(called.generation.epoch, called.generation.number)
        await async_until(lambda: broker.broker.pusher.listening[SpiffeId.parse(agent.id)].acknowledged == heard)
        looks = len(found)
        await async_until(lambda: len(found) > looks + 1)
        assert (any(found), edit.done()) == (False, False)
        ack(stream, called, made.id, new)
        answer = await edit
        update = await stream.next()
        # The list of what is revoked is a generation of its own, and may be there before this one was sent.
        assert update.generation.number >= answer.generation.number
        assert (claims(update), patterns(update)) == (True, [(f"spiffe://{TD}/ns/**", "reissue_needed")])
        assert (revoked(broker, old), revoked(broker, new)) == (True, False)


async def test_an_agent_without_a_stream_counts_by_what_it_was_issued(folder: Path) -> None:
    async with running(folder, None) as broker:
        broker.broker.policy.reissuer.patience = FOR_EVER
        await broker.apply(FALLBACK)
        agent = await broker.attest()
        made = await broker.entry("/ns/a", agent.path, USER)
        await sign(agent, made.id)
        edit = asyncio.create_task(broker.apply(CLAIMED))
        await async_until(lambda: broker.broker.state.entries.get(made.id).revision_number)  # type: ignore[union-attr]
        assert not edit.done()
        new = await sign(agent, made.id)
        await edit
        assert not revoked(broker, new)


async def test_nobody_waits_for_who_is_not_admitted(folder: Path) -> None:
    async with running(folder, None) as broker:
        await broker.apply(FALLBACK)
        agent = await broker.attest()
        made = await broker.entry("/ns/a", agent.path, OTHER)
        old = await sign(agent, made.id)
        # A test has less time than it would wait.
        broker.broker.policy.reissuer.patience = FOR_EVER
        await broker.apply(CLAIMED)
        assert revoked(broker, old)
        (refused,) = await agent.sign(made.id)
        assert refused.status.code == PERMISSION_DENIED
        # The twin: the same ID, once the entry has what the segment asks for.
        request = entry_pb2.BatchUpdateEntryRequest(
            entries=[types.Entry(id=made.id, selectors=selectors(*USER))], input_mask=types.EntryMask(selectors=True)
        )
        assert (await broker.entries.BatchUpdateEntry(request)).results[0].status.code == OK
        assert not revoked(broker, await sign(agent, made.id))


@pytest.mark.parametrize("how", ["now", "time is up", "another edit now"])
async def test_who_does_not_answer_is_not_waited_for_for_ever(folder: Path, how: str) -> None:
    async with running(folder, None) as broker:
        await broker.apply(FALLBACK)
        agent = await broker.attest()
        made = await broker.entry("/ns/a", agent.path, USER)
        old = await sign(agent, made.id)
        broker.broker.policy.reissuer.patience = 0.3 if how == "time is up" else FOR_EVER
        edit = asyncio.create_task(broker.apply(CLAIMED, now=how == "now"))
        if how == "another edit now":
            await async_until(lambda: broker.broker.state.entries.get(made.id).revision_number)  # type: ignore[union-attr]
            await broker.apply(CLAIMED.replace("9000", "9001"), now=True)
        await edit
        assert revoked(broker, old)


async def test_while_an_edit_waits_both_policies_admit(folder: Path) -> None:
    moved = FALLBACK.replace('entry: ["unix:user:registry"]', 'entry: ["unix:user:other"]')
    async with running(folder, None) as broker:
        broker.broker.policy.reissuer.patience = FOR_EVER
        await broker.apply(FALLBACK)
        agent = await broker.attest()
        both = await broker.entry("/segment/registry/a", agent.path, [*USER, *OTHER])
        before = await broker.entry("/segment/registry/b", agent.path, USER)
        await sign(agent, both.id)
        await sign(agent, before.id)
        edit = asyncio.create_task(broker.apply(moved))
        await async_until(lambda: broker.broker.state.entries.get(both.id).revision_number)  # type: ignore[union-attr]
        (refused,) = await agent.sign(before.id)
        assert refused.status.code == PERMISSION_DENIED
        assert not edit.done()
        await sign(agent, both.id)
        await edit


async def test_an_edit_that_promotes_nothing_revokes_nothing(folder: Path) -> None:
    async with running(folder, None) as broker:
        await broker.apply(CLAIMED)
        agent = await broker.attest()
        made = await broker.entry("/ns/a", agent.path, USER)
        svid = await sign(agent, made.id)
        await broker.apply(CLAIMED.replace("9000", "9001"))
        # Claimed by a segment, but nothing that lives is meant by it.
        await broker.apply(
            CLAIMED.replace("9000", "9001").replace('inference/**"', 'inference/**", "spiffe://{td}/no/**"')
        )
        assert broker.broker.state.revocations == {}
        assert not revoked(broker, svid)


async def test_an_edit_that_waits_ends_with_the_broker_and_changes_nothing(folder: Path) -> None:
    async with running(folder, None) as broker:
        broker.broker.policy.reissuer.patience = FOR_EVER
        await broker.apply(FALLBACK)
        agent = await broker.attest()
        made = await broker.entry("/ns/a", agent.path, USER)
        old = await sign(agent, made.id)
        edit = asyncio.create_task(broker.apply(CLAIMED))
        await async_until(lambda: broker.broker.state.entries.get(made.id).revision_number)  # type: ignore[union-attr]
        broker.broker.policy.reissuer.stop()
        with pytest.raises(grpc.aio.AioRpcError, match="the broker is stopping"):
            await edit
        assert not revoked(broker, old)
    async with running(folder, None) as broker:
        shown = await broker.policy.GetPolicy(admin_pb2.GetPolicyRequest())
        assert "/ns/**" not in shown.documents[0].text


async def test_files_changed_while_the_broker_was_down_wait_for_the_holders_too(folder: Path) -> None:
    async with running(folder, FALLBACK) as broker:
        agent = await broker.attest()
        made = await broker.entry("/ns/a", agent.path, USER)
        old = await sign(agent, made.id)
        key, svid = agent.key, agent.svid
        assert svid is not None
    async with running(folder, CLAIMED) as broker:
        again = broker.client()
        again.use(svid, key)
        await async_until(lambda: broker.broker.state.entries.get(made.id).revision_number)  # type: ignore[union-attr]
        assert not revoked(broker, old)
        new = await sign(again, made.id)
        await async_until(lambda: revoked(broker, old))
        assert not revoked(broker, new)
