# SPDX-License-Identifier: Apache-2.0
"""Views are joined from encoded parts; the bytes are those of the whole message."""

import os
from dataclasses import replace

import pytest

from firedoor.broker.authorized import EntryIndex
from firedoor.broker.db.rows import Generation, Revoked
from firedoor.broker.entry import Entry
from firedoor.broker.policy import compile_documents
from firedoor.broker.views import Viewer
from firedoor.certs import KeyType, Selector, SpiffeId, TrustBundle, TrustDomain, generate_key, issue_ca
from firedoor.segments import Document
from firedoor.wire import control_pb2
from firedoor.wire.views import view_hash
from tests.broker.harness import POLICY

TD, OTHER = TrustDomain.parse("example.org"), TrustDomain.parse("partner.test")
NOW = 1_800_000_000
AGENT = SpiffeId.parse("spiffe://example.org/spire/agent/join_token/a")


def bundle(td: TrustDomain) -> TrustBundle:
    return TrustBundle.of(td, [issue_ca(td, generate_key(KeyType.EC_P256), at=NOW, random=os.urandom).der])


BUNDLES = {td: bundle(td) for td in (TD, OTHER)}
LISTED = {bytes(32): frozenset({"registry", "inference"})}
COMPILED = compile_documents([Document("p.yaml", POLICY)], TD)


def entries(count: int, federates_with: tuple[TrustDomain, ...]) -> list[Entry]:
    selectors = frozenset([Selector.of("unix", "user:registry")])
    return [
        Entry(f"entry-{n:03}", TD.with_path(f"/segment/registry/w{n}"), AGENT, selectors, federates_with=federates_with)
        for n in range(count)
    ]


@pytest.mark.parametrize("federates_with", [(), (OTHER,)], ids=["alone", "federated"])
@pytest.mark.parametrize("revoked", [0, 1, 500])
@pytest.mark.parametrize("count", [0, 1, 3, 200])
def test_the_bytes_of_the_whole_message(count: int, revoked: int, federates_with: tuple[TrustDomain, ...]) -> None:
    revocations = [Revoked("serial", f"{number:x}", 0, "left", NOW) for number in range(1, revoked + 1)]
    viewer = Viewer(TD, BUNDLES, COMPILED, revocations, LISTED, {"k": frozenset({"registry"})})
    index = EntryIndex(TD.with_path("/spire/server"), entries(count, federates_with))
    for number in (1, 2):
        data = viewer.view(index.entitlement(AGENT, frozenset(), NOW)).update(Generation(NOW, number))
        message = control_pb2.FromBroker.FromString(data)
        assert message.SerializeToString(deterministic=True) == data
        update = message.update
        assert (update.generation.epoch, update.generation.number) == (NOW, number)
        assert update.view_hash == view_hash(update.parts)
        assert [part.WhichOneof("kind") for part in update.parts] == ["entries", "bundles", "policy", "revocations"]
        assert [one.id for one in update.parts[0].entries.entries] == [f"entry-{n:03}" for n in range(count)]
        federated = bool(count) and bool(federates_with)
        assert {one.trust_domain for one in update.parts[1].bundles.bundles} == (
            {"example.org", "partner.test"} if federated else {"example.org"}
        )
        (one,) = update.parts[1].bundles.intermediates
        assert (one.key_sha256, list(one.segments)) == (bytes(32), ["inference", "registry"])
        assert update.parts[1].bundles.intermediates_complete
        assert [(one.key_id, list(one.segments)) for one in update.parts[1].bundles.token_keys] == [("k", ["registry"])]
        assert bool(update.parts[2].policy.table.flows) is bool(count)
        assert len(update.parts[3].revocations.revocations) == revoked


def test_what_did_not_change_is_not_made_again() -> None:
    index = EntryIndex(TD.with_path("/spire/server"), entries(3, (OTHER,)))
    ours, theirs = (index.entitlement(AGENT, frozenset(), NOW) for _ in range(2))
    viewer = Viewer(TD, BUNDLES, COMPILED, [], {}, {})
    first = viewer.view(ours)
    assert viewer.view(ours, first) is first
    # Other bundles: the entries stay as they were encoded, and the bytes are those of a view made from nothing.
    assert viewer.is_of(dict(BUNDLES), COMPILED, [], {}, {})
    changed = {**BUNDLES, OTHER: bundle(OTHER)}
    assert not viewer.is_of(changed, COMPILED, [], {}, {})
    assert not viewer.is_of(BUNDLES, COMPILED, [Revoked("serial", "1", 0, "left", NOW)], {}, {})
    assert not viewer.is_of(BUNDLES, compile_documents([Document("p.yaml", POLICY)], TD), [], {}, {})
    assert not viewer.is_of(BUNDLES, COMPILED, [], LISTED, {})
    assert not viewer.is_of(BUNDLES, COMPILED, [], {}, {"k": frozenset()})
    later = Viewer(TD, changed, COMPILED, [], {}, {})
    second = later.view(ours, first)
    assert all(one is first.shown[name] for name, one in second.shown.items())
    assert second.update(Generation(NOW, 2)) == later.view(theirs).update(Generation(NOW, 2))
    assert second.view_hash != first.view_hash
    # One entry changes: the others stay.
    index.put(replace(entries(3, ())[1], hint="h"))
    third = later.view(index.entitlement(AGENT, frozenset(), NOW), second)
    assert [one is second.shown[name] for name, one in third.shown.items()] == [True, False, True]
    fresh = later.view(index.entitlement(AGENT, frozenset(), NOW))
    assert third.update(Generation(NOW, 3)) == fresh.update(Generation(NOW, 3))
    # Another policy: which flows an entry brings is asked again.
    other = Viewer(TD, changed, compile_documents([Document("p.yaml", POLICY.partition("---")[0])], TD), [], {}, {})
    fourth = other.view(third.entitlement, third)
    assert not any(one is third.shown[name] for name, one in fourth.shown.items())
    assert [len(one.part.flows) for one in third.shown.values()] == [1, 1, 1]
    assert [len(one.part.flows) for one in fourth.shown.values()] == [0, 0, 0]
