# SPDX-License-Identifier: Apache-2.0
"""What the directory takes from a cluster's Services, EndpointSlices and Pods, and what it takes from nobody."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firedoor.broker.kubernetes import endpoint_index
from firedoor.broker.kubernetes.endpoint_index import EndpointIndex
from firedoor.broker.kubernetes.endpoint_records import key_of, read_pod, read_service, read_slice, uid_of
from firedoor.certs import TrustDomain
from firedoor.segments.directory import MAX_ADDRESSES, MAX_EXPECT, MAX_PORTS
from firedoor.segments.membership import reserved_for
from firedoor.wire import policy_pb2

TD = TrustDomain.parse("example.org")
# Address and port: protocol, service port, who is expected.
Rows = dict[tuple[str, int], tuple[str, int, tuple[str, ...]]]
Seen = dict[str, Any]


def pod(name: str, address: str, namespace: str = "models", segment: str | None = "registry", **how: Any) -> Seen:
    labels = {} if segment is None else {"firedoor.dev/segment": segment}
    metadata = {"namespace": namespace, "name": name, "uid": f"uid-{namespace}-{name}", "labels": labels}
    metadata |= {"creationTimestamp": how.pop("created", "2026-01-01T00:00:00Z")}
    said = {"ports": how.pop("ports", ""), "capture.exclude": how.pop("exclude", "")}
    metadata["annotations"] = {f"firedoor.dev/{key}": text for key, text in said.items() if text}
    if how.pop("going", False):
        metadata["deletionTimestamp"] = "2026-01-02T00:00:00Z"
    status = {"phase": how.pop("phase", "Running"), "podIPs": [{"ip": one} for one in address.split()]}
    return {"metadata": metadata, "spec": {"serviceAccountName": how.pop("account", "store"), **how}, "status": status}


def service(name: str, address: str, *ports: Seen, namespace: str = "models", **spec: Any) -> Seen:
    addresses = address.split()
    ours = {"clusterIP": addresses[0], "clusterIPs": addresses, "ports": list(ports), **spec}
    metadata = {"namespace": namespace, "name": name, "creationTimestamp": "2026-01-01T00:00:00Z"}
    return {"metadata": metadata, "spec": ours}


def port(number: int, name: str = "", **how: Any) -> Seen:
    return {"port": number, "name": name, "protocol": "TCP", **how}


def target(of: Seen, *addresses: str, **how: Any) -> Seen:
    """Return the endpoint that a controller makes of a pod."""
    metadata = of["metadata"]
    named = {"kind": "Pod", "name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"]}
    listed = list(addresses) or [of["status"]["podIPs"][0]["ip"]]
    return {"addresses": listed, "targetRef": named | how, "conditions": {"ready": True}}


def slice_of(of: str, *endpoints: Seen, ports: list[Seen], namespace: str = "models", name: str = "") -> Seen:
    labels = {"kubernetes.io/service-name": of}
    metadata = {"namespace": namespace, "name": name or f"{of}-abcde", "labels": labels}
    return {"metadata": metadata, "addressType": "IPv4", "ports": ports, "endpoints": list(endpoints)}


def put(index: EndpointIndex, *all_: Seen) -> None:
    for seen in all_:
        if "endpoints" in seen:
            index.slice(key_of(seen), read_slice(seen))
        elif "status" in seen:
            index.pod(uid_of(seen), read_pod(seen))
        else:
            index.service(key_of(seen), read_service(seen))


def rows(index: EndpointIndex) -> Rows:
    """Derive, and return all rows; each stands once, as a sidecar demands."""
    for _ in index.derive():
        pass
    assert index.settled
    found: Rows = {}
    for name, one in index.derived().items():
        made = one.service()
        assert made.name == name == one.name
        assert len(name) <= 58
        assert 0 < len(made.addresses) <= MAX_ADDRESSES
        assert 0 < len(made.ports) <= MAX_PORTS
        assert list(made.addresses) == sorted(made.addresses, key=lambda packed: (len(packed), packed))
        for each in made.ports:
            for address in made.addresses:
                place = str(ipaddress.ip_address(address)), each.port
                assert place not in found, f"{place} stands twice"
                protocol = policy_pb2.Protocol.Name(each.protocol).removeprefix("PROTOCOL_").lower()
                found[place] = protocol, each.service_port, tuple(each.expect)
    return found


def derived(*all_: Seen) -> Rows:
    index = EndpointIndex(TD)
    put(index, *all_)
    return rows(index)


def sid(namespace: str = "models", account: str = "store", segment: str = "registry") -> str:
    return f"spiffe://example.org/segment/{segment}/ns/{namespace}/sa/{account}"


ONE = pod("a-0", "10.0.0.1")
OPEN = slice_of("a", target(ONE), ports=[port(9000)])


def test_cluster_ips_lead_to_who_is_behind_and_a_pod_to_itself() -> None:
    other = pod("a-1", "10.0.0.2", account="second", segment="storage")
    found = derived(
        ONE,
        other,
        service("a", "10.96.0.7 fd00:96::7", port(80)),
        slice_of("a", target(ONE), target(other), ports=[port(9000)]),
    )
    both = (sid(), sid(account="second", segment="storage"))
    assert found == {
        ("10.96.0.7", 80): ("tcp", 9000, both),
        ("fd00:96::7", 80): ("tcp", 9000, both),
        ("10.0.0.1", 9000): ("tcp", 9000, (sid(),)),
        ("10.0.0.2", 9000): ("tcp", 9000, (both[1],)),
    }


def test_a_headless_service_has_its_endpoints_alone() -> None:
    assert derived(ONE, service("a", "None", port(80)), OPEN) == {("10.0.0.1", 9000): ("tcp", 9000, (sid(),))}


def test_several_slices_are_one_service_and_ports_are_told_by_name() -> None:
    second = pod("a-1", "10.0.0.2 fd00::2")
    made = service("a", "10.96.0.7", port(80, "web"), port(81, "rpc"), port(53, "dns", protocol="UDP"), port(9, "x"))
    ports = [port(8080, "web"), port(8081, "rpc"), port(5353, "dns", protocol="UDP"), port(7, "none")]
    found = derived(
        ONE,
        second,
        made,
        slice_of("a", target(ONE), ports=ports, name="a-1"),
        slice_of("a", target(second), ports=ports, name="a-2"),
    )
    assert sorted(found) == [
        *(("10.0.0.1", 8080), ("10.0.0.1", 8081), ("10.0.0.2", 8080), ("10.0.0.2", 8081)),
        *(("10.96.0.7", 80), ("10.96.0.7", 81), ("fd00::2", 8080), ("fd00::2", 8081)),
    ]
    assert found["10.96.0.7", 81] == ("tcp", 8081, (sid(),))


@pytest.mark.parametrize(
    ("said", "annotated", "expected"),
    [
        (None, "", ("tcp", 9000)),
        ("http", "", ("http", 9000)),
        ("grpc", "", ("grpc", 9000)),
        ("kubernetes.io/h2c", "", ("tcp", 9000)),
        ("https", "", ("tcp", 9000)),
        ("example.org/own", "", ("tcp", 9000)),
        # What the pod's sidecar takes counts.
        (None, "9000/http", ("http", 9000)),
        ("http", "8080/http, 9000/tcp/audit", ("tcp", 9000)),
        ("http", "9000/grpc,,nonsense,99999/http", ("grpc", 9000)),
        # A pod that is not captured has a port of the sidecar's own.
        (None, "80/http=9000", ("http", 80)),
    ],
)
def test_what_is_spoken(said: str | None, annotated: str, expected: tuple[str, int]) -> None:
    one = pod("a-0", "10.0.0.1", ports=annotated)
    how = {} if said is None else {"appProtocol": said}
    found = derived(one, service("a", "10.96.0.7", port(80, **how)), OPEN)
    assert found == dict.fromkeys([("10.96.0.7", 80), ("10.0.0.1", 9000)], (*expected, (sid(),)))


WHOLE = (ONE, service("a", "10.96.0.7", port(80)), OPEN)
NOBODY: dict[str, tuple[Seen, ...]] = {
    "a pod without a segment": (pod("a-0", "10.0.0.1", segment=None), *WHOLE[1:]),
    "a segment that is none": (pod("a-0", "10.0.0.1", segment="Not/one"), *WHOLE[1:]),
    "a pod on its node's network": (pod("a-0", "10.0.0.1", hostNetwork=True), *WHOLE[1:]),
    "a pod that has ended": (pod("a-0", "10.0.0.1", phase="Succeeded"), *WHOLE[1:]),
    "a port that passes by the sidecar": (pod("a-0", "10.0.0.1", exclude="inbound tcp 9000: metrics"), *WHOLE[1:]),
    "a pod without an address": (pod("a-0", ""), *WHOLE[1:]),
    "a loopback address": (pod("a-0", "127.0.0.1"), *WHOLE[1:]),
    "a metadata address": (pod("a-0", "169.254.169.254"), *WHOLE[1:]),
    "an IPv4 address in IPv6": (pod("a-0", "::ffff:10.0.0.1"), *WHOLE[1:]),
    "no pod": WHOLE[1:],
    "no slice": WHOLE[:2],
    "no Service": (WHOLE[0], WHOLE[2]),
    "another port name": (*WHOLE[:2], slice_of("a", target(ONE), ports=[port(9000, "web")])),
    "a port that is not TCP": (*WHOLE[:2], slice_of("a", target(ONE), ports=[port(9000, protocol="UDP")])),
    "no port number": (*WHOLE[:2], slice_of("a", target(ONE), ports=[{"name": ""}])),
    "an address that the pod has not": (*WHOLE[:2], slice_of("a", target(ONE, "10.0.0.9"), ports=[port(9000)])),
    "another UID": (*WHOLE[:2], slice_of("a", target(ONE, uid="uid-other"), ports=[port(9000)])),
    "an endpoint that is no pod": (*WHOLE[:2], slice_of("a", target(ONE, kind="Node"), ports=[port(9000)])),
    "an endpoint without a target": (*WHOLE[:2], slice_of("a", {"addresses": ["10.0.0.1"]}, ports=[port(9000)])),
    "a slice of another namespace": (*WHOLE[:2], OPEN | {"metadata": OPEN["metadata"] | {"namespace": "web"}}),
    "a slice of names": (*WHOLE[:2], OPEN | {"addressType": "FQDN"}),
    "an external name": (ONE, service("a", "10.96.0.7", port(80), type="ExternalName"), OPEN),
}


@pytest.mark.parametrize("name", NOBODY)
def test_nobody_is_expected_and_nothing_is_there(name: str) -> None:
    assert derived(*WHOLE)
    assert derived(*NOBODY[name]) == {}


@pytest.mark.parametrize(
    "exclude",
    ["inbound tcp 9000 from 10.9.0.0/16: probes", "inbound udp 9000: x", "outbound tcp 9000: x", "nonsense"],
)
def test_a_port_that_is_captured_for_some_is_there(exclude: str) -> None:
    assert derived(pod("a-0", "10.0.0.1", exclude=exclude), *WHOLE[1:]) == derived(*WHOLE)


def test_another_namespaces_pod_cannot_be_named() -> None:
    theirs = pod("w-0", "10.0.0.5", namespace="web", segment="web")
    lies = [target(ONE), target(ONE, namespace="web"), target(ONE, namespace=None)]
    made = [
        service("w", "10.96.0.66", port(80), namespace="web"),
        slice_of("w", target(theirs), *lies, ports=[port(9000)], namespace="web"),
    ]
    own = sid("web", segment="web")
    assert derived(theirs, ONE, *made) == {
        ("10.96.0.66", 80): ("tcp", 9000, (sid("web", segment="web", account="store"),)),
        ("10.0.0.5", 9000): ("tcp", 9000, (own,)),
    }


def test_external_addresses_and_those_of_load_balancers_are_nobodys() -> None:
    made = service("a", "10.96.0.7", port(80), externalIPs=["10.96.0.9"], loadBalancerIP="10.96.0.10")
    made |= {"status": {"loadBalancer": {"ingress": [{"ip": "10.96.0.11"}]}}}
    index = EndpointIndex(TD)
    index.service(key_of(made), read_service(made))
    put(index, ONE, OPEN)
    assert {address for address, _ in rows(index)} == {"10.96.0.7", "10.0.0.1"}


def test_an_address_is_a_services_before_a_pods_and_then_whose_it_was_first() -> None:
    first = pod("a-0", "10.0.0.1", created="2026-01-01T00:00:00Z")
    late = pod("b-0", "10.0.0.1 10.96.0.7 10.0.0.2", created="2026-01-03T00:00:00Z", segment="web")
    index = EndpointIndex(TD)
    put(index, late, first, *WHOLE[1:], service("b", "None", port(80)), slice_of("b", target(late), ports=[port(9000)]))
    web = sid(segment="web")
    expected = {
        ("10.96.0.7", 80): ("tcp", 9000, (sid(),)),
        ("10.0.0.1", 9000): ("tcp", 9000, (sid(),)),
        ("10.0.0.2", 9000): ("tcp", 9000, (web,)),
    }
    assert rows(index) == expected
    # One that goes gives way: its address is given to another before it is gone.
    put(index, pod("a-0", "10.0.0.1", going=True))
    assert rows(index) == {**expected, ("10.0.0.1", 9000): ("tcp", 9000, (web,))}
    # Without the Service its address is free, whoever claims it.
    index.service(("models", "a"), None)
    assert rows(index)["10.96.0.7", 9000] == ("tcp", 9000, (web,))


def test_not_ready_and_going_endpoints_stay_until_they_are_gone() -> None:
    going = pod("a-0", "10.0.0.1", going=True)
    not_ready = target(going) | {"conditions": {"ready": False, "serving": False, "terminating": True}}
    index = EndpointIndex(TD)
    put(index, going, WHOLE[1], slice_of("a", not_ready, ports=[port(9000)]))
    assert len(rows(index)) == 2
    put(index, slice_of("a", ports=[port(9000)]))
    assert rows(index) == {}


def test_endpoints_that_disagree_are_said_and_the_most_count() -> None:
    pods = [pod(f"a-{n}", f"10.0.0.{n + 1}") for n in range(3)]
    index = EndpointIndex(TD)
    put(index, *pods, WHOLE[1], slice_of("a", *map(target, pods[:2]), ports=[port(9001)], name="a-1"))
    assert index.trouble() == []
    put(index, slice_of("a", target(pods[2]), ports=[port(9000)], name="a-2"))
    assert rows(index)["10.96.0.7", 80] == ("tcp", 9001, (sid(),))
    (said,) = index.trouble()
    assert "Service models/a: its endpoints disagree about port 80" in said
    index.slice(("models", "a-2"), None)
    rows(index)
    assert index.trouble() == []


def test_more_identities_ports_and_addresses_than_one_service_takes() -> None:
    pods = [pod(f"a-{n}", f"10.1.{n // 250}.{n % 250 + 1}", account=f"s{n}") for n in range(MAX_EXPECT + 1)]
    ports = [port(number, f"p{number}") for number in range(1, MAX_PORTS + 2)]
    index = EndpointIndex(TD)
    put(index, *pods, service("a", "10.96.0.7", *ports), slice_of("a", *map(target, pods), ports=ports))
    found = rows(index)
    assert sum(address == "10.96.0.7" for address, _ in found) == MAX_PORTS + 1
    assert len(found["10.96.0.7", 1][2]) == MAX_EXPECT
    assert f"more than {MAX_EXPECT} identities" in index.trouble()[0]
    many = [pod(f"b-{n}", f"10.2.{n // 250}.{n % 250 + 1} fd00::{n + 1:x}") for n in range(1300)]
    slices = [
        slice_of("b", *map(target, many[at : at + 100]), ports=[port(1)], name=f"b-{at}") for at in range(0, 1300, 100)
    ]
    put(index, *many, service("b", "None", port(1)), *slices)
    assert len([address for address, _ in rows(index) if address.startswith(("10.2.", "fd00::"))]) == 2600


def test_a_namespace_takes_no_more_than_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_index, "MAX_SERVICES_A_NAMESPACE", 3)
    index = EndpointIndex(TD)
    put(index, *WHOLE)
    theirs = pod("w-0", "10.0.0.5", namespace="web")
    put(index, theirs)
    for number in range(5):
        put(index, service(f"w{number}", f"10.96.1.{number + 1}", port(80), namespace="web"))
        put(index, slice_of(f"w{number}", target(theirs), ports=[port(9000)], namespace="web"))
    found = rows(index)
    assert {("10.96.0.7", 80), ("10.0.0.1", 9000)} <= found.keys()
    assert len(found) == 5
    assert "namespace web has more than 3 services" in index.trouble()[0]
    for number in range(3):
        index.service(("web", f"w{number}"), None)
    assert len(rows(index)) == 5
    assert index.trouble() == []


def test_a_change_costs_what_hangs_on_it() -> None:
    index = EndpointIndex(TD)
    for number in range(200):
        some = [pod(f"p{number}-{n}", f"10.{number}.0.{n + 1}", account=f"s{number}") for n in range(5)]
        put(index, *some, service(f"s{number}", f"10.96.{number}.1", port(80)))
        put(index, slice_of(f"s{number}", *map(target, some), ports=[port(9000)]))
    rows(index)
    changes, before = index.changes, index.derived()
    assert sum(1 for _ in index.derive()) == 0
    # A pod of one Service has another address: its kind is derived again, and its Service.
    put(index, pod("p7-0", "10.7.0.99", account="s7"))
    assert sum(1 for _ in index.derive()) <= 3
    after = index.derived()
    assert sum(after[name] is not before.get(name) for name in after) == 1
    assert index.changes == changes + 1
    # What says nothing else changes nothing.
    put(index, pod("p7-0", "10.7.0.99", account="s7") | {"spec": {"serviceAccountName": "s7", "nodeName": "n"}})
    assert sum(1 for _ in index.derive()) == 0


# --- any order of any events --------------------------------------------------------------------------------------

NAMESPACES, ACCOUNTS = ("models", "web"), ("store", "second")
ADDRESSES = ("10.0.0.1", "10.0.0.2", "fd00::1", "10.96.0.1", "10.96.0.2", "not one", "127.0.0.1")
names = st.sampled_from(("a", "b"))
spaces = st.sampled_from(NAMESPACES)
numbers = st.sampled_from((80, 81, 9000))
pods = st.builds(
    pod,
    names,
    st.lists(st.sampled_from(ADDRESSES), max_size=2).map(" ".join),
    namespace=spaces,
    segment=st.sampled_from(("registry", "web", None)),
    account=st.sampled_from(ACCOUNTS),
    ports=st.sampled_from(("", "9000/http", "80/grpc=9000, 81/http")),
    going=st.booleans(),
    created=st.sampled_from(("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")),
    phase=st.sampled_from(("Running", "Failed")),
)
services = st.builds(
    lambda name, address, ports, namespace: service(name, address, *ports, namespace=namespace),
    names,
    st.sampled_from(("None", "10.96.0.1", "10.96.0.2 fd00::1")),
    st.lists(st.builds(port, numbers, st.sampled_from(("", "x"))), max_size=2),
    spaces,
)
endpoints = st.builds(
    lambda of, address, namespace: target(of, address, namespace=namespace),
    pods,
    st.sampled_from(ADDRESSES),
    st.sampled_from((*NAMESPACES, None)),
)
slices = st.builds(
    lambda of, found, ports, namespace, name: slice_of(of, *found, ports=ports, namespace=namespace, name=name),
    names,
    st.lists(endpoints, max_size=3),
    st.lists(st.builds(port, numbers, st.sampled_from(("", "x"))), max_size=2),
    spaces,
    st.sampled_from(("one", "two")),
)


def _drop(index: EndpointIndex, seen: Seen) -> None:
    if "endpoints" in seen:
        index.slice(key_of(seen), None)
    elif "status" in seen:
        index.pod(uid_of(seen), None)
    else:
        index.service(key_of(seen), None)


def _place(seen: Seen) -> tuple[str, ...]:
    kind = "slice" if "endpoints" in seen else "pod" if "status" in seen else "service"
    return (kind, *key_of(seen))


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.one_of(pods, services, slices), st.booleans(), st.booleans()), max_size=25),
    st.randoms(use_true_random=False),
)
def test_whatever_happens_in_whatever_order_the_end_is_that_of_what_is_there(
    events: list[tuple[Seen, bool, bool]], shuffle: random.Random
) -> None:
    index, there = EndpointIndex(TD), dict[tuple[str, ...], Seen]()
    for seen, gone, derives in events:
        if gone:
            _drop(index, seen)
            there.pop(_place(seen), None)
        else:
            put(index, seen)
            there[_place(seen)] = seen
        if derives:
            for _ in index.derive():
                break
    found = rows(index)
    fresh, objects = EndpointIndex(TD), list(there.values())
    shuffle.shuffle(objects)
    put(fresh, *objects)
    assert rows(fresh) == found
    assert index.derived() == fresh.derived()
    for (address, _), (_, _, expect) in found.items():
        _nobody_is_steered(address, expect, objects)


def _nobody_is_steered(address: str, expect: tuple[str, ...], objects: list[Seen]) -> None:
    """Whoever is expected at an address is of the namespace of the Service that has it, or of a pod that has it."""
    owners = set()
    for seen in objects:
        if "status" in seen and seen["metadata"]["labels"]:
            owners |= {key_of(seen)[0] for one in seen["status"]["podIPs"] if one["ip"] == address}
        elif address in seen.get("spec", {}).get("clusterIPs", ()):
            owners.add(key_of(seen)[0])
    assert expect
    for one in expect:
        path = tuple(one.removeprefix("spiffe://example.org/").split("/"))
        assert path[3] in owners
        assert reserved_for(path) in ("registry", "web")


def anything() -> st.SearchStrategy[Any]:
    leaf = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8), st.floats(allow_nan=False))
    return st.recursive(leaf, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner)))


@given(st.one_of(pods, services, slices), st.data())
def test_an_object_that_is_damaged_is_left_out_and_breaks_nothing(seen: Seen, data: st.DataObject) -> None:
    damaged: Any = {**seen}
    part = data.draw(st.sampled_from(sorted(damaged)))
    inner = damaged[part]
    if isinstance(inner, dict) and inner and data.draw(st.booleans()):
        damaged[part] = {**inner, data.draw(st.sampled_from(sorted(inner))): data.draw(anything())}
    else:
        damaged[part] = data.draw(anything())
    readers: list[Callable[[Any], object]] = [read_pod, read_service, read_slice, key_of, uid_of]
    for read in readers:
        read(damaged)
    index = EndpointIndex(TD)
    put(index, *WHOLE)
    if all(key_of(damaged)):
        put(index, damaged)
    rows(index)
