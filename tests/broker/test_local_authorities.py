# SPDX-License-Identifier: Apache-2.0
"""SPIRE's LocalAuthority service: a forced rotation step by step, for each kind, and what is refused on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest

from firedoor.certs import (
    KeyType,
    Status,
    TrustDomain,
    WitSvidError,
    generate_key,
    parse_x509_svid,
    public_key_der,
    validate_wit_svid,
)
from firedoor.wire import localauthority_grpc, svid_grpc, svid_pb2
from firedoor.wire import localauthority_pb2 as pb
from tests.broker.harness import RunningBroker, code_of, running

TD = TrustDomain.parse("example.org")
USER = ["unix:user:registry"]
PATH = "/segment/registry/x"
KINDS = ("X509", "JWT", "WIT")


class Authorities:
    """The calls of one kind."""

    def __init__(self, broker: RunningBroker, kind: str) -> None:
        self._stub, self._kind = localauthority_grpc.LocalAuthorityStub(broker.admin), kind

    async def state(self) -> Any:
        return await getattr(self._stub, f"Get{self._kind}AuthorityState")(
            getattr(pb, f"Get{self._kind}AuthorityStateRequest")()
        )

    async def do(self, verb: str, authority_id: str | None = None) -> Any:
        fields = {} if authority_id is None else {"authority_id": authority_id}
        request = getattr(pb, f"{verb}{self._kind}AuthorityRequest")(**fields)
        answer = await getattr(self._stub, f"{verb}{self._kind}Authority")(request)
        (field,) = answer.DESCRIPTOR.fields
        return getattr(answer, field.name)

    async def refusal(self, verb: str, authority_id: str) -> tuple[str, str]:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await self.do(verb, authority_id)
        return code_of(refused.value), str(refused.value.details())

    async def ids(self) -> dict[str, str]:
        state = await self.state()
        return {name: getattr(state, name).authority_id for name in ("active", "prepared", "old")}


def tainted(broker: RunningBroker, authority_id: str) -> bool | None:
    """Say whether an authority is tainted in the bundle, None when it is not there."""
    bundle = broker.broker.state.bundles[TD]
    for root in bundle.x509_roots:
        if root.authority_id == authority_id:
            return root.tainted
    for key in (*bundle.jwt_keys, *bundle.wit_keys):
        if key.key_id == authority_id:
            return key.tainted
    return None


@pytest.mark.parametrize("kind", KINDS)
async def test_a_forced_rotation(folder: Path, kind: str) -> None:
    async with running(folder) as broker:
        calls = Authorities(broker, kind)
        first = (await calls.ids())["active"]
        second = (await calls.do("Prepare")).authority_id
        # In the bundle before it signs.
        assert tainted(broker, second) is False
        assert await calls.ids() == {"active": first, "prepared": second, "old": ""}
        assert (await calls.do("Activate", second)).authority_id == second
        assert await calls.ids() == {"active": second, "prepared": "", "old": first}
        sequence = broker.broker.state.bundles[TD].sequence
        await calls.do("Taint", first)
        assert tainted(broker, first) is True
        assert broker.broker.state.bundles[TD].sequence == sequence + 1
    # All of it is there after a restart, the taint too.
    async with running(folder) as broker:
        calls = Authorities(broker, kind)
        assert tainted(broker, first) is True
        assert await calls.ids() == {"active": second, "prepared": "", "old": first}
        await calls.do("Revoke", first)
        assert tainted(broker, first) is None
        assert await calls.ids() == {"active": second, "prepared": "", "old": first}
        # The next one takes its place, and its key's.
        third = (await calls.do("Prepare")).authority_id
        assert await calls.ids() == {"active": second, "prepared": third, "old": ""}
    events = [record["event"] for record in broker.audit() if "event" in record]
    assert {"authority_prepared", "authority_activated", "authority_tainted", "authority_revoked"} <= set(events)


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_refused(broker: RunningBroker, kind: str) -> None:
    calls = Authorities(broker, kind)
    active = (await calls.ids())["active"]
    label = {"X509": "X.509"}.get(kind, kind)
    invalid, early = "INVALID_ARGUMENT", "FAILED_PRECONDITION"
    for verb in ("Activate", "Taint"):
        assert await calls.refusal(verb, "") == (invalid, "no authority ID provided")
        assert await calls.refusal(verb, "nobody") == (invalid, "unexpected authority ID")
    assert await calls.refusal("Revoke", "") == (invalid, "invalid authority ID: no authority ID provided")
    assert await calls.refusal("Taint", active) == (invalid, "unable to taint current local authority")
    assert await calls.refusal("Revoke", active) == (invalid, "invalid authority ID: unable to use current authority")
    assert (await calls.refusal("Revoke", "nobody"))[0] == invalid
    prepared = (await calls.do("Prepare")).authority_id
    code, words = await calls.refusal("Taint", prepared)
    assert (code, words.startswith("only Old local authorities can be tainted")) == (invalid, True)
    assert (await calls.refusal("Revoke", prepared))[0] == invalid
    await calls.do("Activate", prepared)
    code, words = await calls.refusal("Activate", active)
    assert (code, words.startswith("only Prepared authorities can be activated")) == (early, True)
    code, words = await calls.refusal("Revoke", active)
    assert (code, words.startswith(f"failed to revoke {label} authority")) == (early, True)
    await calls.do("Taint", active)
    code, words = await calls.refusal("Taint", active)
    assert (code, words.endswith("is already tainted")) == (early, True)
    await calls.do("Revoke", active)
    assert (await calls.refusal("Revoke", active))[0] == invalid


async def test_there_is_no_upstream_authority(broker: RunningBroker) -> None:
    stub = localauthority_grpc.LocalAuthorityStub(broker.admin)
    for ask in (
        lambda: stub.TaintX509UpstreamAuthority(pb.TaintX509UpstreamAuthorityRequest(subject_key_id="aa")),
        lambda: stub.RevokeX509UpstreamAuthority(pb.RevokeX509UpstreamAuthorityRequest(subject_key_id="aa")),
    ):
        with pytest.raises(grpc.aio.AioRpcError, match="upstream authority is not configured") as refused:
            await ask()
        assert code_of(refused.value) == "FAILED_PRECONDITION"


async def test_what_a_revoked_authority_signed_opens_nothing(broker: RunningBroker) -> None:
    """An agent that never followed is out; its twin, which renewed in time, is not."""
    late, punctual = await broker.attest(), await broker.attest()
    await punctual.entries()
    calls = Authorities(broker, "X509")
    first = (await calls.ids())["active"]
    await calls.do("Activate", (await calls.do("Prepare")).authority_id)
    await broker.broker.identity.refresh()
    for one in (late, punctual):
        one.publish()
    key = generate_key(KeyType.EC_P256)
    punctual.use(await punctual.renew(key), key)
    await calls.do("Taint", first)
    assert await late.entries() == []
    await calls.do("Revoke", first)
    punctual.publish()
    late.channel = late.connect()
    with pytest.raises(grpc.aio.AioRpcError):
        await late.entries()
    punctual.channel = punctual.connect()
    assert await punctual.entries() == []


async def test_a_revoked_key_is_deleted(broker: RunningBroker) -> None:
    calls = Authorities(broker, "X509")
    first = (await calls.ids())["active"]
    await calls.do("Activate", (await calls.do("Prepare")).authority_id)
    keys = broker.folder / "data" / "keys"
    assert (keys / "x509-CA-A.pem").exists()
    await calls.do("Taint", first)
    await calls.do("Revoke", first)
    assert not (keys / "x509-CA-A.pem").exists()
    assert broker.broker.authority.slots.other is not None
    assert broker.broker.authority.slots.other.status is Status.REVOKED


async def test_wit_svids_by_entry_and_minted(folder: Path) -> None:
    policy = """\
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {name: registry}
spec:
  function: registry
  trust: high
  mode: enforce
  members: ["spiffe://{td}/segment/registry/**"]
  admission: {entry: ["unix:user:registry"], mint: true}
