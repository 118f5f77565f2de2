# SPDX-License-Identifier: Apache-2.0
"""What a policy edit changes: as text for people, and as patterns for the certificates that are out."""

import itertools
from typing import Any

import pytest

from firedoor.segments import Document, PolicyErrors, diff, promoted
from tests.segments.conftest import flow, policy, segment, sid, text


def docs(*parts: dict[str, Any]) -> list[Document]:
    return [Document("x.yaml", text(*parts))]


def test_added_removed_changed() -> None:
    old = docs(segment("a"), segment("b"), flow("f"))
    new = docs(segment("b"), flow("f", to={"segment": "b", "port": 9001}), flow("g"))
    changes = diff(old, new)
    assert [(one.kind, one.name, one.op) for one in changes] == [
        ("Flow", "f", "changed"),
        ("Flow", "g", "added"),
        ("Segment", "a", "removed"),
    ]
    assert changes[0].text.splitlines()[:2] == ["--- old/Flow/f", "+++ new/Flow/f"]
    assert [line for line in changes[0].text.splitlines() if line[0] in "+-"][2:] == [
        "-    port: 9000",
        "+    port: 9001",
    ]
    assert "+    segment: b" in changes[1].text


def test_form_does_not_count() -> None:
    old = [Document("one.yaml", "kind: Flow\nmetadata: {name: f}\nspec: {a: [1, 'x y'], b: {}, c: []}\n")]
    new = [
        Document("a.yaml", "# moved\n"),
        Document("b.yaml", "spec:\n  c: []\n  b: {}\n  a:\n  - 1\n  - \"x y\"\nkind: 'Flow'\nmetadata:\n  name: f\n"),
    ]
    assert diff(old, new) == []
    assert [one.op for one in diff(old, [Document("a.yaml", new[1].text.replace("1", '"1"'))])] == ["changed"]


def test_what_is_not_yaml_is_refused() -> None:
    with pytest.raises(PolicyErrors):
        diff([], [Document("x.yaml", "a: [")])


def test_what_is_not_a_policy_still_has_a_diff() -> None:
    assert [(one.kind, one.name) for one in diff([], [Document("x.yaml", "- 1\n--- \na: b\n")])] == [
        ("Document", "x.yaml#0"),
        ("Document", "x.yaml#1"),
    ]


X, Y = "spiffe://{td}/ns/x/**", "spiffe://{td}/ns/y/**"
OLD = segment("old", members=[], fallback=True, admission={})
Parts = tuple[dict[str, Any], ...]

PROMOTED: dict[str, tuple[Parts, Parts, list[str]]] = {
    # name: (before, after, what must be re-issued)
    "nothing": ((segment("a"),), (segment("a"),), []),
    "what admission does not ask": ((segment("a"),), (segment("a", trust="high", mode="audit", vlan=7),), []),
    "a flow": ((segment("a"),), (segment("a"), flow("f")), []),
    "a member more": ((segment("a", members=[X]),), (segment("a", members=[X, Y]),), ["ns/y/**"]),
    "a wider member": (
        (segment("a", members=["spiffe://{td}/ns/x/sa/*"]),),
        (segment("a", members=[X]),),
        ["ns/x/**"],
    ),
    "a narrower member": (
        (segment("a", members=[X]),),
        (segment("a", members=["spiffe://{td}/ns/x/sa/*"]),),
        [],
    ),
    "a member less": ((segment("a", members=[X, Y]),), (segment("a", members=[X]),), []),
    "a member less, with a fallback": (
        (segment("a", members=[X, Y]), OLD),
        (segment("a", members=[X]), OLD),
        ["ns/y/**"],
    ),
    "admission asks for more": (
        (segment("a", members=[X]),),
        (segment("a", members=[X], admission={"entry": ["unix:user:a"], "node": ["k8s_pod:ns:x"]}),),
        ["ns/x/**"],
    ),
    "admission in another order": (
        (segment("a", admission={"entry": ["a:1", "b:2"]}),),
        (segment("a", admission={"entry": ["b:2", "a:1"]}),),
        [],
    ),
    "mint": (
        (segment("a", members=[X], admission={"node": ["x:y"]}),),
        (segment("a", members=[X], admission={"node": ["x:y"], "mint": True}),),
        ["ns/x/**"],
    ),
    "a new segment": ((), (segment("a", members=[X, "spiffe://{td}/ns/x/sa/y"]),), ["ns/x/**"]),
    "a member moves": (
        (segment("a", members=[X]), segment("b", members=[Y])),
        (segment("a", members=[]), segment("b", members=[X, Y])),
        ["ns/x/**"],
    ),
    "a claim on what the fallback had": ((OLD,), (OLD, segment("a", members=[X])), ["ns/x/**"]),
    "a segment goes to the fallback": ((OLD, segment("a", members=[X])), (OLD,), ["ns/x/**"]),
    "a fallback begins": ((segment("a", members=[X]),), (segment("a", members=[X]), OLD), ["**"]),
    "a fallback ends": ((segment("a", members=[X]), OLD), (segment("a", members=[X]),), []),
    "the fallback asks": ((OLD,), ({**OLD, "spec": {**OLD["spec"], "admission": {"node": ["x:y"]}}},), ["**"]),
}


@pytest.mark.parametrize("case", PROMOTED)
def test_promoted(case: str) -> None:
    before, after, expected = PROMOTED[case]
    found = promoted(policy(*before), policy(*after))
    assert [str(pattern).removeprefix("spiffe://td/") for pattern in found] == expected


STEPS = ("ns", "x", "y", "sa", "segment", "a")
IDS = [sid("/" + "/".join(steps)) for length in (1, 2, 3) for steps in itertools.product(STEPS, repeat=length)]


@pytest.mark.parametrize("case", PROMOTED)
def test_no_id_comes_to_a_segment_unseen(case: str) -> None:
    old, new = policy(*PROMOTED[case][0]), policy(*PROMOTED[case][1])
    found = promoted(old, new)
    for spiffe_id in IDS:
        before, after = old.segment_of(spiffe_id), new.segment_of(spiffe_id)
        if after is not None and (before is None or before.name != after.name):
            assert any(pattern.matches(spiffe_id) for pattern in found), spiffe_id
