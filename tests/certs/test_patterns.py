# SPDX-License-Identifier: Apache-2.0
import contextlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firedoor.certs import IdPattern, PatternError, SpiffeId, TrustDomain

TD = TrustDomain.parse("td")
VECTORS = json.loads((Path(__file__).parent.parent / "vectors/policy/id_patterns.json").read_text())

# Few words and short paths, so that every ID can be tried.
words = st.sampled_from(["a", "b", "spire", "*"])
pattern_texts = st.tuples(st.lists(words, max_size=3), st.sampled_from(["/*", "/**", "/a"])).map(
    lambda parts: "spiffe://td" + "".join(f"/{word}" for word in parts[0]) + parts[1]
)
patterns = pattern_texts.map(lambda text: IdPattern.parse(text, TD, allow_reserved=True))
ALL_IDS = [
    TD.with_path("".join(f"/{word}" for word in combination))
    for length in range(6)
    for combination in itertools.product(["a", "b", "spire"], repeat=length)
]


@pytest.mark.parametrize("case", VECTORS["patterns"], ids=lambda case: case["name"])
def test_vector(case: dict[str, Any]) -> None:
    if case["expect"] != "ok":
        with pytest.raises(PatternError) as caught:
            IdPattern.parse(case["pattern"], TD, allow_reserved=True)
        assert caught.value.code == case["expect"]
        return
    pattern = IdPattern.parse(case["pattern"], TD, allow_reserved=True)
    assert str(pattern) == case["pattern"]
    assert all(pattern.matches(SpiffeId.parse(text)) for text in case["matches"])
    assert not any(pattern.matches(SpiffeId.parse(text)) for text in case["differs"])


@pytest.mark.parametrize("case", VECTORS["pairs"], ids=lambda case: case["name"])
def test_pair_vector(case: dict[str, Any]) -> None:
    left, right = (IdPattern.parse(case[side], TD, allow_reserved=True) for side in ("left", "right"))
    assert left.covers(right) == case["covers"]
    assert left.overlaps(right) == right.overlaps(left) == case["overlaps"]


def test_vectors_hold_every_code() -> None:
    seen = {case["expect"] for case in VECTORS["patterns"]}
    assert seen == {"ok", *PatternError.sentences} - {"missing_leading_slash", "reserved_path"}


@pytest.mark.parametrize("path", ["spire", "spire/**", "spire/agent/x"])
def test_policy_may_not_name_what_is_reserved(path: str) -> None:
    with pytest.raises(PatternError) as caught:
        IdPattern.parse(f"spiffe://{{td}}/{path}", TD)
    assert caught.value.code == "reserved_path"
    assert IdPattern.parse(f"spiffe://{{td}}/x{path}", TD).matches(TD.with_path("/xspire")) == (path == "spire")


@given(patterns, patterns)
def test_covers_and_overlaps_are_what_trying_every_id_says(left: IdPattern, right: IdPattern) -> None:
    mine = {spiffe_id for spiffe_id in ALL_IDS if left.matches(spiffe_id)}
    theirs = {spiffe_id for spiffe_id in ALL_IDS if right.matches(spiffe_id)}
    assert left.covers(right) == (theirs <= mine)
    assert left.overlaps(right) == right.overlaps(left) == bool(mine & theirs)


@given(patterns)
def test_round_trip(pattern: IdPattern) -> None:
    assert IdPattern.parse(str(pattern), TrustDomain.parse("another"), allow_reserved=True) == pattern


@given(st.text().map(lambda text: f"spiffe://{{td}}/{text}") | st.text())
def test_any_text_is_a_pattern_or_a_known_error(text: str) -> None:
    with contextlib.suppress(PatternError):
        IdPattern.parse(text, TD)


@pytest.mark.parametrize(
    ("text", "expect"),
    [
        ("spiffe://{td}/a", "spiffe://td/a"),
        ("spiffe://{td}", "missing_path"),
        ("spiffe://{td}x/a", "bad_trust_domain_char"),
        ("spiffe://x/{td}", "bad_path_char"),
    ],
)
def test_own_trust_domain(text: str, expect: str) -> None:
    try:
        got = str(IdPattern.parse(text, TD))
    except PatternError as error:
        got = error.code
    assert got == expect


def test_exact() -> None:
    assert IdPattern.parse("spiffe://td/a/b", TD).is_exact
    assert not IdPattern.parse("spiffe://td/a/*", TD).is_exact
    assert not IdPattern.parse("spiffe://td/a/**", TD).is_exact
