# SPDX-License-Identifier: Apache-2.0
"""A broker federates with a real spire-server: bundles over https_spiffe, handshakes across the trust domains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.ports import own_port
from tests.spire.conftest import TD, UID, Estate, agent_path
from tests.spire.programs import SpireAgent, SpireServer, Workload
from tests.spire.test_stock_agent import WEB, held
from tests.waiting import until
from tests.web_pki import WebPki

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

MakeWorkload = Callable[[dict[str, str]], Workload]
OTHER = "other.org"
THEIRS = f"spiffe://{OTHER}/theirs"


@pytest.fixture
def pki(tmp_path: Path) -> WebPki:
    """A CA of the web, which a real server takes for one of the system's."""
    made = WebPki()
    (tmp_path / "web-ca.pem").write_bytes(made.root_pem)
    return made


@pytest.fixture
def theirs(tmp_path: Path, pki: WebPki) -> Iterator[SpireServer]:
    """A real spire-server of another trust domain, with a bundle endpoint that proves its SPIFFE ID."""
    yield from _serving(tmp_path, 'profile "https_spiffe" {}')


@pytest.fixture
def theirs_of_the_web(tmp_path: Path, pki: WebPki) -> Iterator[SpireServer]:
    """The same with a certificate of the web."""
    (tmp_path / "pair").mkdir()
    certificate, key = pki.write(tmp_path / "pair", "127.0.0.1")
    files = f'cert_file_path = "{certificate}" key_file_path = "{key}" file_sync_interval = "1h"'
    yield from _serving(tmp_path, f'profile "https_web" {{ serving_cert_file {{ {files} }} }}')


def _serving(tmp_path: Path, profile: str) -> Iterator[SpireServer]:
    folder, port = tmp_path / "theirs", own_port()
    folder.mkdir(mode=0o700)
    endpoint = f'bundle_endpoint {{ address = "127.0.0.1" port = {port} {profile} }}'
    server = SpireServer(folder, OTHER, more=f"federation {{ {endpoint} }}")
    server.more_environment["SSL_CERT_FILE"] = str(tmp_path / "web-ca.pem")
    server.url = f"https://127.0.0.1:{port}"  # type: ignore[attr-defined]
    server.start()
    yield server
    server.close()


def federate(estate: Estate, server: SpireServer, endpoint_id: str) -> None:
    (estate.folder / "theirs.pem").write_text(server.bundle_pem())
    estate.cli.ok(
        *("federation", "create", "-trustDomain", OTHER, "-bundleEndpointURL", server.url),  # type: ignore[attr-defined]
        *("-bundleEndpointProfile", "https_spiffe", "-endpointSpiffeID", endpoint_id),
        *("-trustDomainBundlePath", str(estate.folder / "theirs.pem")),
    )


def roots(estate: Estate) -> int:
    return len(estate.cli.json("bundle", "list", "-id", f"spiffe://{OTHER}")["x509_authorities"])


def test_its_bundle_is_fetched_through_rotations(estate: Estate, theirs: SpireServer) -> None:
    estate.start_broker()
    federate(estate, theirs, f"spiffe://{OTHER}/spire/server")
    assert roots(estate) == 1
    theirs.cli.ok("localauthority", "x509", "prepare")
    estate.cli.ok("federation", "refresh", "-id", f"spiffe://{OTHER}")
    assert roots(estate) == 2
    # The keys for JWT-SVIDs came with it.
    assert estate.cli.json("bundle", "list", "-id", f"spiffe://{OTHER}")["jwt_authorities"]


def test_its_bundle_is_fetched_by_a_certificate_of_the_web(
    estate: Estate, theirs_of_the_web: SpireServer, tmp_path: Path
) -> None:
    server = theirs_of_the_web
    url = server.url  # type: ignore[attr-defined]
    (tmp_path / "relationships.yaml").write_text(f"- {{trust_domain: {OTHER}, url: '{url}', ca_file: web-ca.pem}}\n")
    estate.start_broker("--federation-relationships", str(tmp_path / "relationships.yaml"))
    until(lambda: estate.cli("bundle", "list", "-id", f"spiffe://{OTHER}").code == 0, "its bundle")
    assert roots(estate) == 1
    server.cli.ok("localauthority", "x509", "prepare")
    estate.cli.ok("federation", "refresh", "-id", f"spiffe://{OTHER}")
    assert roots(estate) == 2


