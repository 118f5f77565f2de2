# SPDX-License-Identifier: Apache-2.0
"""What a broker writes of what the registrar claims; tests/kubernetes has a real API server tell it."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import pytest

from firedoor.broker.kubernetes.federated_domains import FederatedDomains
from firedoor.broker.kubernetes.lease import Lease
from firedoor.broker.kubernetes.mirror import Mirror, named
from firedoor.broker.kubernetes.registrar import Agents, Registrar
from firedoor.broker.kubernetes.registration import Registration
from firedoor.broker.kubernetes.rights import cluster_api
from firedoor.broker.kubernetes.rules import Cluster
from firedoor.cluster.access import Access
from firedoor.cluster.watch import Watch
from firedoor.wire import types
from tests.broker.harness import RunningBroker, entry, running
from tests.broker.test_registrar import TD, pod, rule
from tests.postgres import Server

POLICY = """\
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {name: a}
spec:
  members: ["spiffe://{td}/segment/a/**"]
  admission: {node: ["k8s_pod:ns:a"]}
"""


class Writing:
    """A registration that nobody tells anything but the test."""

    def __init__(self, broker: RunningBroker, folder: Path) -> None:
        self.state = broker.broker.state
        self.api = api = cluster_api("prod", Access("https://127.0.0.1:1", folder / "ca", folder / "token"))
        self.lease = Lease(api, "firedoor-system", "firedoor-controllers", "me")
        self.registrar = Registrar(Cluster(TD, "prod"), Agents(own=True, of_nodes=False))
        sink: Mirror[str] = Mirror("pods", 10, named, lambda _: "", lambda *_: None)
        self.watch = Watch(api, "/api/v1/pods", "Pod", "pods", sink)
        one = broker.broker
        self.registration = Registration(
            self.registrar,
            "prod",
            [self.watch],
            self.lease,
            self.state,
            one.policy,
            one.audit,
            one.metrics,
            lambda: 500,
        )
        self.registrar.namespace_changed("a", None, {})
        self.hold()

    def hold(self, *, held: bool = True) -> None:
        self.lease._until = math.inf if held else -math.inf

    def pods(self, *numbers: int) -> None:
        for number in numbers:
            self.registrar.pod_changed(f"uid-{number}", None, pod(number))

    async def look(self) -> dict[str, str]:
        """Look; return which hint each of the entries has."""
        await self.registration._look()
        return {one.id: one.hint for one in self.state.entries if one.origin}


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[RunningBroker]:
    async with running(tmp_path, POLICY) as found:
        yield found


@pytest.fixture
def writing(broker: RunningBroker, tmp_path: Path) -> Writing:
    return Writing(broker, tmp_path)


async def test_a_change_of_an_object_changes_all_its_entries_and_their_parts(writing: Writing) -> None:
    writing.pods(*range(1200))
    first = rule("x", hint="one", dnsNames=["one.{ns}.svc", "two.{ns}.svc"])
    writing.registrar.rule_changed(None, first)
    made = await writing.look()
    assert len(made) == 1200
    writing.registrar.rule_changed(first, replace(rule("x", hint="two", dnsNames=["two.{ns}.svc"]), generation=2))
    # One that somebody has changed meanwhile is left, and looked at again.
    odd = min(made)
    there = writing.state.entries.get(odd)
    assert there is not None
    writing.state.entries.put(replace(there, revision_number=7))
    changed = await writing.look()
    assert changed.keys() == made.keys()
    assert {hint for key, hint in changed.items() if key != odd} == {"two"}
    assert writing.registration.refused == {odd: "the entry was changed meanwhile"}
    writing.state.entries.put(there)
    writing.registrar.dirty_entries.add(odd)
    assert set((await writing.look()).values()) == {"two"}
    assert writing.registration.refused == {}
    held = list(writing.state.entries)
    await writing.state.load()
    assert sorted(writing.state.entries, key=attrgetter("id")) == sorted(held, key=attrgetter("id"))
    assert {one.dns_names for one in held if one.origin} == {("two.a.svc",)}


async def test_with_postgresql_too(tmp_path: Path, postgres: Server) -> None:
    url, password_file = postgres.database()
    async with running(tmp_path, POLICY, database=url, database_password_file=str(password_file)) as broker:
        writing = Writing(broker, tmp_path)
        writing.pods(*range(20))
        first = rule("x", hint="one", dnsNames=["one.{ns}.svc"])
        writing.registrar.rule_changed(None, first)
        assert set((await writing.look()).values()) == {"one"}
        second = replace(rule("x", hint="two", dnsNames=["two.{ns}.svc"]), generation=2)
        writing.registrar.rule_changed(first, second)
        assert set((await writing.look()).values()) == {"two"}
        held = list(writing.state.entries)
        await writing.state.load()
        assert sorted(writing.state.entries, key=attrgetter("id")) == sorted(held, key=attrgetter("id"))
        writing.registrar.rule_changed(second, None)
        assert await writing.look() == {}
        await writing.state.load()
        assert not [one for one in writing.state.entries if one.origin]


async def test_an_entry_of_somebody_under_a_name_of_ours_stays(broker: RunningBroker, writing: Writing) -> None:
    writing.pods(1)
    writing.registrar.rule_changed(None, rule("x"))
    writing.registrar.look(["uid-1"])
    (name,) = writing.registrar.everything()
    by_hand: types.Entry = entry("/segment/a/mine", "/node/a", ["unix:uid:1"])
    by_hand.id = name
    (result,) = await broker.create(by_hand)
    assert result.status.code == 0, result.status.message
    assert await writing.look() == {}
    found = writing.state.entries.get(name)
    assert found is not None
    assert found.spiffe_id.path == "/segment/a/mine"
    assert "made by hand" in writing.registration.refused[name]


async def test_what_comes_to_nothing_is_not_counted_again(writing: Writing) -> None:
    writing.pods(1)
    writing.registrar.rule_changed(None, rule("x", id="spiffe://{td}/segment/b/{pod}"))
    assert await writing.look() == {}
    (refused,) = writing.registration.refused
    assert writing.registrar.dirty_rules == {("WorkloadIdentity", "x")}
    writing.registrar.dirty_rules.clear()
    writing.registrar.dirty_entries.add(refused)
    assert await writing.look() == {}
    assert writing.registrar.dirty_rules == set()


async def test_a_broker_that_was_told_nothing_for_a_while_does_not_begin_to_write(writing: Writing) -> None:
    watch = writing.watch
    assert not writing.registration.leads
    watch.listed.set()
    # The API server has forgotten where it was, or does not answer: others may have written since.
    assert not writing.registration.leads
    watch._version, watch.trouble = "9", "it does not answer"
    assert not writing.registration.leads
    watch.trouble = ""
    assert writing.registration.leads
    await writing.look()
    # Who has written all there is goes on.
    watch._version = ""
    assert writing.registration.leads
    writing.hold(held=False)
    assert not writing.registration.leads


async def test_a_generation_is_paid_off_before_the_next(writing: Writing) -> None:
    writing.pods(1)
    writing.registrar.rule_changed(None, rule("x"))
    assert await writing.registration._look()
    assert not await writing.registration._look()
    rest = writing.registration._rest
    assert rest(0.02, wrote=True) == pytest.approx(0.14)
    assert rest(0.02, wrote=False) == pytest.approx(0.04)
    assert rest(60.0, wrote=False) == pytest.approx(2.0)


async def test_who_loses_the_lease_writes_no_further(writing: Writing) -> None:
    writing.pods(1)
    writing.registrar.rule_changed(None, rule("x"))
    writing.hold(held=False)
    assert await writing.look() == {}
    writing.hold()
    assert len(await writing.look()) == 1


async def test_federation_does_not_begin_either(broker: RunningBroker, writing: Writing) -> None:
    federation = broker.broker.federation
    domains = FederatedDomains(writing.api, writing.lease, "prod", federation, writing.state, "/x")
    domains.watch = writing.watch
    writing.watch.listed.set()
    assert not domains._leads()
    writing.watch._version = "9"
    assert domains._leads()
    writing.watch._version = ""
    assert domains._leads()
    writing.hold(held=False)
    assert not domains._leads()
    writing.hold()
    assert not domains._leads()
