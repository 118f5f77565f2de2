# SPDX-License-Identifier: Apache-2.0
"""The judge itself: a journal without fault passes, and each thing that must not be is found and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.invariants import check
from tests.chaos.ledger import read_segments
from tests.chaos.observed import (
    Accepted,
    Attested,
    Counts,
    Ended,
    Entry,
    InForce,
    Journal,
    Life,
    Revoked,
    Seen,
    Segment,
    Signed,
    matches,
    segment_of,
)
from tests.chaos.plan import make_plan
from tests.chaos.policy import BROKEN, MOVED, NARROWED, WIDENED, policy

TD = "spiffe://td"
AGENT, ALIAS, ID = f"{TD}/spire/agent/join_token/t", f"{TD}/node/n", f"{TD}/segment/a/x"
A = Segment("a", (f"{TD}/segment/a/**",), entry=frozenset({"unix:uid:1"}))
E = Segment("e", (f"{TD}/segment/e/**",), breakglass=True)
NAMES = Entry("alias", ALIAS, AGENT, frozenset({f"spiffe_id:{AGENT}"}))
WORKLOAD = Entry("w", ID, ALIAS, frozenset({"unix:uid:1", "unix:gid:1"}))
SIGNED = Signed("0a", ID, "w", AGENT, "ca1", 100, (NAMES, WORKLOAD), True, frozenset(), "", (A, E))
OWN = replace(SIGNED, serial="0b", spiffe_id=AGENT, entry_id="")
GRANTED = replace(SIGNED, serial="0c", spiffe_id=f"{TD}/segment/e/g", entry_id="", agent_id="", granted=f"{TD}/ann")
SERVER = replace(SIGNED, serial="0d", spiffe_id=f"{TD}/spire/server", entry_id="", agent_id="")
IN_FORCE = InForce((1, 5), (A, E))
ACCEPTED = Accepted("server 1", (1, 5), ID, "0a")


def journal() -> Journal:
    """Return one without a fault."""
    return Journal(
        in_force=[IN_FORCE, InForce((1, 6), (A, E), frozenset({Revoked("serial", "0f")}))],
        signed=[SIGNED, OWN, GRANTED, SERVER],
        handed={"0a": "issue", "0c": "breakglass_take"},
        accepted=[ACCEPTED, replace(ACCEPTED, generation=(1, 6))],
        lives=[Life("s 1", "settled", Counts(9, 7, 0, 2), 7), Life("s 2", "killed", Counts(9, 5, 4, 0), 6)],
        seen=[Seen("s", (1, 5)), Seen("t", (1, 9)), Seen("s", (1, 5)), Seen("s", (2, 1))],
        attested=[Attested("t", "one"), Attested("u", "two")],
        ended=[Ended("a", True, True), Ended("b", False, False)],
    )


def signed(**fields: object) -> Callable[[Journal], None]:
    def change(found: Journal) -> None:
        found.signed[0] = replace(SIGNED, **fields)  # type: ignore[arg-type]

    return change


def add(where: str, what: object) -> Callable[[Journal], None]:
    return lambda found: getattr(found, where).append(what)


ASKS_MORE = replace(A, entry=A.entry | {"unix:gid:7"})
ASKS_NODE = replace(A, node=frozenset({"x509pop:ca:1"}))


def revoking(*revoked: Revoked) -> Callable[[Journal], None]:
    return lambda found: found.in_force.__setitem__(0, InForce((1, 5), (A, E), frozenset(revoked)))


PLANTED: dict[str, tuple[Callable[[Journal], None], set[str]]] = {
    "a serial number of nobody": (add("accepted", replace(ACCEPTED, peer_serial="ff")), {"admitted"}),
    "a record that says who but not by which certificate": (
        add("accepted", replace(ACCEPTED, peer_serial="")),
        {"admitted"},
    ),
    "another's certificate": (add("accepted", replace(ACCEPTED, peer_id=f"{TD}/segment/a/y")), {"admitted"}),
    "promoted by an edit of selectors": (add("in_force", InForce((1, 6), (ASKS_MORE, E))), {"admitted"}),
    "promoted by an edit of node selectors": (add("in_force", InForce((1, 6), (ASKS_NODE, E))), {"admitted"}),
    "accepted in no segment": (add("in_force", InForce((1, 6), (E,))), {"admitted"}),
    "a workload's that became an emergency's": (
        add("in_force", InForce((1, 6), (replace(E, members=A.members),))),
        {"admitted"},
    ),
    "a generation that nobody made": (add("accepted", replace(ACCEPTED, generation=(1, 7))), {"generation"}),
    "revoked by serial number": (revoking(Revoked("serial", "0a")), {"revoked"}),
    "revoked by authority": (revoking(Revoked("authority", "ca1")), {"revoked"}),
    "revoked by pattern": (revoking(Revoked("pattern", f"{TD}/segment/**", 101)), {"revoked"}),
    "handed out and not written down": (lambda found: found.handed.update({"ff": "issue"}), {"entitled"}),
    "a banned agent": (signed(agent=False), {"entitled"}),
    "no entry": (signed(entries=(NAMES,)), {"entitled", "admitted"}),
    "another node's entry": (signed(entries=(replace(NAMES, spiffe_id=f"{TD}/node/m"), WORKLOAD)), {"entitled"}),
    "an alias that the node was not attested for": (
        signed(entries=(Entry("alias", ALIAS, f"{TD}/spire/server", frozenset({"x509pop:ca:1"})), WORKLOAD)),
        {"entitled"},
    ),
    "an entry of another ID": (
        signed(entries=(NAMES, replace(WORKLOAD, spiffe_id=f"{TD}/segment/a/y"))),
        {"entitled"},
    ),
    "signed without admission": (signed(segments=(ASKS_MORE,)), {"entitled"}),
    "emergency access that nobody approved": (add("signed", replace(GRANTED, serial="0e", granted="")), {"entitled"}),
    "minted": (add("signed", replace(SERVER, spiffe_id=ID)), {"entitled"}),
    "an agent's own certificate with another ID": (add("signed", replace(OWN, spiffe_id=ID)), {"entitled"}),
    "a record that is gone": (add("lives", Life("s 3", "settled", Counts(9, 7, 0, 2), 6)), {"recorded"}),
    "a record too many": (add("lives", Life("s 3", "settled", Counts(9, 7, 0, 2), 8)), {"recorded"}),
    "a written record that a kill took": (add("lives", Life("s 3", "killed", Counts(9, 7, 0, 2), 6)), {"recorded"}),
    "an older generation": (add("seen", Seen("t", (1, 8))), {"monotonic"}),
    "an older epoch with a higher number": (add("seen", Seen("s", (1, 100))), {"monotonic"}),
    "a token that made two agents": (add("attested", Attested("t", "two")), {"once"}),
    "an entitled pair that is silent": (add("ended", Ended("c", True, False)), {"alive"}),
    "a pair that speaks and must not": (add("ended", Ended("c", False, True)), {"alive"}),
}


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    assert check(journal()) == []


@pytest.mark.parametrize("name", PLANTED)
def test_what_must_not_be_is_found(name: str) -> None:
    change, names = PLANTED[name]
    found = journal()
    change(found)
    assert {one.invariant for one in check(found)} == names


@pytest.mark.parametrize(
    "change",
    [
        # Whoever was refused after the commit has nothing.
        lambda found: (found.handed.pop("0a"), found.accepted.clear(), signed(agent=False)(found)),
        revoking(Revoked("pattern", f"{TD}/segment/**", 100)),
        revoking(Revoked("pattern", f"{TD}/segment/*", 101)),
        add("in_force", InForce((1, 6), (replace(A, entry=frozenset()), E))),
    ],
    ids=["signed and not handed out", "issued after that", "another pattern", "a segment that asks for less"],
)
def test_what_may_be(change: Callable[[Journal], None]) -> None:
    found = journal()
    change(found)
    assert check(found) == []


@pytest.mark.parametrize(
    ("pattern", "spiffe_id", "expected"),
    [
        ("spiffe://td/a/**", "spiffe://td/a/b/c", True),
        ("spiffe://td/a/**", "spiffe://td/a", False),
        ("spiffe://td/a/**", "spiffe://other/a/b", False),
        ("spiffe://td/a/*/c", "spiffe://td/a/b/c", True),
        ("spiffe://td/a/*", "spiffe://td/a/b/c", False),
        ("spiffe://td/a", "spiffe://td/a", True),
    ],
)
def test_patterns(pattern: str, spiffe_id: str, expected: bool) -> None:
    assert matches(pattern, spiffe_id) is expected


def test_the_policy_of_the_world_says_what_its_edits_mean() -> None:
    moved = {edit: read_segments((policy({edit}),), "td") for edit in (NARROWED, WIDENED, MOVED, BROKEN)}
    plain = read_segments((policy(),), "td")

    def name(edit: str) -> str:
        found = segment_of(moved[edit], "spiffe://td/ns/app/bad")
        return found.name if found else ""

    def asked(segments: tuple[Segment, ...]) -> int:
        return len(next(one.entry for one in segments if one.name == "inference"))

    assert (name(MOVED), name(WIDENED)) == ("inference", "training")
    assert [asked(one) for one in (moved[WIDENED], plain, moved[NARROWED])] == [1, 2, 3]
    assert moved[BROKEN] == plain


@given(st.integers(), st.integers(1, 60), st.integers(0, 50))
def test_a_seed_is_a_plan(seed: int, seconds: int, count: int) -> None:
    kinds = {"a": ("x", "y"), "b": ("z",), "c": ("x",)}
    plan = make_plan(seed, seconds, count, kinds)
    assert plan == make_plan(seed, seconds, count, dict(reversed(kinds.items())))
    assert len(plan) == count
    assert [one.at for one in plan] == sorted(one.at for one in plan)
    assert all(0 <= one.at <= seconds and one.whom in kinds[one.kind] for one in plan)
    # Every kind comes as often as every other, give or take one.
    counts = [sum(one.kind == name for one in plan) for name in kinds]
    assert max(counts) - min(counts) <= 1
