# SPDX-License-Identifier: Apache-2.0
"""Path patterns: the shared vectors, and the algebra that lint stands on."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firedoor.segments import PathPattern
from firedoor.segments.paths import PathProblem
from tests.segments.evaluator import path_matches

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "policy" / "path_patterns.json").read_text())["patterns"]


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: case["pattern"][:40])
def test_shared_vectors(case: dict[str, str]) -> None:
    if "error" in case:
        with pytest.raises(PathProblem) as caught:
            PathPattern.parse(case["pattern"])
        assert caught.value.code == case["error"]
    else:
        assert str(PathPattern.parse(case["pattern"])) == case["pattern"]


# `c` stands in no pattern: it is what only a wildcard matches.
PATHS = [
    [""],
    *([*steps, *end] for n in range(1, 6) for steps in itertools.product("abc", repeat=n) for end in ([], [""])),
]
steps = st.lists(st.sampled_from(("a", "b", "*")), max_size=3)
patterns = st.tuples(steps, st.sampled_from(("", "a", "*", "**"))).map(lambda made: "/" + "/".join([*made[0], made[1]]))


@given(patterns, patterns)
def test_what_covers_matches_all_that_is_covered(wide: str, narrow: str) -> None:
    if PathPattern.parse(wide).covers(PathPattern.parse(narrow)):
        assert all(path_matches(wide, path) for path in PATHS if path_matches(narrow, path))


@given(patterns, patterns)
def test_what_does_not_cover_leaves_something_out(wide: str, narrow: str) -> None:
    if not PathPattern.parse(wide).covers(PathPattern.parse(narrow)):
        assert any(path_matches(narrow, path) and not path_matches(wide, path) for path in PATHS)


def test_only_parse_makes_a_pattern() -> None:
    with pytest.raises(TypeError, match="parse"):
        PathPattern()
