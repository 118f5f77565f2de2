# SPDX-License-Identifier: Apache-2.0
"""Revocation by ID, segment, agent and serial number: what ends, what does not, and what is signed afterwards."""

from __future__ import annotations

import grpc
import pytest

from firedoor.broker.rpc.matrix import MATRIX
from firedoor.certs import Revocation, SvidError, TrustBundle, TrustDomain, X509Svid, parse_x509_svid, verify_x509_svid
from firedoor.sidecar.view import certs_revocation
from firedoor.wire import admin_grpc, admin_pb2, entry_pb2
from tests.broker.harness import TD, AgentClient, RunningBroker, code_of

USER = ["unix:user:registry"]
OWN = TrustDomain.parse(TD)
X, Y = "/segment/registry/x", "/segment/registry/y"


async def revoke(broker: RunningBroker, **given: object) -> admin_pb2.RevokeSvidsResponse:
    stub = admin_grpc.RevocationAdminStub(broker.admin)
    return await stub.RevokeSvids(admin_pb2.RevokeSvidsRequest(**given))  # type: ignore[arg-type]


async def issue(agent: AgentClient, entry_id: str) -> X509Svid:
    (result,) = await agent.sign(entry_id)
    assert result.status.code == 0, result.status.message
    return parse_x509_svid(tuple(result.svid.cert_chain))


async def revocations(broker: RunningBroker) -> tuple[Revocation, ...]:
    """Return what is in force, as verifiers read it."""
    stub = admin_grpc.RevocationAdminStub(broker.admin)
    found = (await stub.ListRevocations(admin_pb2.ListRevocationsRequest())).revocations
    return tuple(certs_revocation(one.revocation, OWN) for one in found)


async def is_good(broker: RunningBroker, svid: X509Svid) -> bool:
    now, bundles = broker.broker.clock.now(), {OWN: TrustBundle.of(OWN, broker.roots())}
    try:
        verify_x509_svid(svid.chain, bundles, now, revocations=await revocations(broker))
    except SvidError as error:
        return not error.code.startswith("revoked")
    return True


async def two(broker: RunningBroker) -> tuple[AgentClient, str, X509Svid, X509Svid]:
    """Return an agent, the entry of X, and an SVID for X and Y each."""
    agent = await broker.attest()
    x, y = [(await broker.entry(path, agent.path, USER)).id for path in (X, Y)]
    return agent, x, await issue(agent, x), await issue(agent, y)


TARGETS = {
    "its ID": lambda agent, svid: {"spiffe_id": f"spiffe://{TD}{X}"},
    "a pattern": lambda agent, svid: {"spiffe_id": "spiffe://{td}/segment/*/x"},
    "its serial number": lambda agent, svid: {"serial": "00" + svid.serial.upper()},
}


@pytest.mark.parametrize("name", TARGETS)
async def test_one_ends_and_its_twin_does_not(broker: RunningBroker, name: str) -> None:
    agent, entry_id, svid, other = await two(broker)
    generation = broker.broker.state.generation
    answer = await revoke(broker, **TARGETS[name](agent, svid), reason="the disk was stolen")
    assert (answer.svids, [one.entry_id for one in answer.entries]) == (1, [entry_id])
    assert broker.broker.state.generation > generation
    assert not await is_good(broker, svid)
    assert await is_good(broker, other)
    # Whoever is entitled has another at once, in the same second too.
    assert await is_good(broker, await issue(agent, entry_id))
    (record,) = (one for one in broker.audit() if one.get("event") == "revoke")
    assert (record["reason"], record["svids"], record["caller_role"]) == ("the disk was stolen", 1, "local")


async def test_again_and_again_within_a_second(broker: RunningBroker) -> None:
    agent, entry_id, svid, other = await two(broker)
    for _ in range(8):
        await revoke(broker, spiffe_id=f"spiffe://{TD}{X}")
        assert not await is_good(broker, svid)
        svid = await issue(agent, entry_id)
        assert await is_good(broker, svid)
        assert svid.not_before <= broker.broker.clock.now()
    assert await is_good(broker, other)


async def test_what_a_broker_with_a_clock_ahead_issued_ends_too(broker: RunningBroker) -> None:
    agent, entry_id, svid, other = await two(broker)
    clock = broker.broker.clock
    clock._last += 240
    early = await issue(agent, entry_id)
    clock._last -= 240
    assert await is_good(broker, early)
    answer = await revoke(broker, spiffe_id=f"spiffe://{TD}{X}")
    assert answer.svids == 2
    assert [await is_good(broker, one) for one in (svid, early, other)] == [False, False, True]
    assert await is_good(broker, await issue(agent, entry_id))


