# SPDX-License-Identifier: Apache-2.0
"""What the README shows is what happens."""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests import transcripts

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = [
    b
    for b in re.findall(r"^```console\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    if b.startswith("$ ")
]


def several_users() -> bool:
    """Say whether the demo can start workloads as users of their own here."""
    folders = (Path(sys.prefix), *Path(sys.prefix).parents)
    return os.geteuid() == 0 and all(folder.stat().st_mode & 0o001 for folder in folders)


@pytest.mark.parametrize("block", BLOCKS, ids=[b.splitlines()[0] for b in BLOCKS])
def test_transcript(block: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tests/cli/files", tmp_path, dirs_exist_ok=True)
    if not several_users():
        block = re.sub(
            r"^(user of training .*?)denied .*$", r"\1skipped skipped not shown: needs root", block, flags=re.M
        )
    assert transcripts.check(block, tmp_path)


def test_every_page_is_in_its_table() -> None:
    linked = set(re.findall(r"\]\((docs/[^)#]+\.md)\)", (ROOT / "README.md").read_text()))
    assert linked == {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}


def test_there_are_transcripts() -> None:
    assert any("demo --once" in block for block in BLOCKS)
    assert any("explain" in block for block in BLOCKS)


def test_the_policy_in_it_is_the_one_that_the_transcript_uses() -> None:
    (shown,) = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    used = "\n".join(path.read_text() for path in (ROOT / "tests/cli/files/policy").iterdir())
    for document in shown.split("---\n"):
        assert document in used
