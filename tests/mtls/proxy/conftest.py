# SPDX-License-Identifier: Apache-2.0
"""Cores and what stands around them, closed after each test."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mtls.proxy.datapath import World


@pytest.fixture
def sockets() -> Iterator[Path]:
    """Yield a folder of ours alone whose path is short enough for Unix sockets."""
    path = Path(tempfile.mkdtemp(prefix="fd-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def make_world(sockets: Path) -> Iterator[Callable[..., World]]:
    """Yield a maker of worlds; see `datapath`."""
    made: list[World] = []

    def make(**arguments: Any) -> World:
        made.append(World(sockets, **arguments))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """Two cores and an app that echoes."""
    return make_world()
