# SPDX-License-Identifier: Apache-2.0
import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from firedoor import mtls
from tests.mtls.front.conftest import CLIENT, SERVER, WhoServer, am, call, material, refused, svid, unix_channel
from tests.simulator import SimulatedTrustDomain
from tests.waiting import PATIENCE, SHORT, async_until

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
EXPECT = f"spiffe://td{SERVER}"


@pytest.fixture
async def agent(front: mtls.Front, td: SimulatedTrustDomain) -> AsyncIterator[mtls.Core]:
    """The core of another process, so to say, with an SVID of its own."""
    made = mtls.Core(data_threads=1)
    made.publish(material(td, td.svid(CLIENT)))
    yield made
    made.stop()


async def test_verified_both_ways(agent: mtls.Core, front: mtls.Front, folder: Path) -> None:
    connector = agent.connector(
        path=str(folder / "c.sock"), addresses=[front.address], expect=EXPECT, as_id=f"spiffe://td{CLIENT}"
    )
    assert connector.path == str(folder / "c.sock")
    assert stat.S_IMODE(os.stat(connector.path).st_mode) == 0o600  # noqa: PTH116
    async with unix_channel(connector.path) as channel:
        assert json.loads(await call(channel, "Am"))["spiffe_id"] == f"spiffe://td{CLIENT}"
        assert connector.last_error() == ""
    assert agent.stats()["connector_connected"] == 1


async def test_without_a_certificate(agent: mtls.Core, front: mtls.Front, folder: Path) -> None:
    connector = agent.connector(path=str(folder / "c.sock"), addresses=[front.address], expect=EXPECT)
    assert (await am(unix_channel(connector.path)))["spiffe_id"] is None


async def test_wrong_expectation(agent: mtls.Core, core: mtls.Core, front: mtls.Front, folder: Path) -> None:
    connector = agent.connector(
        path=str(folder / "c.sock"),
        addresses=[front.address],
        expect="spiffe://td/spire/other",
        as_id=f"spiffe://td{CLIENT}",
    )
    assert await refused(lambda: am(unix_channel(connector.path))) == UNAVAILABLE
    assert front.address in connector.last_error()
    assert "another identity than the expected one: spiffe://td/spire/server" in connector.last_error()
    # The server saw a handshake that broke off, and no certificate of ours.
    await async_until(lambda: core.stats()["handshakes_failed"] > 0)
    assert core.stats()["certificates_refused"] == 0


async def test_foreign_server(
    agent: mtls.Core, folder: Path, stranger: SimulatedTrustDomain, who: WhoServer, front: mtls.Front
) -> None:
    """The right ID under the wrong root."""
    foreign = mtls.Core(data_threads=1)
    try:
        foreign.publish(
            mtls.Material(
                trust_domain="td",
                bundles={"td": [root.der for root in stranger.roots]},
                svids=[svid(stranger.svid(SERVER, uris=[EXPECT]))],
            )
        )
        posing = foreign.tls_front(listen="127.0.0.1:0", as_id=EXPECT, backend=who.backend)
        connector = agent.connector(path=str(folder / "c.sock"), addresses=[posing.address], expect=EXPECT)
        assert await refused(lambda: am(unix_channel(connector.path))) == UNAVAILABLE
        assert "does not lead to a root" in connector.last_error()
        twin = agent.connector(path=str(folder / "d.sock"), addresses=[front.address], expect=EXPECT)
        assert await am(unix_channel(twin.path))
    finally:
        foreign.stop()


async def test_roots_are_of_the_expected_trust_domain(
    agent: mtls.Core, front: mtls.Front, folder: Path, td: SimulatedTrustDomain, stranger: SimulatedTrustDomain
) -> None:
    """As an identity, only trust domains that it federates with can be spoken to."""
    alone, federated = svid(td.svid(CLIENT)), svid(td.svid(f"{CLIENT}2"), federates_with=["stranger.example"])
    agent.publish(mtls.Material(trust_domain="td", bundles=td.roots_by_name(stranger), svids=[alone, federated]))
    server = mtls.Core(data_threads=1)
    try:
        server.publish(material(stranger, stranger.svid(SERVER), others=[td]))
        who = WhoServer(folder / "stranger.sock")
        await who.start()
        who.front = server.tls_front(
            listen="127.0.0.1:0", as_id=f"spiffe://stranger.example{SERVER}", backend=who.backend
        )
        connectors = {
            name: agent.connector(
                path=str(folder / f"{name}.sock"),
                addresses=[who.front.address],
                expect=f"spiffe://stranger.example{SERVER}",
                as_id=as_id,
            )
            for name, as_id in (("alone", f"spiffe://td{CLIENT}"), ("federated", f"spiffe://td{CLIENT}2"))
        }
        assert await refused(lambda: am(unix_channel(connectors["alone"].path))) == UNAVAILABLE
        assert "no roots for this trust domain" in connectors["alone"].last_error()
        assert (await am(unix_channel(connectors["federated"].path)))["spiffe_id"] == f"spiffe://td{CLIENT}2"
        await who.stop()
    finally:
        server.stop()


