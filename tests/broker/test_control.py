# SPDX-License-Identifier: Apache-2.0
"""The control stream: a view at once, another at each generation, and none for who may not have one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from firedoor.broker.db.rows import Generation
from firedoor.certs import KeyType, SpiffeId, generate_key, make_csr, parse_x509_svid
from firedoor.certs.rotation import Stage
from firedoor.wire import bundle_pb2, control_pb2, entry_pb2, types
from firedoor.wire.views import parts_hash, view_hash
from tests.broker.harness import POLICY, SERVER, AgentClient, RunningBroker, running
from tests.broker.test_issuing import USER, change
from tests.waiting import async_until


class Stream:
    """A sidecar's end of one control stream."""

    def __init__(self, agent: AgentClient, *versions: int, features: tuple[str, ...] = ()) -> None:
        self._client = agent.core.control_client(addresses=[agent.broker.broker.listen], as_id=agent.id, expect=SERVER)
        self.hello = control_pb2.Hello(versions=versions or [1], features=features, agent_version="test")
        self.updates: list[control_pb2.Update] = []
        self.disconnects = 0

    def poll(self) -> None:
        for kind, content in self._client.drain(100):
            if kind == "connected":
                self._client.send(control_pb2.FromSidecar(hello=self.hello).SerializeToString())
            elif kind == "message":
                self.updates.append(control_pb2.FromBroker.FromString(content).update)
            elif kind == "disconnected":
                self.disconnects += 1

    async def next(self) -> control_pb2.Update:
        """Return the next update that was not returned yet."""
        await async_until(lambda: self.poll() or self.updates)
        return self.updates.pop(0)

    async def having(self, *entry_ids: str) -> control_pb2.Update:
        """Return the first update with exactly these entries."""
        update = await self.next()
        while {e.id for e in entries(update)} != set(entry_ids):
            update = await self.next()
        return update

    def ack(self, update: control_pb2.Update) -> None:
        ack = control_pb2.Ack(
            generation=update.generation,
            view_hash=update.view_hash,
            svids=[control_pb2.SvidState(entry_id="e", not_after=7, authority_id="ab")],
        )
        self._client.send(control_pb2.FromSidecar(ack=ack).SerializeToString())

    def nack(self, update: control_pb2.Update, code: str = "unknown_part") -> None:
        nack = control_pb2.Nack(generation=update.generation, code=code, error="what is this")
        self._client.send(control_pb2.FromSidecar(nack=nack).SerializeToString())

    def stop(self) -> None:
        self._client.stop()


def part(update: control_pb2.Update, kind: str):  # type: ignore[no-untyped-def]
    (found,) = [getattr(p, kind) for p in update.parts if p.WhichOneof("kind") == kind]
    return found


def entries(update: control_pb2.Update) -> list[types.Entry]:
    return list(part(update, "entries").entries)


async def test_the_first_view_comes_at_once_and_is_whole(broker: RunningBroker) -> None:
    agent = await broker.attest()
    made = await broker.entry("/segment/registry/x", agent.path, USER)
    update = await Stream(agent).next()
    state = broker.broker.state
    assert (update.generation.epoch, update.generation.number) == (state.generation.epoch, state.generation.number)
    assert not update.HasField("base")
    assert update.view_hash == view_hash(update.parts)
    assert [p.WhichOneof("kind") for p in update.parts] == ["entries", "bundles", "policy", "revocations"]
    assert entries(update) == [made]
    (bundle,) = part(update, "bundles").bundles
    assert bundle == await broker.bundle()
    table = part(update, "policy").table
    assert [s.name for s in table.segments] == ["inference", "registry"]
    assert [f.name for f in table.flows] == ["inference-pulls-models"]


async def test_a_view_holds_only_what_concerns_the_agent(broker: RunningBroker) -> None:
    agent, other = await broker.attest(), await broker.attest()
    await broker.entry("/segment/registry/x", other.path, USER)
    update = await Stream(agent).next()
    assert entries(update) == []
    table = part(update, "policy").table
    assert len(table.segments) == 2
    assert len(table.flows) == 0


