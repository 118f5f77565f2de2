# SPDX-License-Identifier: Apache-2.0
"""A real spire-server below our broker: its workloads are admitted where its entry says, and it rotates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from spiffe import SpiffeId
from spiffe.workloadapi.errors import FetchX509SvidError, ValidateJwtSvidError

from tests.e2e.conftest import POLICY, UID
from tests.e2e.test_datapath import CLIENT, SERVER, App, inbound, listening, records
from tests.e2e.test_downstream import BELOW, exchange
from tests.spire.conftest import TD, Estate, agent_path, api
from tests.spire.programs import SpireAgent, SpireServer
from tests.waiting import until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

OTHER = "/segment/registry/host/h1/svc/other"
PEM = serialization.Encoding.PEM


class Nested:
    """A spire-server below the broker, by the agent of ours beside it, and an agent below that."""

    def __init__(self, estate: Estate) -> None:
        self.estate = estate
        self.started: list[SpireServer | SpireAgent] = []

    def start(self, folder: Path) -> None:
        """Start all of it."""
        estate = self.estate
        self.beside = estate.agent("beside")
        self.beside.start()
        words = ("--parent-id", f"spiffe://{TD}{agent_path(self.beside)}", "--selector", f"unix:{UID}")
        ids = ("--spiffe-id", f"spiffe://{TD}{BELOW}")
        made = estate.run("entry", "create", *ids, *words, "--downstream", "--segment", "inference")
        self.entry_id = made.split()[1]
        (folder / "below").mkdir(mode=0o700)
        self.server = SpireServer(folder / "below", more='ca_ttl = "1h"\n  default_x509_svid_ttl = "24s"')
        host, _, port = estate.address.rpartition(":")
        self.server.plugins = f"""
  UpstreamAuthority "spire" {{
    plugin_data {{
      server_address = "{host}"
      server_port = "{port}"
      workload_api_socket = "{self.beside.socket}"
    }}
  }}"""
        self.started.append(self.server)
        self.server.start()
        self.agent = SpireAgent(folder / "leaf", self.server.address, self.server.bundle_pem(), self.server.token())
        self.started.append(self.agent)
        self.agent.start()
        for path in (CLIENT, OTHER):
            parent = f"spiffe://{TD}{agent_path(self.agent)}"
            words = ("-parentID", parent, "-spiffeID", f"spiffe://{TD}{path}", "-selector", f"unix:{UID}")
            self.server.cli.ok("entry", "create", *words)
        until(lambda: {CLIENT, OTHER} <= self.held().keys(), "the workload's identities")

    def held(self) -> dict[str, list[x509.Certificate]]:
        """Return the chains that this process gets below the server, by path."""
        try:
            return {path: chain for path, (chain, _) in self._fetched().items()}
        except FetchX509SvidError:
            return {}

    def _fetched(self) -> dict[str, tuple[list[x509.Certificate], bytes]]:
        pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        with api(self.agent) as client:
            return {
                svid.spiffe_id.path: (list(svid.cert_chain), svid.private_key.private_bytes(PEM, pkcs8, plain))
                for svid in client.fetch_x509_svids()
            }

    def asks(self, path: str) -> bytes:
        """Connect to the app's sidecar as one of those identities; return what the app says. Nothing without one."""
        try:
            chain, key = self._fetched()[path]
        except (FetchX509SvidError, KeyError):
            return b""
        pem = self.estate.folder / "client.pem"
        pem.write_bytes(key + b"".join(one.public_bytes(PEM) for one in chain))
        return exchange(listening(self.estate, "r"), pem)

    def close(self) -> None:
        for one in self.started:
            one.close()


@pytest.fixture
def app() -> Iterator[App]:
    found = App()
    yield found
    found.close()


@pytest.fixture
def nested(estate: Estate, app: App, tmp_path: Path) -> Iterator[Nested]:
    (estate.folder / "policy.yaml").write_text(POLICY)
    estate.start_broker()
    estate.create_entry(estate.enrol(), SERVER)
    estate.start_sidecar("--inbound", inbound(app), name="r").ready()
    found = Nested(estate)
    try:
        found.start(tmp_path)
        yield found
    finally:
        found.close()


