# SPDX-License-Identifier: Apache-2.0
"""Views are joined from encoded parts; the bytes are those of the whole message."""

import os
from dataclasses import replace

import pytest

from firedoor.broker.authorized import EntryIndex
from firedoor.broker.db.crl_rows import SignedCrl
from firedoor.broker.db.rows import Generation, Revoked
from firedoor.broker.entry import Entry
from firedoor.broker.policy import compile_documents
from firedoor.broker.told import Viewers
from firedoor.broker.views import Shared, View, Viewer
from firedoor.certs import KeyType, Selector, SpiffeId, TrustBundle, TrustDomain, generate_key, issue_ca
from firedoor.segments import Document, Loader
from firedoor.segments.directory import Derived
from firedoor.wire import control_pb2, policy_pb2
from firedoor.wire.views import parts_hash, view_hash
from tests.broker.harness import POLICY

TD, OTHER = TrustDomain.parse("example.org"), TrustDomain.parse("partner.test")
NOW = 1_800_000_000
AGENT = SpiffeId.parse("spiffe://example.org/spire/agent/join_token/a")


def bundle(td: TrustDomain) -> TrustBundle:
    return TrustBundle.of(td, [issue_ca(td, generate_key(KeyType.EC_P256), at=NOW, random=os.urandom).der])


BUNDLES = {td: bundle(td) for td in (TD, OTHER)}
LISTED = {bytes(32): frozenset({"registry", "inference"})}
COMPILED = compile_documents([Document("p.yaml", POLICY)], Loader(TD))


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
    viewer = Viewer(TD, Shared.of(BUNDLES, COMPILED, revocations, LISTED, {"k": frozenset({"registry"})}))
    index = EntryIndex(TD.with_path("/spire/server"), entries(count, federates_with))
    for number, by_parts in ((1, False), (2, True)):
        view = viewer.view(index.entitlement(AGENT, frozenset(), NOW))
        data = viewer.whole(view, Generation(NOW, number), by_parts=by_parts)
        message = control_pb2.FromBroker.FromString(data)
        assert message.SerializeToString(deterministic=True) == data
        update = message.update
        assert (update.generation.epoch, update.generation.number) == (NOW, number)
        assert update.view_hash == (parts_hash if by_parts else view_hash)(update.parts)
        # By deltas a view grows to no more than could be sent whole.
        assert viewer.whole_size(view) <= len(data) < viewer.whole_size(view) + 200
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


def kept(view: View) -> dict[str, object]:
    return {one.entry.id: one for page in view.shown.pages.values() for one in page.items}


def test_what_did_not_change_is_not_made_again() -> None:
    index = EntryIndex(TD.with_path("/spire/server"), entries(3, (OTHER,)))
    ours, theirs = (index.entitlement(AGENT, frozenset(), NOW) for _ in range(2))
    viewers = Viewers(TD)
    viewer = viewers.of(Shared.of(BUNDLES, COMPILED, [], {}, {}))
    first = viewer.view(ours)
    assert viewer.view(ours, first) is first
    assert viewers.of(Shared.of(dict(BUNDLES), COMPILED, [], {}, {})) is viewer
    # Other bundles: the entries stay as they were encoded, and the bytes are those of a view made from nothing.
    changed = {**BUNDLES, OTHER: bundle(OTHER)}
    later = viewers.of(Shared.of(changed, COMPILED, [], {}, {}))
    second = later.view(ours, first)
    assert kept(second) == kept(first)
    assert later.whole(second, Generation(NOW, 2), by_parts=True) == later.whole(
        later.view(theirs), Generation(NOW, 2), by_parts=True
    )
    assert second.view_hash != first.view_hash
    # One entry changes: the others stay.
    index.put(replace(entries(3, ())[1], hint="h"))
    third = later.view(index.entitlement(AGENT, frozenset(), NOW), second)
    assert [one is kept(second)[name] for name, one in sorted(kept(third).items())] == [True, False, True]
    fresh = later.view(index.entitlement(AGENT, frozenset(), NOW))
    assert third.view_hash == fresh.view_hash
    # Another policy: which flows an entry brings is asked again.
    narrow = compile_documents([Document("p.yaml", POLICY.partition("---")[0])], Loader(TD))
    fourth = viewers.of(Shared.of(changed, narrow, [], {}, {})).view(third.entitlement, third)
    assert not any(one is kept(third)[name] for name, one in kept(fourth).items())
    assert [len(one.part.flows) for one in kept(third).values()] == [1, 1, 1]  # type: ignore[attr-defined]
    assert [len(one.part.flows) for one in kept(fourth).values()] == [0, 0, 0]  # type: ignore[attr-defined]


