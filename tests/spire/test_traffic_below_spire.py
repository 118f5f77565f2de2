# SPDX-License-Identifier: Apache-2.0
"""mTLS between our data path and programs on go-spiffe, all of them below one real spire-server.

The programs get their identities from a stock spire-agent, our side from its sidecar; flows come from a file.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_datapath import App
from tests.spire.conftest import TD, api
from tests.spire.programs import SpireAgent, SpireServer, Workload
from tests.spire.test_sidecar_below_spire import UID, Node, signers
from tests.spire.test_stock_agent import held
from tests.waiting import PATIENCE, until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

MakeWorkload = Callable[[dict[str, str]], Workload]
MODELS = f"spiffe://{TD}/segment/registry/models"
VLLM = f"spiffe://{TD}/segment/inference/vllm"
POLICY = f"""\
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {{name: registry}}
spec:
  function: registry
  trust: high
  mode: enforce
  members: ["spiffe://{{td}}/segment/registry/**"]
  admission: {{entry: ["{UID}"]}}
---
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {{name: inference}}
spec:
  function: inference
  trust: medium
  mode: enforce
  members: ["spiffe://{{td}}/segment/inference/**"]
  admission: {{entry: ["{UID}"]}}
---
apiVersion: firedoor.dev/v1alpha1
kind: Flow
metadata: {{name: inference-pulls-models}}
spec:
  owner: ml-platform
  reason: model weights at start-up
  from: {{segment: inference}}
  to: {{segment: registry, port: 9000}}
  allow: [{{tcp: {{}}}}]
