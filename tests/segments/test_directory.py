# SPDX-License-Identifier: Apache-2.0
"""Services that no document declares, beside those of a policy."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firedoor.certs import TrustDomain
from firedoor.mtls import Engine
from firedoor.segments import Document, Views, compile_table, directory, load
from firedoor.segments.directory import Derived, Directory, without
from firedoor.wire import policy_pb2

TD = TrustDomain.parse("example.org")
POLICY = """\
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {name: registry}
spec: {function: r, members: ["spiffe://{td}/segment/registry/**"], admission: {node: ["k8s_pod:ns:models"]}}
---
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {name: inference}
spec: {function: i, members: ["spiffe://{td}/segment/inference/**"], admission: {node: ["k8s_pod:ns:serving"]}}
---
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {name: trial}
spec: {function: t, mode: audit, members: ["spiffe://{td}/segment/trial/**"], admission: {node: ["k8s_pod:ns:trial"]}}
---
apiVersion: firedoor.dev/v1alpha1
kind: Flow
metadata: {name: pulls}
spec:
  owner: o
  reason: r
  from: {segment: inference}
  to: {segment: registry, port: 9000}
  allow: [{tcp: {}}]
"""
DECLARED = """\
---
apiVersion: firedoor.dev/v1alpha1
kind: Service
metadata: {name: declared}
spec:
  addresses: [10.96.0.7, 10.0.0.1]
  ports: [{port: 80, service_port: 9000, expect: ["spiffe://{td}/segment/registry/ns/other/**"]}]
