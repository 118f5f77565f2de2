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
