# SPDX-License-Identifier: Apache-2.0
"""What all tests of the Rust core share."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def folder() -> Iterator[Path]:
    """Yield a private folder with a path short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="fd-"))
    path.chmod(0o700)
    yield path
    shutil.rmtree(path)
