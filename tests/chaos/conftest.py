# SPDX-License-Identifier: Apache-2.0
"""A namespace, a database and a world of its own for each test; and which faults there are to be."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import netns
from tests.chaos.world import ChaosWorld, Planted
from tests.postgres import Server

SEED, MINUTES, FAULTS = 12, 1.0, 20


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("chaos")
    group.addoption("--chaos-seed", type=int, help=f"which faults come when ({SEED})")
    group.addoption("--chaos-minutes", type=float, help=f"within how many minutes faults begin ({MINUTES})")
    group.addoption("--chaos-faults", type=int, help=f"how many there are ({FAULTS})")


@dataclass(frozen=True)
class Chosen:
    """What the options say."""

    seed: int
    seconds: float
    faults: int

    @property
    def command(self) -> str:
        """What does the same again."""
        minutes = self.seconds / 60
        return f"pytest tests/chaos --chaos-seed {self.seed} --chaos-minutes {minutes:g} --chaos-faults {self.faults}"


@pytest.fixture(scope="session")
def chosen(request: pytest.FixtureRequest) -> Chosen:
    def option(name: str, default: float) -> float:
        # Where the tests of another folder are asked for too, nobody has declared the options.
        found = request.config.getoption(name, None)
        return default if found is None else float(found)

    minutes = option("--chaos-minutes", MINUTES)
    return Chosen(int(option("--chaos-seed", SEED)), minutes * 60, int(option("--chaos-faults", FAULTS)))


@pytest.fixture
def place() -> Iterator[netns.Place | None]:
    """A network namespace with a loopback and nothing else; none for who is not root."""
    if netns.missing():
        yield None
        return
    name = f"fdn-{os.getpid()}-chaos"
    subprocess.run(["ip", "netns", "add", name], check=True)
    found = netns.Place(name, "127.0.0.1", "::1")
    try:
        found.ip("link", "set", "lo", "up")
        yield found
    finally:
        found.close()


def _world(own_postgres: Server, place: netns.Place | None, planted: bool) -> Iterator[ChaosWorld]:
    folder = Path(tempfile.mkdtemp(prefix="fd-chaos-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        found = ChaosWorld(folder, own_postgres, place, *((Planted,) if planted else ()))
        stack.callback(found.close)
        yield found


@pytest.fixture
def world(own_postgres: Server, place: netns.Place | None) -> Iterator[ChaosWorld]:
    """Nothing is started yet."""
    yield from _world(own_postgres, place, planted=False)


@pytest.fixture
def faulty(
    own_postgres: Server, place: netns.Place | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ChaosWorld]:
    """The same, of programs with faults in them, which act while a file of their name is in the folder `planted`."""
    monkeypatch.setenv("CHAOS_PLANTED", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent.parent))
    yield from _world(own_postgres, place, planted=True)
