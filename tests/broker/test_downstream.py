# SPDX-License-Identifier: Apache-2.0
"""Authorities below the broker: who gets a CA, what it may sign, and when it leaves the list that sidecars have."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from firedoor import mtls
from firedoor.broker.downstream import MAX_LIVE, NO_FALLBACK, listed
from firedoor.broker.rpc import downstream as downstream_rpc
from firedoor.broker.rpc.gate import SEGMENTS
from firedoor.certs import (
    Intermediates,
    KeyType,
    SvidError,
    TrustDomain,
    X509Issuer,
    X509Svid,
    generate_key,
    key_hash,
    make_csr,
    verify_x509_svid,
)
from firedoor.segments import membership_of
from firedoor.wire import admin_pb2, agent_pb2, entry_pb2, types
from tests.broker.below import PATH, USER, Below, forge, identity
from tests.broker.harness import POLICY, RunningBroker, code_of, entry, running, spiffe_id, status
from tests.broker.test_control import Stream, part
from tests.simulator import Fields, sign

FALLBACK = """\
---
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {name: estate}
spec: {function: legacy, fallback: true, admission: {}}
"""
ANY = "/segment/registry/x"
METHOD = "/spire.api.server.svid.v1.SVID/NewDownstreamX509CA"


def verified(broker: RunningBroker, svid: X509Svid) -> str:
    """Say what sidecars of the present generation make of a certificate: "ok" or the code of its refusal, twice."""
    state, current = broker.broker.state, broker.broker.policy.current
    td, keys = TrustDomain.parse(svid.id.trust_domain.name), listed(state, current.policy)
    by_hex = {key.hex(): segments for key, segments in keys.items()}
    whole = Intermediates(td, by_hex, membership_of(current.table).segment_of)
    at = int(time.time())
    found = code(
        mtls.VerifyError,
        lambda: mtls.verify_svid(
            svid.chain,
            {td.name: broker.roots()},
            at=at,
            revocations=[],
            intermediates=list(keys.items()),
            table=current.table.SerializeToString(),
        ),
    )
    again = code(SvidError, lambda: verify_x509_svid(svid.chain, state.bundles, at, intermediates=whole))
    assert found == again
    return found


def code(kind: type[mtls.VerifyError | SvidError], verify: Callable[[], object]) -> str:
    try:
        verify()
    except kind as error:
        return error.code
    return "ok"


async def refusal(work: Awaitable[object]) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await work
    return code_of(caught.value), str(caught.value.details())


# --- entries ----------------------------------------------------------------------------------------------------------


async def test_an_entry_lists_its_segments(broker: RunningBroker) -> None:
    agent = await broker.attest()
    made = await broker.entry(PATH, agent.path, USER, "registry, inference,registry", downstream=True)
    (shown,) = (await broker.downstream.ListDownstreams(admin_pb2.ListDownstreamsRequest())).downstreams
    assert (shown.entry_id, list(shown.segments)) == (made.id, ["inference", "registry"])

    async def update(segments: str | None, **fields: Any) -> list[str]:
        request = entry_pb2.BatchUpdateEntryRequest(
            entries=[types.Entry(id=made.id, **fields)],
            input_mask=types.EntryMask(hint=True, **dict.fromkeys(fields, True)),
        )
        said = ((SEGMENTS, segments),) if segments is not None else ()
        (result,) = (await broker.entries.BatchUpdateEntry(request, metadata=said)).results
        assert result.status.code == 0, result.status.message
        found = (await broker.downstream.ListDownstreams(admin_pb2.ListDownstreamsRequest())).downstreams
        return list(found[0].segments) if found else []

    assert await update(None) == ["inference", "registry"]
    assert await update("registry") == ["registry"]
    assert await update(None, downstream=False) == []
    written = [line["segments"] for line in broker.audit() if "segments" in line]
    assert written == [["inference", "registry"], ["inference", "registry"], ["registry"], []]


@pytest.mark.parametrize(
    ("segments", "fields", "sentence"),
    [
        (None, {"downstream": True}, NO_FALLBACK),
        ("", {"downstream": True}, NO_FALLBACK),
        ("registry,nowhere", {"downstream": True}, "the entry lists segment nowhere, which is not declared"),
        ("Registry", {"downstream": True}, "failed to convert entry: 'Registry' is no segment's name"),
        ("registry", {}, "failed to convert entry: segments are listed by downstream entries alone"),
        (
            ",".join(f"s{n}" for n in range(65)),
            {"downstream": True},
            "failed to convert entry: a downstream entry lists at most 64 segments",
        ),
    ],
)
async def test_entries_that_are_refused(
    broker: RunningBroker, segments: str | None, fields: dict[str, bool], sentence: str
) -> None:
    (result,) = await broker.create(entry(PATH, "/spire/agent/x", USER, **fields), segments=segments)
    assert result.status.message == sentence


async def test_a_stock_entry_stands_for_the_fallback_alone(folder: Path) -> None:
    async with running(folder, POLICY + FALLBACK) as broker:
        below = await Below.make(broker, None)
        ca = await below.ca()
        assert verified(broker, forge(ca, "/anything/else")[0]) == "ok"
        assert verified(broker, forge(ca, ANY)[0]) == "segment_not_listed"


# --- who gets a CA ----------------------------------------------------------------------------------------------------


async def test_a_downstream_gets_a_ca(broker: RunningBroker) -> None:
    below = await Below.make(broker)
    key = generate_key(KeyType.EC_P256)
    chain = await below.ask(key, ttl=600)
    assert len(chain) == 1
    made = x509.load_der_x509_certificate(chain[0])
    constraints = made.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (constraints.ca, constraints.path_length) == (True, 0)
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://example.org"]
    assert made.not_valid_after_utc.timestamp() - made.not_valid_before_utc.timestamp() == 610
    said = broker.audit()[-1]
    assert (said["event"], said["method"]) == ("issue_downstream_ca", METHOD)
    assert said["serial"] == f"{made.serial_number:x}"
    assert said["key_sha256"] == key_hash(key.public_key())
    assert (said["entry_id"], said["agent_id"]) == (below.entry.id, below.agent.id)
    (shown,) = (await broker.downstream.ListDownstreams(admin_pb2.ListDownstreamsRequest())).downstreams
    assert [one.serial for one in shown.authorities] == [said["serial"]]


async def test_only_through_a_downstream_entry(broker: RunningBroker) -> None:
    below = await Below.make(broker)
    other = await broker.entry(ANY, below.agent.path, USER)
    for client in (await identity(broker, below.agent, other.id), below.agent, broker.client()):
        assert await status(client.channel, METHOD) == "PERMISSION_DENIED"
    # The same ID through an entry that is none.
    same = await broker.entry(PATH, below.agent.path, [*USER, "unix:uid:1"])
    below.client = await identity(broker, below.agent, same.id)
    code, said = await refusal(below.ca())
    assert (code, said) == ("PERMISSION_DENIED", "the SVID's entry is not a downstream authority's")


async def test_what_a_downstream_signs_is_nobody_to_the_broker(broker: RunningBroker) -> None:
    """It could make up an administrator, an agent, another downstream: the front takes nothing below a CA."""
    below = await Below.make(broker)
    ca = await below.ca()
    for path in (PATH, ANY, below.agent.path, "/spire/server"):
        client = broker.client()
        client.use(*forge(ca, path))
        assert await status(client.channel, METHOD) == "UNAVAILABLE"
    ours = [line for line in broker.audit() if line.get("event") == "issue_downstream_ca"]
    assert len(ours) == 1


def spoiled(csr: bytes) -> bytes:
    """Change the last byte, which is the signature's."""
    return csr[:-1] + bytes([csr[-1] ^ 1])


