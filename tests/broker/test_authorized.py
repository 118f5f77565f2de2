# SPDX-License-Identifier: Apache-2.0
"""Which entries an agent is entitled to: a table of trees, with aliases and cycles; and properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firedoor.broker.authorized import Entitlements, EntryIndex
from firedoor.broker.entry import Entry, is_node_alias, server_id
from firedoor.certs import Selector, SpiffeId, TrustDomain

TD = TrustDomain.parse("example.org")
SERVER = server_id(TD)
AGENT = TD.with_path("/spire/agent/join_token/t1")
OTHER = TD.with_path("/spire/agent/join_token/t2")
CLUSTER = Selector.parse("k8s_psat:cluster:prod")
NOW = 1_800_000_000


def at(path: str) -> SpiffeId:
    return TD.with_path(path)


def entry(name: str, parent: SpiffeId, *having: str, path: str = "", expires_at: int = 0) -> Entry:
    selectors = frozenset(map(Selector.parse, having or ("unix:uid:1",)))
    return Entry(name, at(path or f"/{name}"), parent, selectors, expires_at=expires_at)


CASES = {
    "nothing": ([], set()),
    "own": ([entry("a", AGENT)], {"a"}),
    "another agent's": ([entry("a", OTHER)], set()),
    "below an own one": ([entry("a", AGENT), entry("b", at("/a")), entry("c", at("/b"))], {"a", "b", "c"}),
    "below another's": ([entry("a", OTHER), entry("b", at("/a"))], set()),
    "below a matching alias": ([entry("n", SERVER, "k8s_psat:cluster:prod"), entry("a", at("/n"))], {"a"}),
    "below an alias that lacks one": (
        [entry("n", SERVER, "k8s_psat:cluster:prod", "k8s_psat:agent_ns:x"), entry("a", at("/n"))],
        set(),
    ),
    "below an alias for another": ([entry("n", SERVER, "k8s_psat:cluster:test"), entry("a", at("/n"))], set()),
    "below a join token's alias": ([entry("n", AGENT, f"spiffe_id:{AGENT}"), entry("a", at("/n"))], {"a"}),
    "below another's join token's alias": ([entry("n", OTHER, f"spiffe_id:{OTHER}"), entry("a", at("/n"))], set()),
    "an alias by agent ID": ([entry("n", SERVER, f"spire_agent:id:{AGENT}"), entry("a", at("/n"))], {"a"}),
    "a cycle of two": ([entry("a", AGENT), entry("b", at("/a")), entry("c", at("/b"), path="/a")], {"a", "b", "c"}),
    "its own parent": ([entry("a", AGENT), entry("b", at("/b"))], {"a"}),
    "a cycle that nobody reaches": ([entry("b", at("/c")), entry("c", at("/b"))], set()),
    "expired": ([entry("a", AGENT, expires_at=NOW), entry("b", AGENT, expires_at=NOW + 1)], {"b"}),
    "below an expired one": ([entry("a", AGENT, expires_at=NOW), entry("b", at("/a"))], set()),
    "two that give the same ID": ([entry("a", AGENT, path="/x"), entry("b", AGENT, path="/x")], {"a", "b"}),
}


@pytest.mark.parametrize("name", CASES)
def test_entitlement(name: str) -> None:
    entries, expected = CASES[name]
    found = EntryIndex(SERVER, entries).entitlement(AGENT, frozenset({CLUSTER}), NOW)
    assert set(found.workloads) == expected


def test_node_selectors_hold_what_the_broker_attested() -> None:
    index = EntryIndex(
        SERVER,
        [entry("n", SERVER, "k8s_psat:cluster:prod"), entry("m", AGENT, f"spiffe_id:{AGENT}"), entry("a", AGENT)],
    )
    found = index.entitlement(AGENT, frozenset({CLUSTER}), NOW)
    assert found.aliases == {at("/n"), at("/m")}
    assert {str(s) for s in found.node_selectors} == {
        "k8s_psat:cluster:prod",
        f"spire_agent:id:{AGENT}",
        "spire_agent:alias:spiffe://example.org/n",
        "spire_agent:alias:spiffe://example.org/m",
    }


def test_no_attestor_speaks_for_the_broker() -> None:
    forged = frozenset({Selector.parse(f"spire_agent:id:{OTHER}"), CLUSTER})
    index = EntryIndex(SERVER, [entry("n", SERVER, f"spire_agent:id:{OTHER}"), entry("a", at("/n"))])
    assert not index.entitlement(AGENT, forged, NOW).workloads
    assert set(index.entitlement(OTHER, frozenset(), NOW).workloads) == {"a"}


def test_valid_until_is_the_next_expiry() -> None:
    entries = [entry("a", AGENT, expires_at=NOW + 50), entry("b", AGENT, expires_at=NOW + 20), entry("c", AGENT)]
    assert EntryIndex(SERVER, entries).entitlement(AGENT, frozenset(), NOW).valid_until == NOW + 20
    assert EntryIndex(SERVER, entries[2:]).entitlement(AGENT, frozenset(), NOW).valid_until == 0


def test_only_an_agents_own_marker_makes_a_join_token_alias() -> None:
    assert is_node_alias(entry("n", AGENT, f"spiffe_id:{AGENT}"))
    assert not is_node_alias(entry("n", AGENT, f"spiffe_id:{OTHER}"))
    assert not is_node_alias(entry("n", AGENT, f"spiffe_id:{AGENT}", "unix:uid:1"))
    assert not is_node_alias(entry("n", at("/x"), "spiffe_id:spiffe://example.org/x"))


_names = st.integers(0, 12)


@given(st.lists(st.tuples(_names, _names), max_size=40), st.lists(_names, max_size=20))
def test_the_index_answers_like_a_walk_over_all_entries(edges: list[tuple[int, int]], gone: list[int]) -> None:
    entries = {
        f"e{i}": entry(f"e{i}", AGENT if parent == 0 else at(f"/w/{parent}"), path=f"/w/{child}")
        for i, (parent, child) in enumerate(edges)
    }
    index = EntryIndex(SERVER, entries.values())
    for number in gone:
        index.remove(f"e{number}")
        entries.pop(f"e{number}", None)
    reached, grew = {AGENT}, True
    while grew:
        more = {e.spiffe_id for e in entries.values() if e.parent_id in reached} - reached
        reached |= more
        grew = bool(more)
    expected = {name for name, e in entries.items() if e.parent_id in reached}
    assert set(index.entitlement(AGENT, frozenset(), NOW).workloads) == expected
    assert len(index) == len(entries)


# --- kept until something changes that they were computed from -------------------------------------------------------

_parents = st.sampled_from([SERVER, AGENT, OTHER, *(at(f"/w/{n}") for n in range(6))])
_steps = st.tuples(
    st.integers(0, 9),
    _parents,
    st.integers(0, 5),
    st.sampled_from(["unix:uid:1", f"spiffe_id:{AGENT}", f"spire_agent:id:{AGENT}", str(CLUSTER)]),
    st.sampled_from([0, 0, NOW + 1, NOW + 3]),
    st.booleans(),
    st.booleans(),
)


@given(st.lists(_steps, max_size=30))
def test_what_is_kept_is_what_would_be_computed(
    steps: list[tuple[int, SpiffeId, int, str, int, bool, bool]],
) -> None:
    index = EntryIndex(SERVER)
    kept = Entitlements(index, SERVER)
    for now, (number, parent, path, selector, expires_at, gone, asked) in enumerate(steps, NOW):
        if gone:
            index.remove(f"e{number}")
        else:
            index.put(entry(f"e{number}", parent, selector, path=f"/w/{path}", expires_at=expires_at))
        # Several changes may come before anybody asks.
        for agent, attested in ((AGENT, frozenset({CLUSTER})), (OTHER, frozenset[Selector]())) if asked else ():
            assert kept.of(agent, attested, now) == index.entitlement(agent, attested, now)


def test_a_change_elsewhere_leaves_it_what_it_is() -> None:
    index = EntryIndex(SERVER, [entry("n", SERVER, str(CLUSTER)), entry("a", at("/n")), entry("b", OTHER)])
    kept = Entitlements(index, SERVER)

    def ours() -> object:
        return kept.of(AGENT, frozenset({CLUSTER}), NOW)

    def theirs() -> object:
        return kept.of(OTHER, frozenset(), NOW)

    before, others = ours(), theirs()
    index.put(entry("c", OTHER))
    assert (ours() is before, theirs() is others) == (True, False)
    others = theirs()
    # Below a node alias, however deep.
    index.put(entry("d", at("/a")))
    assert (ours() is before, theirs() is others) == (False, True)
    # A new alias may name anybody.
    before = ours()
    index.put(entry("m", SERVER, str(CLUSTER)))
    assert (ours() is before, theirs() is others) == (False, False)
