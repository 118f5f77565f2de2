# SPDX-License-Identifier: Apache-2.0
"""A rotation goes on when everybody has followed, names who has not, and survives the broker's death in each stage."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from firedoor import mtls
from firedoor.broker import broker as broker_module
from firedoor.certs import KeyType, Stage, TrustDomain, generate_key, make_csr
from firedoor.wire import admin_grpc, admin_pb2, bundle_grpc, bundle_pb2, localauthority_grpc, svid_pb2
from firedoor.wire import localauthority_pb2 as pb
from tests.broker.below import Below, identity
from tests.broker.following import following
from tests.broker.harness import POLICY, AgentClient, RunningBroker, code_of, running
from tests.postgres import Server
from tests.waiting import PATIENCE, async_until

TD = TrustDomain.parse("example.org")
USER = ["unix:user:registry"]
PATH = "/segment/registry/x"
MINTING = POLICY.replace('{entry: ["unix:user:registry"]}', '{entry: ["unix:user:registry"], mint: true}')


async def rotate(broker: RunningBroker, *kinds: str, **fields: Any) -> admin_pb2.StartRotationResponse:
    stub = admin_grpc.AuthorityAdminStub(broker.admin)
    request = admin_pb2.StartRotationRequest(kinds=kinds or ["x509"], **{"drain": 0, **fields})
    return await stub.StartRotation(request)


async def refused(broker: RunningBroker, *kinds: str, **fields: Any) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await rotate(broker, *kinds, **fields)
    return code_of(error.value), str(error.value.details())


def stage(broker: RunningBroker, kind: str = "x509") -> Stage:
    return broker.broker.rotations.reports[kind].rotation.stage  # type: ignore[index]


def missing(broker: RunningBroker, kind: str = "x509") -> dict[str, str]:
    return {one.who: one.why for one in broker.broker.rotations.reports[kind].missing}  # type: ignore[index]


async def reaches(broker: RunningBroker, wanted: Stage, kind: str = "x509") -> None:
    await async_until(lambda: stage(broker, kind) is wanted)


async def misses(broker: RunningBroker, who: str, why: str, kind: str = "x509") -> None:
    await async_until(lambda: why in missing(broker, kind).get(who, ""))


def roots(broker: RunningBroker) -> set[str]:
    return {root.authority_id for root in broker.broker.state.bundles[TD].x509_roots}


def trusted(broker: RunningBroker) -> set[str]:
    bundle = broker.broker.state.bundles[TD]
    return roots(broker) | {key.key_id for key in (*bundle.jwt_keys, *bundle.wit_keys)}


def events(broker: RunningBroker) -> list[dict[str, Any]]:
    return [one for one in broker.audit() if str(one.get("event", "")).startswith("rotation_")]


@contextlib.asynccontextmanager
async def held(broker: RunningBroker, **habits: bool) -> AsyncIterator[tuple[AgentClient, str]]:
    """Run a sidecar that holds one SVID."""
    agent = await broker.attest()
    made = await broker.entry(PATH, agent.path, USER)
    async with following(made.id, agent=agent, **habits) as one:
        await async_until(lambda: one.svids)
        yield agent, made.id


async def test_all_of_it(broker: RunningBroker) -> None:
    async with held(broker) as (agent, _):
        first = broker.broker.authority.active().authority_id
        own = agent.svid
        answer = await rotate(broker)
        assert list(answer.joined) == []
        assert (answer.rotations[0].old_authority_id, answer.rotations[0].stage) == (first, "prepare")
        await reaches(broker, Stage.DONE)
        second = broker.broker.authority.active().authority_id
        assert roots(broker) == {second} != {first}
        assert ("authority", first) in broker.broker.state.revocations
        assert broker.broker.identity.svid.authority_id == second
        assert agent.svid is not None
        assert own is not None
        assert (own.authority_id, agent.svid.authority_id) == (first, second)
    steps = [f"rotation_{step}" for step in ("started", "prepared", "activated", "tainted", "done")]
    await async_until(lambda: [one["event"] for one in events(broker)] == steps)
    assert {one["by"] for one in events(broker)} == {f"uid {os.geteuid()}"}
    assert [one["over_count"] for one in events(broker)] == [0] * 5


async def test_who_joins_starts_no_other(broker: RunningBroker) -> None:
    async with held(broker, acknowledges=False) as (agent, _):
        first = await rotate(broker)
        await misses(broker, agent.id, "has not acknowledged")
        again = await rotate(broker)
        assert list(again.joined) == ["x509"]
        assert again.rotations[0].started_at == first.rotations[0].started_at
        assert stage(broker) is Stage.SPREAD


async def test_it_waits_for_who_is_away_and_goes_over_them_when_forced(broker: RunningBroker) -> None:
    away = await broker.attest()
    async with held(broker) as (agent, _):
        await rotate(broker)
        await async_until(lambda: missing(broker) == {away.id: "is not connected"})
        assert stage(broker) is Stage.SPREAD
        await rotate(broker, force=True, patience=1)
        await reaches(broker, Stage.DONE)
        report = broker.broker.rotations.reports["x509"]
        assert report.rotation.over == (away.id,)
    await async_until(lambda: events(broker)[-1]["over"] == [away.id])
    # The twin that followed is in, whoever was gone over is out.
    assert await agent.entries()
    with pytest.raises(mtls.MaterialError, match="UnknownIssuer"):
        away.publish()
    away.channel = away.connect()
    with pytest.raises(grpc.aio.AioRpcError):
        await away.entries()


async def test_one_that_acknowledges_without_using_what_it_was_issued_is_noticed(broker: RunningBroker) -> None:
    async with held(broker, reissues=False) as (agent, entry_id):
        await rotate(broker)
        await misses(broker, agent.id, "runs on an SVID of the old authority")
        # That another was issued for it changes nothing while it says that it runs on the old one.
        await agent.sign(entry_id)
        await asyncio.sleep(0.5)
        assert stage(broker) is Stage.REISSUE
        assert agent.id in missing(broker)


async def test_one_whose_own_svid_is_of_the_old_authority_is_waited_for(broker: RunningBroker) -> None:
    async with held(broker, renews=False) as (agent, _):
        await rotate(broker)
        await misses(broker, agent.id, "its own SVID is of the old authority")
        assert stage(broker) is Stage.RETIRE


async def test_one_that_polls_counts_by_the_bundle_that_it_fetched_and_by_what_it_was_issued(
    broker: RunningBroker,
) -> None:
    agent = await broker.attest()
    made = await broker.entry(PATH, agent.path, USER)
    await agent.sign(made.id)
    fetch = bundle_grpc.BundleStub(agent.channel).GetBundle
    await fetch(bundle_pb2.GetBundleRequest())
    await rotate(broker)
    await misses(broker, agent.id, "has not fetched the bundle yet")
    # A part of it does not count.
    await fetch(bundle_pb2.GetBundleRequest(output_mask={"refresh_hint": True}))
    await asyncio.sleep(0.5)
    assert stage(broker) is Stage.SPREAD
    await fetch(bundle_pb2.GetBundleRequest())
    await reaches(broker, Stage.REISSUE)
    await misses(broker, agent.id, "runs on an SVID of the old authority: spiffe://example.org" + PATH)
    (entry,) = await agent.entries()
    assert entry.revision_number == made.revision_number + 1
    await broker.broker.identity.refresh()
    agent.publish()
    await agent.sign(made.id)
    await reaches(broker, Stage.RETIRE)
    await misses(broker, agent.id, "has not fetched the bundle yet")
    await fetch(bundle_pb2.GetBundleRequest())
    await misses(broker, agent.id, "its own SVID is of the old authority")
    key = generate_key(KeyType.EC_P256)
    agent.use(await agent.renew(key), key)
    await asyncio.sleep(0.5)
    # Renewed, but not used yet: an answer may have been lost.
    assert stage(broker) is Stage.RETIRE
    await agent.entries()
    await reaches(broker, Stage.DONE)


async def test_a_certificate_that_counts_no_more_says_nothing_for_its_agent(broker: RunningBroker) -> None:
    agent, stolen = await broker.attest(), broker.client()
    assert agent.svid is not None
    stolen.use(agent.svid, agent.key)
    key = generate_key(KeyType.EC_P256)
    agent.use(await agent.renew(key), key)
    await agent.entries()
    await rotate(broker)
    await misses(broker, agent.id, "is not connected")
    await bundle_grpc.BundleStub(stolen.channel).GetBundle(bundle_pb2.GetBundleRequest())
    await asyncio.sleep(0.5)
    assert stage(broker) is Stage.SPREAD
    await bundle_grpc.BundleStub(agent.channel).GetBundle(bundle_pb2.GetBundleRequest())
    await async_until(lambda: stage(broker) is not Stage.SPREAD)


async def test_a_server_below_is_waited_for(broker: RunningBroker) -> None:
    below = await Below.make(broker)
    await below.ca()
    agent, server = below.agent, f"spiffe://example.org{below.entry.spiffe_id.path}"

    async def fetch(*clients: AgentClient) -> None:
        for one in clients:
            await bundle_grpc.BundleStub(one.channel).GetBundle(bundle_pb2.GetBundleRequest())

    await rotate(broker)
    await async_until(lambda: missing(broker).keys() == {agent.id, server})
    await fetch(agent)
    await async_until(lambda: missing(broker).keys() == {server})
    await fetch(below.client)
    await misses(broker, agent.id, "runs on an SVID of the old authority")
    # Its CA is not asked for before the taint, which is what tells it.
    agent.publish()
    below.client = await identity(broker, agent, below.entry.id)
    await reaches(broker, Stage.RETIRE)
    key = generate_key(KeyType.EC_P256)
    agent.use(await agent.renew(key), key)
    await agent.entries()
    await fetch(agent, below.client)
    await async_until(lambda: missing(broker) == {agent.id: "the CA of the server beside it is of the old authority"})
    await below.ca()
    await reaches(broker, Stage.DONE)


async def test_what_was_minted_is_named(folder: Path) -> None:
    async with running(folder, MINTING) as broker:
        name = f"spiffe://example.org{PATH}"
        csr = make_csr(generate_key(KeyType.EC_P256), uris=[name])
        made = await broker.svids.MintX509SVID(svid_pb2.MintX509SVIDRequest(csr=csr, ttl=600))
        plan = (await rotate(broker, dry_run=True)).rotations[0]
        assert [(one.who, one.why, one.until) for one in plan.missing] == [
            (name, "minted, so that nobody renews it", made.svid.expires_at)
        ]
        assert broker.broker.rotations.reports == {}
        await rotate(broker)
        await misses(broker, name, "minted")
        await rotate(broker, force=True, patience=1)
        await reaches(broker, Stage.DONE)
        assert broker.broker.rotations.reports["x509"].rotation.over == (name,)


@pytest.mark.parametrize("kind", ["jwt", "wit"])
async def test_keys_for_tokens_wait_for_the_longest_token(folder: Path, kind: str) -> None:
    async with running(folder, jwt_svid_ttl="10m") as broker, held(broker) as (agent, entry_id):
        manager = broker.broker.managers[kind]  # type: ignore[index]
        # As if it had been made after this process began: else what an earlier one signed would be waited for.
        broker.broker.rotations._found.clear()
        if kind == "jwt":
            await agent.token(entry_id)
        else:
            manager.note(manager.active().authority_id, broker.broker.clock.now() + 600)
        old = manager.active().authority_id
        end = manager.signed_until(old)
        assert end > broker.broker.clock.now()
        await rotate(broker, kind)
        await misses(broker, "tokens", "that the old key signed are valid", kind)
        assert manager.active().authority_id != old
        broker.broker.clock._last += 700
        await reaches(broker, Stage.DONE, kind)
        assert broker.broker.clock.now() >= end
        bundle = broker.broker.state.bundles[TD]
        assert old not in {key.key_id for key in (*bundle.jwt_keys, *bundle.wit_keys)}


async def test_what_an_earlier_process_signed_is_waited_for(folder: Path) -> None:
    async with running(folder, jwt_svid_ttl="50s") as broker:
        at = broker.broker.clock.now()
    async with running(folder, jwt_svid_ttl="50s") as broker:
        await rotate(broker, "jwt")
        await misses(broker, "tokens", "that the old key signed are valid", "jwt")
        assert at + 50 <= broker.broker.rotations.reports["jwt"].missing[0].until <= broker.broker.clock.now() + 50


async def test_an_emergency_is_over_within_seconds_and_cuts_off_who_did_not_follow(broker: RunningBroker) -> None:
    away = await broker.attest()
    async with held(broker) as (agent, _), held(broker, reissues=False) as (stubborn, _):
        await rotate(broker, "x509", "jwt", "wit", emergency=True)
        for kind in ("x509", "jwt", "wit"):
            await reaches(broker, Stage.DONE, kind)
        rotation = broker.broker.rotations.reports["x509"].rotation
        assert set(rotation.over) == {away.id, stubborn.id}
        assert await agent.entries()


async def test_an_emergency_waits_for_as_long_as_it_is_told(broker: RunningBroker) -> None:
    async with held(broker), held(broker, reissues=False) as (stubborn, _):
        await rotate(broker, emergency=True, patience=600)
        await reaches(broker, Stage.RETIRE)
        rotation = broker.broker.rotations.reports["x509"].rotation
        assert (rotation.patience, rotation.over) == (600, ())
        await misses(broker, stubborn.id, "runs on an SVID of the old authority")


@pytest.mark.parametrize("kind", ["X509", "JWT", "WIT"])
async def test_an_emergency_trusts_nothing_that_was_made_before(broker: RunningBroker, kind: str) -> None:
    """Not the authority that waits for its turn either: whoever has one key may have the other."""
    stub, name = localauthority_grpc.LocalAuthorityStub(broker.admin), kind.lower()
    ask = getattr(pb, f"Prepare{kind}AuthorityRequest")
    prepared = (await getattr(stub, f"Prepare{kind}Authority")(ask())).prepared_authority.authority_id
    assert prepared in trusted(broker)
    await rotate(broker, name, emergency=True)
    await reaches(broker, Stage.DONE, name)
    manager = broker.broker.managers[name]  # type: ignore[index]
    assert prepared not in trusted(broker)
    assert manager.active().authority_id in trusted(broker)


async def test_what_is_prepared_already_will_do_otherwise(broker: RunningBroker) -> None:
    stub = localauthority_grpc.LocalAuthorityStub(broker.admin)
    prepared = (await stub.PrepareX509Authority(pb.PrepareX509AuthorityRequest())).prepared_authority.authority_id
    await rotate(broker)
    await reaches(broker, Stage.DONE)
    assert broker.broker.authority.active().authority_id == prepared


async def test_it_is_aborted_until_the_old_authority_is_tainted(broker: RunningBroker) -> None:
    stub = admin_grpc.AuthorityAdminStub(broker.admin)
    request = admin_pb2.AbortRotationRequest(kinds=["x509"])
    with pytest.raises(grpc.aio.AioRpcError, match="no x509 rotation is under way"):
        await stub.AbortRotation(request)
    async with held(broker, renews=False) as (agent, _):
        away = await broker.attest()
        await rotate(broker)
        await misses(broker, away.id, "is not connected")
        assert (await stub.AbortRotation(request)).rotations[0].stage == "aborted"
        assert stage(broker) is Stage.ABORTED
        await broker.ban(away.id)
        await rotate(broker)
        await misses(broker, agent.id, "its own SVID")
        with pytest.raises(grpc.aio.AioRpcError, match="abort of a rotation that is in retire") as error:
            await stub.AbortRotation(request)
        assert code_of(error.value) == "FAILED_PRECONDITION"


async def test_what_somebody_else_did_to_its_authorities_ends_it(broker: RunningBroker) -> None:
    away = await broker.attest()
    await rotate(broker)
    await misses(broker, away.id, "is not connected")
    stub = localauthority_grpc.LocalAuthorityStub(broker.admin)
    await stub.PrepareX509Authority(pb.PrepareX509AuthorityRequest())
    await reaches(broker, Stage.ABORTED)
    assert "replaced" in broker.broker.rotations.reports["x509"].rotation.reason


async def test_other_trust_domains_have_the_time_that_their_hint_gives_them(folder: Path) -> None:
    endpoint = {"bundle_endpoint_listen": "127.0.0.1:0", "bundle_endpoint_refresh_hint": "10m"}
    async with running(folder, **endpoint) as broker:
        await rotate(broker)
        await misses(broker, "other trust domains", "may not have fetched the bundle yet")
        report = broker.broker.rotations.reports["x509"]
        assert report.missing[0].until == report.rotation.since + 600
        # Nobody waits for them in an emergency, which takes over what is under way.
        assert list((await rotate(broker, emergency=True)).joined) == ["x509"]
        await reaches(broker, Stage.DONE)


async def test_a_tainted_authority_is_not_displaced(broker: RunningBroker) -> None:
    stub = localauthority_grpc.LocalAuthorityStub(broker.admin)
    first = broker.broker.authority.active().authority_id
    prepared = (await stub.PrepareX509Authority(pb.PrepareX509AuthorityRequest())).prepared_authority.authority_id
    await stub.ActivateX509Authority(pb.ActivateX509AuthorityRequest(authority_id=prepared))
    await stub.TaintX509Authority(pb.TaintX509AuthorityRequest(authority_id=first))
    code, words = await refused(broker)
    assert (code, words.startswith(f"authority {first} is tainted")) == ("FAILED_PRECONDITION", True)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kinds": []}, "kinds are one or more"),
        ({"kinds": ["x509", "ssh"]}, "kinds are one or more"),
        ({"patience": -1}, "are seconds"),
        ({"drain": 10**9}, "are seconds"),
    ],
    ids=["no kind", "an unknown kind", "a time before now", "for ever"],
)
async def test_a_request_that_makes_no_sense(broker: RunningBroker, fields: dict[str, Any], words: str) -> None:
    stub = admin_grpc.AuthorityAdminStub(broker.admin)
    with pytest.raises(grpc.aio.AioRpcError, match=words) as error:
        await stub.StartRotation(admin_pb2.StartRotationRequest(**{"kinds": ["x509"], **fields}))
    assert code_of(error.value) == "INVALID_ARGUMENT"
    assert broker.broker.rotations.reports == {}


async def test_the_schedule_rotates(folder: Path) -> None:
    async with running(folder, rotation_jwt="60s", ca_ttl="1h") as broker:
        assert broker.broker.rotations.reports == {}
        clock, began = broker.broker.clock, broker.broker.clock.now()
        clock.now = lambda: began + 61  # type: ignore[method-assign]
        await async_until(lambda: "jwt" in broker.broker.rotations.reports)
        assert broker.broker.rotations.reports["jwt"].rotation.by == "schedule"


async def test_watching_ends_after_a_while_and_tells_each_change(broker: RunningBroker) -> None:
    stub = admin_grpc.AuthorityAdminStub(broker.admin)
    seen: list[str] = []
    agent, began = await broker.attest(), asyncio.Event()
    made = await broker.entry(PATH, agent.path, USER)

    async def watch() -> None:
        async for answer in stub.WatchRotations(admin_pb2.WatchRotationsRequest()):
            began.set()
            seen.extend(one.stage for one in answer.rotations if one.stage not in seen[-1:])
            if seen[-1:] == ["done"]:
                return

    async with following(made.id, agent=agent, reissues=False) as sidecar:
        await async_until(lambda: sidecar.svids)
        watching = asyncio.create_task(watch())
        await began.wait()
        await rotate(broker)
        # It stands still there until it was told.
        await async_until(lambda: "reissue" in seen)
        sidecar.reissues = True
        # At the next generation it looks at its SVIDs again.
        await broker.entry(f"{PATH}-2", agent.path, USER)
        await asyncio.wait_for(watching, PATIENCE)
    # What changes twice while an answer is on its way is told once.
    order = [stage.value for stage in (Stage.PREPARE, Stage.SPREAD, Stage.REISSUE, Stage.RETIRE, Stage.DONE)]
    assert seen == [stage for stage in order if stage in seen]


async def test_the_list(broker: RunningBroker) -> None:
    stub = admin_grpc.AuthorityAdminStub(broker.admin)
    agent = await broker.attest()
    found = (await stub.ListAuthorities(admin_pb2.ListAuthoritiesRequest())).authorities
    assert [(one.kind, one.slot, one.status, one.live_svids) for one in found] == [
        ("x509", "A", "active", 1),
        ("jwt", "A", "active", 0),
        ("wit", "A", "active", 0),
    ]
    assert agent.svid is not None
    assert found[0].authority_id == agent.svid.authority_id


@pytest.mark.parametrize("left_in", [Stage.SPREAD, Stage.REISSUE, Stage.RETIRE], ids=lambda stage: stage.value)
async def test_it_goes_on_after_the_broker_was_away(folder: Path, left_in: Stage) -> None:
    habits = {
        Stage.SPREAD: {"acknowledges": False},
        Stage.REISSUE: {"reissues": False},
        Stage.RETIRE: {"renews": False},
    }
    async with running(folder) as broker, held(broker, **habits[left_in]) as (agent, entry_id):
        await rotate(broker)
        await async_until(lambda: stage(broker) is left_in and missing(broker))
        key, svid = agent.key, agent.svid
        before = broker.broker.rotations.reports["x509"].rotation
        assert svid is not None
    async with running(folder) as broker:
        assert broker.broker.rotations.reports["x509"].rotation == before
        again = broker.client()
        again.use(svid, key)
        await misses(broker, again.id, "")
        assert stage(broker) is left_in
        async with following(entry_id, agent=again) as one:
            await reaches(broker, Stage.DONE)
            held_by = {svid.authority_id for svid in one.svids.values()}
        assert held_by == {broker.broker.authority.active().authority_id} == roots(broker)


async def test_on_a_database_that_several_brokers_share(folder: Path, postgres: Server) -> None:
    """The other broker's authorities and sidecars are not this one's: whoever is not connected here is named."""
    url, password_file = postgres.database()
    how = {"database": url, "database_password_file": str(password_file)}
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        # The sidecars that a newcomer waits for are not there.
        patch.setattr(broker_module, "NEWCOMER_WAITS", 0.0)
        async with running(folder / "a", None, **how) as a, running(folder / "b", None, **how) as b:
            await a.apply(POLICY)
            elsewhere = await b.attest()
            async with held(a) as (agent, _):
                other = b.broker.authority.active().authority_id
                await rotate(a)
                await async_until(lambda: missing(a) == {elsewhere.id: "is not connected"})
                # It polls here: now it is known.
                here = a.client()
                assert elsewhere.svid is not None
                here.use(elsewhere.svid, elsewhere.key)
                await bundle_grpc.BundleStub(here.channel).GetBundle(bundle_pb2.GetBundleRequest())
                await async_until(lambda: stage(a) is not Stage.SPREAD)
                # Nothing of it is of the old authority, so that the taint is all that it has to know.
                await misses(a, elsewhere.id, "has not fetched the bundle yet")
                await bundle_grpc.BundleStub(here.channel).GetBundle(bundle_pb2.GetBundleRequest())
                await reaches(a, Stage.DONE)
                fresh = a.broker.authority.active().authority_id
                await async_until(lambda: roots(a) == roots(b) == {fresh, other})
                assert agent.svid is not None
                assert agent.svid.authority_id == fresh
            assert b.broker.rotations.reports == {}
