# SPDX-License-Identifier: Apache-2.0
"""Nodes that attest by a certificate of their own: broker and sidecar as processes, as an operator would run them."""

import time
from pathlib import Path

import pytest
from spiffe.workloadapi.errors import FetchX509SvidError

from tests.e2e.conftest import UID, World
from tests.node_pki import Held, NodePki
from tests.waiting import until

pytestmark = pytest.mark.peer

ID = "spiffe://example.org/segment/training/host/gpu-1/svc/job"
POLICY = f"""\
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {{name: training}}
spec:
  function: training
  trust: high
  mode: enforce
  members: ["spiffe://{{td}}/segment/training/**"]
  # The broker itself has seen a certificate of this name: no node's root can claim that.
  admission: {{entry: ["unix:{UID}"], node: ["x509pop:subject:cn:gpu-1"]}}
"""


class Site:
    """A broker that trusts a company's PKI, and a node of it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.pki = NodePki(int(time.time()))
        (world.folder / "policy.yaml").write_text(POLICY)
        self.bundle = world.folder / "nodes-ca.pem"
        self.bundle.write_bytes(self.pki.root_pem)
        self.start_broker()
        world.enrol()

    def start_broker(self) -> None:
        self.world.start_broker("--x509pop-ca-bundles", str(self.bundle), "--agent-ttl", "1h")

    def node(self, name: str, *, folder: str = "s") -> tuple[Held, tuple[str, ...]]:
        """Make a certificate, and the words by which a sidecar uses it."""
        held = self.pki.node(name, issuer=self.pki.ca("Site CA", issuer=self.pki.root))
        place = self.world.folder / f"node-{folder}"
        place.mkdir(exist_ok=True)
        certificate, key = held.write(place)
        return held, ("--x509pop-certificate", str(certificate), "--x509pop-key", str(key))


def agent_path(held: Held) -> str:
    from cryptography.hazmat.primitives import hashes

    return f"/spire/agent/x509pop/{held.certificate.fingerprint(hashes.SHA1()).hex()}"


@pytest.fixture
def site(world: World) -> Site:
    return Site(world)


def test_a_node_is_what_its_certificate_says(site: Site, world: World) -> None:
    held, words = site.node("gpu-1")
    agent = f"spiffe://example.org{agent_path(held)}"
    # Entries hang on an alias that the certificate's name gives: they outlive the certificate.
    alias = ("--spiffe-id", "spiffe://example.org/node/gpu-1", "--parent-id", "spiffe://example.org/spire/server")
    world.run("entry", "create", *alias, "--selector", "x509pop:subject:cn:gpu-1")
    world.create_entry("/node/gpu-1", "/segment/training/host/gpu-1/svc/job")
    world.start_sidecar(evidence=words).ready()
    until(lambda: issued(world), "an SVID that admission.node asks for")
    shown = world.run("agent", "show", agent)
    for line in ("attested by    x509pop", "selector       x509pop:subject:cn:gpu-1", "attests again  yes"):
        assert line in shown
    assert shown.count("x509pop:ca:fingerprint:") == 2
    assert shown.count("x509pop:serialnumber:") == 1
    assert "x509pop:subject:cn:gpu-1" in world.run("entry", "list")

    # A node of another name, with a certificate of the same CA, gets nothing of it.
    _, other = site.node("gpu-2", folder="t")
    world.start_sidecar(name="t", evidence=other).ready()
    with world.api("t") as api, pytest.raises(FetchX509SvidError, match="no identity issued"):
        api.fetch_x509_svid()


def issued(world: World, name: str = "s") -> bool:
    with world.api(name) as api:
        try:
            return str(api.fetch_x509_svid().spiffe_id) == ID
        except FetchX509SvidError:
            return False


def test_restarted_without_any_state_it_attests_again(site: Site, world: World) -> None:
    held, words = site.node("gpu-1")
    world.create_entry(agent_path(held), "/segment/training/host/gpu-1/svc/job")
    sidecar = world.start_sidecar(evidence=words)
    sidecar.ready()
    until(lambda: issued(world), "an SVID")
    assert not (world.folder / "s/agent.key").exists()
    sidecar.kill()
    for file in Path(world.folder / "s").rglob("*"):
        if file.is_file():
            file.unlink()
    world.start_sidecar(evidence=words).ready()
    until(lambda: issued(world), "an SVID after the restart")
    assert world.agents() == [agent_path(held)]


def test_evicted_it_comes_back_by_itself_and_banned_it_stays_away(site: Site, world: World) -> None:
    held, words = site.node("gpu-1")
    path = agent_path(held)
    world.create_entry(path, "/segment/training/host/gpu-1/svc/job")
    sidecar = world.start_sidecar(evidence=words)
    sidecar.ready()
    until(lambda: issued(world), "an SVID")
    world.evict(path)
    until(lambda: world.agents() == [path], "another attestation")
    until(lambda: issued(world), "an SVID after the eviction")
    world.ban(path)
    assert sidecar.wait() == 4
    assert "agent is banned" in sidecar.text
    again = world.start_sidecar(evidence=words)
    assert again.wait() == 4
    assert "failed to attest: agent is banned" in again.text
    assert "banned         yes" in world.run("agent", "show", f"spiffe://example.org{path}")


def test_a_broker_that_was_away_finds_it_again(site: Site, world: World) -> None:
    held, words = site.node("gpu-1")
    world.create_entry(agent_path(held), "/segment/training/host/gpu-1/svc/job")
    sidecar = world.start_sidecar("--keep-workload-keys", "disk", evidence=words)
    sidecar.ready()
    until(lambda: issued(world), "an SVID")
    broker = world.programs[0]
    broker.kill()
    sidecar.kill()
    # Nothing of the agent is stored, and what it served it serves: that is stored.
    world.start_sidecar("--keep-workload-keys", "disk", evidence=words).ready()
    assert issued(world)
    site.start_broker()
    until(lambda: (found := world.status()) and found.connected, "the connection to the broker")
    assert world.agents() == [agent_path(held)]