def test_its_workloads_are_admitted_where_its_entry_says_and_it_rotates(nested: Nested, app: App) -> None:
    chain = nested.held()[CLIENT]
    assert len(chain) == 2, "the leaf and the CA that the broker signed, without the root"
    # The broker waits for sidecars to have a CA on their lists, and not for one that takes its time.
    until(lambda: nested.asks(CLIENT) == b"hello you", "the list of CAs at the app's sidecar")
    reached = app.accepted
    assert nested.asks(OTHER) == b""
    until(lambda: reasons(nested)[-1] == "segment_not_listed", "its record")
    assert "allowed" in reasons(nested)
    assert app.accepted == reached

    for restarted in (False, True):
        if restarted:
            nested.server.stop()
            nested.server.start()
        # SVIDs are short there, and the server may take longer to come back.
        _, before = until(lambda: nested.held().get(CLIENT), "its SVID")
        made = nested.server.cli.json("localauthority", "x509", "prepare")["prepared_authority"]["authority_id"]
        nested.server.cli.ok("localauthority", "x509", "activate", "-authorityID", made)
        until(
            lambda before=before: (chain := nested.held().get(CLIENT)) and chain[1] != before, "an SVID of the next CA"
        )
        until(lambda: nested.asks(CLIENT) == b"hello you", "the next CA at the app's sidecar")
    assert nested.estate.run("entry", "show", nested.entry_id).count("its CA") >= 3

    nested.estate.delete_entry(nested.entry_id)
    until(lambda: nested.asks(CLIENT) == b"", "the denial")
    until(lambda: reasons(nested)[-1] == "intermediate_not_listed", "its reason")


def reasons(nested: Nested) -> list[object]:
    """Return why the app's sidecar decided as it did."""
    return [one["reason"] for one in records(nested.estate, "r")] or [""]


def test_its_tokens_are_valid_where_its_entry_says(nested: Nested) -> None:
    """At our sidecar. The same key is in the bundle that everybody has, and says nothing of segments there."""
    with api(nested.agent) as below, nested.estate.api("r") as ours:
        tokens = {
            path: below.fetch_jwt_svid({"models"}, SpiffeId(f"spiffe://{TD}{path}")).token for path in (CLIENT, OTHER)
        }
        assert ours.validate_jwt_svid(tokens[CLIENT], "models").spiffe_id.path == CLIENT
        with pytest.raises(ValidateJwtSvidError, match="not listed for the segment"):
            ours.validate_jwt_svid(tokens[OTHER], "models")
    with api(nested.beside) as beside:
        assert beside.validate_jwt_svid(tokens[OTHER], "models").spiffe_id.path == OTHER
    nested.estate.delete_entry(nested.entry_id)

    def refused() -> bool:
        with nested.estate.api("r") as ours:
            try:
                ours.validate_jwt_svid(tokens[CLIENT], "models")
            except ValidateJwtSvidError:
                return True
        return False

    until(refused, "the key's end")


def test_roots_of_the_broker_reach_it_by_themselves(nested: Nested) -> None:
    estate = nested.estate
    before = nested.server.cli.ok("bundle", "show")
    made = estate.cli.json("localauthority", "x509", "prepare")["prepared_authority"]["authority_id"]
    until(lambda: nested.server.cli.ok("bundle", "show") != before, "the next root in its bundle")
    old = estate.cli.json("localauthority", "x509", "show")["active"]["authority_id"]
    estate.cli.ok("localauthority", "x509", "activate", "-authorityID", made)
    estate.cli.ok("localauthority", "x509", "taint", "-authorityID", old)

    # It sees the taint in the bundle and asks for a CA below the next root.
    def anew() -> bool:
        held = nested.held().get(CLIENT)
        return held is not None and (
            held[1].issuer
            == x509.load_pem_x509_certificates(nested.server.cli.ok("bundle", "show").encode())[-1].subject
        )

    until(anew, "an SVID below the next root")
    until(lambda: nested.asks(CLIENT) == b"hello you", "the next root and CA at the app's sidecar")
    estate.cli.ok("localauthority", "x509", "revoke", "-authorityID", old)
    until(lambda: nested.server.cli.ok("bundle", "show").count("BEGIN") == 1, "the old root's end")
    until(lambda: nested.asks(CLIENT) == b"hello you", "the workload below it goes on")