async def test_each_change_is_a_higher_generation(broker: RunningBroker) -> None:
    agent = await broker.attest()
    stream = Stream(agent)
    seen = [await stream.next()]
    made = await broker.entry("/segment/registry/x", agent.path, USER)
    seen.append(await stream.having(made.id))
    await broker.entries.BatchDeleteEntry(entry_pb2.BatchDeleteEntryRequest(ids=[made.id]))
    seen.append(await stream.having())
    numbers = [u.generation.number for u in seen]
    assert numbers == sorted(set(numbers))
    await change(broker, POLICY.replace("port: 9000", "port: 9001"))
    update = await stream.next()
    assert update.generation.number > numbers[-1]


async def test_who_takes_deltas_is_told_what_changed(broker: RunningBroker) -> None:
    agent, other, old = await broker.attest(), await broker.attest(), await broker.attest()
    stream, before = Stream(agent, features=("delta", "something-else")), Stream(old)
    first = await stream.next()
    assert not first.HasField("base")
    assert first.view_hash == parts_hash(first.parts)
    stream.ack(first)
    pusher, mine = broker.broker.pusher, SpiffeId.parse(agent.id)
    await async_until(lambda: pusher.listening[mine].view_hash == first.view_hash)
    # Nothing for it.
    await broker.entry("/segment/registry/x", other.path, USER)
    second = await stream.next()
    assert second.base == first.generation
    assert second.view_hash == second.delta.base_hash == first.view_hash
    assert not second.delta.put
    made = await broker.entry("/segment/registry/y", agent.path, USER)
    third = await stream.next()
    assert third.delta.base_hash == first.view_hash
    assert [list(put.entries.entries) for put in third.delta.put if put.HasField("entries")] == [[made]]
    # Whoever did not say that it takes them gets all of it.
    update = await before.next()
    while update.generation != third.generation:
        update = await before.next()
    assert not update.HasField("base")
    assert update.view_hash == view_hash(update.parts)


@pytest.mark.parametrize("code", ["unknown_base", "view_hash_mismatch"])
async def test_a_delta_that_is_refused_is_followed_by_all_of_it_once(broker: RunningBroker, code: str) -> None:
    agent = await broker.attest()
    stream = Stream(agent, features=("delta",))
    first = await stream.next()
    stream.ack(first)
    pusher, mine = broker.broker.pusher, SpiffeId.parse(agent.id)
    await async_until(lambda: pusher.listening[mine].view_hash == first.view_hash)
    made = await broker.entry("/segment/registry/y", agent.path, USER)
    delta = await stream.next()
    assert delta.HasField("base")
    stream.nack(delta, code)
    whole = await stream.having(made.id)
    assert (whole.view_hash, whole.generation) == (delta.view_hash, delta.generation)
    # Refused again: nothing until there is something new, and that is whole.
    stream.nack(whole)
    await async_until(lambda: pusher.listening[mine].refused == "unknown_part")
    other = await broker.entry("/segment/registry/z", agent.path, USER)
    assert not (await stream.having(made.id, other.id)).HasField("base")
    refused = b"firedoor_broker_updates_refused_total %.1f" % (1 if code == "unknown_base" else 2)
    assert refused in broker.broker.metrics.text()


