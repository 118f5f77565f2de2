# SPDX-License-Identifier: Apache-2.0
"""A broker with a fallback segment, as docs/spire.md begins, and SPIRE's programs around it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import spiffe

from tests.e2e.conftest import World
from tests.spire.programs import Cli, SpireAgent, SpireServer, Workload
from tests.waiting import PATIENCE

TD = "example.org"
UID = f"unix:uid:{os.geteuid()}"
# What a SPIRE user declares first: every ID is in the fallback, and a few may be minted.
POLICY = """\
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {name: not-moved-yet}
spec: {function: legacy, fallback: true, admission: {}}
---
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {name: minted}
spec:
  function: legacy
  trust: low
  mode: enforce
  members: ["spiffe://{td}/minted/**"]
  admission: {entry: ["unix:user:nobody"], mint: true}
"""


class Estate(World):
    """A firedoor broker that stock SPIRE agents and the stock command line use."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (folder / "policy.yaml").write_text(POLICY)
        self.cli = Cli(folder / "b.sock")
        self.agents_started: list[SpireAgent] = []

    def join_token(self, *words: str) -> str:
        """Make a join token with the stock command line."""
        return self.cli.ok("token", "generate", *words).splitlines()[0].removeprefix("Token: ").strip()

    def agent(self, name: str = "a", token: str | None = None) -> SpireAgent:
        """Return a stock agent that is to attest by a join token."""
        made = SpireAgent(self.folder / name, self.address, self.cli.ok("bundle", "show"), token or self.join_token())
        self.agents_started.append(made)
        return made

    def entry(self, parent: str, path: str, *selectors: str, more: tuple[str, ...] = ()) -> str:
        """Create an entry with the stock command line and return its ID."""
        chosen = [word for one in selectors or (UID,) for word in ("-selector", one)]
        ids = ["-parentID", f"spiffe://{TD}{parent}", "-spiffeID", f"spiffe://{TD}{path}"]
        (result,) = self.cli.json("entry", "create", *ids, *chosen, *more)["results"]
        assert result["status"]["code"] == 0, result
        return str(result["entry"]["id"])

    def close(self) -> None:
        for agent in self.agents_started:
            agent.close()
        super().close()


def agent_path(agent: SpireAgent) -> str:
    """Return the path of a stock agent's ID."""
    return f"/spire/agent/join_token/{agent.join_token}"


def api(agent: SpireAgent) -> spiffe.WorkloadApiClient:
    """Return py-spiffe's client of a stock agent."""
    return spiffe.WorkloadApiClient(f"unix://{agent.socket}", default_timeout=PATIENCE)


def own_serial(estate: Estate) -> str:
    """Return the serial number of the one agent's own certificate."""
    (shown,) = estate.cli.json("agent", "list")["agents"]
    return str(shown["x509svid_serial_number"])


@pytest.fixture
def estate(tmp_path: Path) -> Iterator[Estate]:
    found = Estate(tmp_path)
    yield found
    found.close()


@pytest.fixture
def spire_server(tmp_path: Path) -> Iterator[SpireServer]:
    """A real spire-server that serves."""
    folder = tmp_path / "spire"
    folder.mkdir(mode=0o700)
    found = SpireServer(folder)
    found.start()
    yield found
    found.close()


@pytest.fixture
def workload() -> Iterator[Callable[..., Workload]]:
    """Make workloads on go-spiffe."""
    made: list[Workload] = []

    def make(environment: dict[str, str]) -> Workload:
        made.append(Workload(environment))
        return made[-1]

    yield make
    for one in made:
        one.close()
