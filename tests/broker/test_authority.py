# SPDX-License-Identifier: Apache-2.0
"""Authorities over time: when the next is prepared and when it signs, what a restart finds, who may read the keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from firedoor.broker.clock import Clock
from firedoor.broker.errors import AuthorityError
from firedoor.certs import KeyManagerError, Status, TrustBundle, TrustDomain, parse_x509_svid, verify_x509_svid
from tests.broker.harness import RunningBroker, running

TD = TrustDomain.parse("example.org")
USER = ["unix:user:registry"]
DAY = 86400


class Hands:
    """A clock whose hands are moved by the test."""

    def __init__(self) -> None:
        self.wall = self.mono = 1_800_000_000.0

    def clock(self) -> Clock:
        return Clock(lambda: self.wall, lambda: self.mono)

    def on(self, seconds: float) -> None:
        self.wall += seconds
        self.mono += seconds


def jump(broker: RunningBroker, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the broker's clock go on at once."""
    clock = broker.broker.clock
    monkeypatch.setattr(clock, "_last", clock._last + seconds)
    wall = clock._wall
    monkeypatch.setattr(clock, "_wall", lambda: wall() + seconds)


async def test_the_next_is_prepared_at_half_life_and_signs_when_a_sixth_is_left(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(folder, agent_ttl="7d") as broker:
        authority, state = broker.broker.authority, broker.broker.state
        first = authority.slots.current
        assert first is not None
        assert (first.lifetime, state.bundles[TD].sequence) == (DAY, 3)
        jump(broker, monkeypatch, DAY / 2 - 60)
        await authority.tick()
        assert authority.slots.other is None
        generation = state.generation
        jump(broker, monkeypatch, 120)
        await authority.tick()
        second = authority.slots.other
        assert second is not None
        assert second.status is Status.PREPARED
        # In the bundle from now on; the first one still signs.
        assert (state.bundles[TD].sequence, len(state.bundles[TD].x509_roots)) == (4, 2)
        assert state.generation > generation
        assert authority.issuer().authority_id == first.authority_id
        jump(broker, monkeypatch, DAY / 3)
        await authority.tick()
        assert authority.issuer().authority_id == second.authority_id
        assert authority.slots.other is not None
        assert authority.slots.other.status is Status.OLD


async def test_the_brokers_own_svid_follows_the_authority_without_a_restart(folder: Path) -> None:
    async with running(folder) as broker:
        agent = await broker.attest()
        await agent.entries()
        identity, authority = broker.broker.identity, broker.broker.authority
        before = identity._svid
        await authority._prepare()
        await identity.refresh()
        assert identity._svid is before
        await authority._activate()
        await identity.refresh()
        assert identity._svid is not None
        assert identity._svid.authority_id == authority.issuer().authority_id
        # A client that learned of the new root verifies it; the listener never closed.
        agent.publish()
        agent.channel = agent.connect()
        await agent.entries()


async def test_a_restart_goes_on_with_the_same_authority(folder: Path) -> None:
    async with running(folder) as broker:
        agent = await broker.attest()
        made = await broker.entry("/segment/registry/x", agent.path, USER)
        first = broker.broker.authority.issuer().der
        bundle = broker.broker.state.bundles[TD]
    async with running(folder) as again:
        assert again.broker.authority.issuer().der == first
        assert again.broker.state.bundles[TD] == bundle
        client = again.client()
        client.use(agent.svid, agent.key)  # type: ignore[arg-type]
        (result,) = await client.sign(made.id)
        svid = parse_x509_svid(tuple(result.svid.cert_chain))
        verify_x509_svid(svid.chain, {TD: bundle}, again.broker.clock.now())


async def test_a_restart_between_prepare_and_activate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(folder) as broker:
        jump(broker, monkeypatch, DAY / 2 + 60)
        await broker.broker.authority.tick()
        slots = broker.broker.authority.slots
        bundle = broker.broker.state.bundles[TD]
    async with running(folder) as again:
        assert again.broker.authority.slots == slots
        assert again.broker.state.bundles[TD] == bundle


async def test_keys_in_memory_mean_a_new_authority_and_the_old_one_stays_trusted(folder: Path) -> None:
    async with running(folder, key_manager="memory") as broker:
        agent = await broker.attest()
        first = broker.broker.authority.issuer().authority_id
    async with running(folder, key_manager="memory") as again:
        assert again.broker.authority.issuer().authority_id != first
        bundle = again.broker.state.bundles[TD]
        assert len(bundle.x509_roots) == 2
        client = again.client()
        client.use(agent.svid, agent.key)  # type: ignore[arg-type]
        assert await client.entries() == []


async def test_a_passphrase_encrypts_the_keys_and_is_asked_for_again(folder: Path) -> None:
    secret, other = folder / "secret", folder / "other"
    secret.write_text("correct horse\n")
    other.write_text("battery staple\n")
    async with running(folder, key_passphrase_file=str(secret)) as broker:
        first = broker.broker.authority.issuer().authority_id
    found = sorted((folder / "data" / "keys").iterdir())
    assert [key.name for key in found] == ["JWT-Signer-A.pem", "WIT-Signer-A.pem", "x509-CA-A.pem"]
    assert all(b"ENCRYPTED" in key.read_bytes() for key in found)
    assert all(key.stat().st_mode & 0o777 == 0o600 for key in found)
    for wrong in ({"key_passphrase_file": str(other)}, {}):
        with pytest.raises(KeyManagerError):
            async with running(folder, **wrong):
                pass
    async with running(folder, key_passphrase_file=str(secret)) as again:
        assert again.broker.authority.issuer().authority_id == first


async def test_a_start_without_a_passphrase_says_so(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(folder):
        assert "authority keys on disk are not encrypted" in caplog.text
    caplog.clear()
    (folder / "secret").write_text("correct horse")
    async with running(folder, key_passphrase_file=str(folder / "secret")):
        assert "not encrypted" not in caplog.text


async def test_a_root_leaves_the_bundle_a_day_after_its_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(folder) as broker:
        first = broker.broker.authority.slots.current
        assert first is not None
        jump(broker, monkeypatch, DAY + 60)
        await broker.broker.authority.tick()
        assert broker.broker.authority.issuer().authority_id != first.authority_id
        assert len(broker.broker.state.bundles[TD].x509_roots) == 2
        jump(broker, monkeypatch, DAY + 3600)
        await broker.broker.authority.tick()
        ids = {root.authority_id for root in broker.broker.state.bundles[TD].x509_roots}
        assert first.authority_id not in ids


@pytest.mark.parametrize("kind", ["ec-p384", "rsa-2048"])
async def test_key_types(folder: Path, kind: str) -> None:
    async with running(folder, ca_key_type=kind) as broker:
        agent = await broker.attest()
        made = await broker.entry("/segment/registry/x", agent.path, USER)
        (result,) = await agent.sign(made.id)
        svid = parse_x509_svid(tuple(result.svid.cert_chain))
        verify_x509_svid(svid.chain, {TD: TrustBundle.of(TD, broker.roots())}, broker.broker.clock.now())


# --- the clock ------------------------------------------------------------------------------------------------------


def test_the_clock_never_goes_back_and_says_when_it_was_set_back() -> None:
    hands = Hands()
    clock = hands.clock()
    start = clock.now()
    hands.on(100)
    assert clock.now() == start + 100
    # A small step back: time goes on from where it was.
    hands.wall -= 60
    hands.mono += 10
    hands.wall += 10
    assert clock.now_for_issuing() == start + 110
    hands.wall -= 3600
    hands.on(5)
    assert clock.now() == start + 115
    with pytest.raises(AuthorityError):
        clock.now_for_issuing()
    hands.wall = hands.wall + 3600 + 60
    assert clock.now_for_issuing() >= start + 115


def test_a_step_forward_is_taken() -> None:
    hands = Hands()
    clock = hands.clock()
    start = clock.now()
    hands.wall += 5000
    assert clock.now_for_issuing() == start + 5000


async def test_each_step_is_audited(broker: RunningBroker) -> None:
    first = broker.broker.authority.slots.current
    assert first is not None
    await broker.broker.authority._prepare()
    await broker.broker.authority._activate()
    second = broker.broker.authority.slots.current
    assert second is not None
    steps = [record for record in broker.audit() if record.get("kind") == "x509"]
    assert [(one["event"], one["authority_id"]) for one in steps] == [
        (event, authority.authority_id)
        for authority in (first, second)
        for event in ("authority_prepared", "authority_activated")
    ]
