# SPDX-License-Identifier: Apache-2.0
"""The revocation lists that a broker signs: what stands in them, when there is another, who gets them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from firedoor.broker import broker as broker_module
from firedoor.broker import crls as crls_module
from firedoor.broker.crls import Crls
from firedoor.broker.db.crl_rows import SignedCrl
from firedoor.certs import TrustBundle, TrustDomain, X509Svid, parse_x509_svid, verify_crl
from firedoor.sidecar.crls import vouched
from firedoor.sidecar.view import read_update
from firedoor.wire import admin_grpc, admin_pb2, control_pb2
from firedoor.wire.views import CRLS
from tests.broker.harness import POLICY, TD, AgentClient, RunningBroker, running
from tests.broker.test_control import Stream
from tests.broker.test_revoking import USER, X, Y, issue, revoke
from tests.broker.test_upstream import Files, made
from tests.openssl import verify
from tests.postgres import Server
from tests.waiting import async_until

OWN = TrustDomain.parse(TD)
BOTH = ("sqlite", "postgres")


def bundle(broker: RunningBroker) -> TrustBundle:
    return TrustBundle.of(OWN, broker.roots())


def listed(broker: RunningBroker) -> dict[str, dict[str, int]]:
    """Return the serial numbers in each list that the broker has, by authority; all of them verify."""
    now, found = broker.broker.clock.now(), {}
    for one in broker.broker.state.vouched_crls():
        crl = verify_crl(one.der, one.signers, bundle(broker), now)
        found[crl.authority_id] = crl.revoked()
    return found


def openssl(broker: RunningBroker, svid: X509Svid) -> str:
    crls = [one.der for one in broker.broker.state.vouched_crls()]
    return verify(broker.folder, svid.chain, broker.roots(), crls, broker.broker.clock.now())


async def signed(broker: RunningBroker, *svids: X509Svid) -> None:
    """Wait until exactly these are listed."""
    wanted = {one.serial for one in svids}
    await async_until(lambda: {serial for some in listed(broker).values() for serial in some} == wanted)


async def two(broker: RunningBroker) -> tuple[AgentClient, str, X509Svid, X509Svid]:
    agent = await broker.attest()
    x, y = [(await broker.entry(path, agent.path, USER)).id for path in (X, Y)]
    return agent, x, await issue(agent, x), await issue(agent, y)


async def test_there_is_a_list_before_anything_is_revoked(broker: RunningBroker) -> None:
    _, _, svid, _ = await two(broker)
    active = broker.broker.authority.active().authority_id
    assert listed(broker) == {active: {}}
    assert openssl(broker, svid) == "OK"
    # With nothing revoked there is never another.
    generation = broker.broker.state.generation
    await broker.broker.crls.refresh()
    assert broker.broker.state.generation == generation


TARGETS = {
    "an ID": (lambda agent, svid: {"spiffe_id": f"spiffe://{TD}{X}"}, 1),
    "a pattern": (lambda agent, svid: {"spiffe_id": "spiffe://{td}/segment/*/x"}, 1),
    "a serial number": (lambda agent, svid: {"serial": svid.serial}, 1),
    "a segment": (lambda agent, svid: {"segment": "registry"}, 2),
    "an agent": (lambda agent, svid: {"agent_id": agent.id}, 2),
}


@pytest.mark.parametrize("engine", BOTH, indirect=True)
@pytest.mark.parametrize("name", TARGETS)
async def test_however_it_is_said_serial_numbers_are_listed(broker: RunningBroker, name: str) -> None:
    agent, entry_id, svid, other = await two(broker)
    (before,) = broker.broker.state.vouched_crls()
    target, count = TARGETS[name]
    await revoke(broker, **target(agent, svid))
    await signed(broker, *[svid, other][:count])
    (after,) = broker.broker.state.vouched_crls()
    assert before.crl
    assert after.crl
    assert after.crl.number > before.crl.number
    assert "certificate revoked" in openssl(broker, svid)
    assert ("certificate revoked" in openssl(broker, other)) is (count == 2)
    # Who gets another is not listed with it.
    assert openssl(broker, await issue(agent, entry_id)) == "OK"


async def test_each_authority_lists_its_own(broker: RunningBroker) -> None:
    agent, entry_id, svid, _ = await two(broker)
    authority = broker.broker.authority
    old = authority.active().authority_id
    fresh = (await authority.prepare()).authority_id
    # Before it signs, so that nobody is without a list for a moment.
    await async_until(lambda: listed(broker).keys() == {old, fresh})
    await authority.activate(fresh)
    later = await issue(agent, entry_id)
    await revoke(broker, segment="registry")
    await async_until(lambda: len(listed(broker)[fresh]) == 1 and len(listed(broker)[old]) == 2)
    assert svid.serial in listed(broker)[old]
    assert listed(broker)[fresh].keys() == {later.serial}
    for one in (svid, later):
        assert "certificate revoked" in openssl(broker, one)
    # One that is out of the bundle has none.
    await async_until(lambda: broker.broker.identity.svid.authority_id == fresh)
    await authority.taint(old)
    await authority.revoke(old)
    assert listed(broker).keys() == {fresh}


async def test_another_is_signed_before_one_ends(broker: RunningBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, svid, _ = await two(broker)
    await revoke(broker, serial=svid.serial)
    await signed(broker, svid)
    (before,) = broker.broker.state.vouched_crls()
    await broker.broker.crls.refresh()
    assert broker.broker.state.vouched_crls() == [before]
    monkeypatch.setattr(crls_module, "_RENEW_AHEAD", 2**30)
    await broker.broker.crls.refresh()
    (after,) = broker.broker.state.vouched_crls()
    assert before.crl
    assert after.crl
    assert after.crl.number > before.crl.number
    # What is listed keeps its time.
    assert after.crl.revoked() == before.crl.revoked()


async def test_a_full_list_says_so(
    broker: RunningBroker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, _, svid, other = await two(broker)
    monkeypatch.setattr(crls_module, "MAX_CRL_ENTRIES", 1)
    await revoke(broker, segment="registry")
    await async_until(lambda: any(some for some in listed(broker).values()))
    (one,) = broker.broker.state.vouched_crls()
    assert one.left_out == 1
    assert one.listed.keys() < {svid.serial, other.serial}
    assert "1 revoked certificates more than a revocation list takes" in caplog.text
    await async_until(lambda: b"firedoor_broker_crl_left_out 1.0" in broker.broker.metrics.text())
    stub = admin_grpc.RevocationAdminStub(broker.admin)
    (shown,) = (await stub.ListCrls(admin_pb2.ListCrlsRequest())).crls
    assert (shown.crl.authority_id, shown.left_out, shown.crl.der) == (one.authority_id, 1, one.der)


async def test_a_long_list_is_made_shorter(broker: RunningBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crls_module, "_BURDEN", 0)
    monkeypatch.setattr(crls_module, "_SHORTEN_EVERY", 0)
    _, _, svid, other = await two(broker)
    await revoke(broker, segment="registry")
    await signed(broker, svid, other)
    crls, ended = broker.broker.crls, crls_module.ended_by_pattern
    # Both have expired, as the next look finds.
    monkeypatch.setattr(
        crls_module, "ended_by_pattern", lambda *given: [replace(one, not_after=0) for one in ended(*given)]
    )
    crls._by_pattern.clear()
    await crls.refresh()
    await signed(broker)


async def test_a_restart_signs_nothing(folder: Path) -> None:
    async with running(folder) as broker:
        _, _, svid, _ = await two(broker)
        await revoke(broker, serial=svid.serial)
        await signed(broker, svid)
        before = broker.broker.state.crls
    async with running(folder, None) as broker:
        assert broker.broker.state.crls == before


async def test_who_knows_lists_gets_them_and_who_does_not_goes_on(broker: RunningBroker) -> None:
    _, _, svid, _ = await two(broker)
    knowing, other = Stream(await broker.attest(), features=(CRLS,)), Stream(await broker.attest())
    kinds = [[part.WhichOneof("kind") for part in (await one.next()).parts] for one in (knowing, other)]
    assert kinds == [["entries", "bundles", "policy", "revocations", "crls"], kinds[0][:4]]
    await revoke(broker, serial=svid.serial)

    async def told(stream: Stream) -> control_pb2.Update:
        """Return the update of the present generation, once the list is signed."""
        await signed(broker, svid)
        update = await stream.next()
        while update.generation.number < broker.broker.state.generation.number:
            update = await stream.next()
        return update

    view = read_update(await told(knowing), OWN, None)
    (der,) = vouched(view, broker.broker.clock.now())
    assert der == broker.broker.state.vouched_crls()[0].der
    assert read_update(await told(other), OWN, None).crls == ()


async def test_the_key_is_gone(
    broker: RunningBroker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said once; everything else goes on."""
    state, authority = broker.broker.state, broker.broker.authority

    async def nothing() -> None:
        """Stand for its own look."""

    fresh = await authority.prepare()
    await async_until(lambda: fresh.authority_id in listed(broker))
    # The broker itself would look too, and say the same.
    monkeypatch.setattr(broker.broker.crls, "refresh", nothing)
    authority.keys.delete(fresh.key_id)
    # As if it had none yet.
    state.crls = {key: one for key, one in state.crls.items() if key != fresh.authority_id}
    crls = Crls(state, authority, broker.broker.metrics)
    for _ in range(2):
        await crls.refresh()
    assert fresh.authority_id not in state.crls
    assert caplog.text.count("signs no revocation list") == 1


