# SPDX-License-Identifier: Apache-2.0
"""Two trust domains, each with a broker and sidecars as processes, and local programs that speak across them."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from firedoor.wire import localauthority_grpc
from firedoor.wire import localauthority_pb2 as pb
from tests.e2e.conftest import UID, World
from tests.e2e.test_datapath import App, ask, listening, records
from tests.waiting import PATIENCE, until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(240)]

HERE, THERE = "here.example", "there.example"
CLIENT, SERVER = "/segment/inference/host/h/svc/llm", "/segment/registry/host/h/svc/models"
SERVER_ID = "/spire/server"
# Each domain has both, and the other's clients may come to its server.
POLICY = """\
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {{name: inference}}
spec:
  function: inference
  trust: medium
  mode: enforce
  members: ["spiffe://{{td}}/segment/inference/**"]
  admission: {{entry: ["unix:{uid}"]}}
---
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {{name: registry}}
spec:
  function: registry
  trust: high
  mode: enforce
  members: ["spiffe://{{td}}/segment/registry/**"]
  admission: {{entry: ["unix:{uid}"]}}
---
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {{name: partner-inference}}
spec:
  function: partner
  trust: low
  mode: enforce
  members: ["spiffe://{other}/segment/inference/**"]
  admission: {{entry: ["unix:{uid}"]}}
---
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {{name: partner-registry}}
spec:
  function: partner
  trust: low
  mode: enforce
  members: ["spiffe://{other}/segment/registry/**"]
  admission: {{entry: ["unix:{uid}"]}}
---
apiVersion: firedoor.dev/v1alpha1
kind: Flow
metadata: {{name: partner-pulls-models}}
spec:
  owner: ml-platform
  reason: their inference uses our models
  from: {{segment: partner-inference}}
  to: {{segment: registry, port: 9000}}
  allow: [{{tcp: {{}}}}]
---
apiVersion: firedoor.dev/v1alpha1
kind: Flow
metadata: {{name: inference-pulls-partners-models}}
spec:
  owner: ml-platform
  reason: our inference uses their models
  from: {{segment: inference}}
  to: {{segment: partner-registry, port: 9000}}
  allow: [{{tcp: {{}}}}]
"""


class Domain(World):
    """A trust domain with a bundle endpoint, an application before a sidecar, and a client's sidecar."""

    def __init__(self, folder: Path, trust_domain: str, other: str) -> None:
        folder.mkdir()
        super().__init__(folder, trust_domain)
        (folder / "policy.yaml").write_text(POLICY.format(uid=UID, other=other))
        self.other, self.app, self.endpoint = other, App(), "127.0.0.1:0"
        self.entries: list[str] = []

    def begin(self) -> None:
        """Start the broker; again, with the endpoint where it was."""
        self.start_broker("--bundle-endpoint-listen", self.endpoint)
        self.endpoint = self.said("bundle_endpoint")

    def serve(self) -> None:
        """Start the sidecar before the application."""
        parent = self.enrol()
        self.entries.append(self.create_entry(parent, SERVER))
        one = {
            "name": "models",
            "as": f"spiffe://{self.trust_domain}{SERVER}",
            "listen": "127.0.0.1:0",
            "service_port": 9000,
            "protocol": "tcp",
            "app": {"address": self.app.address, "uid": os.geteuid()},
        }
        self.start_sidecar("--inbound", json.dumps([one]), name="r").ready()

    def reach(self, address: str) -> None:
        """Start the sidecar of a client of the other domain's server."""
        parent = self.enrol()
        self.entries.append(self.create_entry(parent, CLIENT))
        one = {
            "name": "theirs",
            "as": f"spiffe://{self.trust_domain}{CLIENT}",
            "listen": f"unix:{self.outbound}",
            "protocol": "tcp",
            "service_port": 9000,
            "addresses": [address],
            "expect": [f"spiffe://{self.other}{SERVER}"],
        }
        self.start_sidecar("--outbound", json.dumps([one]), name="i").ready()

    @property
    def outbound(self) -> Path:
        return self.folder / "out.sock"

    def trust(self, other: Domain) -> None:
        """Federate: the other's bundle of now by hand, later ones from its endpoint."""
        file = self.folder / "other.json"
        file.write_text(other.run("bundle", "show"))
        self.run(
            *("federation", "create", other.trust_domain, "--url", f"https://{other.endpoint}/"),
            *("--endpoint-id", f"spiffe://{other.trust_domain}{SERVER_ID}", "--bundle", str(file)),
        )

    def known(self, name: str) -> set[str]:
        """Return the trust domains whose bundles a sidecar hands to its workload."""
        with self.api(name) as api:
            found = api.fetch_x509_bundles().bundles
        return {bundle.trust_domain.name for bundle in found}

    def authority(self, what: str, authority_id: str = "") -> str:
        """Call one step of a forced X.509 rotation and return the authority that it was about."""
        with self.admin() as channel:
            method = getattr(localauthority_grpc.LocalAuthorityStub(channel), f"{what}X509Authority")
            request = getattr(pb, f"{what}X509AuthorityRequest")
            answer = method(request(authority_id=authority_id) if authority_id else request(), timeout=PATIENCE)
        (about,) = (one for _, one in answer.ListFields())
        return str(about.authority_id)

    def active(self) -> str:
        """Return the authority that signs."""
        with self.admin() as channel:
            stub = localauthority_grpc.LocalAuthorityStub(channel)
            found = stub.GetX509AuthorityState(pb.GetX509AuthorityStateRequest(), timeout=PATIENCE)
        return str(found.active.authority_id)

    def signed_by(self, name: str) -> str:
        """Return the authority that signed what a sidecar hands to its workload."""
        with self.api(name) as api:
            return signer(api.fetch_x509_svid().leaf)

    def agent_signed_by(self, name: str) -> str:
        """Return the authority that signed the agent SVID that a sidecar has stored."""
        chain = json.loads((self.folder / name / "agent.json").read_text())["chain"]
        return signer(x509.load_der_x509_certificate(base64.b64decode(chain[0])))

    def close(self) -> None:
        super().close()
        self.app.close()


