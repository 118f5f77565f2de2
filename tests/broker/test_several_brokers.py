# SPDX-License-Identifier: Apache-2.0
"""Brokers on one PostgreSQL database: what one commits the others have, and what is used up once is used up once."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from firedoor.broker import broker as broker_module
from firedoor.broker.db import SharedDatabase
from firedoor.broker.db.acknowledged_rows import put_acknowledged
from firedoor.broker.db.rows import Generation
from firedoor.broker.followers import Fetches, Followers, News
from firedoor.broker.views import VERSION
from firedoor.certs import SpiffeId, TrustDomain
from firedoor.wire import bundle_pb2, control_pb2, entry_pb2
from tests.broker.harness import POLICY, TD, RunningBroker, code_of, entry, running
from tests.postgres import Server
from tests.waiting import async_until

OWN = TrustDomain.parse(TD)
REGISTRY = "/segment/registry/x"


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def pair(postgres: Server) -> AsyncIterator[list[RunningBroker]]:
    """Two brokers, each with a data directory and authorities of its own."""
    url, password_file = postgres.database()
    # The sidecars that a newcomer waits for are not there.
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="fd-") as folder:
        patch.setattr(broker_module, "NEWCOMER_WAITS", 0.0)
        async with contextlib.AsyncExitStack() as stack:
            found = []
            for name in ("a", "b"):
                place = Path(folder) / name
                place.mkdir()
                how = {"database": url, "database_password_file": str(password_file)}
                how["rate_limits_attestation_burst"] = "10000"
                found.append(await stack.enter_async_context(running(place, None, **how)))
            await found[0].apply(POLICY)
            yield found


def fresh() -> str:
    """Return a name that nothing has yet: the brokers are those of all tests, and of all runs of one."""
    return secrets.token_hex(8)


def roots(broker: RunningBroker) -> set[str]:
    return {root.authority_id for root in broker.broker.state.bundles[OWN].x509_roots}


async def test_authorities_are_each_ones_own_and_the_bundle_is_of_all(pair: list[RunningBroker]) -> None:
    a, b = pair
    own = {one.broker.authority.active().authority_id for one in pair}
    assert len(own) == 2
    await async_until(lambda: roots(a) == roots(b) == own)
    # One that takes its old authority out leaves the other's where it is.
    old = a.broker.authority.active().authority_id
    fresh = await a.broker.authority.prepare()
    await a.broker.authority.activate(fresh.authority_id)
    # Its own SVID is of the old one until its next look.
    await async_until(lambda: a.broker.identity.svid.authority_id == fresh.authority_id)
    await a.broker.authority.taint(old)
    await a.broker.authority.revoke(old)
    after = {fresh.authority_id, b.broker.authority.active().authority_id}
    await async_until(lambda: roots(a) == roots(b) == after)


async def test_both_change_the_bundle_at_once_and_nothing_is_lost(pair: list[RunningBroker]) -> None:
    managers = [m for one in pair for m in (one.broker.authority, one.broker.jwt_authority, one.broker.wit_authority)]
    made = await asyncio.gather(*(manager.prepare() for manager in managers))
    wanted = {one.authority_id for one in made}
    for one in pair:
        await one.broker.database.catch_up()
        bundle = one.broker.state.bundles[OWN]
        keys = {key.key_id for key in (*bundle.jwt_keys, *bundle.wit_keys)}
        assert wanted <= keys | roots(one)


async def test_what_one_commits_the_other_has(pair: list[RunningBroker]) -> None:
    a, b = pair
    agent = await a.attest()
    made = await a.entry(REGISTRY, agent.path, ["unix:user:registry"])
    began = time.monotonic()
    await async_until(lambda: b.broker.state.entries.get(made.id) is not None)
    print(f"an entry made at one broker was at the other {1000 * (time.monotonic() - began):.1f} ms later")
    await async_until(lambda: b.broker.state.generation == a.broker.state.generation)
    assert b.broker.state.agents == a.broker.state.agents
    assert b.broker.policy.current.documents == a.broker.policy.current.documents
    changed = entry(REGISTRY, agent.path, ["unix:user:registry"], id=made.id, hint="h")
    await b.entries.BatchUpdateEntry(entry_pb2.BatchUpdateEntryRequest(entries=[changed]))
    await async_until(lambda: (found := a.broker.state.entries.get(made.id)) is not None and found.hint == "h")
    # Decided by what it was before it heard of that: an update of a revision that is gone is made again.
    (result,) = (await a.entries.BatchUpdateEntry(entry_pb2.BatchUpdateEntryRequest(entries=[changed]))).results
    assert result.status.code == 0
    await a.entries.BatchDeleteEntry(entry_pb2.BatchDeleteEntryRequest(ids=[made.id]))
    await async_until(lambda: b.broker.state.entries.get(made.id) is None)
    await b.apply(POLICY.replace("/models/**", "/other/**"))
    await async_until(lambda: a.broker.policy.current.documents == b.broker.policy.current.documents)


async def test_a_token_is_used_at_one_broker_alone(pair: list[RunningBroker]) -> None:
    a, b = pair

    async def attest(broker: RunningBroker, token: str) -> str:
        client = broker.client()
        try:
            await client.attest(token)
        except grpc.aio.AioRpcError as error:
            return code_of(error)
        finally:
            # One address has an eighth of the connections without a certificate.
            await client.channel.close()
        return "attested"

    for _ in range(15):
        token = await a.token()
        results = await asyncio.gather(*(attest(broker, token) for broker in (a, b, b, a)))
        assert sorted(results) == ["INVALID_ARGUMENT"] * 3 + ["attested"]


async def test_an_agent_is_known_at_every_broker_at_once(pair: list[RunningBroker]) -> None:
    """Also before the other broker has heard of it."""
    a, b = pair
    agent = await a.attest()
    made = await a.entry(REGISTRY, agent.path, ["unix:user:registry"])
    moved = b.client()
    moved.use(agent.svid, agent.key)  # type: ignore[arg-type]
    (result,) = await moved.sign(made.id)
    assert result.status.code == 0, result.status.message


async def test_who_is_banned_at_one_broker_gets_nothing_from_the_other(pair: list[RunningBroker]) -> None:
    a, b = pair
    agent = await a.attest()
    made = await a.entry(REGISTRY, agent.path, ["unix:user:registry"])
    (result,) = await agent.sign(made.id)
    signed = ("serial", _serial(result.svid.cert_chain[0]))
    await b.ban(agent.id)
    with pytest.raises(grpc.aio.AioRpcError):
        await agent.sign(made.id)
    # What A signed B revoked, and A tells it to its sidecars too.
    assert signed in b.broker.state.revocations
    await async_until(lambda: a.broker.state.revocations.keys() == b.broker.state.revocations.keys())


async def test_nothing_is_signed_beside_a_ban(pair: list[RunningBroker]) -> None:
    """Whatever one broker hands out while the other bans is revoked by that ban."""
    a, b = pair
    handed_out: list[str] = []
    for _ in range(5):
        agent = await a.attest()
        made = await a.entry(REGISTRY, agent.path, ["unix:user:registry"])

        async def sign() -> None:
            for _ in range(10):
                try:
                    (result,) = await agent.sign(made.id)  # noqa: B023
                except grpc.aio.AioRpcError:
                    return
                if result.status.code == 0:
                    handed_out.append(_serial(result.svid.cert_chain[0]))

        await asyncio.gather(sign(), sign(), b.ban(agent.id))
        await a.entries.BatchDeleteEntry(entry_pb2.BatchDeleteEntryRequest(ids=[made.id]))
    await a.broker.database.catch_up()
    revoked = {value for kind, value in a.broker.state.revocations if kind == "serial"}
    assert set(handed_out) <= revoked


def _serial(der: bytes) -> str:
    from cryptography import x509

    return f"{x509.load_der_x509_certificate(der).serial_number:x}"


async def test_similar_entries_are_one(pair: list[RunningBroker]) -> None:
    a, b = pair
    parent = f"/spire/agent/join_token/{fresh()}"
    for number in range(10):
        wanted = entry(f"{REGISTRY}{number}", parent, ["unix:user:registry"])
        (first,), (second,) = await asyncio.gather(a.create(wanted), b.create(wanted))
        assert sorted((first.status.code, second.status.code)) == [0, 6]
        assert first.entry.id == second.entry.id


async def test_a_listener_that_is_cut_off_misses_nothing(pair: list[RunningBroker], postgres: Server) -> None:
    a, b = pair
    listening = "application_name LIKE '%listening'"
    # Those that were cut off before come back within moments.
    await async_until(lambda: postgres.sessions(listening) >= 2)
    assert postgres.end_sessions(listening) >= 2
    made = await a.entry(REGISTRY, f"/spire/agent/join_token/{fresh()}", ["unix:user:registry"])
    await async_until(lambda: b.broker.state.entries.get(made.id) is not None)


async def test_every_session_is_cut_off_and_nothing_is_done_twice(pair: list[RunningBroker], postgres: Server) -> None:
    a, b = pair
    stop = asyncio.Event()

    async def cut() -> None:
        while not stop.is_set():
            await asyncio.to_thread(postgres.end_sessions)
            await asyncio.sleep(0.05)

    cutting = asyncio.create_task(cut())
    paths = [f"/spire/agent/join_token/x{number}" for number in range(40)]
    made = [(broker, path) for path in paths for broker in (a, b)]
    results = await asyncio.gather(*(b.create(entry(REGISTRY, p, ["unix:user:registry"])) for b, p in made))
    stop.set()
    await cutting
    # Whoever was told that an entry was made made it, and nobody else did.
    assert all(sum(r.status.code == 0 for (r,) in results[i : i + 2]) <= 1 for i in range(0, len(results), 2))
    told = {result.entry.id for (result,) in results if result.status.code == 0}
    await async_until(lambda: not a.broker.condition().degraded and not b.broker.condition().degraded)
    for one in (a, b):
        await one.broker.database.catch_up()
        assert told <= {found.id for found in one.broker.state.entries}
    assert {e.id for e in a.broker.state.entries} == {e.id for e in b.broker.state.entries}


async def test_a_federated_bundle_goes_to_all_and_is_deleted_once(pair: list[RunningBroker]) -> None:
    a, b = pair
    other = (await a.bundle()).x509_authorities
    request = bundle_pb2.BatchSetFederatedBundleRequest()
    request.bundle.add(trust_domain="other.org", x509_authorities=other)
    await a.bundles.BatchSetFederatedBundle(request)
    await async_until(lambda: TrustDomain.parse("other.org") in b.broker.state.bundles)
    gone = bundle_pb2.BatchDeleteFederatedBundleRequest(trust_domains=["other.org"])
    answers = await asyncio.gather(*(one.bundles.BatchDeleteFederatedBundle(gone) for one in pair))
    assert sorted(answer.results[0].status.code for answer in answers) == [0, 5]


async def test_two_policies_at_once_are_one_after_the_other(pair: list[RunningBroker]) -> None:
    a, b = pair
    # What earlier tests changed is known to both.
    await asyncio.gather(*(one.broker.database.catch_up() for one in pair))
    generation = a.broker.state.generation
    policies = [POLICY.replace("/models/**", f"/{name}/**") for name in (fresh(), fresh())]
    given = {"epoch": generation.epoch, "number": generation.number}
    results = await asyncio.gather(
        *(one.apply(text, if_generation=given) for one, text in zip(pair, policies, strict=True)),
        return_exceptions=True,
    )
    assert sum(isinstance(result, grpc.aio.AioRpcError) for result in results) == 1
    await asyncio.gather(*(one.broker.database.catch_up() for one in pair))
    assert a.broker.policy.current.documents == b.broker.policy.current.documents


async def test_what_another_broker_signs_while_an_edit_waits_is_not_promoted(
    pair: list[RunningBroker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one asks the policy in force alone; what the coming one does not admit is revoked with the edit."""
    a, b = pair
    agent = await b.attest()
    made = await b.entry("/segment/registry/late", agent.path, ["unix:user:registry"])
    await agent.sign(made.id)
    reissuer, signed = a.broker.policy.reissuer, []
    replaced = reissuer.replaced

    async def while_it_waits(*args: Any, **how: Any) -> None:
        await replaced(*args, **{**how, "wait": False})
        (result,) = await agent.sign(made.id)
        assert result.status.code == 0, result.status.message
        signed.append(_serial(result.svid.cert_chain[0]))

    monkeypatch.setattr(reissuer, "replaced", while_it_waits)
    stricter = 'admission: {entry: ["unix:user:registry"], node: ["x509pop:subject:cn:nobody"]}'
    await a.apply(POLICY.replace('admission: {entry: ["unix:user:registry"]}', stricter))
    await b.broker.database.catch_up()
    for one in pair:
        assert ("serial", signed[0]) in one.broker.state.revocations
    (result,) = await agent.sign(made.id)
    assert result.status.code != 0
    monkeypatch.undo()
    await a.apply(POLICY, now=True)


