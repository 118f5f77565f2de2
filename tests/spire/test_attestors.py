# SPDX-License-Identifier: Apache-2.0
"""sshpop and http_challenge against SPIRE's own programs, both ways round.

For http_challenge a name has to lead to this machine, and spire-server refuses `localhost`: without another one in
/etc/hosts those tests are skipped.
"""

from __future__ import annotations

import base64
import hashlib
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from firedoor.certs import is_host_name
from tests.ports import own_port
from tests.spire.conftest import TD, Estate, own_serial
from tests.spire.programs import SpireAgent, SpireServer
from tests.spire.test_sidecar_below_spire import Node
from tests.spire.test_sidecar_below_spire import own_serial as serial_at
from tests.spire.test_stock_agent import WEB, held
from tests.ssh_ca import SshCa, SshHost
from tests.waiting import until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

KEYS: dict[str, Any] = {
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
    "ECDSA": ec.generate_private_key(ec.SECP256R1()),
    # spire-agent signs with SHA-1 then.
    "RSA": rsa.generate_private_key(65537, 2048),
}


def ssh_path(host: SshHost) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(host.certificate).digest()).decode().rstrip("=")
    return f"/spire/agent/sshpop/{digest}"


def name_of_this_machine() -> str:
    """Return a name in /etc/hosts, other than localhost, that leads to loopback."""
    lines = [line.partition("#")[0].split() for line in Path("/etc/hosts").read_text().splitlines()]
    for name in (name for words in lines for name in words[1:]):
        if is_host_name(name) and {one[4][0] for one in socket.getaddrinfo(name, 80)} == {"127.0.0.1"}:
            return name
    pytest.skip("no name but localhost leads to loopback (/etc/hosts), and spire-server refuses that one")


def stock_agent(estate: Estate, attestor: str) -> SpireAgent:
    agent = estate.agent("a", token="-")
    agent.join_token, agent.node_attestor = "", attestor
    return agent


@pytest.mark.parametrize("key", KEYS)
def test_a_stock_agent_attests_by_sshpop(estate: Estate, key: str) -> None:
    ca = SshCa(int(time.time()))
    host = ca.host(key=KEYS[key])
    (estate.folder / "ca.pub").write_bytes(ca.line)
    estate.start_broker("--sshpop-cert-authorities", str(estate.folder / "ca.pub"), "--agent-ttl", "24s")
    certificate, private = host.write(estate.folder)
    files = f'host_cert_path = "{certificate}" host_key_path = "{private}"'
    agent = stock_agent(estate, f'NodeAttestor "sshpop" {{ plugin_data {{ {files} }} }}')
    agent.start()
    estate.entry(ssh_path(host), "/web")
    until(lambda: held(agent) == [WEB], "an SVID")
    (shown,) = estate.cli.json("agent", "list")["agents"]
    assert (shown["attestation_type"], shown["can_reattest"]) == ("sshpop", True)
    first = own_serial(estate)
    until(lambda: own_serial(estate) != first, "another certificate, by attesting again")
    estate.cli.ok("agent", "ban", "-spiffeID", f"spiffe://{TD}{ssh_path(host)}")
    agent.logged("Agent is banned: removing SVID and shutting down")
    agent.ended()


def test_a_stock_agent_of_another_ssh_ca_is_refused(estate: Estate) -> None:
    (estate.folder / "ca.pub").write_bytes(SshCa().line)
    estate.start_broker("--sshpop-cert-authorities", str(estate.folder / "ca.pub"))
    certificate, private = SshCa(int(time.time())).host().write(estate.folder)
    files = f'host_cert_path = "{certificate}" host_key_path = "{private}"'
    agent = stock_agent(estate, f'NodeAttestor "sshpop" {{ plugin_data {{ {files} }} }}')
    agent.begin()
    agent.logged("is not of a CA that is configured for sshpop")