async def test_updates_say_over_how_long_to_spread_and_in_an_emergency_not_at_all(
    broker: RunningBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firedoor.broker.spread.A_SECOND", 1)
    agent, old = await broker.attest(), await broker.attest()
    stream, before = Stream(agent, features=("delta", "spread")), Stream(old)
    assert 1000 <= (await stream.next()).spread_ms <= 2000
    assert not (await before.next()).HasField("spread_ms")
    rotations = broker.broker.rotations
    assert not rotations.urgent()
    # Nothing else runs meanwhile.
    for stage, urgent in ((Stage.SPREAD, True), (Stage.DONE, False)):
        rotation = SimpleNamespace(emergency=True, stage=stage)
        with monkeypatch.context() as patch:
            patch.setitem(rotations._reports, "x509", SimpleNamespace(rotation=rotation))  # type: ignore[arg-type]
            assert broker.broker.pusher.urgent() is urgent
    broker.broker.pusher.urgent = lambda: True
    made = await broker.entry("/segment/registry/x", agent.path, USER)
    update = await stream.having(made.id)
    assert update.HasField("spread_ms")
    assert update.spread_ms == 0


async def test_a_sidecar_that_comes_back_with_what_it_had_is_told_so(broker: RunningBroker) -> None:
    agent = await broker.attest()
    await broker.entry("/segment/registry/x", agent.path, USER)
    before = Stream(agent)
    first = await before.next()
    whole = parts_hash(first.parts)
    before.stop()
    # What one of its streams does not take, none is sent.
    await async_until(lambda: SpiffeId.parse(agent.id) not in broker.broker.pusher.listening)
    stream = Stream(agent, features=("delta",))
    stream.hello.running.CopyFrom(first.generation)
    stream.hello.view_hash = whole
    await async_until(lambda: stream.poll() or any(one.HasField("base") for one in stream.updates))
    update = stream.updates[-1]
    assert (update.delta.base_hash, update.view_hash, len(update.delta.put)) == (whole, whole, 0)


async def test_a_change_that_is_another_agents_comes_too(broker: RunningBroker) -> None:
    """A generation with nothing new for an agent is sent, so that acknowledgements stay comparable."""
    agent, other = await broker.attest(), await broker.attest()
    stream = Stream(agent)
    first = await stream.next()
    await broker.entry("/segment/registry/x", other.path, USER)
    second = await stream.next()
    assert second.generation.number > first.generation.number
    assert second.view_hash == first.view_hash


async def test_federated_bundles_are_in_the_view_of_who_federates(broker: RunningBroker) -> None:
    agent, other = await broker.attest(), await broker.attest()
    foreign = types.Bundle(
        trust_domain="other.org", x509_authorities=[types.X509Certificate(asn1=broker.roots()[0])], sequence_number=4
    )
    request = bundle_pb2.BatchSetFederatedBundleRequest(bundle=[foreign])
    assert (await broker.bundles.BatchSetFederatedBundle(request)).results[0].status.code == 0
    made = await broker.entry("/segment/registry/x", agent.path, USER, federates_with=["other.org"])
    await broker.entry("/segment/registry/y", other.path, USER)
    update = await Stream(agent).having(made.id)
    assert [b.trust_domain for b in part(update, "bundles").bundles] == ["example.org", "other.org"]
    assert [b.trust_domain for b in part(await Stream(other).next(), "bundles").bundles] == ["example.org"]


async def test_acknowledgements_are_kept(broker: RunningBroker) -> None:
    agent, silent = await broker.attest(), await broker.attest()
    stream, second = Stream(agent), Stream(silent)
    update = await stream.next()
    refused = await second.next()
    stream.ack(update)
    second.nack(refused)
    pusher = broker.broker.pusher
    generation = Generation(update.generation.epoch, update.generation.number)
    mine, its = SpiffeId.parse(agent.id), SpiffeId.parse(silent.id)
    await async_until(lambda: pusher.missing(generation) == [its] and pusher.listening[its].refused)
    await async_until(lambda: b"firedoor_broker_sidecars_behind 1.0" in broker.broker.metrics.text())
    assert pusher.listening[mine].svids == {"e": (7, "ab")}
    assert pusher.listening[mine].view_hash == update.view_hash
    assert pusher.listening[its].refused == "unknown_part"
    assert b"firedoor_broker_updates_refused_total 1.0" in broker.broker.metrics.text()
    # A later one that it takes clears that.
    made = await broker.entry("/segment/registry/z", silent.path, USER)
    second.ack(await second.having(made.id))
    await async_until(lambda: not pusher.listening[its].refused)
    stream.stop()
    await async_until(lambda: mine not in pusher.listening)


async def test_a_banned_agent_loses_its_stream_and_its_twin_does_not(broker: RunningBroker) -> None:
    agent, twin = await broker.attest(), await broker.attest()
    made = await broker.entry("/segment/registry/x", agent.path, USER)
    (issued,) = await agent.sign(made.id)
    serial = parse_x509_svid(tuple(issued.svid.cert_chain)).serial
    stream, twins = Stream(agent), Stream(twin)
    await stream.next()
    await twins.next()
    await broker.ban(agent.id)
    await async_until(lambda: stream.poll() or stream.disconnects)
    # The twin learns of the revocation instead.
    revocations = part(await twins.next(), "revocations").revocations
    assert [(r.serial, r.reason) for r in revocations] == [(serial, "agent_banned")]
    assert SpiffeId.parse(agent.id) not in broker.broker.pusher.listening
    assert not stream.updates
    assert not twins.disconnects


async def test_an_identity_that_is_no_agent_is_told_nothing(broker: RunningBroker) -> None:
    agent = await broker.attest()
    made = await broker.entry("/segment/registry/x", agent.path, USER)
    key = generate_key(KeyType.EC_P256)
    (result,) = await agent.sign(made.id, csr=make_csr(key))
    workload = broker.client()
    workload.use(parse_x509_svid(tuple(result.svid.cert_chain)), key)
    stream = Stream(workload)
    await async_until(lambda: stream.poll() or stream.disconnects)
    assert not stream.updates
    assert await Stream(agent).next()


async def test_a_replaced_certificate_cannot_listen(broker: RunningBroker) -> None:
    old = await broker.attest()
    first = Stream(old)
    await first.next()
    key = generate_key(KeyType.EC_P256)
    new = broker.client()
    new.use(await old.renew(key), key)
    # Until the new one is used, both count.
    second, third = Stream(old), Stream(new)
    await second.next()
    await third.next()
    await new.entries()
    for stream in (first, second):
        await async_until(lambda stream=stream: stream.poll() or stream.disconnects)  # type: ignore[misc]
        stream.updates.clear()
    again = Stream(old)
    await async_until(lambda: again.poll() or again.disconnects)
    made = await broker.entry("/segment/registry/x", old.path, USER)
    await third.having(made.id)
    for stream in (first, second, again):
        stream.poll()
        assert not stream.updates
        stream.stop()
    assert not third.disconnects


async def test_a_replaced_certificate_is_told_nothing_by_a_broker_that_never_heard_of_it(folder: Path) -> None:
    async with running(folder) as broker:
        old = await broker.attest()
        key, kept = generate_key(KeyType.EC_P256), (old.svid, old.key)
        new = broker.client()
        new.use(await old.renew(key), key)
        await new.entries()
        fresh = (new.svid, new.key)
    async with running(folder) as broker:
        for (svid, key), told in ((kept, False), (fresh, True)):
            agent = broker.client()
            assert svid is not None
            agent.use(svid, key)
            stream = Stream(agent)
            await async_until(lambda stream=stream: stream.poll() or stream.disconnects or stream.updates)  # type: ignore[misc]
            assert (bool(stream.updates), bool(stream.disconnects)) == (told, not told)
            stream.stop()


async def test_a_version_that_we_do_not_speak_is_refused(broker: RunningBroker) -> None:
    agent = await broker.attest()
    stream = Stream(agent, 2, 3)
    await async_until(lambda: stream.poll() or stream.disconnects)
    assert not stream.updates
    assert await Stream(agent, 1, 2).next()


async def test_a_new_authority_is_pushed_when_it_is_prepared(broker: RunningBroker) -> None:
    agent = await broker.attest()
    stream = Stream(agent)
    first = await stream.next()
    assert len(part(first, "bundles").bundles[0].x509_authorities) == 1
    await broker.broker.authority._prepare()
    second = await stream.next()
    assert len(part(second, "bundles").bundles[0].x509_authorities) == 2
    assert part(second, "bundles").bundles[0].sequence_number == 4


async def test_a_slow_policy_does_not_hold_calls_up(broker: RunningBroker) -> None:
    """Views are computed in slices: calls get their turn while many are made."""
    agent = await broker.attest()
    await asyncio.gather(*(broker.entry(f"/segment/registry/x{i}", agent.path, USER) for i in range(200)))
    assert len(await agent.entries()) == 200
    update = await Stream(agent).next()
    assert len(entries(update)) == 200


@pytest.mark.parametrize("content", [b"\xff\xff", b""])
async def test_nonsense_ends_the_stream_or_is_ignored(broker: RunningBroker, content: bytes) -> None:
    agent = await broker.attest()
    stream = Stream(agent)
    await stream.next()
    stream._client.send(content)
    await broker.entry("/segment/registry/x", agent.path, USER)
    assert await Stream(agent).next()
