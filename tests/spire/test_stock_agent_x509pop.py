# SPDX-License-Identifier: Apache-2.0
"""A stock spire-agent that attests by a certificate of its node: again and again, as what the certificate says."""

from __future__ import annotations

import time

import pytest
from cryptography.hazmat.primitives import hashes

from tests.node_pki import Held, NodePki
from tests.spire.conftest import TD, Estate, own_serial
from tests.spire.programs import SpireAgent
from tests.spire.test_stock_agent import WEB, held
from tests.waiting import until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

# The broker itself has seen a certificate of this name.
POLICY = """\
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {name: training}
spec:
  function: training
  trust: high
  mode: enforce
  members: ["spiffe://{td}/segment/training/**"]
  admission: {entry: [], node: ["x509pop:subject:cn:gpu-1"]}
---
"""


class Nodes:
    """A broker that trusts a company's PKI, and nodes of it with stock agents."""

    def __init__(self, estate: Estate) -> None:
        self.estate, self.pki = estate, NodePki(int(time.time()))
        policy = estate.folder / "policy.yaml"
        policy.write_text(POLICY + policy.read_text())
        (estate.folder / "nodes-ca.pem").write_bytes(self.pki.root_pem)
        estate.start_broker("--x509pop-ca-bundles", str(estate.folder / "nodes-ca.pem"), "--agent-ttl", "24s")

    def agent(self, name: str) -> tuple[SpireAgent, str]:
        """Return an agent on a node of that name, and the path of its ID."""
        certificate = self.pki.node(name, issuer=self.pki.root)
        made = self.estate.agent(name, token="-")
        made.join_token = ""
        paths = certificate.write(made.folder)
        files = f'certificate_path = "{paths[0]}" private_key_path = "{paths[1]}"'
        made.node_attestor = f'NodeAttestor "x509pop" {{ plugin_data {{ {files} }} }}'
        return made, path_of(certificate)


def path_of(certificate: Held) -> str:
    return f"/spire/agent/x509pop/{certificate.certificate.fingerprint(hashes.SHA1()).hex()}"


@pytest.fixture
def nodes(estate: Estate) -> Nodes:
    return Nodes(estate)


def test_attests_again_at_half_life_and_with_another_key(nodes: Nodes) -> None:
    agent, path = nodes.agent("gpu-1")
    agent.start()
    nodes.estate.entry(path, "/web")
    until(lambda: held(agent) == [WEB], "an SVID")
    (shown,) = nodes.estate.cli.json("agent", "list")["agents"]
    assert (shown["attestation_type"], shown["can_reattest"]) == ("x509pop", True)
    assert {"type": "x509pop", "value": "subject:cn:gpu-1"} in shown["selectors"]
    first = own_serial(nodes.estate)
    until(lambda: own_serial(nodes.estate) != first, "another certificate of the agent")
    nodes.estate.entry(path, "/later")
    until(lambda: f"spiffe://{TD}/later" in held(agent), "an SVID as the agent that attested again")


def test_an_evicted_agent_comes_back_by_itself(nodes: Nodes) -> None:
    """SPIRE's suites `evict-agent` and `node-re-attestation`, for nodes that can attest again."""
    agent, path = nodes.agent("gpu-1")
    agent.start()
    nodes.estate.entry(path, "/web")
    until(lambda: held(agent) == [WEB], "an SVID")
    nodes.estate.cli.ok("agent", "evict", "-spiffeID", f"spiffe://{TD}{path}")
    until(lambda: nodes.estate.cli.json("agent", "count")["count"] == 1, "the agent's return")
    until(lambda: held(agent) == [WEB], "an SVID after it")
    assert agent.alive()


def test_a_banned_node_shuts_down_and_stays_out(nodes: Nodes) -> None:
    agent, path = nodes.agent("gpu-1")
    agent.start()
    nodes.estate.cli.ok("agent", "ban", "-spiffeID", f"spiffe://{TD}{path}")
    agent.logged("Agent is banned: removing SVID and shutting down")
    agent.ended()
    agent.begin()
    agent.logged("failed to attest: agent is banned")
    agent.ended()
    # Its certificate is good; the twin of another name is let in.
    twin, _ = nodes.agent("gpu-2")
    twin.start()


def test_what_the_broker_saw_of_the_node_decides(nodes: Nodes) -> None:
    """Both agents hold such an entry; only one of the nodes has proved the name that the segment asks for."""
    identity = "/segment/training/host/x/svc/job"
    agents = {}
    for name in ("gpu-1", "gpu-2"):
        agent, path = nodes.agent(name)
        agent.start()
        agents[name] = agent
        nodes.estate.entry(path, identity)
        nodes.estate.entry(path, f"/open/{name}")
    trusted = f"spiffe://{TD}{identity}"
    until(lambda: set(held(agents["gpu-1"])) == {trusted, f"spiffe://{TD}/open/gpu-1"}, "both SVIDs")
    until(lambda: held(agents["gpu-2"]) == [f"spiffe://{TD}/open/gpu-2"], "the one SVID")
    # Its agent would keep a workload waiting for an identity that is never signed; the broker says so in its log.
    said = "is not told of 1 entries: their segments do not admit them on that node"
    until(lambda: said in nodes.estate.programs[0].text, "what the broker says")


def test_a_certificate_of_another_pki_is_refused(nodes: Nodes) -> None:
    nodes.pki = NodePki(int(time.time()))
    stranger, _ = nodes.agent("gpu-1")
    stranger.begin()
    stranger.logged("Agent crashed")
    assert "code = PermissionDenied" in stranger.text or "code = InvalidArgument" in stranger.text