"""


class Site:
    """One real server; makes sidecars with listeners, and stock agents for programs."""

    def __init__(
        self, folder: Path, server: SpireServer, policy: str = POLICY, federates: tuple[str, ...] = ()
    ) -> None:
        self.folder, self.server, self.policy = folder, server, policy
        # What every entry is written with besides.
        self.more = [word for name in federates for word in ("-federatesWith", f"spiffe://{name}")]
        self.nodes: list[Node] = []
        self.agents: list[SpireAgent] = []

    def sidecar(self, name: str, spiffe_id: str, **listeners: Any) -> Node:
        node = Node(self.folder / name, self.server)
        self.nodes.append(node)
        (node.folder / "policy.yaml").write_text(self.policy)
        node.by_token()
        node.entry(spiffe_id.removeprefix(f"spiffe://{TD}"), *self.more)
        words = [word for kind, spec in listeners.items() for word in (f"--{kind}", json.dumps([spec]))]
        node.start(*words).ready()
        return node

    def stock(self, name: str, *spiffe_ids: str) -> SpireAgent:
        domain, token = self.server.trust_domain, self.server.token()
        agent = SpireAgent(self.folder / name, self.server.address, self.server.bundle_pem(), token, domain)
        self.agents.append(agent)
        agent.start()
        parent = f"spiffe://{domain}/spire/agent/join_token/{token}"
        for spiffe_id in spiffe_ids:
            words = ["-parentID", parent, "-spiffeID", spiffe_id, "-selector", UID, *self.more]
            self.server.cli.ok("entry", "create", *words)
        until(lambda: set(held(agent)) == set(spiffe_ids), "the program's identity")
        return agent

    def close(self) -> None:
        for one in (*self.nodes, *self.agents):
            one.close()


@pytest.fixture
def site(tmp_path: Path, spire_server: SpireServer) -> Iterator[Site]:
    found = Site(tmp_path, spire_server)
    yield found
    found.close()


@pytest.fixture
def app() -> Iterator[App]:
    found = App()
    yield found
    found.close()


def inbound(app: App) -> dict[str, Any]:
    return {
        "name": "models",
        "as": MODELS,
        "listen": "127.0.0.1:0",
        "service_port": 9000,
        "protocol": "tcp",
        "app": {"address": app.address, "uid": os.geteuid()},
    }


def address(node: Node) -> str:
    def bound() -> str:
        (listener,) = node.status().listeners
        return listener.listen if listener.open else ""

    return str(until(bound, "the listener"))


def test_a_go_spiffe_client_is_let_in_by_a_flow_and_no_other(site: Site, app: App, workload: MakeWorkload) -> None:
    models = site.sidecar("r", MODELS, inbound=inbound(app))
    to = address(models)
    client = workload(site.stock("i", VLLM).environment)
    # Its authorizer by ID, by membership, by list: each finds who we are.
    for allow in (MODELS, f"member:{TD}", f"{VLLM},{MODELS}"):
        assert client.ask("dial", "-to", to, "-allow", allow) == {"peer": MODELS, "echo": "hello hello\n"}
    assert app.accepted == 3
    # It expects somebody else: the handshake ends at its side.
    assert "error" in client.ask("dial", "-to", to, "-allow", VLLM)
    assert "error" in client.ask("dial", "-to", to, "-allow", "member:other.org")
    # No flow names this one, nor this one, which is in no segment.
    for name, spiffe_id in (("t", f"{MODELS}-twin"), ("u", f"spiffe://{TD}/anybody")):
        stranger = workload(site.stock(name, spiffe_id).environment)
        assert "error" in stranger.ask("dial", "-to", to, "-allow", MODELS)
    assert app.accepted == 3


def test_an_app_reaches_a_go_spiffe_server_and_no_impostor(site: Site, workload: MakeWorkload) -> None:
    server = workload(site.stock("r", MODELS).environment)
    serving = server.follow("serve", "-allow", VLLM)
    impostor = workload(site.stock("x", f"spiffe://{TD}/segment/registry/other").environment)
    other = impostor.follow("serve", "-allow", VLLM)
    out = site.folder / "out.sock"
    listener = {
        "name": "models",
        "as": VLLM,
        "listen": f"unix:{out}",
        "protocol": "tcp",
        "expect": [MODELS],
        "service_port": 9000,
        # The first address proves another identity: it is passed over, and the second is asked.
        "addresses": [other.next()["listen"], serving.next()["listen"]],
    }
    node = site.sidecar("i", VLLM, outbound=listener)
    address(node)
    assert _line(out) == b"hello\n"
    assert serving.next()["peer"] == VLLM
    # A server that takes somebody else alone ends the connection.
    strict = server.follow("serve", "-allow", MODELS)
    listener["addresses"] = [strict.next()["listen"]]
    assert node.program is not None
    node.program.stop()
    node.program.close()
    node.start("--outbound", json.dumps([listener])).ready()
    address(node)
    assert _line(out) == b""
    assert "unexpected ID" in strict.next()["refused"]


def _line(path: Path) -> bytes:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(20)
        try:
            peer.connect(str(path))
            peer.sendall(b"hello\n")
            return peer.recv(100)
        except OSError:
            return b""


def test_tokens_of_one_side_are_good_at_the_other(site: Site, workload: MakeWorkload) -> None:
    node, agent = site.sidecar("r", MODELS), site.stock("i", VLLM)
    ours, theirs = workload(node.environment), workload(agent.environment)
    until(lambda: node.held() == [MODELS], "an SVID")
    for one, other, spiffe_id in ((ours, theirs, MODELS), (theirs, ours, VLLM)):
        token = one.ask("token", "-audience", "models")["token"]
        assert other.ask("validate", "-audience", "models", given=token)["id"] == spiffe_id
        assert "error" in other.ask("validate", "-audience", "else", given=token)
    with node.api() as mine, api(agent) as stock:
        token = mine.fetch_jwt_svid(audience={"models"}).token
        assert str(stock.validate_jwt_svid(token, audience="models").spiffe_id) == MODELS


def test_a_stolen_identity_is_cut_off_when_its_authority_is_revoked(
    site: Site, app: App, workload: MakeWorkload
) -> None:
    """A program that keeps a certificate of the old authority is refused; one that follows its agent is not."""
    models = site.sidecar("r", MODELS, inbound=inbound(app))
    to = address(models)
    agent = site.stock("i", VLLM)
    client = workload(agent.environment)
    with api(agent) as stock:
        stolen = stock.fetch_x509_svid()
    let_in = {"peer": MODELS, "echo": "hello hello\n"}
    assert client.ask("dial", "-to", to, "-allow", MODELS) == let_in
    cli = site.server.cli
    serials = lambda: {a["x509svid_serial_number"] for a in cli.json("agent", "list")["agents"]}  # noqa: E731
    before = serials()
    first = cli.json("localauthority", "x509", "show")["active"]["authority_id"]
    second = cli.json("localauthority", "x509", "prepare")["prepared_authority"]["authority_id"]
    cli.ok("localauthority", "x509", "activate", "-authorityID", second)
    cli.ok("localauthority", "x509", "taint", "-authorityID", first)
    until(lambda: not serials() & before, "other certificates of both agents", seconds=90)
    until(lambda: _renewed(agent, stolen.leaf.serial_number), "another certificate of the program")
    until(lambda: first not in signers(models), "another certificate of the models")
    cli.ok("localauthority", "x509", "revoke", "-authorityID", first)
    (site.folder / "stolen.pem").write_bytes(b"".join(_pem(stolen)))
    until(lambda: _refused(to, site.folder / "stolen.pem"), "the end of the stolen identity")
    assert client.ask("dial", "-to", to, "-allow", MODELS) == let_in


def _renewed(agent: SpireAgent, serial: int) -> bool:
    with api(agent) as stock:
        return bool(stock.fetch_x509_svid().leaf.serial_number != serial)


def _pem(svid: Any) -> list[bytes]:
    from cryptography.hazmat.primitives import serialization

    key = svid.private_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return [key, *(one.public_bytes(serialization.Encoding.PEM) for one in svid.cert_chain)]


def _refused(to: str, pem: Path) -> bool:
    """Say whether whoever holds these keys gets no answer."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(pem)
    host, _, port = to.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), PATIENCE) as plain, context.wrap_socket(plain) as tls:
            tls.sendall(b"you")
            return tls.recv(100) == b""
    except OSError:
        return True
