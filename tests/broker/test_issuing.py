# SPDX-License-Identifier: Apache-2.0
"""Entitlement and admission: at the entry's writing, and at every signature. Each refusal has its twin."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from firedoor.broker.db.rows import issued_by_serial
from firedoor.certs import KeyType, TrustBundle, TrustDomain, generate_key, parse_x509_svid, verify_x509_svid
from firedoor.wire import entry_pb2, types
from tests.broker.harness import POLICY, RunningBroker, entry, running, selectors, spiffe_id, write_whole
from tests.waiting import async_until

USER = ["unix:user:registry"]
NODE = POLICY.replace(
    'admission: {entry: ["unix:user:registry"]}',
    'admission: {entry: ["unix:user:registry"], node: ["spire_agent:alias:spiffe://example.org/node/gpu-1"]}',
)
STRICTER = POLICY.replace(
    '{entry: ["unix:user:registry"]}', '{entry: ["unix:user:registry", "unix:path:/srv/registry"]}'
)
assert NODE != POLICY != STRICTER

OK, NOT_FOUND, PERMISSION_DENIED, FAILED_PRECONDITION, INVALID, EXISTS = 0, 5, 7, 9, 3, 6


async def change(broker: RunningBroker, policy: str) -> None:
    """Edit the policy file and wait until it is in force. These agents fetch nothing by themselves."""
    broker.broker.policy.reissuer.patience = 0
    write_whole(broker.folder / "policy" / "segments.yaml", policy)
    await broker.broker.reread()
    await async_until(lambda: broker.broker.policy.current.documents[0].text == policy)


async def test_an_entitled_agent_gets_the_entrys_id(broker: RunningBroker) -> None:
    agent = await broker.attest()
    made = await broker.entry("/segment/registry/x", agent.path, USER, x509_svid_ttl=120, dns_names=["models.internal"])
    (result,) = await agent.sign(made.id)
    assert result.status.code == OK
    svid = parse_x509_svid(tuple(result.svid.cert_chain))
    td = TrustDomain.parse("example.org")
    bundle = TrustBundle.of(td, broker.roots())
    verified = verify_x509_svid(svid.chain, {td: bundle}, broker.broker.clock.now())
    assert str(verified.id) == "spiffe://example.org/segment/registry/x"
    assert svid.not_after - svid.not_before == 130
    assert svid.dns_names == ("models.internal",)
    assert result.svid.expires_at == svid.not_after
    found = await broker.broker.database.read(lambda c: issued_by_serial(c, svid.serial, broker.broker.clock.now()))
    assert found is not None
    held = (found.spiffe_id, found.entry_id, found.agent_id)
    assert held == ("spiffe://example.org/segment/registry/x", made.id, agent.id)


async def test_names_in_a_csr_have_no_effect(broker: RunningBroker) -> None:
    agent = await broker.attest()
    made = await broker.entry("/segment/registry/x", agent.path, USER)
    key = generate_key(KeyType.EC_P256)
    for uris in (["spiffe://example.org/segment/training/boss"], ["spiffe://other/x", "spiffe://example.org/a"]):
        names = [x509.UniformResourceIdentifier(uri) for uri in uris]
        request = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "admin")]))
            .add_extension(x509.SubjectAlternativeName([*names, x509.DNSName("admin.internal")]), critical=False)
            .sign(key, hashes.SHA256())
        )
        (result,) = await agent.sign(made.id, csr=request.public_bytes(serialization.Encoding.DER))
        svid = parse_x509_svid(tuple(result.svid.cert_chain))
        assert str(svid.id) == "spiffe://example.org/segment/registry/x"
        assert svid.dns_names == ()
        leaf = x509.load_der_x509_certificate(svid.chain[0])
        assert not leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)


async def test_each_of_a_batch_is_answered_in_its_place(broker: RunningBroker) -> None:
    agent, other = await broker.attest(), await broker.attest()
    mine = await broker.entry("/segment/registry/x", agent.path, USER)
    others = await broker.entry("/segment/registry/y", other.path, USER)
    results = await agent.sign(mine.id, others.id, "no-such-entry", "", mine.id)
    assert [r.status.code for r in results] == [OK, NOT_FOUND, NOT_FOUND, INVALID, OK]
    assert results[1].status.message == "entry not found or not authorized"
    assert results[3].status.message == "missing entry ID"
    assert [bool(r.svid.cert_chain) for r in results] == [True, False, False, False, True]
    assert (await other.sign(others.id))[0].status.code == OK


async def test_a_bad_csr_fails_alone(broker: RunningBroker) -> None:
    agent = await broker.attest()
    made = await broker.entry("/segment/registry/x", agent.path, USER)
    (bad,) = await agent.sign(made.id, csr=b"\x30\x03abc")
    assert (bad.status.code, bad.status.message) == (INVALID, "malformed CSR")
    assert (await agent.sign(made.id))[0].status.code == OK


# --- admission ------------------------------------------------------------------------------------------------------


async def test_an_entry_without_its_segments_selector_is_refused_when_written(broker: RunningBroker) -> None:
    agent = await broker.attest()
    lacking, twin = await broker.create(
        entry("/segment/registry/x", agent.path, ["unix:user:other"]),
        entry("/segment/registry/x", agent.path, ["unix:user:registry"]),
    )
    assert lacking.status.code == PERMISSION_DENIED
    assert "unix:user" in lacking.status.message
    assert "registry" in lacking.status.message
    assert twin.status.code == OK


async def test_an_id_in_no_segment_is_refused_when_written(broker: RunningBroker) -> None:
    agent = await broker.attest()
    outside, twin = await broker.create(
        entry("/elsewhere/x", agent.path, USER), entry("/segment/registry/x", agent.path, USER)
    )
    assert outside.status.code == PERMISSION_DENIED
    assert "belongs to no segment" in outside.status.message
    assert twin.status.code == OK


async def test_an_update_is_admitted_like_a_new_entry(broker: RunningBroker) -> None:
    agent = await broker.attest()
    made = await broker.entry("/segment/registry/x", agent.path, USER)

    async def update(*having: str) -> entry_pb2.BatchUpdateEntryResponse.Result:
        request = entry_pb2.BatchUpdateEntryRequest(
            entries=[types.Entry(id=made.id, selectors=selectors(*having))], input_mask=types.EntryMask(selectors=True)
        )
        return (await broker.entries.BatchUpdateEntry(request)).results[0]

    assert (await update("unix:user:other")).status.code == PERMISSION_DENIED
    changed = await update("unix:user:registry", "unix:path:/srv/registry")
    assert changed.status.code == OK
    assert (changed.entry.revision_number, len(changed.entry.selectors)) == (1, 2)


async def test_a_policy_changed_after_writing_refuses_the_first_svid_and_the_renewal(broker: RunningBroker) -> None:
    agent = await broker.attest()
    made = await broker.entry("/segment/registry/x", agent.path, USER)
    twin = await broker.entry("/segment/registry/y", agent.path, [*USER, "unix:path:/srv/registry"])
    never = await broker.entry("/segment/registry/z", agent.path, USER)
    first = await agent.sign(made.id, twin.id)
    assert [r.status.code for r in first] == [OK, OK]
    await change(broker, STRICTER)
    renewal, renewed_twin, first_one = await agent.sign(made.id, twin.id, never.id)
    assert renewed_twin.status.code == OK
    for refused in (renewal, first_one):
        assert refused.status.code == PERMISSION_DENIED
        assert "unix:path" in refused.status.message
        assert "/srv/registry" not in refused.status.message
    await change(broker, POLICY)
    assert [r.status.code for r in await agent.sign(made.id, never.id)] == [OK, OK]


async def test_a_node_selector_that_the_broker_did_not_attest_refuses(folder: Path) -> None:
    async with running(folder, NODE) as broker:
        plain, gpu = await broker.attest(), await broker.attest(agent_id="/node/gpu-1")
        on_plain = await broker.entry("/segment/registry/x", plain.path, USER)
        on_gpu = await broker.entry("/segment/registry/y", "/node/gpu-1", USER)
        (refused,) = await plain.sign(on_plain.id)
        assert refused.status.code == PERMISSION_DENIED
        assert "spire_agent:alias" in refused.status.message
        assert (await gpu.sign(on_gpu.id))[0].status.code == OK
        # A renewal: the same twins after the policy stops asking, and asks again.
        await change(broker, POLICY)
        assert (await plain.sign(on_plain.id))[0].status.code == OK
        await change(broker, NODE)
        assert (await plain.sign(on_plain.id))[0].status.code == PERMISSION_DENIED
        assert (await gpu.sign(on_gpu.id))[0].status.code == OK


async def test_an_agent_can_be_named_as_node_selector(folder: Path) -> None:
    async with running(folder, None) as broker:
        chosen, other = await broker.attest(), await broker.attest()
        await broker.apply(NODE.replace("alias:spiffe://example.org/node/gpu-1", f"id:{chosen.id}"))
        first = await broker.entry("/segment/registry/x", chosen.path, USER)
        second = await broker.entry("/segment/registry/x", other.path, USER)
        assert (await chosen.sign(first.id))[0].status.code == OK
        assert (await other.sign(second.id))[0].status.code == PERMISSION_DENIED


async def test_without_segments_nothing_is_issued(folder: Path) -> None:
    async with running(folder, None) as broker:
        agent = await broker.attest()
        made = await broker.entry("/segment/registry/x", agent.path, USER)
        (refused,) = await agent.sign(made.id)
        assert refused.status.code == FAILED_PRECONDITION
        assert "--segments" in refused.status.message
        await broker.apply(POLICY)
        assert (await agent.sign(made.id))[0].status.code == OK


async def test_nothing_is_issued_for_a_node_alias(broker: RunningBroker) -> None:
    agent = await broker.attest(agent_id="/node/gpu-1")
    (alias,) = list(broker.broker.state.entries)
    below = await broker.entry("/segment/registry/x", "/node/gpu-1", USER)
    assert [e.id for e in await agent.entries()] == [below.id]
    assert [r.status.code for r in await agent.sign(alias.id, below.id)] == [NOT_FOUND, OK]


async def test_a_deleted_entry_is_issued_no_more_and_what_was_is_revoked(broker: RunningBroker) -> None:
    agent = await broker.attest()
    made = await broker.entry("/segment/registry/x", agent.path, USER)
    twin = await broker.entry("/segment/registry/y", agent.path, USER)
    first, second = await agent.sign(made.id, twin.id)
    await broker.entries.BatchDeleteEntry(entry_pb2.BatchDeleteEntryRequest(ids=[made.id]))
    assert [r.status.code for r in await agent.sign(made.id, twin.id)] == [NOT_FOUND, OK]
    revoked = {value for _, value in broker.broker.state.revocations}
    assert parse_x509_svid(tuple(first.svid.cert_chain)).serial in revoked
    assert parse_x509_svid(tuple(second.svid.cert_chain)).serial not in revoked


async def test_an_svid_never_outlives_its_authority(folder: Path) -> None:
    async with running(folder, ca_ttl="60s") as broker:
        agent = await broker.attest()
        made = await broker.entry("/segment/registry/x", agent.path, USER, x509_svid_ttl=7200)
        (result,) = await agent.sign(made.id)
        assert result.svid.expires_at <= broker.broker.authority.not_after


async def test_an_agent_that_is_not_the_parent_gets_nothing(broker: RunningBroker) -> None:
    agent, other = await broker.attest(), await broker.attest()
    made = await broker.entry("/segment/registry/x", agent.path, USER)
    nested = await broker.entry("/segment/inference/y", "/segment/registry/x", ["unix:user:inference"])
    assert {e.id for e in await agent.entries()} == {made.id, nested.id}
    assert await other.entries() == []
    assert [r.status.code for r in await agent.sign(made.id, nested.id)] == [OK, OK]
    assert [r.status.code for r in await other.sign(made.id, nested.id)] == [NOT_FOUND, NOT_FOUND]


@pytest.mark.parametrize("path", ["/spire/server", "/spire/agent/x", "/spire", ""])
async def test_reserved_ids_cannot_be_entries(broker: RunningBroker, path: str) -> None:
    wrong = entry("/segment/registry/x", "/spire/agent/a", USER)
    wrong.spiffe_id.CopyFrom(spiffe_id(path))
    bad, twin = await broker.create(wrong, entry("/segment/registry/x", "/spire/agent/a", USER))
    assert bad.status.code == INVALID
    assert twin.status.code == OK