@pytest.mark.parametrize(
    ("csr", "sentence"),
    [
        (b"", "missing CSR"),
        (b"junk", "malformed CSR"),
        (spoiled(make_csr(generate_key(KeyType.EC_P256))), "invalid CSR signature"),
    ],
)
async def test_requests_that_are_refused(broker: RunningBroker, csr: bytes, sentence: str) -> None:
    below = await Below.make(broker)
    assert await refusal(below.ask(generate_key(KeyType.EC_P256), csr=csr)) == ("INVALID_ARGUMENT", sentence)


async def test_a_key_that_is_not_taken(broker: RunningBroker) -> None:
    below = await Below.make(broker)
    weak = make_csr(ec.generate_private_key(ec.SECP256K1()))
    code, said = await refusal(below.ask(generate_key(KeyType.EC_P256), csr=weak))
    assert (code, "the key is not P-256, P-384" in said) == ("INVALID_ARGUMENT", True)


async def test_a_ca_lives_no_longer_than_ours_do(broker: RunningBroker) -> None:
    below = await Below.make(broker)
    assert (await below.ca(366 * 86400)).not_after <= broker.broker.authority.not_after
    code, _ = await refusal(below.ca(-1))
    assert code == "INVALID_ARGUMENT"


async def test_it_counts_as_a_signature(folder: Path) -> None:
    async with running(folder, rate_limits_signing="0.01", rate_limits_signing_burst="3") as broker:
        below = await Below.make(broker)
        codes = {(await refusal(below.ask(generate_key(KeyType.EC_P256), csr=b"x")))[0] for _ in range(4)}
    assert codes == {"INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"}