def test_a_stock_agent_attests_by_http_challenge(estate: Estate) -> None:
    name = name_of_this_machine()
    estate.start_broker(
        *("--http-challenge-allowed-dns-patterns", name, "--http-challenge-networks", "127.0.0.0/8"),
        *("--http-challenge-allow-non-root-ports", "true", "--agent-ttl", "24s"),
    )
    plugin = f'plugin_data {{ hostname = "{name}" port = {own_port()} }}'
    agent = stock_agent(estate, f'NodeAttestor "http_challenge" {{ {plugin} }}')
    agent.start()
    path = f"/spire/agent/http_challenge/{name}"
    estate.entry(path, "/web")
    until(lambda: held(agent) == [WEB], "an SVID")
    (shown,) = estate.cli.json("agent", "list")["agents"]
    assert (shown["attestation_type"], shown.get("can_reattest", False)) == ("http_challenge", False)
    assert shown["selectors"] == [{"type": "http_challenge", "value": f"hostname:{name}"}]
    first = own_serial(estate)
    until(lambda: own_serial(estate) != first, "a renewed certificate")
    # Whoever else gets to that port is not taken for it.
    twin = SpireAgent(estate.folder / "b", estate.address, estate.cli.ok("bundle", "show"))
    estate.agents_started.append(twin)
    twin.node_attestor = (
        f'NodeAttestor "http_challenge" {{ plugin_data {{ hostname = "{name}" port = {own_port()} }} }}'
    )
    twin.begin()
    twin.logged("attestation data has already been used to attest an agent")
    twin.ended()


# --- below a real spire-server --------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "spire"
    found.mkdir(mode=0o700)
    return found


@pytest.mark.parametrize("key", KEYS)
def test_our_sidecar_attests_by_sshpop(tmp_path: Path, folder: Path, key: str) -> None:
    ca = SshCa(int(time.time()))
    server = SpireServer(folder, more='agent_ttl = "24s"')
    keys = f'cert_authorities = ["{ca.line.decode().strip()}"]'
    server.plugins = f'NodeAttestor "sshpop" {{ plugin_data {{ {keys} }} }}'
    server.start()
    node = Node(tmp_path / "n", server)
    try:
        host = ca.host(key=KEYS[key])
        certificate, private = host.write(node.folder)
        node.how = ("--sshpop-certificate", str(certificate), "--sshpop-key", str(private))
        node.parent = f"spiffe://{TD}{ssh_path(host)}"
        node.entry("/web")
        node.start().ready()
        until(lambda: node.held() == [WEB], "an SVID")
        (shown,) = server.cli.json("agent", "list")["agents"]
        assert (shown["attestation_type"], shown["can_reattest"]) == ("sshpop", True)
        first = serial_at(server)
        until(lambda: serial_at(server) != first, "another certificate, by attesting again")
    finally:
        node.close()
        server.close()


@pytest.mark.parametrize("tofu", [True, False], ids=["trusted on first use", "again and again"])
def test_our_sidecar_attests_by_http_challenge(tmp_path: Path, folder: Path, tofu: bool) -> None:
    name, port = name_of_this_machine(), own_port() if tofu else low_port()
    server = SpireServer(folder, more='agent_ttl = "24s"')
    rules = f'allowed_dns_patterns = ["^{name}$"] {"" if tofu else f"tofu = false required_port = {port}"}'
    server.plugins = f'NodeAttestor "http_challenge" {{ plugin_data {{ {rules} }} }}'
    server.start()
    node = Node(tmp_path / "n", server)
    try:
        node.how = ("--http-challenge-hostname", name, "--http-challenge-listen", f"127.0.0.1:{port}")
        node.parent = f"spiffe://{TD}/spire/agent/http_challenge/{name}"
        node.entry("/web")
        node.start().ready()
        until(lambda: node.held() == [WEB], "an SVID")
        (shown,) = server.cli.json("agent", "list")["agents"]
        assert (shown["attestation_type"], shown["can_reattest"]) == ("http_challenge", not tofu)
        assert {"type": "http_challenge", "value": f"hostname:{name}"} in shown["selectors"]
        first = serial_at(server)
        until(lambda: serial_at(server) != first, "another certificate")
        node.entry("/web/later")
        until(lambda: f"{WEB}/later" in node.held(), "an SVID as the agent of now")
    finally:
        node.close()
        server.close()


def low_port() -> int:
    """Return a port that takes a privilege, and was free a moment ago."""
    for port in range(700, 1000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except PermissionError:
                pytest.skip("this user may not listen below 1024")
            except OSError:
                continue
            return port
    pytest.skip("no port below 1024 is free")
