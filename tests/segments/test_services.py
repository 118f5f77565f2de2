# SPDX-License-Identifier: Apache-2.0
"""The directory: what a Service may say, what lint makes of it, and who is told of it."""

from __future__ import annotations

import random
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firedoor.certs import IdPattern
from firedoor.segments import (
    Document,
    Loader,
    PolicyErrors,
    PolicySet,
    Speaks,
    Views,
    compile_table,
    diff,
    expected_examples,
    lint_services,
    load,
    parse,
    service_values,
    table_bytes,
    view,
)
from firedoor.segments.lint_services import SERVICE_CHECKS
from tests.segments.conftest import API, TD, codes, findings, flow, policy, refused, segment, sid, text

A, B = segment("a"), segment("b")
MODELS = "spiffe://{td}/segment/b/host/*/svc/models"


def port(number: int = 9000, **more: Any) -> dict[str, Any]:
    return {"port": number, "protocol": "tcp", "expect": [MODELS], **more}


def service(name: str, *addresses: str, ports: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """A service that lints clean beside segments a, b and flow f."""
    spec = {"addresses": list(addresses or ("10.0.0.1",)), "ports": ports or [port()]}
    return {"apiVersion": API, "kind": "Service", "metadata": {"name": name}, "spec": spec}


def test_a_service_is_read() -> None:
    made = policy(
        A,
        B,
        flow("f"),
        service("models", "10.0.0.1", "fd00::1", ports=[port(80, protocol="http", service_port=9000), port(81)]),
    )
    (one,) = made.services
    first, second = one.ports
    assert one.addresses == (ip_address("10.0.0.1"), ip_address("fd00::1"))
    assert (first.port, first.protocol, first.service_port, first.connect) == (80, Speaks.HTTP, 9000, ())
    assert (second.port, second.protocol, second.service_port) == (81, Speaks.TCP, 81)
    assert made.service_at(ip_address("fd00::1"), 81) == (one, second)
    assert made.service_at(ip_address("fd00::1"), 82) is None
    assert made.service_at(ip_address("10.0.0.2"), 81) is None


def test_a_protocol_that_is_not_declared_is_opaque() -> None:
    made = policy(A, B, service("s", ports=[{"port": 1, "expect": [MODELS]}]))
    assert made.services[0].ports[0].protocol == Speaks.TCP


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("10.0.0.0/8", "bad_address"),
        ("models.internal", "bad_address"),
        ("127.0.0.1", "bad_address"),
        ("::1", "bad_address"),
        ("0.0.0.0", "bad_address"),
        ("::", "bad_address"),
        ("224.0.0.1", "bad_address"),
        ("169.254.169.254", "bad_address"),
        ("fe80::1", "bad_address"),
        ("fe80::1%eth0", "bad_address"),
        ("fd00::1%eth0", "bad_address"),
        ("::ffff:10.0.0.1", "bad_address"),
        ("10.0.0.01", "bad_address"),
        ("", "bad_address"),
    ],
)
def test_addresses_that_name_no_service(address: str, code: str) -> None:
    assert [one.code for one in refused(text(A, B, service("s", address))).findings] == [code]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"port": 0}, "out_of_range"),
        ({"port": 65536}, "out_of_range"),
        ({"service_port": 0}, "out_of_range"),
        ({"protocol": "udp"}, "unknown_word"),
        ({"expect": []}, "empty_list"),
        ({"expect": ["10.0.0.1"]}, "ip_subject"),
        ({"expect": [f"spiffe://td/x/{n}" for n in range(65)]}, "too_many_items"),
        ({"connect": []}, "empty_list"),
        ({"connect": ["h"]}, "bad_hint"),
        ({"connect": ["h:0"]}, "bad_hint"),
        ({"connect": ["h:65536"]}, "bad_hint"),
        ({"connect": ["-h:1"]}, "bad_hint"),
        ({"connect": ["fd00::1:1"]}, "bad_hint"),
        ({"connect": ["[fe80::1%x]:1"]}, "bad_hint"),
        ({"connect": [f"h{n}:1" for n in range(65)]}, "too_many_items"),
        ({"cidr": "10.0.0.0/8"}, "unknown_field"),
    ],
)
def test_ports_that_are_refused(change: dict[str, Any], code: str) -> None:
    wrong = service("s", ports=[port(**{"connect": ["h:1"], **change})])
    assert [one.code for one in refused(text(A, B, wrong)).findings] == [code]