@pytest.mark.parametrize("profile", ["https_spiffe", "https_web"])
def test_it_fetches_ours_through_rotations(
    estate: Estate, theirs: SpireServer, pki: WebPki, tmp_path: Path, profile: str
) -> None:
    """And goes on with what it has when our endpoint is away."""
    words = ["--bundle-endpoint-listen", "127.0.0.1:0", "--bundle-endpoint-profile", profile]
    proof = ["-endpointSpiffeID", f"spiffe://{TD}/spire/server", "-trustDomainBundlePath", str(tmp_path / "ours.json")]
    proof += ["-trustDomainBundleFormat", "spiffe"]
    if profile == "https_web":
        certificate, key = pki.write(tmp_path, "127.0.0.1")
        words += ["--bundle-endpoint-certificate", str(certificate), "--bundle-endpoint-key", str(key)]
        proof = []
    broker = estate.start_broker(*words)
    (tmp_path / "ours.json").write_text(estate.cli.ok("bundle", "show", "-format", "spiffe"))
    url = f"https://{estate.said('bundle_endpoint')}/"
    names = ["-trustDomain", TD, "-bundleEndpointURL", url, "-bundleEndpointProfile", profile]
    theirs.cli.ok("federation", "create", *names, *proof)

    def held_by_them() -> tuple[int, int]:
        theirs.cli.ok("federation", "refresh", "-id", f"spiffe://{TD}")
        found = theirs.cli.json("bundle", "list", "-id", f"spiffe://{TD}")
        return len(found["x509_authorities"]), len(found["jwt_authorities"])

    assert held_by_them() == (1, 1)
    first = estate.cli.json("localauthority", "x509", "show")["active"]["authority_id"]
    second = estate.cli.json("localauthority", "x509", "prepare")["prepared_authority"]["authority_id"]
    estate.cli.ok("localauthority", "jwt", "prepare")
    assert held_by_them() == (2, 2)
    estate.cli.ok("localauthority", "x509", "activate", "-authorityID", second)
    # The endpoint proves itself by the new authority now.
    assert held_by_them() == (2, 2)
    estate.cli.ok("localauthority", "x509", "taint", "-authorityID", first)
    estate.cli.ok("localauthority", "x509", "revoke", "-authorityID", first)
    assert held_by_them() == (1, 2)
    broker.stop()
    assert theirs.cli("federation", "refresh", "-id", f"spiffe://{TD}").code == 1
    assert len(theirs.cli.json("bundle", "list", "-id", f"spiffe://{TD}")["x509_authorities"]) == 1


def test_an_endpoint_with_another_id_is_refused(estate: Estate, theirs: SpireServer) -> None:
    estate.start_broker()
    federate(estate, theirs, f"spiffe://{OTHER}/somebody/else")
    answer = estate.cli("federation", "refresh", "-id", f"spiffe://{OTHER}")
    assert answer.code == 1
    assert "failed to refresh bundle" in answer.err
    assert roots(estate) == 1


def test_programs_of_both_domains_shake_hands(estate: Estate, theirs: SpireServer, workload: MakeWorkload) -> None:
    """One program below a stock agent on our broker, one below a stock agent on the real server."""
    estate.start_broker()
    federate(estate, theirs, f"spiffe://{OTHER}/spire/server")
    bundle = estate.cli.ok("bundle", "show", "-format", "spiffe")
    theirs.cli.ok("bundle", "set", "-id", f"spiffe://{TD}", "-format", "spiffe", given=bundle)
    ours = estate.agent()
    ours.start()
    estate.entry(agent_path(ours), "/web", more=("-federatesWith", f"spiffe://{OTHER}"))
    their_agent = SpireAgent(
        theirs.folder / "a", theirs.address, theirs.bundle_pem(), theirs.token(), trust_domain=OTHER
    )
    estate.agents_started.append(their_agent)
    their_agent.start()
    parent = f"spiffe://{OTHER}/spire/agent/join_token/{their_agent.join_token}"
    words = ["-parentID", parent, "-spiffeID", THEIRS, "-selector", UID, "-federatesWith", f"spiffe://{TD}"]
    theirs.cli.ok("entry", "create", *words)
    until(lambda: held(ours) == [WEB] and held(their_agent) == [THEIRS], "both identities")
    here, there = workload(ours.environment), workload(their_agent.environment)
    for server, client, its_id, other_id in ((here, there, WEB, THEIRS), (there, here, THEIRS, WEB)):
        serving = server.follow("serve", "-allow", other_id)
        to = serving.next()["listen"]
        assert client.ask("dial", "-to", to, "-allow", its_id) == {"peer": its_id, "echo": "hello\n"}
        assert serving.next()["peer"] == other_id
        token = client.ask("token", "-audience", "models")["token"]
        assert server.ask("validate", "-audience", "models", given=token)["id"] == other_id
    # The endpoint goes away: what was fetched stays, and so do the handshakes.
    theirs.stop()
    assert estate.cli("federation", "refresh", "-id", f"spiffe://{OTHER}").code == 1
    serving = here.follow("serve", "-allow", THEIRS)
    assert there.ask("dial", "-to", serving.next()["listen"], "-allow", WEB)["peer"] == WEB
