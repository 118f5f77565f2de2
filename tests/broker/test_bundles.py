# SPDX-License-Identifier: Apache-2.0
"""SPIRE's Bundle service: our own bundle, others', and what is no bundle."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from firedoor.certs import KeyType, generate_key, public_key_der
from firedoor.wire import bundle_grpc, bundle_pb2, entry_pb2, types
from tests.broker.harness import RunningBroker
from tests.simulator import SimulatedTrustDomain

USER = ["unix:user:registry"]
RESTRICT = bundle_pb2.BatchDeleteFederatedBundleRequest.RESTRICT


def bundle(broker: RunningBroker, name: str = "other.org", **fields: Any) -> types.Bundle:
    roots = [types.X509Certificate(asn1=broker.roots()[0])]
    return types.Bundle(trust_domain=name, x509_authorities=roots, sequence_number=3, refresh_hint=60, **fields)


async def put(broker: RunningBroker, *bundles: types.Bundle) -> list[types.Status]:
    request = bundle_pb2.BatchSetFederatedBundleRequest(bundle=bundles)
    return [r.status for r in (await broker.bundles.BatchSetFederatedBundle(request)).results]


async def test_our_own_bundle_is_for_anybody(broker: RunningBroker) -> None:
    stub = bundle_grpc.BundleStub(broker.client().channel)
    found = await stub.GetBundle(bundle_pb2.GetBundleRequest())
    assert found.trust_domain == "example.org"
    assert [a.asn1 for a in found.x509_authorities] == broker.roots()
    assert (found.sequence_number, found.refresh_hint) == (3, 300)
    mask = types.BundleMask(sequence_number=True)
    masked = await stub.GetBundle(bundle_pb2.GetBundleRequest(output_mask=mask))
    assert [field.name for field, _ in masked.ListFields()] == ["trust_domain", "sequence_number"]


async def test_what_was_set_is_read_back(broker: RunningBroker) -> None:
    key = types.JWTKey(public_key=public_key_der(generate_key(KeyType.EC_P256).public_key()), key_id="k1")
    given = bundle(broker, jwt_authorities=[key])
    assert [s.code for s in await put(broker, given)] == [0]
    agent = await broker.attest()
    request = bundle_pb2.GetFederatedBundleRequest(trust_domain="other.org")
    assert await bundle_grpc.BundleStub(agent.channel).GetFederatedBundle(request) == given
    listed = await broker.bundles.ListFederatedBundles(bundle_pb2.ListFederatedBundlesRequest())
    assert list(listed.bundles) == [given]
    assert (await broker.bundles.CountBundles(bundle_pb2.CountBundlesRequest())).count == 2
    created = await broker.bundles.BatchCreateFederatedBundle(
        bundle_pb2.BatchCreateFederatedBundleRequest(bundle=[given, bundle(broker, "third.org")])
    )
    assert [(r.status.code, r.status.message) for r in created.results] == [(6, "bundle already exists"), (0, "OK")]


BAD = {
    "our own": (lambda b: setattr(b, "trust_domain", "example.org"), "own trust domain is not allowed"),
    "no trust domain": (lambda b: setattr(b, "trust_domain", "A B"), "trust domain argument is not valid"),
    "no certificate": (lambda b: setattr(b.x509_authorities[0], "asn1", b"junk"), "certificate"),
    "no key": (lambda b: b.jwt_authorities.add(key_id="k", public_key=b"junk"), "key"),
    "a curve that nobody takes": (
        lambda b: b.jwt_authorities.add(
            key_id="k",
            public_key=public_key_der(ec.generate_private_key(ec.SECP256K1()).public_key()),  # type: ignore[arg-type]
        ),
        "key",
    ),
    "a hint in the past": (lambda b: setattr(b, "refresh_hint", -1), "refresh hint"),
}


@pytest.mark.parametrize("name", BAD)
async def test_what_is_no_bundle_is_refused_alone(broker: RunningBroker, name: str) -> None:
    change, words = BAD[name]
    wrong = bundle(broker)
    change(wrong)
    bad, twin = await put(broker, wrong, bundle(broker, "third.org"))
    assert (bad.code, words in bad.message) == (3, True), bad
    assert twin.code == 0


async def test_a_bundle_that_entries_need_stays(broker: RunningBroker) -> None:
    await put(broker, bundle(broker))
    made = await broker.entry("/segment/registry/x", "/spire/agent/a", USER, federates_with=["other.org"])

    async def delete(name: str) -> types.Status:
        request = bundle_pb2.BatchDeleteFederatedBundleRequest(trust_domains=[name], mode=RESTRICT)
        return (await broker.bundles.BatchDeleteFederatedBundle(request)).results[0].status

    assert (await delete("other.org")).code == 9
    assert (await delete("nobody.org")).message == "bundle not found"
    await broker.entries.BatchDeleteEntry(entry_pb2.BatchDeleteEntryRequest(ids=[made.id]))
    assert (await delete("other.org")).code == 0
    with pytest.raises(grpc.aio.AioRpcError) as gone:
        await broker.bundles.GetFederatedBundle(bundle_pb2.GetFederatedBundleRequest(trust_domain="other.org"))
    assert (gone.value.code().name, gone.value.details()) == ("NOT_FOUND", "bundle not found")


async def test_entries_forget_a_bundle_or_go_with_it(broker: RunningBroker) -> None:
    modes = bundle_pb2.BatchDeleteFederatedBundleRequest

    async def delete(mode: int) -> types.Status:
        request = modes(trust_domains=["other.org"], mode=mode)  # type: ignore[arg-type]
        return (await broker.bundles.BatchDeleteFederatedBundle(request)).results[0].status

    await put(broker, bundle(broker), bundle(broker, "third.org"))
    made = await broker.entry("/segment/registry/x", "/spire/agent/a", USER, federates_with=["other.org", "third.org"])
    twin = await broker.entry("/segment/registry/y", "/spire/agent/a", USER, federates_with=["third.org"])
    assert (await delete(modes.DISSOCIATE)).code == 0
    shown = await broker.entries.GetEntry(entry_pb2.GetEntryRequest(id=made.id))
    # The revision says so to agents; SPIRE leaves it as it was.
    assert (list(shown.federates_with), shown.revision_number) == (["third.org"], 1)
    await put(broker, bundle(broker))
    request = entry_pb2.BatchUpdateEntryRequest(
        entries=[types.Entry(id=made.id, federates_with=["other.org"])], input_mask=types.EntryMask(federates_with=True)
    )
    await broker.entries.BatchUpdateEntry(request)
    assert (await delete(modes.DELETE)).code == 0
    listed = (await broker.entries.ListEntries(entry_pb2.ListEntriesRequest())).entries
    assert [entry.id for entry in listed] == [twin.id]


async def test_svids_of_entries_that_go_with_a_bundle_are_revoked(broker: RunningBroker) -> None:
    await put(broker, bundle(broker))
    agent = await broker.attest()
    made = await broker.entry("/segment/registry/x", agent.path, USER, federates_with=["other.org"])
    await agent.sign(made.id)
    request = bundle_pb2.BatchDeleteFederatedBundleRequest(
        trust_domains=["other.org"], mode=bundle_pb2.BatchDeleteFederatedBundleRequest.DELETE
    )
    await broker.bundles.BatchDeleteFederatedBundle(request)
    assert [one.reason for one in broker.broker.state.revocations.values()] == ["entry_deleted"]


async def test_an_unknown_mode_deletes_nothing(broker: RunningBroker) -> None:
    await put(broker, bundle(broker))
    request = bundle_pb2.BatchDeleteFederatedBundleRequest(trust_domains=["other.org"], mode=7)  # type: ignore[arg-type]
    with pytest.raises(grpc.aio.AioRpcError, match="unhandled delete mode"):
        await broker.bundles.BatchDeleteFederatedBundle(request)
    assert (await broker.bundles.CountBundles(bundle_pb2.CountBundlesRequest())).count == 2


async def test_updating_what_the_mask_names(broker: RunningBroker) -> None:
    await put(broker, bundle(broker))

    async def update(given: types.Bundle, **mask: bool) -> bundle_pb2.BatchUpdateFederatedBundleResponse.Result:
        fields = {"input_mask": types.BundleMask(**mask)} if mask else {}
        request = bundle_pb2.BatchUpdateFederatedBundleRequest(bundle=[given], **fields)  # type: ignore[arg-type]
        return (await broker.bundles.BatchUpdateFederatedBundle(request)).results[0]

    result = await update(types.Bundle(trust_domain="other.org", refresh_hint=90), refresh_hint=True)
    assert (result.status.code, result.bundle.refresh_hint, result.bundle.sequence_number) == (0, 90, 3)
    assert len(result.bundle.x509_authorities) == 1
    result = await update(types.Bundle(trust_domain="other.org", sequence_number=9))
    assert (len(result.bundle.x509_authorities), result.bundle.sequence_number) == (0, 9)
    absent = await update(types.Bundle(trust_domain="nobody.org"))
    assert (absent.status.code, absent.status.message) == (5, "bundle not found")
    own = await update(types.Bundle(trust_domain="example.org"))
    assert own.status.message == "updating a federated bundle for the server's own trust domain is not allowed"


def public() -> bytes:
    return public_key_der(generate_key(KeyType.EC_P256).public_key())


async def append(broker: RunningBroker, **fields: Any) -> types.Bundle:
    return await broker.bundles.AppendBundle(bundle_pb2.AppendBundleRequest(**fields))


async def test_appending_to_our_own_bundle(broker: RunningBroker) -> None:
    other = SimulatedTrustDomain("example.org", at=broker.broker.clock.now())
    before = await broker.bundle()
    root = types.X509Certificate(asn1=other.roots[0].der)
    jwt, wit = types.JWTKey(key_id="j", public_key=public()), types.WITKey(key_id="w", public_key=public())
    after = await append(broker, x509_authorities=[root], jwt_authorities=[jwt], wit_authorities=[wit])
    assert [a.asn1 for a in after.x509_authorities] == [before.x509_authorities[0].asn1, other.roots[0].der]
    assert (after.jwt_authorities[-1].key_id, after.wit_authorities[-1].key_id) == ("j", "w")
    assert after.sequence_number > before.sequence_number
    again = await append(broker, x509_authorities=[root], jwt_authorities=[jwt])
    assert again == after


async def test_appending_replaces_nothing(broker: RunningBroker) -> None:
    """Whoever could put a key of theirs under the ID of ours would sign as us."""
    before = await broker.bundle()
    for fields in (
        {"jwt_authorities": [types.JWTKey(key_id=before.jwt_authorities[0].key_id, public_key=public())]},
        {"wit_authorities": [types.WITKey(key_id=before.wit_authorities[0].key_id, public_key=public())]},
    ):
        with pytest.raises(grpc.aio.AioRpcError, match="another key of that ID") as refused:
            await append(broker, **fields)
        assert refused.value.code() == grpc.StatusCode.ALREADY_EXISTS
    # The same key, for another kind of token.
    key = before.jwt_authorities[0]
    with pytest.raises(grpc.aio.AioRpcError, match="another kind of SVID"):
        await append(broker, wit_authorities=[types.WITKey(key_id=key.key_id, public_key=key.public_key)])
    assert await broker.bundle() == before


NOT_APPENDED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "no authorities to append"),
    "no certificate": (
        {"x509_authorities": [types.X509Certificate(asn1=b"junk")]},
        "failed to convert X.509 authority",
    ),
    "no key ID": ({"jwt_authorities": [types.JWTKey(public_key=b"x")]}, "missing key ID"),
    "no key": ({"jwt_authorities": [types.JWTKey(key_id="k", public_key=b"junk")]}, "key"),
    "no WIT key": ({"wit_authorities": [types.WITKey(key_id="k", public_key=b"junk")]}, "key"),
    "an end before time": ({"jwt_authorities": [types.JWTKey(key_id="k", expires_at=-1)]}, "no Unix time"),
}


@pytest.mark.parametrize("name", NOT_APPENDED)
async def test_what_cannot_be_appended(broker: RunningBroker, name: str) -> None:
    fields, words = NOT_APPENDED[name]
    before = await broker.bundle()
    with pytest.raises(grpc.aio.AioRpcError, match=words) as refused:
        await append(broker, **fields)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert await broker.bundle() == before


async def test_a_workloads_certificate_is_no_authority(broker: RunningBroker) -> None:
    agent = await broker.attest()
    assert agent.svid is not None
    with pytest.raises(grpc.aio.AioRpcError, match="failed to convert X"):
        await append(broker, x509_authorities=[types.X509Certificate(asn1=agent.svid.chain[0])])