@pytest.mark.parametrize("what", ["segment", "agent"])
async def test_all_of_a_segment_or_an_agent(broker: RunningBroker, what: str) -> None:
    agent, _, *svids = await two(broker)
    elsewhere = await broker.attest()
    third = await issue(elsewhere, (await broker.entry("/segment/registry/z", elsewhere.path, USER)).id)
    answer = await revoke(broker, **{"segment": "registry"} if what == "segment" else {"agent_id": agent.id})
    assert answer.svids == (3 if what == "segment" else 2)
    assert not any([await is_good(broker, one) for one in svids])
    assert await is_good(broker, third) is (what == "agent")
    # The agents themselves go on.
    assert await agent.entries()


async def test_with_the_entries_nobody_gets_another(broker: RunningBroker) -> None:
    agent, entry_id, svid, other = await two(broker)
    answer = await revoke(broker, spiffe_id=f"spiffe://{TD}{X}", delete_entries=True)
    assert [(one.entry_id, one.deleted) for one in answer.entries] == [(entry_id, True)]
    (result,) = await agent.sign(entry_id)
    assert result.status.code == 5
    assert not await is_good(broker, svid)
    assert await is_good(broker, other)


async def test_a_dry_run_changes_nothing(broker: RunningBroker) -> None:
    _, entry_id, svid, _ = await two(broker)
    generation = broker.broker.state.generation
    answer = await revoke(broker, segment="registry", delete_entries=True, dry_run=True)
    assert (answer.svids, len(answer.entries), len(answer.revocations)) == (2, 2, 0)
    assert broker.broker.state.generation == generation
    assert await is_good(broker, svid)
    assert await broker.entries.GetEntry(entry_pb2.GetEntryRequest(id=entry_id))


async def test_entries_get_a_new_revision(broker: RunningBroker) -> None:
    """Agents that know no revocation fetch another SVID for that."""
    _, entry_id, _, _ = await two(broker)
    before = await broker.entries.GetEntry(entry_pb2.GetEntryRequest(id=entry_id))
    await revoke(broker, segment="registry")
    after = await broker.entries.GetEntry(entry_pb2.GetEntryRequest(id=entry_id))
    assert after.revision_number == before.revision_number + 1


async def test_what_lives_as_tokens_alone_is_revoked_too(broker: RunningBroker) -> None:
    agent = await broker.attest()
    made = await broker.entry(X, agent.path, USER)
    token = await agent.token(made.id)
    answer = await revoke(broker, spiffe_id=f"spiffe://{TD}{X}")
    assert (answer.svids, len(answer.revocations)) == (0, 1)
    # It counts for as long as such a token can.
    assert answer.revocations[0].expires_at >= token.expires_at


REFUSED = {
    "nobody": ({"spiffe_id": f"spiffe://{TD}/segment/registry/nobody"}, "NOT_FOUND", "nothing that lives"),
    "an unknown segment": ({"segment": "nowhere"}, "NOT_FOUND", "there is no segment"),
    "an unknown serial": ({"serial": "ab12"}, "NOT_FOUND", "no certificate that lives"),
    "no target": ({}, "INVALID_ARGUMENT", "say what is to be revoked"),
    "no hex": ({"serial": "xyz"}, "INVALID_ARGUMENT", "not in hex"),
    "a long serial": ({"serial": "1" * 41}, "INVALID_ARGUMENT", "not in hex"),
    "no pattern": ({"spiffe_id": "x"}, "INVALID_ARGUMENT", "cannot be read"),
    "the broker itself": ({"spiffe_id": f"spiffe://{TD}/spire/server"}, "INVALID_ARGUMENT", "cannot be read"),
    "another trust domain": ({"spiffe_id": "spiffe://other.org/x"}, "INVALID_ARGUMENT", "its own issuer"),
    "no agent": ({"agent_id": f"spiffe://{TD}{X}"}, "INVALID_ARGUMENT", "is no agent"),
    "a long reason": ({"segment": "registry", "reason": "x" * 1025}, "INVALID_ARGUMENT", "longer than"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_refused(broker: RunningBroker, case: str) -> None:
    given, code, words = REFUSED[case]
    await two(broker)
    generation = broker.broker.state.generation
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await revoke(broker, **given)  # type: ignore[arg-type]
    assert code_of(refused.value) == code
    assert words in str(refused.value.details())
    assert broker.broker.state.generation == generation


async def test_an_agents_own_certificate_is_not_taken_this_way(broker: RunningBroker) -> None:
    agent = await broker.attest()
    assert agent.svid is not None
    with pytest.raises(grpc.aio.AioRpcError, match="ban or evict"):
        await revoke(broker, serial=agent.svid.serial)


def test_who_may() -> None:
    assert {who.value for who in MATRIX["/firedoor.admin.v1.RevocationAdmin/RevokeSvids"]} == {
        "local",
        "admin",
        "operator",
    }
