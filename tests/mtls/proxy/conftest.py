# SPDX-License-Identifier: Apache-2.0
"""Cores and what stands around them, closed after each test."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mtls.proxy.datapath import World


@pytest.fixture
def make_world(folder: Path) -> Iterator[Callable[..., World]]:
    """Yield a maker of worlds; see `datapath`."""
    made: list[World] = []

    def make(**arguments: Any) -> World:
        made.append(World(folder, **arguments))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """Two cores and an app that echoes."""
    return make_world()