def derived(number: int, segment: str = "registry") -> Derived:
    expect = [f"spiffe://example.org/segment/{segment}/ns/m/sa/s"]
    port = policy_pb2.ServicePort(port=80, protocol=policy_pb2.PROTOCOL_HTTP, expect=expect, service_port=9000)
    service = policy_pb2.Service(name=f"k8s-{number}", addresses=[bytes([10, 96, 0, number])], ports=[port])
    return Derived.of(service, f"Service m/{number}")


def test_a_service_that_was_derived_is_told_by_delta_to_who_could_reach_it() -> None:
    selectors = frozenset([Selector.of("unix", "user:x")])
    index = EntryIndex(TD.with_path("/spire/server"), [])
    for name in ("inference", "registry"):
        parent = TD.with_path(f"/spire/agent/join_token/{name}")
        index.put(Entry(name, TD.with_path(f"/segment/{name}/x"), parent, selectors))
    clients, stores = (
        index.entitlement(TD.with_path(f"/spire/agent/join_token/{name}"), frozenset(), NOW)
        for name in ("inference", "registry")
    )
    viewers, generation = Viewers(TD), Generation(NOW, 1)
    one = {"k8s-1": derived(1)}
    before = viewers.of(Shared.of(BUNDLES, COMPILED, [], {}, {}, (), one))
    client, store = before.view(clients), before.view(stores)
    later = viewers.of(Shared.of(BUNDLES, COMPILED, [], {}, {}, (), {**one, "k8s-2": derived(2)}))
    now = later.view(clients, client)
    assert now.shown is client.shown, "no entry is made again"
    data = later.delta(now, generation, client, generation, before)
    assert data is not None
    delta = control_pb2.FromBroker.FromString(data).update.delta
    (put,) = delta.put
    assert [service.name for service in put.policy.table.services] == ["k8s-2"]
    assert not put.policy.table.flows
    # Both make the same of it, and the whole is in the order that a sidecar keeps.
    whole = control_pb2.FromBroker.FromString(later.whole(now, generation, by_parts=True)).update
    assert whole.view_hash == now.view_hash == parts_hash(whole.parts)
    assert [service.name for service in whole.parts[2].policy.table.services] == ["k8s-1", "k8s-2"]
    # No flow leads there from a store, so that it has nothing of it, and its part is the very one.
    assert later.view(stores, store).view_hash == store.view_hash
    assert later._policy(store.needs[1]) is before._policy(store.needs[1])


def test_services_that_are_there_when_a_policy_is_compiled_are_made_with_it() -> None:
    known = {"k8s-1": derived(1)}
    compiled = compile_documents([Document("p.yaml", POLICY)], Loader(TD), known)
    viewer = Viewer(TD, Shared.of(BUNDLES, compiled, [], {}, {}, (), {**known, "k8s-2": derived(2)}))
    assert viewer.directory.shown["k8s-1"] is compiled.directory.shown["k8s-1"]
    assert sorted(viewer.directory.shown) == ["k8s-1", "k8s-2"]


@pytest.mark.parametrize(
    "changed",
    [
        {"bundles": {TD: BUNDLES[TD]}},
        {"revocations": [Revoked("serial", "1", 0, "left", NOW)]},
        {"policy": compile_documents([Document("p.yaml", POLICY)], Loader(TD))},
        {"intermediates": LISTED},
        {"intermediates": None},
        {"token_keys": {"k": frozenset({"registry"})}},
        {"crls": [SignedCrl("ab", "ab", b"crl", (b"ca",), NOW, 0)]},
        {"directory": {"k8s-a": Derived("k8s-a", "Service m/a", b"")}},
    ],
    ids=lambda one: next(iter(one)),
)
def test_whatever_is_shared_and_changes_has_a_viewer_of_its_own(changed: dict[str, object]) -> None:
    before: dict[str, object] = {
        "bundles": BUNDLES,
        "policy": COMPILED,
        "revocations": [],
        "intermediates": {},
        "token_keys": {},
        "crls": [],
        "directory": {},
    }
    viewers = Viewers(TD)
    first = viewers.of(Shared.of(**before))  # type: ignore[arg-type]
    second = viewers.of(Shared.of(**{**before, **changed}))  # type: ignore[arg-type]
    assert second is not first
    assert viewers.by_number(first.number) is first
    assert viewers.of(Shared.of(**{**before, **changed})) is second  # type: ignore[arg-type]
