# SPDX-License-Identifier: Apache-2.0
"""A broker below a real spire-server: its CAs come from there, its token keys go there, and it follows the roots."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from firedoor.broker.broker import Broker
from firedoor.broker.config import load
from firedoor.broker.downstream import own
from firedoor.broker.errors import AuthorityError, ConfigError
from firedoor.certs import TrustBundle, TrustDomain, parse_x509_svid, validate_jwt_svid, verify_x509_svid
from firedoor.wire import localauthority_grpc as la_grpc
from firedoor.wire import localauthority_pb2 as la_pb
from tests.broker.below import Below
from tests.broker.harness import POLICY, TD, RunningBroker, flags, running
from tests.broker.test_downstream import ANY, refusal
from tests.broker.test_issuing import USER
from tests.spire.conftest import UID
from tests.spire.programs import SpireAgent, SpireServer
from tests.spire.test_stock_agent import held
from tests.waiting import async_until, until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

OUR_TD = TrustDomain.parse(TD)
ABOVE = f"spiffe://{TD}/the/broker"


@pytest.fixture
async def beside(tmp_path: Path, spire_server: SpireServer) -> AsyncIterator[SpireAgent]:
    """An agent of the server above that gives this process the identity of a downstream entry."""
    agent = SpireAgent(tmp_path / "a", spire_server.address, spire_server.bundle_pem(), spire_server.token())
    agent.start()
    try:
        parent = f"spiffe://{TD}/spire/agent/join_token/{agent.join_token}"
        words = ["-parentID", parent, "-spiffeID", ABOVE, "-selector", UID, "-downstream"]
        spire_server.cli.ok("entry", "create", *words)
        until(lambda: held(agent) == [ABOVE], "the broker's identity above")
        yield agent
    finally:
        agent.close()


@pytest.fixture
async def broker(tmp_path: Path, spire_server: SpireServer, beside: SpireAgent) -> AsyncIterator[RunningBroker]:
    words = {"upstream_server": spire_server.address, "upstream_workload_api": str(beside.socket)}
    (tmp_path / "b").mkdir(mode=0o700)
    async with running(tmp_path / "b", **words) as found:
        yield found


async def test_what_it_signs_is_valid_by_the_bundle_above(broker: RunningBroker, spire_server: SpireServer) -> None:
    state = broker.broker.state
    await async_until(lambda: len(state.bundles[OUR_TD].jwt_keys) > 1)
    agent = await broker.attest()
    entry = await broker.entry(ANY, agent.path, USER)
    (result,) = await agent.sign(entry.id)
    svid = parse_x509_svid(tuple(result.svid.cert_chain))
    assert len(svid.chain) == 2
    above = spire_server.cli.ok("bundle", "show", "-format", "spiffe")
    bundles = {OUR_TD: TrustBundle.parse(OUR_TD, above.encode())}
    now = broker.broker.clock.now()
    assert verify_x509_svid(svid.chain, bundles, now).id == svid.id
    token = await agent.token(entry.id)
    assert validate_jwt_svid(token.token, "models", bundles, now).id == svid.id
    # And what the server above signs with, by the bundle here.
    assert {key.key_id for key in bundles[OUR_TD].jwt_keys} <= {key.key_id for key in state.bundles[OUR_TD].jwt_keys}
    assert len(own(state)) == 1


async def test_it_follows_the_roots_above(broker: RunningBroker, spire_server: SpireServer) -> None:
    (old,) = broker.roots()
    prepared = spire_server.cli.json("localauthority", "x509", "prepare")["prepared_authority"]["authority_id"]
    await async_until(lambda: len(broker.roots()) == 2)
    show = spire_server.cli.json("localauthority", "x509", "show")
    spire_server.cli.ok("localauthority", "x509", "activate", "-authorityID", prepared)
    stub = la_grpc.LocalAuthorityStub(broker.admin)
    made = (await stub.PrepareX509Authority(la_pb.PrepareX509AuthorityRequest())).prepared_authority
    assert made.upstream_authority_subject_key_id == prepared
    await stub.ActivateX509Authority(la_pb.ActivateX509AuthorityRequest(authority_id=made.authority_id))
    before = show["active"]["authority_id"]
    spire_server.cli.ok("localauthority", "x509", "taint", "-authorityID", before)
    await async_until(lambda: any(root.tainted for root in broker.broker.state.bundles[OUR_TD].x509_roots))
    spire_server.cli.ok("localauthority", "x509", "revoke", "-authorityID", before)
    await async_until(lambda: len(broker.roots()) == 1)
    assert broker.roots() != [old]
    assert await broker.attest()


async def test_nobody_below_gets_a_ca(broker: RunningBroker) -> None:
    below = await Below.make(broker)
    code, said = await refusal(below.ca())
    assert (code, "below a server that lists no CAs" in said) == ("FAILED_PRECONDITION", True)


async def test_without_a_ca_and_the_server_above_it_does_not_start(tmp_path: Path) -> None:
    words = {"upstream_server": "127.0.0.1:1", "upstream_workload_api": str(tmp_path / "nothing.sock")}
    broker = Broker(load(None, {}, flags(tmp_path, POLICY, **words)))
    with pytest.raises(AuthorityError, match="does not help"):
        await broker.start()


async def test_it_starts_with_what_it_has_while_the_server_above_is_away(
    tmp_path: Path, spire_server: SpireServer, beside: SpireAgent, caplog: pytest.LogCaptureFixture
) -> None:
    words = {"upstream_server": spire_server.address, "upstream_workload_api": str(beside.socket)}
    (tmp_path / "b").mkdir(mode=0o700)
    async with running(tmp_path / "b", **words) as broker:
        agent = await broker.attest()
        entry = await broker.entry(ANY, agent.path, USER)
        first = broker.broker.authority.active().authority_id
    assert spire_server.process is not None
    spire_server.process.send_signal(signal.SIGSTOP)
    try:
        async with running(tmp_path / "b", **words) as broker:
            assert f"X.509 authority {first} signs on, until 20" in caplog.text
            assert "does not help" in caplog.text
            agent = await broker.attest()
            entry = await broker.entry("/segment/registry/other", agent.path, USER)
            (result,) = await agent.sign(entry.id)
            assert parse_x509_svid(tuple(result.svid.cert_chain)).authority_id == first
            spire_server.process.send_signal(signal.SIGCONT)
            # It follows again by itself.
            spire_server.cli.json("localauthority", "x509", "prepare")
            await async_until(lambda: len(broker.roots()) == 2)
    finally:
        spire_server.process.send_signal(signal.SIGCONT)


def test_one_of_the_two_is_upstream(tmp_path: Path) -> None:
    words = {"upstream_server": "127.0.0.1:1", "upstream_workload_api": "a.sock", "upstream_key": "ca.key"}
    with pytest.raises(ConfigError, match="choose one"):
        load(None, {}, flags(tmp_path, **words))
    with pytest.raises(ConfigError, match="workload_api"):
        load(None, {}, flags(tmp_path, upstream_server="127.0.0.1:1"))
