# SPDX-License-Identifier: Apache-2.0
"""Membership: the same answers as the engine's, by the shared vectors and by trying everything small."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from firedoor import mtls
from firedoor.certs import IdPattern, SpiffeId
from firedoor.segments import compile_table, table_bytes
from firedoor.segments.listeners import membership_of
from firedoor.segments.membership import Membership
from firedoor.wire import policy_pb2
from tests.segments.conftest import TD, policy, segment, sid

VECTORS = Path(__file__).parents[1] / "vectors" / "policy" / "tables.json"


def test_shared_vectors() -> None:
    reasons = set()
    for case in json.loads(VECTORS.read_text())["tables"]:
        membership = membership_of(json_format.ParseDict(case["table"], policy_pb2.Table()))
        for asked in case["questions"]:
            reason = asked["expect"]["reason"]
            if reason not in ("bad_id", "bad_request"):
                source, destination = (
                    membership.segment_of(SpiffeId.parse(asked["question"][end])) for end in ("source", "destination")
                )
                assert (source is None) == (reason == "unknown_source"), asked
                assert source is None or (destination is None) == (reason == "unknown_destination"), asked
                reasons.add(reason)
    assert {"allowed", "unknown_source", "unknown_destination"} <= reasons


POLICY = policy(
    segment("a", members=["spiffe://{td}/segment/a/**", "spiffe://{td}/ns/*/sa/a", "spiffe://{td}/both/*"]),
    segment("b", members=["spiffe://{td}/segment/b/**", "spiffe://{td}/both/x", "spiffe://other/**"]),
    segment("old", members=[], fallback=True, admission={}),
)

CASES = {
    "its prefix": ("/segment/a/x/y", "a"),
    "the prefix alone is not reserved": ("/segment/a", "old"),
    "a prefix of no segment": ("/segment/c/x", None),
    "another pattern": ("/ns/x/sa/a", "a"),
    "one step too many": ("/ns/x/sa/a/b", "old"),
    "claimed by two": ("/both/x", None),
    "claimed by one of them": ("/both/y", "a"),
    "the trust domain itself": ("", None),
    "an agent": ("/spire/agent/join_token/x", None),
    "spire itself": ("/spire", None),
    "almost spire": ("/spirex/agent", "old"),
    "claimed by nobody": ("/x", "old"),
    "foreign, claimed": ("spiffe://other/x", "b"),
    "foreign, another's": ("spiffe://others/x", None),
    "foreign agent": ("spiffe://other/spire/agent/x", None),
    "foreign prefix": ("spiffe://other/segment/a/x", "b"),
}


@pytest.mark.parametrize("case", CASES)
def test_membership(case: str) -> None:
    text, expected = CASES[case]
    found = POLICY.segment_of(sid(text))
    assert (found and found.name) == expected
    assert mtls.Engine(table_bytes(compile_table(POLICY))).segment_of(str(sid(text))) == expected


STEPS = ("a", "b", "segment", "spire")
IDS = [sid("/" + "/".join(steps)) for length in range(1, 5) for steps in itertools.product(STEPS, repeat=length)]
patterns = st.lists(st.sampled_from(("a", "b", "segment", "*")), min_size=1, max_size=4).flatmap(
    lambda steps: st.sampled_from(["/".join(steps), "/".join([*steps[:-1], "**"])])
)


@given(st.lists(st.tuples(patterns, st.sampled_from(("a", "b", "c"))), max_size=5))
def test_the_tree_finds_what_trying_each_pattern_finds(claims: list[tuple[str, str]]) -> None:
    made: list[tuple[Any, str]] = [(IdPattern.parse(f"spiffe://td/{text}", TD), name) for text, name in claims]
    membership = Membership(TD, made, None)
    for spiffe_id in IDS:
        assert membership.claims(spiffe_id) == {name for pattern, name in made if pattern.matches(spiffe_id)}
