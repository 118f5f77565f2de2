# SPDX-License-Identifier: Apache-2.0
"""Which entries objects ask for: the incremental answer is the one that a fresh look gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firedoor.broker.kubernetes.identities import DEFAULT_ID, default_rule, fill, read_identity
from firedoor.broker.kubernetes.label_selectors import LabelSelector
from firedoor.broker.kubernetes.mirror import Mirror, named
from firedoor.broker.kubernetes.pods import Node, Pod, Slice, read_pod
from firedoor.broker.kubernetes.registrar import NO_AGENT, Agents, Registrar
from firedoor.broker.kubernetes.rules import Cluster, Rule
from firedoor.certs import TrustDomain

TD = TrustDomain.parse("example.org")
CLUSTER = Cluster(TD, "prod")
BOTH = Agents(own=True, of_nodes=True)


def pod(number: int, namespace: str = "a", *, own: bool = True, node: str = "n1", **labels: str) -> Pod:
    return Pod(f"uid-{number}", namespace, f"pod-{number}", "default", node, labels, namespace, own)


def rule(name: str, **spec: Any) -> Rule:
    meta = {"name": name, "uid": name, "generation": 1, "creationTimestamp": f"2026-01-01T00:00:00{name}"}
    return read_identity({"metadata": meta, "spec": spec}, TD)


def registrar(*rules: Rule, agents: Agents = BOTH) -> Registrar:
    made = Registrar(CLUSTER, agents)
    for one in rules:
        made.rule_changed(None, one)
    for name in ("a", "b"):
        made.namespace_changed(name, None, {"name": name})
    made.node_changed("n1", None, Node("node-1", "n1", {}))
    return made


def look(made: Registrar) -> dict[str, str]:
    """Return what is desired: by the ID of an entry, what makes it."""
    made.look(list(made.dirty_pods))
    found = {}
    for entry_id in made.everything():
        claim = made.desired(entry_id)
        assert claim is not None
        assert claim.entry is not None
        found[entry_id] = claim.entry.origin
    return found


def paths(made: Registrar, uid: str) -> set[str]:
    look(made)
    return {
        f"{claim.entry.parent_id.path} {claim.entry.spiffe_id.path}"
        for claims in made.by_rule.values()
        for subject, claim in claims.items()
        if subject == uid and claim.entry is not None
    }


def test_a_pods_own_agent_or_that_of_its_node() -> None:
    made = registrar(rule("x", id="spiffe://{td}/{ns}/{pod}"))
    made.pod_changed("uid-1", None, pod(1))
    made.pod_changed("uid-2", None, pod(2, own=False))
    made.pod_changed("uid-3", None, pod(3, own=False, node=""))
    assert paths(made, "uid-1") == {"/spire/agent/k8s_pod/prod/uid-1 /a/pod-1"}
    assert paths(made, "uid-2") == {"/spire/agent/k8s_psat/prod/node-1 /a/pod-2"}
    assert paths(made, "uid-3") == set()
    made.pod_changed("uid-3", made.pods["uid-3"], pod(3, own=False))
    assert paths(made, "uid-3") == {"/spire/agent/k8s_psat/prod/node-1 /a/pod-3"}


def test_without_an_agent_it_says_so() -> None:
    made = registrar(rule("x"), agents=Agents(own=True, of_nodes=False))
    made.pod_changed("uid-1", None, pod(1, own=False))
    look(made)
    assert made.by_rule["WorkloadIdentity", "x"]["uid-1"].trouble == NO_AGENT


def test_the_default_is_for_sidecars_and_the_injectors_id() -> None:
    made = registrar(default_rule())
    made.pod_changed("uid-1", None, replace(pod(1), segment="inference"))
    made.pod_changed("uid-2", None, pod(2, own=False))
    assert paths(made, "uid-1") == {"/spire/agent/k8s_pod/prod/uid-1 /segment/inference/ns/a/sa/default"}
    assert paths(made, "uid-2") == set()
    assert set(look(made).values()) == {"kubernetes:prod/sidecars"}


@pytest.mark.parametrize("said", ["shared/ns/training", "a.b", "A", "..", "a" * 64])
def test_what_a_pod_says_of_its_segment_is_one_step_of_an_id(said: str) -> None:
    made = registrar(default_rule(), rule("x", id="spiffe://{td}/{ns}/{pod}"))
    seen = {
        "metadata": {"uid": "uid-1", "namespace": "a", "name": "pod-1", "annotations": {"firedoor.dev/segment": said}},
        "spec": {"volumes": [{"projected": {"sources": [{"serviceAccountToken": {"audience": "firedoor"}}]}}]},
    }
    found = read_pod(seen, "firedoor")
    made.pod_changed("uid-1", None, found)
    look(made)
    claim = made.by_rule["", "sidecars"]["uid-1"]
    assert claim.entry is None
    assert "no name of a segment" in claim.trouble
    # Where the ID does not depend on it, it does not matter.
    assert made.by_rule["WorkloadIdentity", "x"]["uid-1"].entry is not None


def test_a_pod_that_cannot_be_read_is_still_there_and_what_it_had_is_withdrawn() -> None:
    made = registrar(rule("x"))
    made.pod_changed("uid-1", None, pod(1))
    look(made)
    entry = made.by_rule["WorkloadIdentity", "x"]["uid-1"].entry
    assert entry is not None
    labels = {f"l{number}": "" for number in range(300)}
    seen = {"metadata": {"uid": "uid-1", "namespace": "a", "name": "pod-1", "labels": labels}, "spec": {}}
    made.pod_changed("uid-1", made.pods["uid-1"], read_pod(seen, "firedoor", whole=True))
    assert look(made) == {}
    assert "more than 256 labels" in made.by_rule["WorkloadIdentity", "x"]["uid-1"].trouble
    # It runs on with its keys, so that they have to be revoked.
    assert not made.is_over(entry)


def test_an_endpoint_slice_of_another_namespace_makes_no_work() -> None:
    made = registrar(rule("x"))
    made.pod_changed("uid-1", None, pod(1))
    look(made)
    foreign = Slice("b", "service", frozenset(["uid-1"]))
    made.slice_changed("s", None, foreign)
    made.slice_changed("s", foreign, None)
    assert made.dirty_pods == set()
    made.slice_changed("s", None, replace(foreign, namespace="a"))
    assert made.dirty_pods == {"uid-1"}


def test_a_pod_that_a_node_makes_is_none_of_the_namespace() -> None:
    meta = {"uid": "uid-1", "namespace": "a", "name": "pod-1"}
    assert read_pod({"metadata": meta, "spec": {}}, "firedoor") is not None
    static = {**meta, "annotations": {"kubernetes.io/config.mirror": "x"}}
    assert read_pod({"metadata": static, "spec": {}}, "firedoor") is None


def test_the_older_object_counts_and_the_default_last() -> None:
    made = registrar(default_rule(), rule("2"), rule("1"))
    made.pod_changed("uid-1", None, pod(1))
    assert list(look(made).values()) == ["kubernetes:prod/WorkloadIdentity/1"]
    made.rule_changed(rule("1"), None)
    assert list(look(made).values()) == ["kubernetes:prod/WorkloadIdentity/2"]
    made.rule_changed(rule("2"), None)
    assert list(look(made).values()) == ["kubernetes:prod/sidecars"]


def test_one_change_touches_one_pod() -> None:
    made = registrar(rule("x"))
    for number in range(20):
        made.pod_changed(f"uid-{number}", None, pod(number))
    look(made)
    made.dirty_entries.clear()
    made.pod_changed("uid-3", made.pods["uid-3"], None)
    assert made.dirty_pods == {"uid-3"}
    look(made)
    assert len(made.dirty_entries) == 1


LABELS = st.dictionaries(st.sampled_from("xy"), st.sampled_from("12"), max_size=2)
PODS = st.tuples(st.integers(0, 3), st.sampled_from("ab"), st.booleans(), st.sampled_from(["", "n1"]), LABELS)
SELECTORS = st.one_of(
    st.just({}),
    st.builds(lambda key, value: {"matchLabels": {key: value}}, st.sampled_from("xy"), st.sampled_from("12")),
    st.builds(
        lambda key, word: {"matchExpressions": [{"key": key, "operator": word}]},
        st.sampled_from("xy"),
        st.sampled_from(["Exists", "DoesNotExist"]),
    ),
)
RULES = st.tuples(st.sampled_from("123"), SELECTORS, st.sampled_from([DEFAULT_ID, "spiffe://{td}/x/{pod}"]))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("pod"), PODS),
        st.tuples(st.just("gone"), st.integers(0, 3)),
        st.tuples(st.just("rule"), RULES),
        st.tuples(st.just("unrule"), st.sampled_from("123")),
        st.tuples(st.just("namespace"), st.tuples(st.sampled_from("ab"), st.booleans())),
        st.tuples(st.just("node"), st.booleans()),
        st.tuples(st.just("look"), st.none()),
    ),
    max_size=30,
)


def step(made: Registrar, kind: str, what: Any) -> None:
    match kind:
        case "pod":
            number, namespace, own, node, labels = what
            uid = f"uid-{number}"
            made.pod_changed(uid, made.pods.get(uid), pod(number, namespace, own=own, node=node, **labels))
        case "gone":
            made.pod_changed(f"uid-{what}", made.pods.get(f"uid-{what}"), None)
        case "rule":
            name, chosen, spiffe_id = what
            key = ("WorkloadIdentity", name)
            made.rule_changed(made.rules.get(key), rule(name, podSelector=chosen, id=spiffe_id))
        case "unrule":
            made.rule_changed(made.rules.get(("WorkloadIdentity", what)), None)
        case "namespace":
            made.namespace_changed(what[0], None, {"name": what[0]} if what[1] else None)
        case "node":
            made.node_changed("n1", None, Node("node-1", "n1", {}) if what else None)
        case "look":
            look(made)


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_whatever_comes_in_whatever_order_is_what_a_fresh_look_gives(steps: list[tuple[str, Any]]) -> None:
    made = registrar(default_rule())
    for kind, what in steps:
        step(made, kind, what)
    fresh = Registrar(CLUSTER, BOTH)
    for one in made.rules.values():
        fresh.rule_changed(None, one)
    for name, labels in made.namespaces.items():
        fresh.namespace_changed(name, None, labels)
    for name, node in made.nodes.items():
        fresh.node_changed(name, None, node)
    for uid, one_pod in made.pods.items():
        fresh.pod_changed(uid, None, one_pod)
    assert look(made) == look(fresh)
    assert {key: set(claims) for key, claims in made.by_rule.items()} == {
        key: set(claims) for key, claims in fresh.by_rule.items()
    }


# --- what objects say ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"id": "spiffe://{td}/{account}"}, "there is no placeholder {account}; known are {td}, {cluster}"),
        ({"id": "spiffe://{td}/{ns"}, "a brace is left open"),
        ({"id": "x" * 2000}, "at most 1024 characters"),
        ({"ttl": "forever"}, "write a duration"),
        ({"federatesWith": ["example.org"]}, "is the broker's own trust domain"),
        ({"federatesWith": "x"}, "must be a list of texts"),
        ({"dnsNames": ["x"] * 40}, "at most 31 items"),
        ({"podSelector": {"matchLabel": {}}}, "a label selector has no 'matchLabel'"),
        ({"podSelector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}}, "operator is one of In"),
        ({"hint": "x" * 2000}, "hint has at most"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_object_that_cannot_be_read_says_why(spec: dict[str, Any], sentence: str) -> None:
    found = rule("x", **spec)
    assert found.says is None
    assert sentence in found.trouble


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    ["id", "ttl", "jwtTtl", "podSelector", "namespaceSelector", "federatesWith", "dnsNames", "hint"]
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(FIELDS, JSON, max_size=4))
def test_no_object_ends_anything(spec: Mapping[str, Any]) -> None:
    found = read_identity({"metadata": {"name": "x"}, "spec": spec}, TD)
    made = registrar(found)
    made.pod_changed("uid-1", None, pod(1))
    look(made)


@settings(max_examples=300, deadline=None)
@given(JSON)
def test_no_pod_ends_anything(seen: Any) -> None:
    found = seen if isinstance(seen, dict) else {"metadata": seen, "spec": seen}
    read_pod(found, "firedoor", certificates=True, whole=True)


def test_placeholders() -> None:
    assert fill("{a}/{b}-{a}", {"a": "1", "b": "2"}) == "1/2-1"


@pytest.mark.parametrize(
    ("given", "labels", "expected"),
    [
        (None, {}, True),
        ({"matchLabels": {"a": "1"}}, {"a": "1", "b": "2"}, True),
        ({"matchLabels": {"a": "1"}}, {"a": "2"}, False),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, {}, True),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, {"a": "1"}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}, {"a": "2"}, True),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, {}, False),
        ({"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "b", "operator": "Exists"}]}, {"a": "1"}, False),
    ],
)
def test_label_selectors(given: Any, labels: dict[str, str], expected: bool) -> None:
    assert LabelSelector.read(given).matches(labels) is expected


def test_a_mirror_tells_what_differs() -> None:
    told: list[tuple[str, int | None, int | None]] = []

    def read(seen: Mapping[str, Any]) -> int | None:
        if seen["x"] == "bad":
            raise ValueError("it is bad")
        return seen["x"]

    mirror: Mirror[int] = Mirror("things", 3, named, read, lambda *what: told.append(what))

    def thing(name: str, value: Any) -> dict[str, Any]:
        return {"metadata": {"name": name}, "x": value}

    mirror.begin()
    mirror.page([thing("a", 1), thing("b", 2), thing("c", "bad")])
    # A list that breaks off changes nothing.
    assert told == []
    mirror.begin()
    mirror.page([thing("a", 1), thing("b", 2)])
    mirror.end()
    assert told == [("a", None, 1), ("b", None, 2)]
    told.clear()
    mirror.put(thing("a", 1))
    mirror.put(thing("b", None))
    mirror.put(thing("c", 3))
    mirror.drop(thing("c", 3))
    mirror.drop(thing("c", 3))
    assert told == [("b", 2, None), ("c", None, 3), ("c", 3, None)]
    mirror.begin()
    mirror.page([thing("d", 4)])
    mirror.end()
    assert told[3:] == [("a", 1, None), ("d", None, 4)]
