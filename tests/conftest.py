# SPDX-License-Identifier: Apache-2.0
"""What holds for every test."""

import logging
from collections.abc import Iterator

import pytest
from hypothesis import settings

# How long an example takes says more about the machine than about us.
settings.register_profile("firedoor", deadline=None)
settings.load_profile("firedoor")


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    """Keep the level of our loggers, which the Logger service sets, from the next test."""
    ours = logging.getLogger("firedoor")
    before = ours.level
    yield
    ours.setLevel(before)
