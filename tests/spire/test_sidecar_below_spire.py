# SPDX-License-Identifier: Apache-2.0
"""Our sidecar below a real spire-server: it attests, syncs, serves workloads that are not ours, and follows."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
import spiffe
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from spiffe.workloadapi.errors import FetchX509SvidError

from firedoor.wire import admin_grpc, admin_pb2
from tests.e2e.conftest import Program
from tests.node_pki import NodePki
from tests.simulator import SimulatedTrustDomain
from tests.spire.conftest import TD
from tests.spire.programs import SpireServer, Workload
from tests.waiting import PATIENCE, until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

MakeWorkload = Callable[[dict[str, str]], Workload]
UID = f"unix:uid:{os.geteuid()}"
WEB = f"spiffe://{TD}/web"
# Flows come from a file: a spire-server has none.
POLICY = f"""\
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {{name: web}}
spec:
  function: web
  trust: low
  mode: enforce
  members: ["spiffe://{{td}}/web", "spiffe://{{td}}/web/**"]
  admission: {{entry: ["{UID}"]}}
"""


class Node:
    """A sidecar below a real spire-server."""

    def __init__(self, folder: Path, server: SpireServer) -> None:
        self.folder, self.server = folder, server
        folder.mkdir()
        (folder / "policy.yaml").write_text(POLICY)
        (folder / "bundle.pem").write_text(server.bundle_pem())
        self.program: Program | None = None
        self.how: tuple[str, ...] = ()
        self.parent = ""

    def by_token(self) -> None:
        """Attest by a join token of the server."""
        token = self.server.token()
        (self.folder / "token").write_text(token)
        self.how = ("--join-token-file", str(self.folder / "token"))
        self.parent = f"spiffe://{TD}/spire/agent/join_token/{token}"

    def start(self, *words: str) -> Program:
        folder = self.folder
        self.program = Program(
            folder / "sidecar.log",
            *("sidecar", "run", "--trust-domain", TD, "--broker", self.server.address, "--metrics", "off"),
            *("--bootstrap-bundle", str(folder / "bundle.pem"), "--segments", str(folder / "policy.yaml")),
            *("--auth-socket", str(folder / "auth.sock"), "--admin-socket", str(folder / "admin.sock")),
            *("--data-dir", str(folder / "data"), *self.how, *words),
        )
        return self.program

    def entry(self, path: str, *words: str, selector: str = UID) -> str:
        """Write an entry at the server and return its ID."""
        ids = ["-parentID", self.parent, "-spiffeID", f"spiffe://{TD}{path}", "-selector", selector]
        (result,) = self.server.cli.json("entry", "create", *ids, *words)["results"]
        assert result["status"]["code"] == 0, result
        return str(result["entry"]["id"])

    @property
    def environment(self) -> dict[str, str]:
        return {"SPIFFE_ENDPOINT_SOCKET": f"unix://{self.folder / 'auth.sock'}"}

    def api(self) -> spiffe.WorkloadApiClient:
        return spiffe.WorkloadApiClient(f"unix://{self.folder / 'auth.sock'}", default_timeout=PATIENCE)

    def held(self) -> list[str]:
        """Return the IDs that this process gets."""
        try:
            with self.api() as client:
                return sorted(str(svid.spiffe_id) for svid in client.fetch_x509_svids())
        except FetchX509SvidError:
            return []

    def status(self) -> admin_pb2.GetStatusResponse:
        with grpc.insecure_channel(f"unix:{self.folder / 'admin.sock'}") as channel:
            return admin_grpc.SidecarAdminStub(channel).GetStatus(admin_pb2.GetStatusRequest(), timeout=PATIENCE)

    def close(self) -> None:
        if self.program is not None:
            self.program.close()


@pytest.fixture
def node(tmp_path: Path, spire_server: SpireServer) -> Iterator[Node]:
    """A sidecar that has attested by a join token, and one entry for this user."""
    found = Node(tmp_path / "n", spire_server)
    found.by_token()
    found.entry("/web")
    try:
        found.start().ready()
        until(lambda: found.held() == [WEB], "an SVID")
        yield found
    finally:
        found.close()


def signers(node: Node) -> set[str]:
    """Return the IDs of the authorities that signed what this process gets."""
    with node.api() as client:
        leaves = [svid.leaf.extensions for svid in client.fetch_x509_svids()]
    keys = [one.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier for one in leaves]
    return {key.hex() for key in keys if key}


def trusted(node: Node) -> set[str]:
    with node.api() as client:
        (bundle,) = [b for b in client.fetch_x509_bundles().bundles if b.trust_domain.name == TD]
    return {
        one.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()
        for one in bundle.x509_authorities
    }


def test_attests_and_serves_py_spiffe_and_go_spiffe(node: Node, workload: MakeWorkload) -> None:
    (shown,) = node.server.cli.json("agent", "list")["agents"]
    assert shown["attestation_type"] == "join_token"
    until(lambda: node.server.cli.json("agent", "list")["agents"][0]["agent_version"], "our version at the server")
    with node.api() as client:
        token = client.fetch_jwt_svid(audience={"models"})
        assert str(client.validate_jwt_svid(token.token, audience="models").spiffe_id) == WEB
    program = workload(node.environment)
    made = program.ask("token", "-audience", "models")
    assert made["id"] == WEB
    assert program.ask("validate", "-audience", "models", given=made["token"])["id"] == WEB
    line = program.follow("watch").next()
    assert [(svid["id"], "invalid" in svid) for svid in line["svids"]] == [(WEB, False)]
    status = node.status()
    assert [(one.spiffe_id, one.segment) for one in status.svids] == [(WEB, "web")]
    assert list(status.not_admitted) == [TD]


def test_py_spiffes_sources(node: Node) -> None:
    """What py-spiffe's own integration tests do with an agent: its client, and both of its sources."""
    socket = f"unix://{node.folder / 'auth.sock'}"
    with spiffe.X509Source(socket_path=socket) as source:
        assert str(source.get_x509_context().default_svid.spiffe_id) == WEB
        assert source.get_bundle_for_trust_domain(spiffe.TrustDomain(TD)).x509_authorities
    with spiffe.JwtSource(socket_path=socket) as tokens:
        token = tokens.fetch_svid(audience={"models"})
        assert str(token.spiffe_id) == WEB
        assert tokens.get_bundle_for_trust_domain(spiffe.TrustDomain(TD)).jwt_authorities
    with node.api() as client:
        context = client.fetch_x509_context()
        assert [str(one.spiffe_id) for one in context.x509_svids] == [WEB]
        assert client.fetch_jwt_bundles().get_bundle_for_trust_domain(spiffe.TrustDomain(TD)).jwt_authorities


