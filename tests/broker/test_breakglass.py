# SPDX-License-Identifier: Apache-2.0
"""Emergency access: who asks, who approves, what is issued, and what ends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from firedoor.broker.breakglass import PATIENCE
from firedoor.certs import KeyType, X509Svid, generate_key, make_csr, parse_x509_svid
from firedoor.wire import admin_grpc, admin_pb2
from tests.broker.harness import POLICY, TD, RunningBroker, code_of, entry, running, write_whole
from tests.broker.test_matrix import workload
from tests.broker.test_revoking import is_good

EMERGENCY = """\
---
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {name: emergency}
spec:
  function: emergency
  trust: high
  members: ["spiffe://{td}/segment/emergency/**"]
  admission: {breakglass: true}
"""
ANN, BOB, EVE = ("ann", "bob", "eve")


class People:
    """Operators with SVIDs of their own, and one who is none."""

    def __init__(self, broker: RunningBroker, **channels: grpc.aio.Channel) -> None:
        self.broker = broker
        self._stubs = {name: admin_grpc.BreakGlassStub(channel) for name, channel in channels.items()}

    async def request(self, who: str, ttl: int = 600, reason: str = "the scheduler is down", segment: str = "") -> str:
        asked = admin_pb2.RequestAccessRequest(reason=reason, ttl=ttl, segment=segment)
        return (await self._stubs[who].RequestAccess(asked)).id

    async def approve(self, who: str, grant: str) -> admin_pb2.Grant:
        return await self._stubs[who].ApproveAccess(admin_pb2.ApproveAccessRequest(id=grant))

    async def take(self, who: str, grant: str) -> X509Svid:
        request = admin_pb2.TakeAccessRequest(id=grant, csr=make_csr(generate_key(KeyType.EC_P256)))
        return parse_x509_svid(tuple((await self._stubs[who].TakeAccess(request)).cert_chain))

    async def end(self, who: str, grant: str) -> admin_pb2.Grant:
        return await self._stubs[who].EndAccess(admin_pb2.EndAccessRequest(id=grant))

    async def state(self, grant: str) -> str:
        found = (await self._stubs[ANN].ListAccess(admin_pb2.ListAccessRequest())).grants
        return next(one.state for one in found if one.id == grant)

    async def opened(self) -> tuple[str, X509Svid]:
        """Return a grant of Ann's that Bob approved, and its SVID."""
        grant = await self.request(ANN)
        await self.approve(BOB, grant)
        return grant, await self.take(ANN, grant)

    def later(self, seconds: int) -> None:
        """Let the broker's clock go on."""
        self.broker.broker.clock._last += seconds


@pytest.fixture
async def people(folder: Path) -> AsyncIterator[People]:
    ids = ",".join(f"spiffe://{TD}/segment/registry/{name}" for name in (ANN, BOB))
    async with running(folder, POLICY + EMERGENCY, operator_ids=ids, breakglass_ttl="1h") as broker:
        yield People(broker, **{name: await workload(broker, name) for name in (ANN, BOB, EVE)})


async def test_two_people_open_it_once_and_for_a_while(people: People) -> None:
    grant = await people.request(ANN, ttl=600)
    assert await people.state(grant) == "waiting"
    approved = await people.approve(BOB, grant)
    assert (approved.state, approved.approver) == ("approved", f"spiffe://{TD}/segment/registry/bob")
    before = people.broker.broker.clock.now()
    svid = await people.take(ANN, grant)
    assert str(svid.id) == f"spiffe://{TD}/segment/emergency/grant/{grant}"
    assert before <= svid.not_after - 600 <= people.broker.broker.clock.now()
    assert await people.state(grant) == "open"
    records = [one for one in people.broker.audit() if str(one.get("event", "")).startswith("breakglass")]
    assert [one["event"] for one in records] == ["breakglass_request", "breakglass_approve", "breakglass_take"]
    assert [one["caller_id"].rpartition("/")[2] for one in records] == [ANN, BOB, ANN]
    assert (records[0]["reason"], records[2]["alert"], records[2]["serial"]) == (
        "the scheduler is down",
        True,
        svid.serial,
    )


