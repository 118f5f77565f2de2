# SPDX-License-Identifier: Apache-2.0
"""Roles by SPIFFE ID, and the ways in which an operator could become more than one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from firedoor.broker.roles import Role, Roles, read_holder
from firedoor.certs import SpiffeId, TrustDomain
from firedoor.wire import (
    agent_grpc,
    agent_pb2,
    bundle_grpc,
    bundle_pb2,
    entry_grpc,
    entry_pb2,
    trustdomain_grpc,
    trustdomain_pb2,
    types,
)
from tests.broker.harness import TD, RunningBroker, code_of, entry, running, spiffe_id
from tests.broker.test_matrix import workload

USER = ["unix:user:registry"]
OWN = TrustDomain.parse(TD)
BOSS, OPERATOR, VIEWER = (f"/segment/registry/{name}" for name in ("boss", "operator", "viewer"))
REFUSED = 7


@pytest.fixture
async def broker(folder: Path) -> AsyncIterator[RunningBroker]:
    given = {
        "admin_ids": f"spiffe://{TD}{BOSS},spiffe://other.org/alice",
        "operator_ids": f"spiffe://{TD}{OPERATOR}",
        "viewer_ids": "spiffe://{td}" + VIEWER,
    }
    async with running(folder, **given) as found:
        yield found


@pytest.fixture
async def operator(broker: RunningBroker) -> grpc.aio.Channel:
    channel = await workload(broker, "operator")
    await channel.channel_ready()
    return channel


async def create(channel: grpc.aio.Channel, *entries: types.Entry) -> list[int]:
    """Create entries and return the codes."""
    request = entry_pb2.BatchCreateEntryRequest(entries=entries)
    return [one.status.code for one in (await entry_grpc.EntryStub(channel).BatchCreateEntry(request)).results]


async def update(channel: grpc.aio.Channel, changed: types.Entry) -> int:
    answer = await entry_grpc.EntryStub(channel).BatchUpdateEntry(entry_pb2.BatchUpdateEntryRequest(entries=[changed]))
    return answer.results[0].status.code


async def token(channel: grpc.aio.Channel, agent_id: str = "", text: str = "") -> str:
    given = spiffe_id(agent_id) if agent_id else None
    request = agent_pb2.CreateJoinTokenRequest(ttl=60, token=text, agent_id=given)
    try:
        await agent_grpc.AgentStub(channel).CreateJoinToken(request)
    except grpc.aio.AioRpcError as error:
        return code_of(error)
    return "OK"


def test_a_role_is_by_id_or_by_pattern_and_holds_no_other() -> None:
    patterns = {
        Role.OPERATOR: [read_holder("spiffe://{td}/ops/*", OWN)],
        Role.VIEWER: [read_holder("spiffe://o/x", OWN)],
    }
    roles = Roles(patterns)
    assert roles.of(SpiffeId.parse(f"spiffe://{TD}/ops/ann")) == {Role.OPERATOR}
    assert roles.of(SpiffeId.parse(f"spiffe://{TD}/ops/ann/laptop")) == frozenset()
    assert roles.of(SpiffeId.parse("spiffe://o/x")) == {Role.VIEWER}
    assert not roles.beyond_viewer(SpiffeId.parse("spiffe://o/x"))
    assert {td.name for td in roles.trust_domains} == {TD, "o"}


async def test_an_operator_does_the_daily_work(broker: RunningBroker, operator: grpc.aio.Channel) -> None:
    assert await token(operator, "/node/gpu-1") == "OK"
    assert await create(operator, entry("/segment/registry/x", "/node/gpu-1", USER)) == [0]
    agent = await broker.attest()
    await agent_grpc.AgentStub(operator).BanAgent(agent_pb2.BanAgentRequest(id=spiffe_id(agent.path)))
    # It is the role that the audit log keeps, and what the entry was before.
    record = next(r for r in broker.audit() if r.get("caller_role") == "operator" and "BatchCreateEntry" in r["method"])
    assert record["caller_id"] == f"spiffe://{TD}{OPERATOR}"
    assert record["spiffe_id"] == f"spiffe://{TD}/segment/registry/x"


async def test_changes_are_kept_with_what_was_before(broker: RunningBroker, operator: grpc.aio.Channel) -> None:
    agent = await broker.attest()
    made = await broker.entry("/segment/registry/x", agent.path, USER, x509_svid_ttl=60)
    made.x509_svid_ttl = 120
    assert await update(operator, made) == 0
    await entry_grpc.EntryStub(operator).BatchDeleteEntry(entry_pb2.BatchDeleteEntryRequest(ids=[made.id]))
    changed, deleted = (r for r in broker.audit() if "before" in r)
    assert (changed["before"]["x509_svid_ttl"], changed["x509_svid_ttl"]) == (60, 120)
    assert deleted["before"]["x509_svid_ttl"] == 120
    assert deleted["before"]["selectors"] == ["unix:user:…"]


MORE: dict[str, dict[str, Any]] = {
    "an administrator's ID": {"path": BOSS},
    "its own ID again": {"path": OPERATOR},
    "an entry that says admin": {"path": "/segment/registry/x", "admin": True},
    "an entry that says downstream": {"path": "/segment/registry/x", "downstream": True},
}


@pytest.mark.parametrize("case", MORE)
async def test_an_operator_makes_no_administrator(broker: RunningBroker, operator: grpc.aio.Channel, case: str) -> None:
    agent, given = await broker.attest(), dict(MORE[case])
    wanted = entry(given.pop("path"), agent.path, USER, **given)
    assert await create(operator, wanted) == [REFUSED]
    plain = await broker.entry("/segment/registry/plain", agent.path, USER)
    wanted.id = plain.id
    assert await update(operator, wanted) == REFUSED
    stays = await broker.entries.GetEntry(entry_pb2.GetEntryRequest(id=plain.id))
    assert stays == plain
    assert await create(broker.admin, entry(BOSS, agent.path, ["unix:user:registry", "unix:uid:5"])) == [0]


async def test_an_operator_takes_no_administrator_away(broker: RunningBroker, operator: grpc.aio.Channel) -> None:
    agent = await broker.attest()
    boss = await broker.entry(BOSS, agent.path, USER)
    request = entry_pb2.BatchDeleteEntryRequest(ids=[boss.id])
    answer = await entry_grpc.EntryStub(operator).BatchDeleteEntry(request)
    assert answer.results[0].status.code == REFUSED
    boss.hint = "elsewhere"
    assert await update(operator, boss) == REFUSED


async def test_an_operator_names_no_node_of_an_administrator(broker: RunningBroker, operator: grpc.aio.Channel) -> None:
    await broker.entry(BOSS, "/node/inner", USER)
    await broker.entry("/segment/registry/middle", "/node/outer", USER)
    await broker.entry(BOSS, "/segment/registry/middle", ["unix:user:registry", "unix:uid:7"])
    below = "/spire/agent/join_token/chosen-by-an-administrator"
    await broker.entry(BOSS, below, USER)
    # By a token's alias, by an entry below the server, at any depth, and by a token that an entry waits for.
    assert await token(operator, "/node/inner") == "PERMISSION_DENIED"
    assert await token(operator, "/node/outer") == "PERMISSION_DENIED"
    assert await token(operator, text=below.rpartition("/")[2]) == "PERMISSION_DENIED"
    alias = entry("/node/inner", "/spire/server", ["x509pop:subject:cn:mine"])
    assert await create(operator, alias) == [REFUSED]
    middle = entry("/segment/registry/middle", (await broker.attest()).path, USER)
    assert await create(operator, middle) == [REFUSED]
    assert await token(operator, "/node/other") == "OK"


async def test_an_operator_writes_no_bundle_of_an_administrators_trust_domain(
    broker: RunningBroker, operator: grpc.aio.Channel
) -> None:
    bundles, relations = bundle_grpc.BundleStub(operator), trustdomain_grpc.TrustDomainStub(operator)
    other = await broker.bundle()
    for name, code in (("other.org", REFUSED), ("third.org", 0)):
        given = types.Bundle(trust_domain=name, x509_authorities=other.x509_authorities)
        answer = await bundles.BatchSetFederatedBundle(bundle_pb2.BatchSetFederatedBundleRequest(bundle=[given]))
        assert answer.results[0].status.code == code, name
        one = types.FederationRelationship(
            trust_domain=name, bundle_endpoint_url="https://127.0.0.1:1/", https_web=types.HTTPSWebProfile()
        )
        made = await relations.BatchCreateFederationRelationship(
            trustdomain_pb2.BatchCreateFederationRelationshipRequest(federation_relationships=[one])
        )
        assert made.results[0].status.code == code, name
        gone = await bundles.BatchDeleteFederatedBundle(
            bundle_pb2.BatchDeleteFederatedBundleRequest(trust_domains=[name])
        )
        assert gone.results[0].status.code == code, name


async def test_a_bundle_that_goes_takes_no_administrators_entry_with_it(
    broker: RunningBroker, operator: grpc.aio.Channel
) -> None:
    given = types.Bundle(trust_domain="third.org", x509_authorities=(await broker.bundle()).x509_authorities)
    await broker.bundles.BatchSetFederatedBundle(bundle_pb2.BatchSetFederatedBundleRequest(bundle=[given]))
    agent = await broker.attest()
    boss = await broker.entry(BOSS, agent.path, USER, federates_with=["third.org"])
    mode = bundle_pb2.BatchDeleteFederatedBundleRequest.DELETE
    request = bundle_pb2.BatchDeleteFederatedBundleRequest(trust_domains=["third.org"], mode=mode)
    answer = await bundle_grpc.BundleStub(operator).BatchDeleteFederatedBundle(request)
    assert answer.results[0].status.code == REFUSED
    assert (await broker.entries.GetEntry(entry_pb2.GetEntryRequest(id=boss.id))).id == boss.id


@pytest.mark.parametrize("role", ["operator", "viewer"])
async def test_a_token_that_can_be_used_is_shown_to_administrators_alone(broker: RunningBroker, role: str) -> None:
    channel = await workload(broker, role)
    secret = await broker.token("/node/gpu-1")
    path = f"/spire/agent/join_token/{secret}"
    await broker.entry("/segment/registry/x", path, USER)
    stub, everything = entry_grpc.EntryStub(channel), entry_pb2.ListEntriesRequest()
    assert secret in str(await broker.entries.ListEntries(everything))
    shown = await stub.ListEntries(everything)
    assert secret not in str(shown)
    hidden = [one for one in shown.entries if "sha256-" in one.parent_id.path]
    assert len(hidden) == 2
    for one in hidden:
        assert secret not in str(await stub.GetEntry(entry_pb2.GetEntryRequest(id=one.id)))
    # Used, it opens nothing any more, and who stands below whom is to be seen.
    await broker.attest(secret)
    assert secret in str(await stub.ListEntries(everything))
