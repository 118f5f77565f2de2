# SPDX-License-Identifier: Apache-2.0
"""A broker for tests; `harness` has the parts, for suites elsewhere."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.broker.harness import RunningBroker, running


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    made = Path(tempfile.mkdtemp(prefix="fd-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
async def broker(folder: Path) -> AsyncIterator[RunningBroker]:
    """A broker with two segments."""
    async with running(folder) as found:
        yield found
