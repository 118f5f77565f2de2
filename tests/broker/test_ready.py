# SPDX-License-Identifier: Apache-2.0
"""A broker is ready that serves those who come. What it cannot do meanwhile is told, and takes it out of no Service."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from firedoor.broker import config
from firedoor.broker.broker import Broker
from firedoor.broker.errors import DatabaseError
from firedoor.broker.views import VERSION
from firedoor.cli.main import main
from firedoor.wire import control_pb2, health_pb2
from tests.broker.harness import POLICY, SERVER, AgentClient, RunningBroker, flags, running
from tests.broker.test_small_parts import ask
from tests.postgres import Server
from tests.waiting import async_until

PATH = "/segment/registry/x"
USER = ["unix:user:registry"]
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


async def page(broker: RunningBroker) -> tuple[bytes, list[bytes]]:
    """Return the status of /ready and the lines of its body."""
    head, _, body = (await ask(broker, b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n")).partition(b"\r\n\r\n")
    return head.split()[1], body.splitlines()


async def health(broker: RunningBroker) -> dict[str, int]:
    found = await broker.health.List(health_pb2.HealthListRequest())
    return {name: one.status for name, one in found.statuses.items()}


async def refused(broker: RunningBroker, agent: AgentClient, entry_id: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await agent.sign(entry_id)
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE


async def told(broker: RunningBroker, agent: AgentClient) -> list[control_pb2.Update]:
    """Open a control stream and return the first update."""
    control = agent.core.control_client(addresses=[broker.broker.listen], as_id=agent.id, expect=SERVER)
    updates: list[control_pb2.Update] = []

    def look() -> bool:
        for kind, data in control.drain(10):
            if kind == "connected":
                hello = control_pb2.Hello(versions=[VERSION])
                control.send(control_pb2.FromSidecar(hello=hello).SerializeToString())
            elif kind == "message":
                updates.append(control_pb2.FromBroker.FromString(data).update)
        return bool(updates)

    try:
        await async_until(look)
    finally:
        control.stop()
    return updates[:1]


async def metric(broker: RunningBroker, name: str) -> float:
    served = await ask(broker, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    (line,) = [one for one in served.splitlines() if one.startswith(name.encode() + b" ")]
    return float(line.split()[1])


async def test_a_broker_without_its_database_is_ready_for_those_who_come(
    folder: Path, own_postgres: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """In Kubernetes all brokers would leave the Service at once, with what each can still serve."""
    url, password_file = own_postgres.database()
    async with running(folder, POLICY, database=url, database_password_file=str(password_file)) as broker:
        agent = await broker.attest()
        made = await broker.entry(PATH, agent.path, USER)
        assert await page(broker) == (b"200", [b"ready"])
        assert await metric(broker, "firedoor_broker_database_up") == 1
        await asyncio.to_thread(own_postgres.stop)
        await async_until(lambda: broker.broker.condition().degraded)
        status, (first, second) = await page(broker)
        assert (status, first) == (b"200", b"ready")
        assert second.startswith(b"degraded: the database has not answered for ")
        assert second.endswith(b": nothing is issued or changed")
        assert await health(broker) == {"": SERVING, "database": NOT_SERVING, "key-manager": SERVING}
        assert await metric(broker, "firedoor_broker_ready") == 1
        assert await metric(broker, "firedoor_broker_database_up") == 0
        # What it says it serves: to who is connected, and to an agent that connects now.
        assert (await broker.bundle()).x509_authorities
        again = broker.client()
        assert agent.svid is not None
        again.use(agent.svid, agent.key)
        for one in (agent, again):
            assert [entry.id for entry in await one.entries()] == [made.id]
        (update,) = await told(broker, again)
        assert update.view_hash
        await refused(broker, again, made.id)
        # A line for each kind of failure, not for each try: there were five at least.
        await async_until(lambda: "not listening" in caplog.text)
        lines = [record.message for record in caplog.records]
        assert sum(line.startswith("the database does not answer") for line in lines) == 1
        deaf = [line for line in lines if line.startswith("not listening")]
        assert len(deaf) == len(set(deaf)) > 0
        await asyncio.to_thread(own_postgres.start)
        await async_until(lambda: not broker.broker.condition().degraded)
        await async_until(lambda: any("the database answers again" in record.message for record in caplog.records))
        assert await page(broker) == (b"200", [b"ready"])
        (result,) = await agent.sign(made.id)
        assert result.status.code == 0


async def test_a_broker_that_never_had_its_database_does_not_start(folder: Path, own_postgres: Server) -> None:
    url, password_file = own_postgres.database()
    await asyncio.to_thread(own_postgres.stop)
    given = flags(folder, POLICY, database=url, database_password_file=str(password_file))
    broker = Broker(config.load(None, {}, given))
    assert not broker.condition().ready
    with pytest.raises(DatabaseError):
        await broker.start()
    assert not broker.condition().ready


async def test_a_broker_whose_own_svid_has_ended_is_not_ready(broker: RunningBroker) -> None:
    """No sidecar can connect to it any more."""
    svid = broker.broker.identity.svid
    assert broker.broker.condition().ready
    broker.broker.clock.now = lambda: svid.not_after  # type: ignore[method-assign]
    condition = broker.broker.condition()
    assert not condition.ready
    assert condition.missing == ("an SVID of the broker's own: no sidecar can connect",)


async def test_broker_status_says_both(broker: RunningBroker, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["broker", "status", "--admin-socket", str(broker.broker.config.admin_socket)]
    assert await asyncio.to_thread(main, words) == 0
    said = capsys.readouterr().out
    assert "ready         yes" in said
    assert "degraded" not in said
    broker.broker.keys.trouble = "the test's patience"
    try:
        assert await asyncio.to_thread(main, words) == 0
        said = capsys.readouterr().out
        assert "degraded      key-manager: it does not answer, and nothing is signed; the log says why" in said
        broker.broker._missing.append("the test's patience")
        assert await asyncio.to_thread(main, [*words, "--output", "json"]) == 1
        assert '"ready": false' in capsys.readouterr().out
    finally:
        broker.broker.keys.trouble = ""
        broker.broker._missing.clear()