async def test_a_segment_that_goes_away(folder: Path) -> None:
    async with running(folder, None) as broker:
        await broker.apply(POLICY + FALLBACK)
        below = await Below.make(broker, None)
        ca = await below.ca()
        svid, _ = forge(ca, "/anything")
        assert verified(broker, svid) == "ok"
        await broker.apply(POLICY)
        assert verified(broker, svid) == "segment_not_listed"
        assert await refusal(below.ca()) == ("PERMISSION_DENIED", NO_FALLBACK)


# --- what is taken back -----------------------------------------------------------------------------------------------


async def take_back(broker: RunningBroker, serial: str) -> list[str]:
    request = admin_pb2.RevokeDownstreamCaRequest(serial=serial)
    return [one.serial for one in (await broker.downstream.RevokeDownstreamCa(request)).revoked]


async def test_one_ca_is_revoked_and_the_others_count(broker: RunningBroker) -> None:
    below = await Below.make(broker)
    first, second = await below.ca(), await below.ca()
    serial = f"{first.certificate.serial_number:x}"
    assert await take_back(broker, f"00{serial.upper()}") == [serial]
    assert [verified(broker, forge(ca, ANY)[0]) for ca in (first, second)] == ["intermediate_not_listed", "ok"]
    (shown,) = (await broker.downstream.ListDownstreams(admin_pb2.ListDownstreamsRequest())).downstreams
    assert [one.serial for one in shown.authorities] == [f"{second.certificate.serial_number:x}"]
    said = broker.audit()[-2:]
    assert ("revoke_downstream_ca", serial, below.entry.id) in [
        (line.get("event"), line.get("serial"), line.get("entry_id")) for line in said
    ]
    code, _ = await refusal(take_back(broker, serial))
    assert code == "NOT_FOUND"
    # Its server may have another, with another key.
    assert await refusal(below.ask(first.key)) == (
        "PERMISSION_DENIED",
        "a CA with this key is revoked; ask with another key",
    )
    assert verified(broker, forge(await below.ca(), ANY)[0]) == "ok"


async def test_a_key_is_revoked_with_all_its_certificates(broker: RunningBroker) -> None:
    below = await Below.make(broker)
    key = generate_key(KeyType.EC_P256)
    short, long = [x509.load_der_x509_certificate((await below.ask(key, ttl))[0]).serial_number for ttl in (60, 6000)]
    assert set(await take_back(broker, f"{short:x}")) == {f"{short:x}", f"{long:x}"}
    revoked = {serial for kind, serial in broker.broker.state.revocations if kind == "serial"}
    assert {f"{short:x}", f"{long:x}"} <= revoked


@pytest.mark.parametrize("serial", ["", "0", "1", "x", "f" * 100_000])
async def test_what_was_not_given_out_is_not_revoked(broker: RunningBroker, serial: str) -> None:
    await Below.make(broker)
    assert (await refusal(take_back(broker, serial)))[0] == "NOT_FOUND"


async def test_a_revocation_outlives_a_restart(folder: Path) -> None:
    async with running(folder) as broker:
        below = await Below.make(broker)
        ca = await below.ca()
        await take_back(broker, f"{ca.certificate.serial_number:x}")
    async with running(folder) as broker:
        assert verified(broker, forge(ca, ANY)[0]) == "intermediate_not_listed"


# --- what it may sign -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (ANY, "ok"),
        (PATH, "ok"),
        ("/segment/inference/x", "segment_not_listed"),
        ("/spire/agent/join_token/x", "segment_not_listed"),
        ("/spire/server", "segment_not_listed"),
        ("/elsewhere", "segment_not_listed"),
    ],
)
async def test_ids_of_its_segments_alone(broker: RunningBroker, path: str, expected: str) -> None:
    ca = await (await Below.make(broker)).ca()
    assert verified(broker, forge(ca, path)[0]) == expected


async def test_no_ca_below_it(broker: RunningBroker) -> None:
    ca = await (await Below.make(broker)).ca()
    key = generate_key(KeyType.EC_P256)
    now = int(time.time())
    fields = Fields(uris=["spiffe://example.org"], starts=now - 10, expires=now + 600, public_key=key.public_key())
    der = sign(fields.with_ca_defaults(), ca.certificate, ca.key)
    deeper = X509Issuer.load(ca.trust_domain, der, key, [ca.der, *ca.upstream])
    assert verified(broker, forge(deeper, ANY)[0]) in ("chain_untrusted", "not_yet_valid")