"""
    async with running(folder, policy) as broker:
        agent = await broker.attest()
        made = await broker.entry(PATH, agent.path, USER, hint="main", x509_svid_ttl=600)
        public = public_key_der(generate_key(KeyType.EC_P256).public_key())

        async def batch(**fields: Any) -> Any:
            one = svid_pb2.NewWITSVIDParams(
                **{"entry_id": made.id, "public_key": public, "signing_algorithm": "ES256", **fields}
            )
            request = svid_pb2.BatchNewWITSVIDRequest(params=[one])
            return (await svid_grpc.SVIDStub(agent.channel).BatchNewWITSVID(request)).results[0]

        good = await batch()
        # SPIRE leaves this out on success, and its agent would fall over it.
        assert good.HasField("status")
        assert (good.status.code, good.svid.hint) == (0, "main")
        bundles = broker.broker.state.bundles
        found = validate_wit_svid(good.svid.token, bundles, broker.broker.clock.now())
        assert (str(found.id), found.confirmation["alg"]) == (f"spiffe://example.org{PATH}", "ES256")
        assert good.svid.expires_at - good.svid.issued_at == 600
        assert [(await batch(**wrong)).status.message for wrong in WRONG] == list(WRONG_WORDS)
        minted = await broker.svids.MintWITSVID(
            svid_pb2.MintWITSVIDRequest(
                id={"trust_domain": "example.org", "path": PATH}, public_key=public, signing_algorithm="ES256", ttl=60
            )
        )
        assert minted.svid.expires_at - minted.svid.issued_at == 60
        # What is revoked verifies nothing any more.
        calls = Authorities(broker, "WIT")
        first = (await calls.ids())["active"]
        await calls.do("Activate", (await calls.do("Prepare")).authority_id)
        await calls.do("Taint", first)
        validate_wit_svid(good.svid.token, bundles, broker.broker.clock.now())
        await calls.do("Revoke", first)
        with pytest.raises(WitSvidError, match="no key of that kid"):
            validate_wit_svid(good.svid.token, broker.broker.state.bundles, broker.broker.clock.now())
        log = broker.broker.config.audit_log
        assert log is not None
        assert good.svid.token not in log.read_text()


WRONG: tuple[dict[str, Any], ...] = (
    {"entry_id": ""},
    {"entry_id": "nobody"},
    {"public_key": b""},
    {"public_key": b"junk"},
    {"signing_algorithm": "ES384"},
    {"signing_algorithm": "none"},
)
WRONG_WORDS = (
    "missing entry ID",
    "entry not found or not authorized",
    "missing public key",
    "malformed public key",
    "invalid signing algorithm or key type",
    "invalid signing algorithm or key type",
)


async def test_a_segment_that_does_not_say_so_lets_no_wit_be_minted(broker: RunningBroker) -> None:
    public = public_key_der(generate_key(KeyType.EC_P256).public_key())
    request = svid_pb2.MintWITSVIDRequest(
        id={"trust_domain": "example.org", "path": PATH}, public_key=public, signing_algorithm="ES256"
    )
    with pytest.raises(grpc.aio.AioRpcError, match="mint: true") as refused:
        await broker.svids.MintWITSVID(request)
    assert code_of(refused.value) == "PERMISSION_DENIED"


async def test_svids_follow_the_active_authority(broker: RunningBroker) -> None:
    agent = await broker.attest()
    made = await broker.entry(PATH, agent.path, USER)
    calls = Authorities(broker, "X509")
    (before,) = await agent.sign(made.id)
    second = (await calls.do("Prepare")).authority_id
    (between,) = await agent.sign(made.id)
    await calls.do("Activate", second)
    (after,) = await agent.sign(made.id)
    signed = [parse_x509_svid(tuple(r.svid.cert_chain)).authority_id for r in (before, between, after)]
    assert signed[0] == signed[1] != signed[2] == second