def signer(leaf: x509.Certificate) -> str:
    """Return the ID of the authority that signed a certificate."""
    found = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    return found.hex() if found else ""


@pytest.fixture
def domains(tmp_path: Path) -> Iterator[tuple[Domain, Domain]]:
    """Both, with all sidecars, not federated yet."""
    both = (Domain(tmp_path / "h", HERE, THERE), Domain(tmp_path / "t", THERE, HERE))
    try:
        for one in both:
            one.begin()
            one.serve()
        for one, other in (both, both[::-1]):
            one.reach(listening(other, "r"))
        yield both
    finally:
        for one in both:
            one.close()


def federate(domains: tuple[Domain, Domain]) -> None:
    """Have each trust the other, and all entries federate."""
    for one, other in (domains, domains[::-1]):
        one.trust(other)
        for entry in one.entries:
            one.run("entry", "update", entry, "--federates-with", other.trust_domain)


def test_workloads_speak_across_trust_domains(domains: tuple[Domain, Domain]) -> None:
    # Without a bundle nobody is known.
    for one, other in (domains, domains[::-1]):
        assert ask(one.outbound) == b""
        assert other.app.accepted == 0
        one.trust(other)
        assert f"{other.trust_domain}  https_spiffe" in one.run("federation", "list")
        # It is held now, and goes to no sidecar whose entries do not federate.
        assert one.known("i") == {one.trust_domain}
        for entry in one.entries:
            one.run("entry", "update", entry, "--federates-with", other.trust_domain)
    for one, other in (domains, domains[::-1]):
        for name in ("i", "r"):
            until(lambda one=one, name=name: one.known(name) == {HERE, THERE}, "the other's bundle")  # type: ignore[misc]
        until(lambda one=one: ask(one.outbound) == b"hello you", f"an answer from {other.trust_domain}")  # type: ignore[misc]
        found = until(lambda other=other: [r for r in records(other, "r") if r["decision"] == "allowed"], "a record")  # type: ignore[misc]
        assert found[0]["flow"] == "partner-pulls-models"
        assert found[0]["source"] == f"spiffe://{one.trust_domain}{CLIENT}"
    # No longer federated, it is as before.
    here, there = domains
    here.run("entry", "update", here.entries[0], "--federates-with", "")
    until(lambda: ask(there.outbound) == b"", "the refusal of who is not known any more")
    assert ask(here.outbound) == b"hello you"


def test_a_rotation_is_followed_and_the_endpoint_may_go_away(domains: tuple[Domain, Domain]) -> None:
    federate(domains)
    here, there = domains
    for one in domains:
        until(lambda one=one: ask(one.outbound) == b"hello you", "an answer from the other domain")  # type: ignore[misc]
    old, fresh = there.active(), there.authority("Prepare")
    here.run("federation", "refresh", THERE)
    assert there.authority("Activate", fresh) == fresh
    there.authority("Taint", old)
    for name in ("i", "r"):
        until(lambda name=name: there.signed_by(name) == fresh, "certificates by the new authority")  # type: ignore[misc]
        # Agents that joined by a token cannot attest again: revoked before they have renewed, they are gone.
        until(lambda name=name: there.agent_signed_by(name) == fresh, "agents by the new authority")  # type: ignore[misc]
    there.authority("Revoke", old)
    here.run("federation", "refresh", THERE)
    assert json.loads(here.run("bundle", "list", "--output", "json"))[0]["x509_authorities"] == 1
    for one in domains:
        until(lambda one=one: ask(one.outbound) == b"hello you", "an answer after the rotation")  # type: ignore[misc]

    # The other's broker is gone, and with it the endpoint; ours is started again meanwhile. What was fetched counts.
    there.programs[0].kill()
    with pytest.raises(subprocess.CalledProcessError):
        here.run("federation", "refresh", THERE)
    assert here.programs[0].stop() == 0
    here.begin()
    until(lambda: here.agents() and here.known("i") == {HERE, THERE}, "our sidecar at our broker")
    for one in domains:
        assert ask(one.outbound) == b"hello you"
    there.begin()
    assert "refreshed" in here.run("federation", "refresh", THERE)