async def test_the_first_that_proves(
    agent: mtls.Core, core: mtls.Core, front: mtls.Front, folder: Path, td: SimulatedTrustDomain, who: WhoServer
) -> None:
    """Addresses are hints: dead ones and wrong ones are passed over."""
    other = "/spire/other"
    core.publish(material(td, td.svid(SERVER), td.svid(other)))
    wrong = core.tls_front(listen="127.0.0.1:0", as_id=f"spiffe://td{other}", backend=who.backend)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{free.getsockname()[1]}"
    connector = agent.connector(
        path=str(folder / "c.sock"), addresses=[dead, wrong.address, front.address], expect=EXPECT
    )
    async with unix_channel(connector.path) as channel:
        assert await call(channel, "Am")
        assert connector.last_error() == ""
    await async_until(lambda: agent.stats()["connector_failed"] == 2)


async def test_every_failure_is_told(agent: mtls.Core, folder: Path) -> None:
    connector = agent.connector(path=str(folder / "c.sock"), addresses=["127.0.0.1:1", "nonsense"], expect=EXPECT)
    assert await refused(lambda: am(unix_channel(connector.path))) == UNAVAILABLE
    error = connector.last_error()
    assert "127.0.0.1:1: " in error
    assert "; nonsense: " in error


async def test_not_h2(agent: mtls.Core, front: mtls.Front, folder: Path) -> None:
    connector = agent.connector(path=str(folder / "c.sock"), addresses=[front.address], expect=EXPECT, alpn="other/1")
    assert await refused(lambda: am(unix_channel(connector.path))) == UNAVAILABLE
    assert connector.last_error()


async def test_another_process_is_refused(agent: mtls.Core, front: mtls.Front, folder: Path) -> None:
    """Or a program of the same user could borrow the identity."""
    connector = agent.connector(
        path=str(folder / "c.sock"), addresses=[front.address], expect=EXPECT, as_id=f"spiffe://td{CLIENT}"
    )
    program = (
        "import grpc, sys\n"
        "with grpc.insecure_channel('unix:' + sys.argv[1]) as channel:\n"
        "    try: channel.unary_unary('/t.Who/Am')(b'', timeout=60)\n"
        "    except grpc.RpcError as error: print(error.code().name)\n"
        "    else: print('OK')\n"
    )
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", program, connector.path, stdout=subprocess.PIPE)
    answer, _ = await child.communicate()
    assert answer.strip() == b"UNAVAILABLE"
    await async_until(lambda: agent.stats()["connector_strangers"] > 0)
    assert await am(unix_channel(connector.path))


async def test_one_channel_lives_through_rotations(
    agent: mtls.Core, front: mtls.Front, folder: Path, td: SimulatedTrustDomain
) -> None:
    """A new connection uses the new SVID; the channel is the same."""
    connector = agent.connector(
        path=str(folder / "c.sock"), addresses=[front.address], expect=EXPECT, as_id=f"spiffe://td{CLIENT}"
    )
    serials = []
    async with unix_channel(connector.path) as channel:
        for _ in range(3):
            fresh = td.svid(CLIENT)
            agent.publish(material(td, fresh))
            front.close_callers(f"spiffe://td{CLIENT}")
            await eventually_idle(channel)
            answer = await channel.unary_unary("/t.Who/Am")(b"", timeout=PATIENCE, wait_for_ready=True)
            serials.append(format(fresh.leaf.serial_number, "x").encode() in answer)
    assert serials == [True] * 3


async def eventually_idle(channel: grpc.aio.Channel) -> None:
    """Wait until the channel has noticed that its connection is gone."""
    while channel.get_state() == grpc.ChannelConnectivity.READY:
        await asyncio.wait_for(channel.wait_for_state_change(grpc.ChannelConnectivity.READY), PATIENCE)


async def test_own_expiry_ends_the_connection(
    agent: mtls.Core, front: mtls.Front, folder: Path, td: SimulatedTrustDomain
) -> None:
    agent.publish(material(td, td.svid(CLIENT, starts=td.at - 60, expires=int(time.time()) + SHORT)))
    connector = agent.connector(
        path=str(folder / "c.sock"), addresses=[front.address], expect=EXPECT, as_id=f"spiffe://td{CLIENT}"
    )
    async with unix_channel(connector.path) as channel:
        stream = channel.unary_stream("/t.Who/Hold")(b"")
        assert await stream.read() == b"open"
        assert await refused(stream.read) == UNAVAILABLE


async def test_unknown_identity(agent: mtls.Core, front: mtls.Front, folder: Path) -> None:
    connector = agent.connector(
        path=str(folder / "c.sock"), addresses=[front.address], expect=EXPECT, as_id="spiffe://td/not/ours"
    )
    assert await refused(lambda: am(unix_channel(connector.path))) == UNAVAILABLE
    assert "no SVID to connect with" in connector.last_error()


async def test_stop(agent: mtls.Core, front: mtls.Front, folder: Path) -> None:
    connector = agent.connector(path=str(folder / "c.sock"), addresses=[front.address], expect=EXPECT)
    async with unix_channel(connector.path) as channel:
        stream = channel.unary_stream("/t.Who/Hold")(b"")
        assert await stream.read() == b"open"
        connector.stop()
        assert await refused(stream.read) == UNAVAILABLE
        assert await refused(lambda: call(channel, "Am")) == UNAVAILABLE
    assert "c.sock" not in os.listdir(folder)  # noqa: PTH208