"""


def views(text: str = POLICY) -> Views:
    return Views(compile_table(load([Document("p.yaml", text)], TD)))


def derived(
    name: str, addresses: Iterable[str], *ports: int, to: int = 9000, expect: str = "registry/ns/m/sa/s"
) -> Derived:
    made = policy_pb2.Service(
        name=name,
        addresses=[ipaddress.ip_address(one).packed for one in addresses],
        ports=[
            policy_pb2.ServicePort(
                port=one,
                protocol=policy_pb2.PROTOCOL_TCP,
                expect=[f"spiffe://example.org/segment/{expect}"],
                service_port=to,
            )
            for one in ports
        ],
    )
    return Derived.of(made, f"Service m/{name}")


def all_of(*found: Derived) -> dict[str, Derived]:
    return {one.name: one for one in found}


def names(views_: Views, shown: Directory, segment: str) -> list[str]:
    part = views_.part(segment, TD.with_path(f"/segment/{segment}/x"))
    return sorted(shown.items(part))


def test_who_could_reach_a_service_is_told_of_it() -> None:
    policy = views()
    found = all_of(
        derived("k8s-a", ["10.96.0.7"], 80),
        derived("k8s-b", ["10.96.0.8"], 80, to=9001),
        derived("k8s-c", ["10.96.0.9"], 80, expect="inference/ns/m/sa/s"),
    )
    shown = Directory(policy, found)
    assert names(policy, shown, "inference") == ["k8s-a"]
    assert names(policy, shown, "registry") == []
    assert names(policy, shown, "trial") == ["k8s-a", "k8s-b", "k8s-c"]
    assert [source for _, source in shown.services()] == ["Service m/k8s-a", "Service m/k8s-b", "Service m/k8s-c"]


def test_what_is_declared_counts_before_what_is_derived() -> None:
    policy = views(POLICY + DECLARED)
    one = derived("k8s-a", ["10.96.0.7", "10.96.0.8", "10.0.0.1"], 80, 81)
    shown = Directory(policy, all_of(one, derived("declared", ["10.9.9.9"], 1), derived("k8s-z", ["10.0.0.1"], 80)))
    found = {
        (str(ipaddress.ip_address(address)), port.port)
        for made, _ in shown.services()
        for address in made.addresses
        for port in made.ports
    }
    assert found == {("10.96.0.7", 81), ("10.0.0.1", 81), ("10.96.0.8", 80), ("10.96.0.8", 81)}
    assert names(policy, shown, "inference") == ["k8s-a", "k8s-a-2"]
    # The engine takes both together.
    _engine_takes(policy, shown)


def _engine_takes(policy: Views, shown: Directory) -> None:
    part = policy.part("trial", TD.with_path("/segment/trial/x"))
    head, (segments, flows, services) = policy.part_items(part)
    services = {**shown.items(part), **services}
    table = b"".join((head, *segments.values(), *flows.values(), *(services[name] for name in sorted(services))))
    Engine(table)


def test_what_there_is_no_room_for_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "MAX_ROWS", 5)
    policy = views(POLICY + DECLARED)
    shown = Directory(policy, all_of(*(derived(f"k8s-{n}", [f"10.1.0.{n}"], 80, 81) for n in range(1, 4))))
    assert shown.left_out == ("k8s-2", "k8s-3")
    monkeypatch.setattr(directory, "MAX_SERVICES", 2)
    monkeypatch.setattr(directory, "MAX_ROWS", 100)
    assert Directory(policy, all_of(derived("k8s-1", ["10.1.0.1"], 1), derived("k8s-2", ["10.1.0.2"], 1))).left_out


def test_what_did_not_change_is_not_made_again() -> None:
    policy = views()
    before = Directory(policy, all_of(derived("k8s-a", ["10.96.0.7"], 80), derived("k8s-b", ["10.96.0.8"], 80)))
    after = Directory(policy, all_of(derived("k8s-a", ["10.96.0.7"], 80), derived("k8s-b", ["10.96.0.9"], 80)), before)
    assert after.shown["k8s-a"] is before.shown["k8s-a"]
    assert after.shown["k8s-b"] is not before.shown["k8s-b"]
    assert Directory(views(), {}, after).shown == {}


@given(
    st.dictionaries(st.integers(1, 6), st.frozensets(st.integers(1, 4), min_size=1), max_size=4),
    st.lists(st.tuples(st.frozensets(st.integers(1, 6), max_size=3), st.frozensets(st.integers(1, 4), min_size=1))),
)
def test_the_engine_takes_whatever_is_declared_and_derived(
    declared: dict[int, frozenset[int]], found: list[tuple[frozenset[int], frozenset[int]]]
) -> None:
    text = POLICY
    for number, numbers in declared.items():
        listed = ", ".join(
            f"{{port: {one}, expect: ['spiffe://{{td}}/segment/registry/**']}}" for one in sorted(numbers)
        )
        spec = f"{{addresses: [10.0.0.{number}], ports: [{listed}]}}"
        head = "---\napiVersion: firedoor.dev/v1alpha1\nkind: Service\n"
        text += f"{head}metadata: {{name: d{number}}}\nspec: {spec}\n"
    policy, seen, made = views(text), set[int](), list[Derived]()
    for number, (addresses, numbers) in enumerate(found):
        # Each address is of one that is derived, as they are made.
        if own := addresses - seen:
            made.append(derived(f"k8s-{number}", [f"10.0.0.{one}" for one in sorted(own)], *sorted(numbers)))
        seen |= addresses
    _engine_takes(policy, Directory(policy, all_of(*made)))


places = st.sampled_from([f"10.0.0.{n}" for n in range(4)])
ports = st.integers(1, 4)


@given(
    st.sets(places, min_size=1),
    st.sets(ports, min_size=1),
    st.dictionaries(places, st.frozensets(ports, min_size=1)),
)
def test_cutting_out_leaves_what_is_not_taken(
    addresses: set[str], numbers: set[int], taken: dict[str, frozenset[int]]
) -> None:
    whole = derived("s", sorted(addresses), *sorted(numbers)).service()
    packed = {ipaddress.ip_address(one).packed: some for one, some in taken.items()}
    left = [
        (str(ipaddress.ip_address(address)), port.port)
        for one in without(whole, packed)
        for address in one.addresses
        for port in one.ports
    ]
    expected = {(one, number) for one in addresses for number in numbers if number not in taken.get(one, ())}
    assert len(left) == len(set(left))
    assert set(left) == expected
