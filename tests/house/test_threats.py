# SPDX-License-Identifier: Apache-2.0
"""docs/threats.md names tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED = sorted(set(re.findall(r"`(tests/[\w/.]+)::(\w+|\*)`", (ROOT / "docs/threats.md").read_text())))


def test_there_are_many() -> None:
    assert len(NAMED) > 30


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[f"{f}::{n}" for f, n in NAMED])
def test_it_exists(file: str, name: str) -> None:
    text = (ROOT / file).read_text()
    assert re.search(r"def test_" if name == "*" else rf"def {name}\(", text), f"{file} has no {name}"
