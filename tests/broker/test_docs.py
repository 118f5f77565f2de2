# SPDX-License-Identifier: Apache-2.0
"""docs/nodes.md says what is true: its examples load, its selectors are those of a certificate."""

import re
from pathlib import Path
from typing import Any

from firedoor.broker import config
from firedoor.broker.relationship_file import read_relationships
from firedoor.certs import TrustDomain, read_roots, verify_node_certificate
from firedoor.segments import Document, accept
from firedoor.sidecar import config as sidecar_config
from firedoor.sidecar.pod_token import TOKENS
from tests.node_pki import NOW, NodePki
from tests.simulator import SimulatedTrustDomain
from tests.web_pki import WebPki

TEXT = (Path(__file__).parents[2] / "docs" / "nodes.md").read_text()
BLOCKS = re.findall(r"```yaml (\w+)\n(.*?)```", TEXT, re.DOTALL)
TD = TrustDomain.parse("example.org")


def blocks(kind: str) -> list[str]:
    return [text for name, text in BLOCKS if name == kind]


def test_the_examples_load(tmp_path: Path) -> None:
    file, etc = tmp_path / "example.yaml", Path("/etc/firedoor")
    brokers: list[Any] = []
    sidecars: list[Any] = []
    for kind, load, found in (("broker", config.load, brokers), ("sidecar", sidecar_config.load, sidecars)):
        for text in blocks(kind):
            file.write_text(text)
            found.append(load(file, {}, {}))
    x509, ssh, http, pods, psat = brokers
    assert x509.x509pop.ca_bundles == (etc / "nodes-ca.pem",)
    assert ssh.sshpop.cert_authorities == (etc / "hosts-ca.pub",)
    assert (ssh.sshpop.canonical_domain, ssh.sshpop.agent_path.names("hostname")) == ("nodes.example.org", True)
    assert http.http_challenge.required_port == 80
    assert http.http_challenge.allowed_dns_patterns[0].matches("gpu-1.nodes.example.org")
    prod, edge, lab = pods.kubernetes.pods
    assert (prod.access.server, edge.access.server, lab.access) == ("", "https://10.0.0.1:6443", None)
    assert psat.kubernetes.agents[0].service_accounts == {("spire", "spire-agent")}
    x509, ssh, http, pods, psat = sidecars
    assert (pods.pod_token.kind, pods.pod_token.token) == ("k8s_pod", TOKENS["k8s_pod"])
    assert (psat.pod_token.kind, psat.pod_token.token) == ("k8s_psat", TOKENS["k8s_psat"])
    assert (x509.x509pop.certificate, x509.x509pop.key) == (etc / "node.pem", etc / "node.key")
    assert ssh.sshpop.key == Path("/etc/ssh/ssh_host_ed25519_key")
    assert (http.http_challenge.node.port, http.http_challenge.node.hostname) == (80, "gpu-1.nodes.example.org")
    for text in blocks("policy"):
        policy, warnings = accept([Document("policy.yaml", text)], TD)
        assert (len(policy.segments), warnings) == (1, [])


def test_the_examples_of_federation_load(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "federation.md").read_text()
    blocks = dict(re.findall(r"```yaml (\S+)\n(.*?)```", text, re.DOTALL))
    loaded = {}
    for name in ("broker", "broker-web", "broker-file", "broker-oidc"):
        file = tmp_path / f"{name}.yaml"
        file.write_text(blocks[name])
        loaded[name] = config.load(file, {}, {})
    served, by_web = loaded["broker"].bundle_endpoint, loaded["broker-web"].bundle_endpoint
    assert served
    assert by_web
    assert (served.endpoint.profile, by_web.endpoint.profile, served.refresh_hint) == ("https_spiffe", "https_web", 300)
    assert loaded["broker-file"].federation_relationships == Path("/etc/firedoor/federation.yaml")
    oidc = loaded["broker-oidc"].oidc
    assert oidc
    assert (oidc.issuer, oidc.domains) == ("https://oidc.example.org", ("oidc.example.org",))
    (tmp_path / "partner.json").write_bytes(SimulatedTrustDomain("partner.example").bundle.to_json())
    (tmp_path / "cloud-ca.pem").write_bytes(WebPki().root_pem)
    (tmp_path / "federation.yaml").write_text(blocks["relationships"])
    found = read_relationships(tmp_path / "federation.yaml", TD)
    assert [one.relationship.trust_domain.name for one in found] == ["partner.example", "cloud.example"]


def test_the_examples_of_several_brokers_load(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "brokers.md").read_text()
    blocks = dict(re.findall(r"```yaml (\S+)\n(.*?)```", text, re.DOTALL))
    file = tmp_path / "example.yaml"
    file.write_text(blocks["broker"])
    loaded = config.load(file, {}, {})
    assert loaded.database.startswith("postgresql://firedoor@db.internal/firedoor?sslmode=verify-full&")
    assert loaded.database_password_file == Path("/etc/firedoor/db-password")
    file.write_text(blocks["sidecar"])
    assert len(sidecar_config.load(file, {}, {}).broker) == 3


def test_the_selectors_are_those_of_a_certificate() -> None:
    pki = NodePki()
    chain = pki.node("gpu-1", uris=["x509pop://example.org/rack/a7"]).chain
    kinds = {
        one.value.rpartition(":")[0]
        for one in verify_node_certificate(chain, read_roots(pki.root_pem), NOW).selectors(TD)
    }
    named = re.findall(r"^\| `x509pop:(\S+)` \|", TEXT, re.M)
    assert {name.rpartition(":")[0].replace("KEY", "rack") for name in named} == kinds
    assert "x509pop:san:rack:a7" in blocks("policy")[0]
    assert "x509pop:subject:cn:gpu-1" in TEXT
