# SPDX-License-Identifier: Apache-2.0
"""The command line says what the transcripts say."""

import shutil
from pathlib import Path

import pytest

from tests import transcripts

HERE = Path(__file__).parent


@pytest.mark.parametrize("name", sorted(p.stem for p in (HERE / "transcripts").glob("*.txt")))
def test_transcript(name: str, tmp_path: Path) -> None:
    shutil.copytree(HERE / "files", tmp_path, dirs_exist_ok=True)
    assert transcripts.check((HERE / "transcripts" / f"{name}.txt").read_text(), tmp_path, {"HOME": str(tmp_path)})