def test_entries_come_change_and_go(node: Node) -> None:
    second = node.entry("/web/second")
    until(lambda: node.held() == [WEB, f"{WEB}/second"], "the second entry's SVID")
    names = ["-parentID", node.parent, "-spiffeID", f"{WEB}/renamed", "-selector", UID]
    node.server.cli.ok("entry", "update", "-entryID", second, *names)
    until(lambda: node.held() == [WEB, f"{WEB}/renamed"], "the renamed entry's SVID")
    node.entry("/web/other", selector="unix:uid:4000000000")
    node.server.cli.ok("entry", "delete", "-entryID", second)
    until(lambda: node.held() == [WEB], "the end of the entry")


def test_renews_workloads_and_itself(tmp_path: Path) -> None:
    folder = tmp_path / "spire"
    folder.mkdir(mode=0o700)
    server = SpireServer(folder, more='default_x509_svid_ttl = "24s"\n  agent_ttl = "24s"')
    server.start()
    node = Node(tmp_path / "n", server)
    try:
        node.by_token()
        node.entry("/web")
        node.start().ready()
        until(lambda: node.held() == [WEB], "an SVID")
        first, seen = own_serial(server), set()

        def renewed() -> bool:
            with node.api() as client:
                seen.add(client.fetch_x509_svid().leaf.serial_number)
            return len(seen) >= 3 and own_serial(server) != first

        until(renewed, "three SVIDs, and another of its own", seconds=90)
        node.entry("/web/later")
        until(lambda: f"{WEB}/later" in node.held(), "an SVID as the renewed agent")
    finally:
        node.close()
        server.close()


def own_serial(server: SpireServer) -> str:
    (shown,) = server.cli.json("agent", "list")["agents"]
    return str(shown["x509svid_serial_number"])


def test_a_forced_rotation_fails_no_handshake(node: Node, workload: MakeWorkload) -> None:
    """Prepare, activate, taint and revoke at the real server, with workloads shaking hands all the while."""
    looping = workload(node.environment).follow("loop")
    assert looping.next() == {"looping": True}
    cli, serial = node.server.cli, own_serial(node.server)
    first = cli.json("localauthority", "x509", "show")["active"]["authority_id"]
    second = cli.json("localauthority", "x509", "prepare")["prepared_authority"]["authority_id"]
    until(lambda: second in trusted(node), "the prepared authority")
    cli.ok("localauthority", "x509", "activate", "-authorityID", second)
    cli.ok("localauthority", "x509", "taint", "-authorityID", first)
    until(lambda: signers(node) == {second}, "SVIDs of the new authority")
    until(lambda: own_serial(node.server) != serial, "another certificate of the sidecar's own")
    cli.ok("localauthority", "x509", "revoke", "-authorityID", first)
    until(lambda: trusted(node) == {second}, "the end of the revoked authority")
    node.entry("/web/later")
    until(lambda: f"{WEB}/later" in node.held(), "an SVID after the revocation")
    ended = looping.end()
    assert (ended["failed"], ended["failures"]) == (0, [])
    assert ended["made"] > 100


