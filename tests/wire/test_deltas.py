# SPDX-License-Identifier: Apache-2.0
"""Updates by delta, both ends together: whatever changes and is lost, a view is that of the broker, to the byte."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firedoor.broker.authorized import Entitlements, EntryIndex
from firedoor.broker.db.crl_rows import SignedCrl
from firedoor.broker.db.rows import Generation, Revoked
from firedoor.broker.entry import Entry
from firedoor.broker.policy import compile_documents
from firedoor.broker.told import MAX_VIEWERS, MAX_VIEWS, Told, Viewers
from firedoor.broker.views import Shared, View
from firedoor.certs import KeyType, Selector, TrustBundle, TrustDomain, generate_key, issue_ca
from firedoor.segments import Document, Loader
from firedoor.sidecar import deltas
from firedoor.sidecar.deltas import Bases
from firedoor.sidecar.errors import UpdateRefused
from firedoor.sidecar.view import check_update, read_checked, read_update
from firedoor.wire import control_pb2
from firedoor.wire.views import parts_hash
from tests.broker.harness import POLICY

# Trust domains and names on both sides of our own, which stands first.
TD, BEFORE, AFTER = (TrustDomain.parse(name) for name in ("example.org", "a.test", "z.test"))
AGENT = TD.with_path("/spire/agent/join_token/a")
NOW = 1_800_000_000


def bundle(td: TrustDomain) -> TrustBundle:
    return TrustBundle.of(td, [issue_ca(td, generate_key(KeyType.EC_P256), at=NOW, random=os.urandom).der])


OWN, FOREIGN = [bundle(TD) for _ in range(2)], {td: [bundle(td) for _ in range(2)] for td in (BEFORE, AFTER)}
# Flows come and go, change, and change their order; the last has no flow at all.
POLICIES = [
    compile_documents([Document("p.yaml", text)], Loader(TD))
    for text in (
        POLICY,
        POLICY.replace("port: 9000", "port: 9001"),
        POLICY.replace("inference-pulls-models", "a-flow"),
        POLICY.partition("---")[0],
    )
]


class World:
    """What a broker publishes, in two ways: to a sidecar that follows by deltas, and made from nothing."""

    def __init__(self) -> None:
        self.index = EntryIndex(TD.with_path("/spire/server"))
        self.kept = Entitlements(self.index, TD.with_path("/spire/server"))
        self.own, self.foreign, self.policy = 0, {BEFORE: 0}, 0
        self.revoked: dict[str, Revoked] = {}
        self.cas: dict[bytes, frozenset[str]] | None = {}
        self.keys: dict[str, frozenset[str]] = {}
        self.crls: dict[str, SignedCrl] = {}
        self.knows_crls = True
        self.number = 0
        self.viewers, self.told, self.bases = Viewers(TD), Told(), Bases()
        self.view = None  # type: ignore[var-annotated]
        self.sent: list[tuple[View, bytes]] = []
        self.deltas = 0
        self.refused: list[str] = []

    def shared(self) -> Shared:
        bundles = {TD: OWN[self.own], **{td: FOREIGN[td][which] for td, which in self.foreign.items()}}
        crls = [self.crls[name] for name in sorted(self.crls)]
        return Shared.of(bundles, POLICIES[self.policy], self.revoked.values(), self.cas, self.keys, crls)

    def change(self, what: str, which: int) -> None:
        match what:
            case "put":
                path = ("/segment/registry", "/segment/inference", "/elsewhere")[which % 3]
                federates = ((), (BEFORE,), (AFTER,), (BEFORE, AFTER))[which % 4]
                selectors = frozenset([Selector.of("unix", f"uid:{which}")])
                made = Entry(f"e{which % 7}", TD.with_path(f"{path}/w{which}"), AGENT, selectors, 0, 0, federates)
                self.index.put(made)
            case "touch":
                found = self.index.get(f"e{which % 7}")
                if found is not None:
                    self.index.put(replace(found, hint=f"h{which}"))
            case "remove":
                self.index.remove(f"e{which % 7}")
            case "own":
                self.own = which % 2
            case "foreign":
                self.foreign = ({}, {BEFORE: 0}, {BEFORE: 1, AFTER: 0}, {AFTER: 1})[which % 4]
            case "policy":
                self.policy = which % len(POLICIES)
            case "revoke":
                kind = ("serial", "authority", "pattern")[which % 3]
                value = f"spiffe://example.org/w{which}/*" if kind == "pattern" else f"{which:x}"
                self.revoked[f"{which % 7}"] = Revoked(kind, value, NOW + which, "left", NOW)
            case "expire":
                self.revoked.pop(f"{which % 7}", None)
            case "crl":
                name = f"{which % 4}"
                self.crls[name] = SignedCrl(name, name, f"crl {which}".encode(), (b"ca",) * (which % 3), NOW, 0)
            case "no crl":
                self.crls.pop(f"{which % 4}", None)
            case "crls":
                # It is replaced by one of another version.
                self.knows_crls = bool(which % 2)
            case "cas":
                self.cas = (None, {}, {bytes(32): frozenset({"a"})}, {bytes(32): frozenset(), b"\1" * 32: frozenset()})[
                    which % 4
                ]
            case "keys":
                self.keys = ({}, {"k": frozenset({"a"})}, {"k": frozenset({"b"}), "a": frozenset()})[which % 3]

    def publish(self) -> None:
        """Send what the broker would; what was sent and has not arrived is replaced, as the core does it."""
        self.number += 1
        generation = Generation(NOW, self.number)
        viewer = self.viewers.of(self.shared())
        view = viewer.view(self.kept.of(AGENT, frozenset(), NOW), self.told.view, crls=self.knows_crls)
        update, found = None, self.told.base(view)
        if found is not None:
            update = viewer.delta(view, generation, found[1], found[0], self.viewers.by_number(found[1].viewer))
        self.told.told(view, by_delta=update is not None)
        self.sent = [(view, update or viewer.whole(view, generation, by_parts=True))]

    def arrive(self) -> None:
        """Take the update as a sidecar does, and compare with a view that is made from nothing."""
        for _, data in self.sent:
            update = control_pb2.FromBroker.FromString(data).update
            running = self.view.generation if self.view else None
            try:
                if update.HasField("base"):
                    check_update(update, running)
                    update = deltas.whole(self.bases.find(update.delta.base_hash), update, TD)
                    view = read_checked(update, TD)
                    self.deltas += 1
                else:
                    view = read_update(update, TD, running)
            except UpdateRefused as error:
                self.refused.append(error.nack)
                self.told.refused()
                continue
            fresh = Viewers(TD).of(self.shared())
            whole = fresh.view(self.index.entitlement(AGENT, frozenset(), NOW), crls=self.knows_crls)
            assert len(view.crls) == (len(self.crls) if self.knows_crls else 0)
            want = control_pb2.FromBroker.FromString(
                fresh.whole(whole, Generation(NOW, self.number), by_parts=True)
            ).update
            assert update.SerializeToString(deterministic=True) == want.SerializeToString(deterministic=True)
            assert update.view_hash == parts_hash(update.parts) == whole.view_hash
            self.view = view
            self.bases.runs(update)
        self.sent = []

    def say(self, *, lost: bool) -> None:
        """Acknowledge; the news may be lost, or not have come yet."""
        if self.view is None:
            return
        self.bases.said(self.view.hash)
        if not lost:
            self.told.runs(Generation(*self.view.generation), self.view.hash)

    def restart(self) -> None:
        """Begin anew with what is stored: what ran."""
        running = self.bases._running
        self.bases = Bases()
        if running is not None:
            self.bases.runs(running)
        self.say(lost=False)


_changes = st.tuples(
    st.sampled_from(
        [
            *("put", "touch", "remove", "own", "foreign", "policy", "revoke", "expire", "cas", "keys"),
            *("crl", "no crl", "crls"),
        ]
    ),
    st.integers(0, 30),
)
_steps = st.one_of(
    _changes,
    st.sampled_from([("publish", 0), ("publish", 0), ("arrive", 0), ("arrive", 0), ("say", 0), ("say", 0)]),
    st.sampled_from([("lose", 0), ("restart", 0), ("reconnect", 0)]),
)


@given(st.lists(_steps, max_size=60))
def test_deltas_make_the_whole_view(steps: list[tuple[str, int]]) -> None:
    world = World()
    for what, which in steps:
        match what:
            case "publish":
                # It is replaced before it arrives.
                world.publish()
            case "arrive":
                world.publish()
                world.arrive()
            case "say":
                world.say(lost=False)
            case "lose":
                world.say(lost=True)
            case "restart":
                world.restart()
            case "reconnect":
                # Another broker, or this one started anew, has told it nothing yet.
                world.told, world.viewers = Told(), Viewers(TD)
                world.say(lost=False)
            case _:
                world.change(what, which)
    world.publish()
    world.arrive()
    # The one thing that may happen: it was started anew, or what it said was lost.
    assert set(world.refused) <= {"unknown_base"}


def following() -> World:
    world = World()
    for number in range(5):
        world.change("put", number)
    world.publish()
    world.arrive()
    world.say(lost=False)
    return world


def test_a_change_is_a_few_bytes_of_many() -> None:
    world = following()
    world.change("touch", 3)
    world.publish()
    ((_, data),) = world.sent
    update = control_pb2.FromBroker.FromString(data).update
    assert [one.id for part in update.delta.put for one in part.entries.entries] == ["e3"]
    assert not update.delta.HasField("removed")
    world.arrive()
    # With nothing for it.
    world.say(lost=False)
    world.publish()
    ((_, data),) = world.sent
    assert len(data) < 120
    world.arrive()
    assert world.deltas == 2


def test_nobody_is_sent_a_delta_upon_what_it_did_not_say() -> None:
    world = following()
    said = world.view.hash
    for number in range(1, 5):
        world.change("touch", number)
        world.publish()
        ((_, data),) = world.sent
        assert control_pb2.FromBroker.FromString(data).update.delta.base_hash == said
        if number % 2:
            world.arrive()
    world.arrive()
    assert not world.refused


def test_who_is_far_behind_is_sent_all() -> None:
    world = following()
    for number in range(MAX_VIEWS + 3):
        world.change("touch", 7 * number + number % 5)
        world.publish()
    # What it runs is remembered however many came after it.
    assert len(world.told._views) == MAX_VIEWS
    assert control_pb2.FromBroker.FromString(world.sent[0][1]).update.HasField("base")
    for number in range(MAX_VIEWERS + 1):
        world.change("revoke", number)
        world.publish()
    # But not what all shared then.
    assert not control_pb2.FromBroker.FromString(world.sent[0][1]).update.HasField("base")
    world.arrive()
    assert len(world.viewers._recent) == MAX_VIEWERS


def test_a_sidecar_that_has_what_is_told_is_told_no_more_by_a_broker_that_never_heard_of_it() -> None:
    world = following()
    world.told, world.viewers = Told(), Viewers(TD)
    world.say(lost=False)
    world.publish()
    ((_, data),) = world.sent
    assert len(data) < 120
    world.arrive()


def test_a_refusal_has_all_of_it_sent_once() -> None:
    world = following()
    world.publish()
    assert world.told.refused()
    world.publish()
    assert not control_pb2.FromBroker.FromString(world.sent[0][1]).update.HasField("base")
    assert not world.told.refused()


@pytest.mark.parametrize("size", [0, 1, 40, 600])
def test_the_hash_of_pages_is_the_same_at_both_ends(size: int) -> None:
    world = World()
    selectors = frozenset([Selector.of("unix", "uid:1")])
    for number in range(size):
        world.index.put(Entry(f"{number:x}", TD.with_path(f"/w/{number}"), AGENT, selectors))
    world.publish()
    world.arrive()
    assert len(world.view.entries) == size
