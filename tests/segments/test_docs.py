# SPDX-License-Identifier: Apache-2.0
"""docs/policy.md says what is true: its examples are one policy, its error is what is printed, its tables hold."""

import re
from pathlib import Path

import pytest

from firedoor import mtls
from firedoor.certs import IdPattern, SpiffeId, TrustDomain
from firedoor.segments import Document, PolicyErrors, accept, compile_table, linter, load, table_bytes
from tests.segments.evaluator import decoded_path, path_matches

TEXT = (Path(__file__).parents[2] / "docs" / "policy.md").read_text()
TD = TrustDomain.parse("example.org")
BLOCKS = re.findall(r"```(\w+(?: \w+)?)\n(.*?)```", TEXT, re.DOTALL)
GOOD = [text for kind, text in BLOCKS if kind == "yaml"]
ROWS = [
    [re.findall("`([^`]+)`", cell) for cell in line.strip("|").split("|")]
    for line in TEXT.splitlines()
    if line.startswith("| `")
]


def test_the_examples_are_one_policy_that_lints_clean() -> None:
    assert len(GOOD) == 4
    policy, warnings = accept([Document(f"{number}.yaml", text) for number, text in enumerate(GOOD)], TD)
    assert [one.code for one in warnings] == ["service_without_flow"]  # Its second port is opaque, and no flow is.
    assert (len(policy.segments), len(policy.flows), len(policy.services)) == (4, 2, 1)
    mtls.Engine(table_bytes(compile_table(policy)))


def test_each_example_parses_alone() -> None:
    for text in GOOD:
        load([Document("x.yaml", text)], TD)


def test_the_error_is_what_is_printed() -> None:
    (refused,) = [text for kind, text in BLOCKS if kind == "yaml error"]
    (printed,) = [text for kind, text in BLOCKS if kind == "text"]
    with pytest.raises(PolicyErrors) as caught:
        load([Document("flows.yaml", refused)], TD)
    assert str(caught.value) == printed.strip()


def test_the_table_of_id_patterns() -> None:
    rows = [row for row in ROWS if row[0][0].startswith("spiffe://")]
    for (pattern,), matching, others in rows:
        parsed = IdPattern.parse(pattern, TD)
        for good, texts in ((True, matching), (False, others)):
            for text in texts:
                spiffe_id = text.replace("…", "spiffe://example.org").replace("{td}", "example.org/rag/query")
                spiffe_id = spiffe_id if spiffe_id.startswith("spiffe://") else f"spiffe://{spiffe_id}"
                assert parsed.matches(SpiffeId.parse(spiffe_id)) == good, (pattern, text)
    assert len(rows) == 3


def test_the_table_of_paths() -> None:
    rows = [row for row in ROWS if row[0][0].startswith("/")]
    for (pattern,), matching, others in rows:
        for good, targets in ((True, matching), (False, others)):
            for target in targets:
                parts = decoded_path(target)
                assert parts is not None
                assert path_matches(pattern, parts) == good, (pattern, target)
    assert len(rows) == 3


def test_every_lint_code_is_told() -> None:
    assert linter.__doc__ is not None
    codes = {
        code
        for line in linter.__doc__.splitlines()
        if line.startswith("| `")
        for code in re.findall("`([a-z_]+)`", line.split("|")[1])
    }
    section = TEXT.split("## Lint")[1].split("## ")[0]
    assert codes == set(re.findall("`([a-z_]+)`", section)) - {"id"}
