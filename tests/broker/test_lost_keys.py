# SPDX-License-Identifier: Apache-2.0
"""An authority's key is lost: the broker says whose, another one signs, and what the lost one signed stays good."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from firedoor import mtls
from firedoor.broker import authority
from firedoor.broker.authority import Manager
from firedoor.broker.errors import BrokerError
from firedoor.broker.rotation_order import Order
from firedoor.certs import CertsError, Stage, Status, private_key_der
from firedoor.certs.authority import Kind
from tests.broker.harness import TD, AgentClient, RunningBroker, code_of, running
from tests.broker.test_issuing import USER
from tests.broker.test_upstream import Files, files, made
from tests.waiting import async_until

__all__ = ["files"]

KINDS: tuple[Kind, ...] = ("x509", "jwt", "wit")
NAMES = {"x509": "x509-CA", "jwt": "JWT-Signer", "wit": "WIT-Signer"}
# Tokens that are signed for workloads end soon, and with them what a rotation waits for.
SHORT = {"jwt_svid_ttl": "1s", "x509_svid_ttl": "2s", "agent_ttl": "1h"}

Loss = Callable[[Path], object]
LOSSES: dict[str, Loss] = {
    "deleted": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "damaged": lambda path: path.write_bytes(path.read_bytes()[:-60]),
    "of another": lambda path: path.write_bytes((path.parent / "other.pem").read_bytes()),
}


def manager(broker: RunningBroker, kind: Kind) -> Manager[object]:
    return broker.broker.managers[kind]


def key(folder: Path, kind: Kind, slot: str = "A") -> Path:
    return folder / f"data/keys/{NAMES[kind]}-{slot}.pem"


def in_bundle(broker: RunningBroker, authority_id: str) -> bool:
    own = broker.broker.state.bundles[broker.broker.state.trust_domain]
    ids = {root.authority_id for root in own.x509_roots}
    return authority_id in ids | {one.key_id for one in (*own.jwt_keys, *own.wit_keys)}


@pytest.mark.parametrize("how", LOSSES)
@pytest.mark.parametrize("kind", KINDS)
async def test_lost_while_the_broker_was_off(
    folder: Path, kind: Kind, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(folder, **SHORT) as broker:
        before = manager(broker, kind).active().authority_id
        (folder / "data/keys/other.pem").write_bytes(key(folder, "wit" if kind == "jwt" else "jwt").read_bytes())
    LOSSES[how](key(folder, kind))
    async with running(folder, **SHORT) as broker:
        found = manager(broker, kind)
        after = found.active().authority_id
        assert after != before
        assert f"authority {before} ({NAMES[kind]}-A) is lost" in caplog.text
        assert ("firedoor sidecar trust" in caplog.text) == (kind == "x509")
        assert found.left_behind is not None
        assert (found.left_behind.authority_id, found.left_behind.status) == (before, Status.OLD)
        assert in_bundle(broker, before)
        assert in_bundle(broker, after)
        (record,) = [one for one in broker.audit() if one.get("event") == "authority_key_lost"]
        assert (record["kind"], record["authority_id"]) == (kind, before)
        # All kinds sign, and the command that finishes it does.
        agent = await broker.attest()
        made = await broker.entry("/segment/registry/x", agent.path, USER)
        (signed,) = await agent.sign(made.id)
        assert signed.status.code == 0
        await agent.token(made.id)
        await broker.broker.rotations.start(kind, Order("test", force=True, patience=1, drain=0))
        await async_until(lambda: broker.broker.rotations.reports[kind].rotation.stage.ended)
        rotation = broker.broker.rotations.reports[kind].rotation
        assert (rotation.stage, rotation.old, rotation.new) == (Stage.DONE, before, after)
        assert not in_bundle(broker, before)
        assert found.active().authority_id == after
    # It is over: a restart finds nothing missing.
    caplog.clear()
    async with running(folder, **SHORT) as broker:
        assert manager(broker, kind).active().authority_id == after
        assert "is lost" not in caplog.text


@pytest.mark.parametrize("kind", KINDS)
async def test_the_next_one_takes_over_when_it_is_there(folder: Path, kind: Kind) -> None:
    """Everybody knows it already: no sidecar has to be told by hand."""
    async with running(folder) as broker:
        before = manager(broker, kind).active().authority_id
        prepared = (await manager(broker, kind).prepare()).authority_id
    key(folder, kind).unlink()
    async with running(folder) as broker:
        found = manager(broker, kind)
        assert found.active().authority_id == prepared
        assert found.left_behind is not None
        assert found.left_behind.authority_id == before
        assert not found.fresh


@pytest.mark.parametrize("kind", KINDS)
async def test_both_are_lost(folder: Path, kind: Kind) -> None:
    async with running(folder) as broker:
        before = manager(broker, kind).active().authority_id
        prepared = (await manager(broker, kind).prepare()).authority_id
    key(folder, kind).unlink()
    key(folder, kind, "B").write_bytes(b"nothing")
    async with running(folder) as broker:
        assert manager(broker, kind).active().authority_id not in (before, prepared)
        assert in_bundle(broker, before)


@pytest.mark.parametrize("kind", KINDS)
async def test_lost_while_the_broker_runs(
    folder: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(authority, "_LOOK_SECONDS", 0.0)
    async with running(folder) as broker:
        found = manager(broker, kind)
        before = found.active().authority_id
        key(folder, kind).unlink()
        await async_until(lambda: found.is_lost(before) and found.slots.other is not None)
        assert f"authority {before} ({NAMES[kind]}-A) is lost; it signs until the broker ends" in caplog.text
        # It signs from memory, while the next one becomes known.
        assert found.active().authority_id == before
        assert found.slots.other is not None
        assert found.slots.other.status is Status.PREPARED
        coming = found.slots.other.authority_id
        assert in_bundle(broker, coming)
        await broker.attest()
    async with running(folder) as broker:
        assert manager(broker, kind).active().authority_id == coming


async def test_a_prepared_key_that_is_damaged_is_made_anew(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(folder) as broker:
        found = broker.broker.authority
        prepared = await found.prepare()
        key(folder, "x509", "B").write_bytes(b"nothing")
        await found.activate(prepared.authority_id)
        assert "never signed, and another one is prepared" in caplog.text
        assert found.slots.other is not None
        assert found.slots.other.authority_id != prepared.authority_id
        await found.activate(found.slots.other.authority_id)


async def test_a_key_manager_that_cannot_be_asked_has_lost_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authority, "_LOOK_SECONDS", 0.0)
    async with running(folder) as broker:
        before = broker.broker.authority.active().authority_id
        # Open to others: refused, and not gone.
        key(folder, "x509").chmod(0o644)
        await broker.broker.authority.tick()
        assert not broker.broker.authority.is_lost(before)
        assert broker.broker.authority.slots.other is None
    with pytest.raises((BrokerError, CertsError), match="0600"):
        async with running(folder):
            pass
    key(folder, "x509").chmod(0o600)
    async with running(folder) as broker:
        assert broker.broker.authority.active().authority_id == before


async def test_an_emergency_finishes_it_too(folder: Path) -> None:
    async with running(folder) as broker:
        before = {kind: one.active().authority_id for kind, one in broker.broker.managers.items()}
    for kind in KINDS:
        key(folder, kind).unlink()
    async with running(folder) as broker:
        for kind in KINDS:
            await broker.broker.rotations.start(kind, Order("test", emergency=True))
        for kind in KINDS:
            await async_until(lambda kind=kind: broker.broker.rotations.reports[kind].rotation.stage.ended)  # type: ignore[misc]
            assert broker.broker.rotations.reports[kind].rotation.stage is Stage.DONE
            assert not in_bundle(broker, before[kind])
        await asyncio.sleep(0)
        await broker.attest()


async def test_below_an_authority_upstream_nobody_has_to_be_told(
    folder: Path, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    files.write(made())
    async with running(folder, **files.flags()) as broker:
        before = broker.broker.authority.active().authority_id
        roots, agent = broker.roots(), await broker.attest()
    key(folder, "x509").unlink()
    async with running(folder, **files.flags()) as broker:
        assert broker.broker.authority.active().authority_id != before
        assert broker.roots() == roots
        assert "is lost" in caplog.text
        assert "firedoor sidecar trust" not in caplog.text
        again = broker.client()
        again.use(agent.svid, agent.key)  # type: ignore[arg-type]
        assert await again.entries() == []
        await broker.broker.rotations.start("x509", Order("test", force=True, patience=1, drain=0))
        await async_until(lambda: broker.broker.rotations.reports["x509"].rotation.stage is Stage.DONE)


async def still_trusted(broker: RunningBroker, agent: AgentClient, roots: list[bytes]) -> bool:
    """Say whether an agent that knows only these roots takes the broker for the broker."""
    assert agent.svid is not None
    one = broker.client()
    svid = mtls.Svid(id=agent.id, chain=agent.svid.chain, key=private_key_der(agent.key))
    one.svid = agent.svid
    one.core.publish(mtls.Material(trust_domain=TD, bundles={TD: roots}, svids=[svid]))
    one.channel = one.connect()
    try:
        return await one.entries() == []
    except grpc.aio.AioRpcError as error:
        # Whoever does not shake hands says nothing more.
        if code_of(error) != "UNAVAILABLE":
            raise
        return False


async def test_the_one_before_proves_who_the_broker_is_until_the_next_is_known(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(folder) as broker:
        manager_of = broker.broker.authority
        before = manager_of.active().authority_id
        await manager_of.activate((await manager_of.prepare()).authority_id)
        roots, agent = broker.roots(), await broker.attest()
    key(folder, "x509", "B").unlink()
    async with running(folder) as broker:
        assert f"sidecars are shown a certificate of authority {before}" in caplog.text
        assert "firedoor sidecar trust" not in caplog.text
        assert broker.broker.identity.svid.authority_id == before
        assert await still_trusted(broker, agent, roots)
        # It signs for nobody else.
        assert (await broker.attest()).svid.authority_id == broker.broker.authority.active().authority_id  # type: ignore[union-attr]
        monkeypatch.setattr(broker.broker.authority, "_known_until", 0)
        await broker.broker.identity.refresh()
        assert broker.broker.identity.svid.authority_id == broker.broker.authority.active().authority_id
        assert not await still_trusted(broker, agent, roots)


@pytest.mark.parametrize("change", ["tainted", "lost too"])
async def test_what_is_tainted_or_lost_proves_nothing(
    folder: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(folder) as broker:
        manager_of = broker.broker.authority
        before = manager_of.active().authority_id
        await manager_of.activate((await manager_of.prepare()).authority_id)
        if change == "tainted":
            await manager_of.taint(before)
    key(folder, "x509", "B").unlink()
    if change == "lost too":
        key(folder, "x509").unlink()
    async with running(folder) as broker:
        assert broker.broker.identity.svid.authority_id == broker.broker.authority.active().authority_id
        assert "firedoor sidecar trust" in caplog.text