def test_a_forced_rotation_of_jwt_keys(node: Node, workload: MakeWorkload) -> None:
    program, cli = workload(node.environment), node.server.cli

    def signer() -> str:
        header = program.ask("token", "-audience", "models")["token"].partition(".")[0]
        return str(json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))["kid"])

    before = program.ask("token", "-audience", "models")["token"]
    first = cli.json("localauthority", "jwt", "show")["active"]["authority_id"]
    assert signer() == first
    second = cli.json("localauthority", "jwt", "prepare")["prepared_authority"]["authority_id"]
    cli.ok("localauthority", "jwt", "activate", "-authorityID", second)
    cli.ok("localauthority", "jwt", "taint", "-authorityID", first)
    # What is cached of the tainted key is not handed out any more.
    until(lambda: signer() == second, "a token of the new key")
    cli.ok("localauthority", "jwt", "revoke", "-authorityID", first)
    until(lambda: "error" in program.ask("validate", "-audience", "models", given=before), "its end")


def test_federated_bundles_follow_the_server(node: Node, workload: MakeWorkload) -> None:
    other = SimulatedTrustDomain("other.org", at=int(time.time()))
    watching = workload(node.environment).follow("watch")
    watching.until(lambda line: set(line["bundles"]) == {TD})

    def give() -> None:
        node.server.cli.ok("bundle", "set", "-id", "spiffe://other.org", "-format", "spiffe", given=_json(other))

    give()
    node.entry("/web/federated", "-federatesWith", "spiffe://other.org")
    line = watching.until(lambda line: set(line["bundles"]) == {TD, "other.org"})
    assert line["bundles"]["other.org"] == [other.roots[0].authority_id]
    other.rotate()
    give()
    watching.until(lambda line: len(line["bundles"].get("other.org", ())) == 2)


def _json(trust: SimulatedTrustDomain) -> str:
    return trust.bundle.to_json().decode()


def test_attests_by_x509pop_and_comes_back_when_evicted(tmp_path: Path) -> None:
    folder, pki = tmp_path / "spire", NodePki(int(time.time()))
    folder.mkdir(mode=0o700)
    (folder / "nodes-ca.pem").write_bytes(pki.root_pem)
    server = SpireServer(folder, more='agent_ttl = "24s"')
    server.plugins = f'NodeAttestor "x509pop" {{ plugin_data {{ ca_bundle_path = "{folder}/nodes-ca.pem" }} }}'
    server.start()
    node = Node(tmp_path / "n", server)
    try:
        held = pki.node("gpu-1", issuer=pki.ca("Site CA", issuer=pki.root))
        certificate, key = held.write(node.folder)
        node.how = ("--x509pop-certificate", str(certificate), "--x509pop-key", str(key))
        fingerprint = held.certificate.fingerprint(hashes.SHA1()).hex()
        node.parent = f"spiffe://{TD}/spire/agent/x509pop/{fingerprint}"
        node.entry("/web")
        node.start().ready()
        until(lambda: node.held() == [WEB], "an SVID")
        (shown,) = server.cli.json("agent", "list")["agents"]
        assert (shown["attestation_type"], shown["can_reattest"]) == ("x509pop", True)
        assert {"type": "x509pop", "value": "subject:cn:gpu-1"} in shown["selectors"]
        first = own_serial(server)
        until(lambda: own_serial(server) != first, "another certificate, by attesting again")
        server.cli.ok("agent", "evict", "-spiffeID", node.parent)
        until(lambda: server.cli.json("agent", "count")["count"] == 1, "its return")
        node.entry("/web/later")
        until(lambda: f"{WEB}/later" in node.held(), "an SVID after it")
    finally:
        node.close()
        server.close()


def test_a_ban_ends_it(node: Node) -> None:
    node.server.cli.ok("agent", "ban", "-spiffeID", node.parent)
    assert node.program is not None
    assert node.program.wait() != 0
    assert "banned" in node.program.text


def test_it_serves_on_while_the_server_is_gone(node: Node) -> None:
    with node.api() as client:
        before = client.fetch_x509_svid().leaf.serial_number
    node.server.stop()
    with node.api() as client:
        assert client.fetch_x509_svid().leaf.serial_number == before
    node.server.start()
    node.entry("/web/later")
    until(lambda: f"{WEB}/later" in node.held(), "an SVID after the restart")


def test_a_restarted_sidecar_goes_on_with_its_svid(node: Node) -> None:
    assert node.program is not None
    node.program.stop()
    node.program.close()
    node.start().ready()
    until(lambda: node.held() == [WEB], "an SVID without another token")


def test_a_used_token_is_refused(node: Node, tmp_path: Path) -> None:
    second = Node(tmp_path / "second", node.server)
    second.how = node.how
    program = second.start()
    assert program.wait() != 0
    assert "join token does not exist or has already been used" in program.text
    second.close()