async def test_a_stored_list_that_is_damaged_is_replaced(broker: RunningBroker) -> None:
    state = broker.broker.state
    (one,) = state.vouched_crls()
    damaged = SignedCrl(one.authority_id, one.anchor_id, b"damaged", one.signers, one.next_update, 1)
    state.put_crls([damaged])
    assert (damaged.crl, damaged.listed) == (None, {})
    await Crls(state, broker.broker.authority, broker.broker.metrics).refresh()
    assert listed(broker) == {one.authority_id: {}}


# --- several brokers --------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def pair(postgres: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[RunningBroker]]:
    url, password_file = postgres.database()
    monkeypatch.setattr(broker_module, "NEWCOMER_WAITS", 0.0)
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for name in ("a", "b"):
            place = folder / name
            place.mkdir()
            how = {"database": url, "database_password_file": str(password_file)}
            found.append(await stack.enter_async_context(running(place, None, **how)))
        await found[0].apply(POLICY)
        yield found


async def test_every_broker_has_the_lists_of_all(pair: list[RunningBroker]) -> None:
    a, b = pair
    names = [one.broker.authority.active().authority_id for one in pair]
    await async_until(lambda: listed(a) == listed(b) == {key: {} for key in names})
    agent = await a.attest()
    entry_id = (await a.entry(X, agent.path, USER)).id
    svid = await issue(agent, entry_id)
    await b.broker.database.catch_up()
    moved = b.client()
    assert agent.svid is not None
    moved.use(agent.svid, agent.key)
    (result,) = await moved.sign(entry_id)
    other = parse_x509_svid(tuple(result.svid.cert_chain))
    # Each broker signs for what is its own, whichever was asked to revoke.
    await revoke(b, segment="registry")
    wanted = {names[0]: {svid.serial}, names[1]: {other.serial}}

    def found(broker: RunningBroker) -> dict[str, set[str]]:
        return {name: set(some) for name, some in listed(broker).items()}

    await async_until(lambda: found(a) == found(b) == wanted)
    for broker in pair:
        for one in (svid, other):
            said = await asyncio.to_thread(openssl, broker, one)
            assert "certificate revoked" in said


# --- below an authority upstream --------------------------------------------------------------------------------------


async def test_below_an_authority_upstream_the_brokers_own_ca_signs(folder: Path) -> None:
    root, files = made(), Files(folder)
    files.write(made(root), root)
    async with running(folder, **files.flags()) as broker:
        agent, entry_id, svid, _ = await two(broker)
        (one,) = broker.broker.state.vouched_crls()
        assert (one.authority_id, one.anchor_id) == (svid.authority_id, root.authority_id)
        assert len(one.signers) == 2
        await revoke(broker, serial=svid.serial)
        await signed(broker, svid)
        assert "certificate revoked" in openssl(broker, svid)
        assert openssl(broker, await issue(agent, entry_id)) == "OK"