REFUSED = {
    "who asked approves": (BOB, BOB, ANN, "PERMISSION_DENIED"),
    "another one takes it": (ANN, BOB, BOB, "PERMISSION_DENIED"),
    "an outsider asks": (EVE, BOB, EVE, "PERMISSION_DENIED"),
    "an outsider approves": (ANN, EVE, ANN, "PERMISSION_DENIED"),
    "nobody approves": (ANN, None, ANN, "FAILED_PRECONDITION"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_one_person_is_not_enough(people: People, case: str) -> None:
    asks, approves, takes, code = REFUSED[case]

    async def attempt() -> None:
        grant = await people.request(asks)
        if approves is not None:
            await people.approve(approves, grant)
        await people.take(takes, grant)

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await attempt()
    assert code_of(refused.value) == code
    assert not [one for one in people.broker.audit() if one.get("serial") and one.get("event") == "breakglass_take"]


async def test_at_the_admin_socket_nobody_has_a_name(people: People) -> None:
    stub = admin_grpc.BreakGlassStub(people.broker.admin)
    grant = await people.request(ANN)
    for call in (
        stub.RequestAccess(admin_pb2.RequestAccessRequest(reason="x", ttl=1)),
        stub.ApproveAccess(admin_pb2.ApproveAccessRequest(id=grant)),
        stub.TakeAccess(admin_pb2.TakeAccessRequest(id=grant)),
        stub.EndAccess(admin_pb2.EndAccessRequest(id=grant)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert code_of(refused.value) == "PERMISSION_DENIED"
    assert len((await stub.ListAccess(admin_pb2.ListAccessRequest())).grants) == 1


async def test_many_takers_and_one_svid(people: People) -> None:
    grant = await people.request(ANN)
    await people.approve(BOB, grant)
    answers = await asyncio.gather(*(people.take(ANN, grant) for _ in range(8)), return_exceptions=True)
    assert sum(isinstance(one, X509Svid) for one in answers) == 1
    assert {code_of(one) for one in answers if isinstance(one, grpc.aio.AioRpcError)} == {"FAILED_PRECONDITION"}
    with pytest.raises(grpc.aio.AioRpcError, match="this grant is open"):
        await people.approve(BOB, grant)


@pytest.mark.parametrize("approved", [False, True])
async def test_what_waits_too_long_lapses(people: People, approved: bool) -> None:
    grant = await people.request(ANN)
    if approved:
        await people.approve(BOB, grant)
    people.later(PATIENCE)
    assert await people.state(grant) == "lapsed"
    with pytest.raises(grpc.aio.AioRpcError, match="this grant is lapsed"):
        await (people.take(ANN, grant) if approved else people.approve(BOB, grant))


@pytest.mark.parametrize("by", [ANN, BOB])
async def test_either_ends_it_and_it_is_revoked(people: People, by: str) -> None:
    grant, svid = await people.opened()
    assert await is_good(people.broker, svid)
    assert (await people.end(by, grant)).state == "ended"
    assert not await is_good(people.broker, svid)
    with pytest.raises(grpc.aio.AioRpcError, match="ended already"):
        await people.end(by, grant)


async def test_when_its_time_is_over_it_is_revoked_for_streams_that_may_live_on(people: People) -> None:
    grant, svid = await people.opened()
    people.later(601)
    await people.broker.broker.breakglass.tick()
    assert await people.state(grant) == "ended"
    found = people.broker.broker.state.revocations["serial", svid.serial]
    assert found.expires_at > svid.not_after + 30 * 86400
    assert [one["grant"] for one in people.broker.audit() if one.get("event") == "breakglass_ended"] == [grant]


BAD = {
    "no reason": ({"reason": " "}, "INVALID_ARGUMENT", "a reason must be given"),
    "a long reason": ({"reason": "x" * 1025}, "INVALID_ARGUMENT", "a reason must be given"),
    "too long": ({"ttl": 3601}, "INVALID_ARGUMENT", "breakglass_ttl"),
    "no time": ({"ttl": 0}, "INVALID_ARGUMENT", "breakglass_ttl"),
    "another segment": ({"segment": "registry"}, "PERMISSION_DENIED", "breakglass: true"),
    "no segment": ({"segment": "nowhere"}, "PERMISSION_DENIED", "belongs to no segment"),
}


@pytest.mark.parametrize("case", BAD)
async def test_what_cannot_be_asked_for(people: People, case: str) -> None:
    given, code, words = BAD[case]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await people.request(ANN, **given)  # type: ignore[arg-type]
    assert (code_of(refused.value), words in str(refused.value.details())) == (code, True), refused.value.details()


async def test_no_entry_gives_what_is_for_break_glass(people: People) -> None:
    agent = await people.broker.attest()
    wanted = entry("/segment/emergency/grant/x", agent.path, ["unix:user:registry"])
    (result,) = await people.broker.create(wanted)
    assert result.status.code == 7


async def test_a_policy_that_has_it_no_more_gives_nothing(people: People) -> None:
    grant = await people.request(ANN)
    await people.approve(BOB, grant)
    write_whole(people.broker.folder / "policy" / "segments.yaml", POLICY)
    await people.broker.broker.reread()
    with pytest.raises(grpc.aio.AioRpcError, match="belongs to no segment"):
        await people.take(ANN, grant)
    assert await people.state(grant) == "approved"
