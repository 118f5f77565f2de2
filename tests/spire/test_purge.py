# SPDX-License-Identifier: Apache-2.0
"""`spire-server agent purge` with an agent that has expired and may attest again: as at a real server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes

from tests.node_pki import NodePki
from tests.spire.conftest import TD, Estate
from tests.spire.programs import Cli, SpireAgent, SpireServer
from tests.spire.sides import comparable
from tests.waiting import until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

TTL = "20s"
PURGED = ("purge", "-expiredFor", "1s")
STEPS = (
    ("list", "-canReattest", "true"),
    ("purge",),
    ("purge", "-expiredFor", "1h"),
    (*PURGED, "-dryRun"),
    ("count",),
    PURGED,
    ("count",),
    (*PURGED, "-dryRun"),
)


class Nodes:
    """One node, whose agent attests by its certificate to a real server and to a broker, and has gone since."""

    def __init__(self, folder: Path, estate: Estate) -> None:
        pki = NodePki(int(time.time()))
        (folder / "spire").mkdir(mode=0o700)
        roots = folder / "nodes-ca.pem"
        roots.write_bytes(pki.root_pem)
        self.spire = SpireServer(folder / "spire", more=f'agent_ttl = "{TTL}"')
        self.spire.plugins = f'NodeAttestor "x509pop" {{ plugin_data {{ ca_bundle_path = "{roots}" }} }}'
        self._estate, self._folder = estate, folder
        self._held = pki.node("gpu-1", issuer=pki.root)
        self.path = f"/spire/agent/x509pop/{self._held.certificate.fingerprint(hashes.SHA1()).hex()}"

    def start(self) -> tuple[Cli, Cli]:
        """Start both; return the command line of each."""
        self.spire.start()
        self._estate.start_broker("--x509pop-ca-bundles", str(self._folder / "nodes-ca.pem"), "--agent-ttl", TTL)
        return self.spire.cli, self._estate.cli

    def come(self, name: str, address: str, cli: Cli) -> SpireAgent:
        """Have the agent attest."""
        agent = SpireAgent(self._folder / name, address, cli.ok("bundle", "show"))
        self._estate.agents_started.append(agent)
        certificate, key = self._held.write(agent.folder)
        files = f'certificate_path = "{certificate}" private_key_path = "{key}"'
        agent.node_attestor = f'NodeAttestor "x509pop" {{ plugin_data {{ {files} }} }}'
        agent.start()
        until(lambda: self.shown(cli)["agent_version"], "the agent's version")
        return agent

    def shown(self, cli: Cli) -> Any:
        """Return what is said of the agent."""
        return cli.json("agent", "show", "-spiffeID", f"spiffe://{TD}{self.path}")


@pytest.fixture
def nodes(tmp_path: Path, estate: Estate) -> Iterator[Nodes]:
    found = Nodes(tmp_path, estate)
    yield found
    found.spire.close()


def test_it_takes_those_that_have_expired(nodes: Nodes, estate: Estate) -> None:
    both = theirs, ours = nodes.start()
    agents = [nodes.come("theirs", nodes.spire.address, theirs), nodes.come("ours", estate.address, ours)]
    for one in agents:
        one.stop()
    ends = max(int(nodes.shown(cli)["x509svid_expires_at"]) for cli in both)
    until(lambda: time.time() > ends + 2, "the end of what they had")
    for words in STEPS:
        for output in ("pretty", "json"):
            if words != PURGED or output == "json":
                said = [comparable(cli("agent", *words, "-output", output)) for cli in both]
                assert said[0] == said[1], (output, words)
    assert [cli.json("agent", "count")["count"] for cli in both] == [0, 0]
