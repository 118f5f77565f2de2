# SPDX-License-Identifier: Apache-2.0
"""A real broker whose authority keys are in SoftHSM2: it issues, restarts, rotates, and outlives the token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from firedoor.broker import config
from firedoor.broker.broker import Broker
from firedoor.broker.keys.pkcs11 import Pkcs11KeyManager
from firedoor.certs import (
    KeyType,
    TrustDomain,
    generate_key,
    public_key_der,
    validate_jwt_svid,
    validate_wit_svid,
    verify_x509_svid,
)
from firedoor.wire import health_pb2, svid_pb2
from tests.broker.harness import POLICY, TD, RunningBroker, flags, running
from tests.softhsm import Token, softhsm
from tests.waiting import async_until

# python-pkcs11 ends an operation of a dead session when it is collected, and says that it could not.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
USER = ["unix:user:registry"]
PATH = "/segment/registry/x"
OWN = TrustDomain.parse(TD)


@pytest.fixture
def token(folder: Path) -> Iterator[Token]:
    with softhsm(folder / "hsm") as made:
        yield made


async def signs(broker: RunningBroker, agent: object, entry_id: str) -> None:
    """Have one SVID of each kind signed, and check them against the bundle."""
    bundles, at = broker.broker.state.bundles, broker.broker.clock.now()
    (result,) = await agent.sign(entry_id)  # type: ignore[attr-defined]
    assert result.status.code == 0, result.status.message
    chain = tuple(result.svid.cert_chain)
    assert str(verify_x509_svid(chain, bundles, at).id) == f"spiffe://{TD}{PATH}"
    token = await agent.token(entry_id)  # type: ignore[attr-defined]
    assert validate_jwt_svid(token.token, "models", bundles, at).id.path == PATH
    wit = await wits(broker, agent, entry_id)
    assert wit.status.code == 0, wit.status.message
    assert validate_wit_svid(wit.svid.token, bundles, at).id.path == PATH


async def wits(broker: RunningBroker, agent: object, entry_id: str) -> svid_pb2.BatchNewWITSVIDResponse.Result:
    from firedoor.wire import svid_grpc

    key = public_key_der(generate_key(KeyType.EC_P256).public_key())
    param = svid_pb2.NewWITSVIDParams(entry_id=entry_id, public_key=key, signing_algorithm="ES256")
    stub = svid_grpc.SVIDStub(agent.channel)  # type: ignore[attr-defined]
    (result,) = (await stub.BatchNewWITSVID(svid_pb2.BatchNewWITSVIDRequest(params=[param]))).results
    return result


def authorities(broker: RunningBroker) -> list[str]:
    return [one.active().authority_id for one in broker.broker.managers.values()]


async def test_it_issues_and_signs_on_after_a_restart(folder: Path, token: Token) -> None:
    async with running(folder, **token.flags) as broker:
        agent = await broker.attest()
        made = await broker.entry(PATH, agent.path, USER)
        await signs(broker, agent, made.id)
        assert (await agent.renew(agent.key)).id == agent.svid.id  # type: ignore[union-attr]
        before = authorities(broker)
        assert not (folder / "data" / "keys").exists()
    async with running(folder, **token.flags) as again:
        assert authorities(again) == before
        agent = await again.attest()
        made = await again.entry("/segment/registry/x", agent.path, USER)
        await signs(again, agent, made.id)
        for manager in again.broker.managers.values():
            prepared = await manager.prepare()
            await manager.activate(prepared.authority_id)
        assert not set(authorities(again)) & set(before)
        await again.broker.identity.refresh()
        agent.publish()
        await signs(again, agent, made.id)


async def refused(call: object) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return caught.value


async def test_without_its_token_it_serves_bundles_and_signs_again_when_it_is_back(
    folder: Path, token: Token, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(folder, **token.flags) as broker:
        agent = await broker.attest()
        made = await broker.entry(PATH, agent.path, USER)
        await signs(broker, agent, made.id)
        token.take_away()
        for _ in range(3):
            error = await refused(agent.sign(made.id))
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert "key manager does not answer" in (error.details() or "")
            assert (await refused(agent.token(made.id))).code() is grpc.StatusCode.UNAVAILABLE
            assert (await wits(broker, agent, made.id)).status.code == grpc.StatusCode.UNAVAILABLE.value[0]
            assert (await refused(broker.attest())).code() is grpc.StatusCode.UNAVAILABLE
        # All that needs no key goes on.
        assert (await broker.bundle()).x509_authorities
        assert [one.id for one in await agent.entries()] == [made.id]
        await broker.ban(agent.id)
        condition = broker.broker.condition()
        # Who needs no signature is served: the others have no other broker to go to, when all use one token.
        assert condition.ready
        assert condition.degraded["key-manager"].startswith("key manager: ")
        for name, serving in (("", "SERVING"), ("key-manager", "NOT_SERVING")):
            health = await broker.health.Check(health_pb2.HealthCheckRequest(service=name))
            assert health_pb2.HealthCheckResponse.ServingStatus.Name(health.status) == serving
        assert b"firedoor_broker_key_manager_up 0.0" in broker.broker.metrics.text()
        events = [one["event"] for one in broker.audit() if "event" in one]
        assert events.count("key_manager_lost") == 1
        assert len([r for r in caplog.records if "nothing is signed" in r.message]) <= 2
        # What takes keys waits as a whole.
        slots = broker.broker.authority.slots
        with pytest.raises(Exception, match="key manager"):
            await broker.broker.authority.prepare()
        assert broker.broker.authority.slots == slots
        before = authorities(broker)
        token.put_back()
        await async_until(lambda: not broker.broker.condition().degraded)
        assert authorities(broker) == before
        agent = await broker.attest()
        made = await broker.entry("/segment/registry/y", agent.path, USER)
        (result,) = await agent.sign(made.id)
        assert result.status.code == 0
        assert b"firedoor_broker_key_manager_up 1.0" in broker.broker.metrics.text()
        assert [one["event"] for one in broker.audit() if "event" in one].count("key_manager_back") == 1


async def test_it_starts_while_its_token_is_away(folder: Path, token: Token) -> None:
    async with running(folder, **token.flags) as broker:
        agent = await broker.attest()
        made = await broker.entry(PATH, agent.path, USER)
        before = authorities(broker)
        key, svid = agent.key, agent.svid
    token.take_away()
    async with running(folder, **token.flags) as again:
        condition = again.broker.condition()
        assert condition.ready
        assert condition.degraded
        assert (await again.bundle()).x509_authorities
        # Sidecars connect as before: the broker's own SVID was stored.
        agent = again.client()
        assert svid is not None
        agent.use(svid, key)
        assert [one.id for one in await agent.entries()] == [made.id]
        assert (await refused(agent.sign(made.id))).code() is grpc.StatusCode.UNAVAILABLE
        token.put_back()
        await async_until(lambda: not again.broker.condition().degraded)
        await async_until(lambda: again.broker.authority.signing_key is not None)
        await async_until(lambda: again.broker.wit_authority.signing_key is not None)
        assert authorities(again) == before
        await signs(again, agent, made.id)


async def test_a_first_start_without_the_token_waits_for_it(folder: Path, token: Token) -> None:
    token.take_away()
    async with running(folder, **token.flags) as broker:
        condition = broker.broker.condition()
        assert not condition.ready, "sidecars cannot connect"
        assert condition.degraded
        token.put_back()
        await async_until(lambda: not broker.broker.condition().degraded)
        await async_until(lambda: all(one.signing_key for one in broker.broker.managers.values()))
        await async_until(lambda: (folder / "data/identity/server-svid.json").exists())
        # With an SVID of its own it opens its port, a moment later.
        await async_until(lambda: broker.broker.condition().ready)
        agent = await broker.attest()
        made = await broker.entry(PATH, agent.path, USER)
        await signs(broker, agent, made.id)


async def test_an_authority_whose_key_was_destroyed_is_replaced(folder: Path, token: Token) -> None:
    async with running(folder, **token.flags) as broker:
        agent = await broker.attest()
        made = await broker.entry(PATH, agent.path, USER)
        before = broker.broker.jwt_authority.active()
        other = Pkcs11KeyManager(token.rules, (folder / "data/broker-id").read_text().strip())
        other.delete(before.key_id)
        other.close()
        assert (await refused(agent.token(made.id))).code() is grpc.StatusCode.UNAVAILABLE
        assert not broker.broker.condition().degraded
        (result,) = await agent.sign(made.id)
        assert result.status.code == 0
        broker.broker.jwt_authority._look_at = 0.0
        await async_until(lambda: broker.broker.jwt_authority.active() != before)
        await async_until(lambda: broker.broker.jwt_authority.signing_key is not None)
        assert (await agent.token(made.id)).token


async def test_a_wrong_pin_is_tried_once_until_its_file_changes(folder: Path, token: Token) -> None:
    right = token.rules.pin_file.read_text()
    token.rules.pin_file.write_text("0000\n")
    broker = Broker(config.load(None, {}, flags(folder, POLICY, **token.flags)))
    await broker.start()
    try:
        (why,) = broker.condition().degraded.values()
        assert "refused the PIN" in why
        assert "0000" not in why
        token.rules.pin_file.write_text(right)
        await async_until(lambda: not broker.condition().degraded)
    finally:
        await broker.stop()