async def test_sidecars_are_told_before_the_ca_is_handed_out(
    broker: RunningBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downstream_rpc, "_WAIT_SECONDS", 3600.0)
    stream = Stream(await broker.attest())
    below = await Below.make(broker)
    update = await stream.having()
    asked = asyncio.create_task(below.ca())
    while not part(update, "bundles").intermediates:
        assert not asked.done()
        update = await stream.next()
    assert not asked.done()
    stream.ack(update)
    (one,) = part(update, "bundles").intermediates
    ca = await asked
    assert (one.key_sha256.hex(), list(one.segments)) == (key_hash(ca.key.public_key()), ["registry"])
    assert part(update, "bundles").intermediates_complete
    stream.stop()


# --- when it leaves the list ------------------------------------------------------------------------------------------


async def ban(broker: RunningBroker, below: Below) -> None:
    await broker.ban(below.agent.id)


async def evict(broker: RunningBroker, below: Below) -> None:
    await broker.agents.DeleteAgent(agent_pb2.DeleteAgentRequest(id=spiffe_id(below.agent.path)))


async def delete(broker: RunningBroker, below: Below) -> None:
    await broker.entries.BatchDeleteEntry(entry_pb2.BatchDeleteEntryRequest(ids=[below.entry.id]))


async def no_longer(broker: RunningBroker, below: Below) -> None:
    request = entry_pb2.BatchUpdateEntryRequest(
        entries=[types.Entry(id=below.entry.id)], input_mask=types.EntryMask(downstream=True)
    )
    await broker.entries.BatchUpdateEntry(request)


@pytest.mark.parametrize("cut", [ban, evict, delete, no_longer], ids=lambda cut: cut.__name__)
async def test_what_takes_it_off_the_list(
    broker: RunningBroker, cut: Callable[[RunningBroker, Below], Awaitable[None]]
) -> None:
    below = await Below.make(broker)
    svid, _ = forge(await below.ca(), ANY)
    before = broker.broker.state.generation
    assert verified(broker, svid) == "ok"
    await cut(broker, below)
    assert verified(broker, svid) == "intermediate_not_listed"
    assert broker.broker.state.generation > before


async def test_a_revoked_key_is_not_certified_again(broker: RunningBroker) -> None:
    below = await Below.make(broker)
    key = generate_key(KeyType.EC_P256)
    await below.ask(key)
    await delete(broker, below)
    below.entry = await broker.entry(PATH, below.agent.path, USER, "registry", downstream=True)
    below.client = await identity(broker, below.agent, below.entry.id)
    assert (await refusal(below.ask(key)))[1] == "a CA with this key is revoked; ask with another key"
    assert await below.ask(generate_key(KeyType.EC_P256))


async def test_an_authority_that_is_revoked_takes_what_it_signed_along(broker: RunningBroker) -> None:
    below = await Below.make(broker)
    svid, _ = forge(await below.ca(), ANY)
    authority = broker.broker.authority
    old = authority.active().authority_id
    made = await authority.prepare()
    await authority.activate(made.authority_id)
    await authority.taint(old)
    # Who stands below has until the next step to ask for another.
    assert verified(broker, svid) == "ok"
    await authority.revoke(old)
    assert verified(broker, svid) == "chain_untrusted"


async def test_the_oldest_give_way(broker: RunningBroker) -> None:
    below, other = await Below.make(broker), await Below.make(broker, path="/segment/registry/other")
    beside = await other.ca()
    first, *rest = [await below.ca() for _ in range(MAX_LIVE)]
    assert verified(broker, forge(first, ANY)[0]) == "ok"
    newest = await below.ca()
    assert verified(broker, forge(first, ANY)[0]) == "intermediate_not_listed"
    for ca in (*rest, newest, beside):
        assert verified(broker, forge(ca, ANY)[0]) == "ok"


async def test_a_restart_forgets_nothing(folder: Path) -> None:
    async with running(folder) as broker:
        ca = await (await Below.make(broker)).ca()
    async with running(folder) as again:
        assert verified(again, forge(ca, ANY)[0]) == "ok"
        assert verified(again, forge(ca, "/segment/inference/x")[0]) == "segment_not_listed"


async def test_many_at_once_stay_within_the_cap(broker: RunningBroker) -> None:
    below = await Below.make(broker)
    await asyncio.gather(*(below.ca() for _ in range(3 * MAX_LIVE)))
    assert len(listed(broker.broker.state, broker.broker.policy.current.policy)) == MAX_LIVE