async def test_what_is_acknowledged_at_one_broker_the_other_counts(pair: list[RunningBroker]) -> None:
    """A rotation at A waits for the sidecars of B, and for no longer than they need."""
    a, b = pair
    agent = await b.attest()
    made = await b.entry("/segment/registry/followed", agent.path, ["unix:user:registry"])
    await agent.sign(made.id)
    await a.broker.database.catch_up()
    news = News(b.broker.state.generation, 2**62)
    followers = Followers(a.broker.state, a.broker.pusher.listening, Fetches(a.broker.state))

    async def missing() -> set[str]:
        return {one.who for one in (await followers.without_news(news)).missing}

    assert agent.id in await missing()
    hello = control_pb2.FromSidecar(hello=control_pb2.Hello(versions=[VERSION]))
    pusher, agent_id = b.broker.pusher, SpiffeId.parse(agent.id)
    pusher._said(agent_id, 1, hello)
    told = control_pb2.Generation(epoch=news.generation.epoch, number=news.generation.number)
    pusher._said(agent_id, 1, control_pb2.FromSidecar(ack=control_pb2.Ack(generation=told)))
    await async_until(missing, "it counts", when=lambda found: agent.id not in found)
    # An older one at a later time takes nothing back.
    await b.broker.database.write(lambda c: put_acknowledged(c, {agent.id: Generation(0, 1)}))
    assert agent.id not in await missing()


async def test_a_database_that_is_put_back_begins_an_epoch(pair: list[RunningBroker], postgres: Server) -> None:
    a, b = pair
    before = a.broker.state.generation
    name = str(a.broker.database.engine.url.database)

    def put_back() -> None:
        with postgres.admin(name) as connection:
            connection.execute("UPDATE generation SET number = 1")

    await asyncio.to_thread(put_back)
    await async_until(lambda: min(one.broker.state.generation for one in pair) > before)
    await async_until(lambda: a.broker.state.generation == b.broker.state.generation)
    assert a.broker.state.generation.epoch > before.epoch


async def test_one_broker_leads_and_the_other_takes_over(pair: list[RunningBroker]) -> None:
    databases = [one.broker.database for one in pair]
    await async_until(lambda: sum(one.leads for one in databases) == 1)
    (leader,) = [one for one in databases if one.leads]
    (other,) = [one for one in databases if not one.leads]
    assert isinstance(leader, SharedDatabase)
    assert leader._listener is not None
    await asyncio.to_thread(leader._listener.stop)
    await async_until(lambda: other.leads)
    assert not leader.leads