def test_sizes_are_capped() -> None:
    many = [f"10.{n >> 8}.{n & 255}.1" for n in range(1001)]
    assert [one.code for one in refused(text(service("s", *many))).findings] == ["too_many_items"]
    ports = [port(n) for n in range(1, parse.MAX_PORTS + 2)]
    assert [one.code for one in refused(text(service("s", ports=ports))).findings] == ["too_many_items"]
    hints = [f"h{n}:1" for n in range(service_values.MAX_HINTS)]
    assert policy(service("s", ports=[port(connect=hints)])).services[0].ports[0].connect == tuple(hints)


def test_a_directory_that_sidecars_would_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    two = (A, B, flow("f"), service("s", "10.0.0.1", "10.0.0.2"), service("t", "10.0.0.3"))
    monkeypatch.setattr(lint_services, "MAX_ROWS", 3)
    assert codes(*two) == []
    monkeypatch.setattr(lint_services, "MAX_ROWS", 2)
    assert codes(*two) == ["directory_too_large"]


Documents = tuple[dict[str, Any], ...]
NOBODY = "spiffe://{td}/segment/nobody/x"
CASES: dict[str, tuple[str, str, Documents, Documents]] = {
    # name: (severity, code, the services with it, their twins without)
    "an address in two services": (
        "error",
        "address_in_two_services",
        (service("s", "10.0.0.1"), service("t", "10.0.0.2", "10.0.0.1")),
        (service("s", "10.0.0.1"), service("t", "10.0.0.2", "10.0.0.3")),
    ),
    "an address and port in two services": (
        "error",
        "address_in_two_services",
        (service("s"), service("t", ports=[port(80, service_port=9000), port(9000)])),
        (service("s"), service("t", ports=[port(80, service_port=9000), port(81, service_port=9000)])),
    ),
    "a port twice": (
        "error",
        "port_twice",
        (service("s", ports=[port(), port(connect=["h:1"])]),),
        (service("s", ports=[port(), port(80, service_port=9000)]),),
    ),
    "an expectation outside every segment": (
        "error",
        "outside_segment",
        (service("s", ports=[port(expect=[MODELS, NOBODY])]),),
        (service("s", ports=[port(expect=[MODELS])]),),
    ),
    "everybody expected": (
        "error",
        "wildcard_subject",
        (service("s", ports=[port(expect=["spiffe://{td}/segment/**"])]),),
        (service("s", ports=[port(expect=["spiffe://{td}/segment/b/**"])]),),
    ),
    "no flow to the port": (
        "warning",
        "service_without_flow",
        (service("s", ports=[port(service_port=9001)]),),
        (service("s", ports=[port(1, service_port=9000)]),),
    ),
    "no flow with the protocol": (
        "warning",
        "service_without_flow",
        (service("s", ports=[port(protocol="http")]),),
        (service("s", ports=[port(protocol="tcp")]),),
    ),
    "no flow to the segment": (
        "warning",
        "service_without_flow",
        (service("s", ports=[port(expect=["spiffe://{td}/segment/a/x"])]),),
        (service("s", ports=[port(expect=["spiffe://{td}/segment/b/x"])]),),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_lint(name: str) -> None:
    severity, code, with_it, without = CASES[name]
    common = (A, B, flow("f"))
    assert [(one.severity, one.code) for one in findings(*common, *with_it)] == [(severity, code)]
    assert findings(*common, *without) == []


def test_a_flow_by_id_leads_to_a_service() -> None:
    by_id = flow("f", to={"id": "spiffe://{td}/segment/b/host/h1/svc/models", "port": 9000})
    assert codes(A, B, by_id, service("s")) == []
    other = flow("f", to={"id": "spiffe://{td}/segment/b/host/h1/svc/other", "port": 9000})
    assert codes(A, B, other, service("s")) == ["service_without_flow"]


def test_every_check_is_run() -> None:
    assert len(SERVICE_CHECKS) == 4


def test_names_stand_once_a_kind() -> None:
    assert [one.code for one in refused(text(service("s"), service("s", "10.0.0.2"))).findings] == ["duplicate_name"]
    assert policy(A, service("a")).services[0].name == "a"


def test_an_edit_of_a_service_is_shown() -> None:
    old, new = text(service("s", "10.0.0.1")), text(service("s", "10.0.0.2"))
    (change,) = diff([Document("x.yaml", old)], [Document("x.yaml", new)])
    assert (change.kind, change.name, change.op) == ("Service", "s", "changed")
    assert '-    - "10.0.0.1"' in change.text
    assert '+    - "10.0.0.2"' in change.text


def test_what_did_not_change_is_not_read_again() -> None:
    loader = Loader(TD)
    base, other = Document("base.yaml", text(A, B, flow("f"))), Document("o.yaml", text(service("o", "10.0.0.9")))
    old = Document("s.yaml", text(service("s", "10.0.0.1")))
    first = loader.load([base, other, old])
    new = Document("s.yaml", text(service("s", "10.0.0.2")))
    second = loader.load([base, other, new])
    assert second == load([base, other, new], TD)
    (left, right), (left_2, right_2) = first.services, second.services
    assert left is left_2
    assert (right.addresses, right_2.addresses) == ((ip_address("10.0.0.1"),), (ip_address("10.0.0.2"),))
    # What is wrong changes nothing, and what was read is held against what is new.
    with pytest.raises(PolicyErrors) as caught:
        loader.load([base, other, Document("t.yaml", text(service("o", "10.0.0.3")))])
    assert [one.code for one in caught.value.findings] == ["duplicate_name"]
    assert loader.load([base, other, new]).services[1] is right_2
    assert [str(one).splitlines()[0] for one in diff([base, other, old], [base, other, new])] == ["Service s changed"]
    assert diff([base, old], [base, Document("moved.yaml", old.text)]) == []
    one, turned = (Document("x.yaml", text(*parts)) for parts in ((A, service("s"), B), (B, service("s"), A)))
    assert diff([one], [turned]) == []


def test_who_might_answer() -> None:
    made = policy(A, B, segment("c", members=["spiffe://{td}/ns/c/sa/*"]))
    expect = [IdPattern.parse(one, TD) for one in (MODELS, "spiffe://{td}/ns/*/sa/x", "spiffe://{td}/nowhere")]
    assert expected_examples(made, expect) == [sid("/ns/c/sa/x"), sid("/segment/b/host/example/svc/models")]


# What sidecars are told.

DIRECTORY = (
    segment("a"),
    segment("b"),
    segment("c"),
    segment("watching", mode="audit"),
    flow("ab", allow=[{"http": {}}, {"tcp": {}}]),
    flow("ac", source={"segment": "a"}, to={"segment": "c", "port": 1}),
    flow("ids", source={"id": "spiffe://{td}/segment/c/x"}, to={"id": "spiffe://{td}/segment/b/*", "port": 2}),
    service("in-b", "10.0.0.1", ports=[port(protocol="http", expect=["spiffe://{td}/segment/b/**"])]),
    service("in-c", "10.0.0.2", ports=[port(1, expect=["spiffe://{td}/segment/c/x"])]),
    service("one-b", "10.0.0.3", ports=[port(2, expect=["spiffe://{td}/segment/b/z"])]),
    service("nobody", "10.0.0.4", ports=[port(3, expect=["spiffe://{td}/segment/b/z"])]),
)
TABLE = compile_table(policy(*DIRECTORY))


def told(segments: set[str], *ids: str) -> list[str]:
    return [one.name for one in view(TABLE, segments, [sid(one) for one in ids]).services]


def test_a_view_has_the_services_that_its_flows_lead_to() -> None:
    assert told({"a"}) == ["in-b", "in-c"]
    assert told({"b"}) == []
    assert told({"c"}) == []
    assert told({"c"}, "/segment/c/x") == ["one-b"]
    assert told({"c"}, "/segment/c/y") == []
    assert told({"a", "c"}, "/segment/c/x") == ["in-b", "in-c", "one-b"]
    assert told(set()) == []


def test_a_segment_in_audit_mode_is_told_of_every_service() -> None:
    assert told({"watching"}) == ["in-b", "in-c", "nobody", "one-b"]


SEGMENTS = ("a", "b", "c")
PATTERNS = tuple(f"spiffe://{{td}}/segment/{s}/{tail}" for s in SEGMENTS for tail in ("x", "*", "*/y", "**"))
PROTOCOLS = ("tcp", "http", "grpc")


@st.composite
def policies(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Segments, flows and services at a few ports, so that they often meet."""
    documents = [segment(name, members=[f"spiffe://{{td}}/segment/{name}/**"]) for name in SEGMENTS]
    pattern = st.sampled_from(PATTERNS)
    action = st.sampled_from(({"tcp": {}}, {"http": {}}, {"grpc": {"service": "s.S"}}))
    subject = st.sampled_from(SEGMENTS).map(lambda name: {"segment": name}) | pattern.map(lambda one: {"id": one})
    for n in range(draw(st.integers(0, 5))):
        end = {**draw(subject), "port": draw(st.integers(1, 3))}
        documents.append(flow(f"f{n}", source=draw(subject), to=end, allow=[draw(action)]))
    for n in range(draw(st.integers(0, 4))):
        ports = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3, unique=True))
        made = [
            port(
                number,
                protocol=draw(st.sampled_from(PROTOCOLS)),
                service_port=draw(st.integers(1, 3)),
                expect=draw(st.lists(pattern, min_size=1, max_size=2, unique=True)),
            )
            for number in ports
        ]
        documents.append(service(f"s{n}", f"10.0.0.{n + 1}", f"fd00::{n + 1}", ports=made))
    return documents


def loaded(documents: list[dict[str, Any]]) -> PolicySet:
    return load([Document("x.yaml", text(*documents))], TD)


@given(policies(), st.randoms(use_true_random=False))
def test_the_order_of_documents_and_addresses_means_nothing(
    documents: list[dict[str, Any]], shuffle: random.Random
) -> None:
    first = table_bytes(compile_table(loaded(documents)))
    shuffle.shuffle(documents)
    for one in documents:
        if one["kind"] == "Service":
            shuffle.shuffle(one["spec"]["addresses"])
            shuffle.shuffle(one["spec"]["ports"])
    assert table_bytes(compile_table(loaded(documents))) == first


@given(policies(), st.sampled_from(SEGMENTS), st.sampled_from(("x", "z", "q/y", "q/r/s")))
def test_a_view_holds_what_a_flow_of_its_own_could_reach_and_nothing_else(
    documents: list[dict[str, Any]], name: str, tail: str
) -> None:
    made, own = loaded(documents), sid(f"/segment/{name}/{tail}")
    views = Views(compile_table(made))
    part = views.part(name, own)
    assert views.part_bytes(part) == table_bytes(views.with_part(part)), "joined from what was encoded before"
    got = {one.name for one in views.with_part(part).services}
    assert got == {one["metadata"]["name"] for one in documents if one["kind"] == "Service" and _could(one, made, own)}


def _could(document: dict[str, Any], made: PolicySet, own: Any) -> bool:
    """The rule, said slowly: some flow from this ID, at the service port, of the protocol, to one who is expected."""
    found = next(one for one in made.services if one.name == document["metadata"]["name"])
    kinds = {Speaks.TCP: "TcpAction", Speaks.HTTP: "HttpAction", Speaks.GRPC: "GrpcAction"}
    segment_of = made.segment_of(own)
    for one in made.flows:
        source = one.source
        if source.segment not in (None, segment_of.name if segment_of else None):
            continue
        if source.ids and not any(pattern.matches(own) for pattern in source.ids):
            continue
        for row in found.ports:
            kind = kinds[row.protocol]
            if one.port != row.service_port or kind not in {type(action).__name__ for action in one.allow}:
                continue
            target = made.segment(one.destination.segment or "")
            ends = target.members if target else one.destination.ids
            if any(end.overlaps(pattern) for end in ends for pattern in row.expect):
                return True
    return False
