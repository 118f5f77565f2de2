# SPDX-License-Identifier: Apache-2.0
"""Each lint finding, next to a twin that differs in the one fact and lints clean."""

from typing import Any

import pytest

from firedoor.segments import Document, PolicyErrors, accept, lint, linter
from tests.segments.conftest import TD, codes, findings, flow, policy, segment, text

A, B = segment("a"), segment("b")
Documents = tuple[dict[str, Any], ...]


def test_a_clean_policy_has_no_findings() -> None:
    assert findings(A, B, flow("f")) == []
    assert findings() == []


def to(**end: Any) -> dict[str, Any]:
    return {"port": 9000, **end}


CASES: dict[str, tuple[str, str, Documents, Documents]] = {
    # name: (severity, code, the policy with it, its twin without)
    "the same pattern in two segments": (
        "error",
        "id_in_two_segments",
        (segment("a", members=["spiffe://{td}/ns/x/**"]), segment("b", members=["spiffe://{td}/ns/x/**"])),
        (segment("a", members=["spiffe://{td}/ns/x/**"]), segment("b", members=["spiffe://{td}/ns/y/**"])),
    ),
    "patterns that overlap": (
        "error",
        "id_in_two_segments",
        (segment("a", members=["spiffe://{td}/ns/*/sa/x"]), segment("b", members=["spiffe://{td}/ns/y/**"])),
        (segment("a", members=["spiffe://{td}/ns/*/sa/x"]), segment("b", members=["spiffe://{td}/ns/y/sa/z"])),
    ),
    "a short pattern that overlaps": (
        "error",
        "id_in_two_segments",
        (segment("a", members=["spiffe://{td}/x/**"]), segment("b", members=["spiffe://{td}/x/y"])),
        (segment("a", members=["spiffe://{td}/x/*/**"]), segment("b", members=["spiffe://{td}/x/y"])),
    ),
    "a pattern of a foreign trust domain in two segments": (
        "error",
        "id_in_two_segments",
        (segment("a", members=["spiffe://x/ns/**"]), segment("b", members=["spiffe://x/ns/b"])),
        (segment("a", members=["spiffe://x/ns/**"]), segment("b", members=["spiffe://y/ns/b"])),
    ),
    "another's prefix": (
        "error",
        "reserved_prefix",
        (segment("a", members=["spiffe://{td}/segment/c/**"]),),
        (segment("a", members=["spiffe://{td}/segments/c/**"]),),
    ),
    "every segment's prefix": (
        "error",
        "reserved_prefix",
        (segment("a", members=["spiffe://{td}/segment/*/host/h1"]),),
        (segment("a", members=["spiffe://{td}/segment/a/host/h1"]),),
    ),
    "everybody as a member": (
        "error",
        "wildcard_subject",
        (segment("a", members=["spiffe://{td}/**"]),),
        (segment("a", members=["spiffe://{td}/x/**"]),),
    ),
    "a whole foreign trust domain": (
        "error",
        "wildcard_subject",
        (segment("a", members=["spiffe://partner/*/**"]),),
        (segment("a", members=["spiffe://partner/ns/**"]),),
    ),
    "all segments as source": (
        "error",
        "wildcard_subject",
        (A, B, flow("f", source={"id": "spiffe://{td}/segment/**"})),
        (A, B, flow("f", source={"id": "spiffe://{td}/segment/a/**"})),
    ),
    "everybody as destination": (
        "error",
        "wildcard_subject",
        (A, B, flow("f", to=to(id="spiffe://{td}/**"))),
        (A, B, flow("f", to=to(id="spiffe://{td}/**", segment="b"))),
    ),
    "two fallbacks": (
        "error",
        "two_fallbacks",
        (segment("a", fallback=True), segment("b", fallback=True)),
        (segment("a", fallback=True), segment("b", fallback=False)),
    ),
    "a fallback of high trust": (
        "error",
        "fallback_high",
        (segment("a", fallback=True, trust="high"),),
        (segment("a", fallback=True, trust="medium"),),
    ),
    "an empty admission": (
        "error",
        "admission_empty",
        (segment("a", admission={"entry": [], "node": []}),),
        (segment("a", admission={}, fallback=True),),
    ),
    "an empty admission with mint": (
        "error",
        "admission_empty",
        (segment("a", admission={"mint": True}),),
        (segment("a", admission={"mint": True, "node": ["x:y"]}),),
    ),
    "pods by what they claim": (
        "error",
        "pod_by_entry_alone",
        (segment("a", admission={"entry": ["unix:uid:1", "k8s:ns:a"]}),),
        (segment("a", admission={"entry": ["unix:uid:1", "k8s:ns:a"], "node": ["k8s_psat:cluster:prod"]}),),
    ),
    "pods of every namespace": (
        "warning",
        "pods_of_every_namespace",
        (segment("a", admission={"node": ["k8s_pod:cluster:prod", "k8s_pod:sa:x", "k8s_pod:label:ns:x"]}),),
        (segment("a", admission={"node": ["k8s_pod:cluster:prod", "k8s_pod:ns:x"]}),),
    ),
    "pods of every namespace by what they claim": (
        "error",
        "pods_of_every_namespace",
        (segment("a", admission={"entry": ["k8s:ns:x"], "node": ["k8s_pod:cluster:prod"]}),),
        (segment("a", admission={"entry": ["k8s:ns:x"], "node": ["k8s_pod:ns-label:zone:x"]}),),
    ),
    "mint without members": (
        "error",
        "mint_without_members",
        (segment("a", fallback=True, members=[], admission={"mint": True}),),
        (segment("a", fallback=True, admission={"mint": True}),),
    ),
    "no members": ("warning", "no_members", (segment("a", members=[]),), (segment("a", members=[], fallback=True),)),
    "an interpreter's path": (
        "warning",
        "interpreter_selector",
        (segment("a", admission={"entry": ["unix:path:/usr/bin/python3.11"]}),),
        (segment("a", admission={"entry": ["unix:path:/usr/bin/registry"]}),),
    ),
    "a shell's path": (
        "warning",
        "interpreter_selector",
        (segment("a", admission={"entry": ["unix:uid:1", "unix:path:/bin/sh"]}),),
        (segment("a", admission={"entry": ["unix:uid:1", "unix:path:/bin/crush"]}),),
    ),
    "no owner": ("error", "missing_owner", (A, B, flow("f", owner=None)), (A, B, flow("f"))),
    "an owner of spaces": ("error", "missing_owner", (A, B, flow("f", owner="  ")), (A, B, flow("f"))),
    "no reason": ("error", "missing_reason", (A, B, flow("f", reason=None)), (A, B, flow("f"))),
    "an unknown segment": (
        "error",
        "unknown_segment",
        (A, B, flow("f", to=to(segment="bb"))),
        (A, B, flow("f", to=to(segment="b"))),
    ),
    "an ID outside its segment": (
        "error",
        "outside_segment",
        (A, B, flow("f", source={"segment": "a", "id": "spiffe://{td}/segment/b/x"})),
        (A, B, flow("f", source={"segment": "a", "id": "spiffe://{td}/segment/a/x"})),
    ),
    "an ID outside every segment": (
        "error",
        "outside_segment",
        (A, B, flow("f", source={"id": "spiffe://{td}/old/x"})),
        (A, B, segment("c", fallback=True), flow("f", source={"id": "spiffe://{td}/old/x"})),
    ),
    "a claimed ID as one of the fallback": (
        "error",
        "outside_segment",
        (A, B, segment("c", fallback=True), flow("f", source={"segment": "c", "id": "spiffe://{td}/segment/a/x"})),
        (A, B, segment("c", fallback=True), flow("f", source={"segment": "c", "id": "spiffe://{td}/old/x"})),
    ),
    "a flow that allows nothing": ("error", "empty_allow", (A, B, flow("f", allow=[])), (A, B, flow("f"))),
    "a flow that ends before it begins": (
        "error",
        "never_valid",
        (A, B, flow("f", valid={"from": "2026-01-02T00:00:00Z", "until": "2026-01-02T00:00:00Z"})),
        (A, B, flow("f", valid={"from": "2026-01-02T00:00:00Z", "until": "2026-01-02T00:00:01Z"})),
    ),
    "an action covered in the same flow": (
        "error",
        "unreachable_rule",
        (A, B, flow("f", allow=[{"http": {"paths": ["/m/x"]}}, {"http": {"paths": ["/m/**"]}}])),
        (A, B, flow("f", allow=[{"http": {"paths": ["/m/x"]}}, {"http": {"paths": ["/m/*/**"]}}])),
    ),
    "an action covered by its methods": (
        "error",
        "unreachable_rule",
        (A, B, flow("f", allow=[{"http": {}}, {"http": {"methods": ["GET"]}}])),
        (A, B, flow("f", allow=[{"http": {"paths": ["/x"]}}, {"http": {"methods": ["GET"]}}])),
    ),
    "a flow covered by a wider one": (
        "error",
        "unreachable_rule",
        (A, B, flow("f"), flow("g", source={"segment": "a", "id": "spiffe://{td}/segment/a/x"})),
        (A, B, flow("f"), flow("g", source={"segment": "b", "id": "spiffe://{td}/segment/b/x"})),
    ),
    "a flow twice under two names": (
        "error",
        "unreachable_rule",
        (A, B, flow("f"), flow("g")),
        (A, B, flow("f"), flow("g", to={"segment": "b", "port": 9001})),
    ),
    "a flow for a while beside one for ever": (
        "error",
        "unreachable_rule",
        (A, B, flow("f"), flow("g", valid={"until": "2026-01-01T00:00:00Z"})),
        (
            A,
            B,
            flow("f", valid={"until": "2025-01-01T00:00:00Z"}),
            flow("g", valid={"until": "2026-01-01T00:00:00Z"}, allow=[{"http": {}}]),
        ),
    ),
    "an ID pattern inside a wider one": (
        "error",
        "unreachable_rule",
        (
            A,
            B,
            flow("f", source={"id": "spiffe://{td}/segment/a/host/**"}),
            flow("g", source={"id": "spiffe://{td}/segment/a/host/*/svc/x"}),
        ),
        (
            A,
            B,
            flow("f", source={"id": "spiffe://{td}/segment/a/host/**"}),
            flow("g", source={"id": "spiffe://{td}/segment/a/*/*"}),
        ),
    ),
    "a segment whose members a pattern covers": (
        "error",
        "unreachable_rule",
        (A, B, flow("f", source={"id": "spiffe://{td}/segment/a/**"}), flow("g")),
        (
            segment("a", members=["spiffe://{td}/segment/a/**", "spiffe://{td}/x"]),
            B,
            flow("f", source={"id": "spiffe://{td}/segment/a/**"}),
            flow("g"),
        ),
    ),
    "a grpc method of a service that is allowed whole": (
        "error",
        "unreachable_rule",
        (A, B, flow("f", allow=[{"grpc": {"service": "a.B"}}, {"grpc": {"service": "a.B", "methods": ["C"]}}])),
        (A, B, flow("f", allow=[{"grpc": {"service": "a.B"}}, {"grpc": {"service": "a.C", "methods": ["C"]}}])),
    ),
    "a flow to the fallback": (
        "warning",
        "leads_to_fallback",
        (A, B, segment("c", fallback=True), flow("f", to=to(segment="c"))),
        (A, B, segment("c", fallback=True), flow("f", to=to(segment="b"))),
    ),
    "CONNECT": (
        "warning",
        "refused_method",
        (A, B, flow("f", allow=[{"http": {"methods": ["CONNECT"]}}])),
        (A, B, flow("f", allow=[{"http": {"methods": ["GET"]}}])),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_finding_and_twin(case: str) -> None:
    severity, code, documents, twin = CASES[case]
    (finding,) = findings(*documents)
    assert (finding.severity, finding.code) == (severity, code)
    assert finding.at.line > 0
    assert finding.fix
    assert codes(*twin) == []


def test_every_code_is_in_the_table_of_the_module() -> None:
    assert linter.__doc__ is not None
    for _, code, _, _ in CASES.values():
        assert f"`{code}`" in linter.__doc__


def test_a_claim_of_two_names_both_places() -> None:
    (finding,) = findings(
        segment("a", members=["spiffe://{td}/x/y"]), segment("b", members=["spiffe://{td}/z", "spiffe://{td}/x/*"])
    )
    assert "spiffe://td/x/* of segment b and spiffe://td/x/y of segment a (policy.yaml:9)" in finding.message
    assert str(finding.at) == "policy.yaml:24"


def test_the_first_of_two_equal_flows_stays() -> None:
    (finding,) = findings(A, B, flow("f"), flow("g"))
    assert "action 1 of flow g" in finding.message
    assert "flow f" in finding.message


def test_an_unknown_segment_gets_the_nearest_name() -> None:
    (finding,) = findings(A, segment("registry"), flow("f", to=to(segment="regitsry")))
    assert finding.fix == "did you mean `registry`?"


def test_hashes_of_known_interpreters() -> None:
    made = policy(segment("a", admission={"entry": [f"unix:sha256:{'ab' * 32}"]}))
    assert lint(made) == []
    assert [finding.code for finding in lint(made, interpreter_hashes={"ab" * 32})] == ["interpreter_selector"]
    assert lint(made, interpreter_hashes={"cd" * 32}) == []


def test_a_segment_that_is_too_large() -> None:
    def members(number: int) -> list[str]:
        return [f"spiffe://{{td}}/segment/a/{'x' * 1500}/{count}" for count in range(number)]

    assert codes(segment("a", members=members(800))) == ["too_large"]
    assert codes(segment("a", members=members(600))) == []


def test_accept_returns_warnings_and_refuses_errors() -> None:
    warned = (segment("a", members=[]),)
    made, warnings = accept([Document("x.yaml", text(*warned))], TD)
    assert (made, [warning.code for warning in warnings]) == (policy(*warned), ["no_members"])
    with pytest.raises(PolicyErrors) as caught:
        accept([Document("x.yaml", text(*warned, flow("f", owner=None)))], TD)
    assert {finding.code for finding in caught.value.findings} == {"missing_owner", "unknown_segment"}


def test_a_large_policy_is_linted_in_time() -> None:
    segments = [segment(f"s{number}") for number in range(300)]
    flows = [
        flow(f"f{number}", source={"segment": f"s{number % 300}"}, to={"segment": f"s{number * 7 % 300}", "port": 443})
        for number in range(900)
    ]
    made = policy(*segments, *flows)
    assert {finding.code for finding in lint(made)} <= {"unreachable_rule"}
