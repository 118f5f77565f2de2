# SPDX-License-Identifier: Apache-2.0
"""What holds for every test."""

import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.postgres import MISSING, Server, running_server

# Tests start programs as other users, which takes a fork. gRPC's handlers of it restart its threads in the child, which
# abort it now and then before it is that program. gRPC reads this when it is first imported.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

# How long an example takes says more about the machine than about us.
settings.register_profile("firedoor", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("firedoor")


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    """Keep the level of our loggers, which the Logger service sets, from the next test."""
    ours = logging.getLogger("firedoor")
    before = ours.level
    yield
    ours.setLevel(before)


@pytest.fixture(scope="session")
def _postgres() -> Iterator[Server | None]:
    """One server for all tests of a process."""
    with running_server() as server:
        yield server


@pytest.fixture(scope="session")
def postgres(_postgres: Server | None) -> Server:
    """A PostgreSQL server; the test skips where none is installed."""
    return _there(_postgres)


def _there(server: Server | None) -> Server:
    """Return the server, or skip. `.ci/run` installs one, so that there nothing may be left out for want of it."""
    if server is None:
        if os.environ.get("CI"):
            pytest.fail(MISSING)
        pytest.skip(MISSING)
    return server


@pytest.fixture
def own_postgres() -> Iterator[Server]:
    """A PostgreSQL server that a test may stop."""
    with running_server() as server:
        yield _there(server)
