# SPDX-License-Identifier: Apache-2.0
"""OIDC discovery: our documents are those that SPIRE's own provider makes of the same broker."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ports import own_port
from tests.spire.conftest import Estate
from tests.spire.programs import Daemon, needed
from tests.waiting import PATIENCE, until
from tests.web_pki import WebPki

pytestmark = pytest.mark.peer

HOST = "oidc.example.org"
WELL_KNOWN, KEYS = "/.well-known/openid-configuration", "/keys"


class Provider(Daemon):
    """SPIRE's oidc-discovery-provider, before the admin socket of a server."""

    def __init__(self, folder: Path, server: Path, issuer: str) -> None:
        folder.mkdir()
        super().__init__(folder / "provider.log")
        self.socket = folder / "provider.sock"
        (folder / "provider.conf").write_text(f"""
log_level = "debug"
domains = ["{HOST}"]
listen_socket_path = "{self.socket}"
jwt_issuer = "{issuer}"
set_key_use = true
server_api {{ address = "unix://{server}" poll_interval = "1s" }}
""")
        self.launch(needed("spire", "oidc-discovery-provider"), "-config", str(folder / "provider.conf"))

    def ask(self, path: str) -> Any:
        """Ask for a document; None while there is none."""
        connection = http.client.HTTPConnection(HOST)
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.connect(str(self.socket))
            connection.request("GET", path, headers={"Host": HOST})
            answer = connection.getresponse()
            return json.load(answer) if answer.status == 200 else None
        except OSError:
            assert self.alive(), self.text[-3000:]
            return None
        finally:
            connection.close()


@pytest.fixture
def provider(estate: Estate, tmp_path: Path) -> Iterator[Provider]:
    """The provider, before a broker that serves the same issuer itself."""
    pki, port = WebPki(), own_port()
    (tmp_path / "web-ca.pem").write_bytes(pki.root_pem)
    certificate, key = pki.write(tmp_path, HOST)
    issuer = f"https://{HOST}:{port}"
    estate.start_broker(
        *("--jwt-issuer", issuer, "--oidc-listen", f"127.0.0.1:{port}"),
        *("--oidc-certificate", str(certificate), "--oidc-key", str(key)),
    )
    found = Provider(tmp_path / "provider", estate.folder / "b.sock", issuer)
    yield found
    found.close()


def ours(estate: Estate, path: str) -> Any:
    """Ask the broker as a relying party does."""
    host, _, port = estate.said("oidc").rpartition(":")
    context = ssl.create_default_context(cafile=str(estate.folder / "web-ca.pem"))
    connection = http.client.HTTPSConnection(HOST, int(port), context=context)
    with socket.create_connection((host, int(port)), PATIENCE) as plain:
        connection.sock = context.wrap_socket(plain, server_hostname=HOST)
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status == 200
        found = json.load(answer)
        connection.close()
    return found


def by_id(keys: Any) -> dict[str, Any]:
    return {key["kid"]: key for key in keys["keys"]}


def test_documents_and_keys_are_those_of_spires_provider(estate: Estate, provider: Provider) -> None:
    theirs = until(lambda: provider.ask(WELL_KNOWN), "the provider's document")
    mine = ours(estate, WELL_KNOWN)
    for name in ("issuer", "response_types_supported", "subject_types_supported", "authorization_endpoint"):
        assert mine[name] == theirs[name], name
    assert set(mine) == set(theirs)
    assert set(theirs["id_token_signing_alg_values_supported"]) == set(mine["id_token_signing_alg_values_supported"])
    until(lambda: provider.ask(KEYS), "the provider's keys")
    assert by_id(ours(estate, KEYS)) == by_id(provider.ask(KEYS))
    # A key that is prepared, and another that is revoked.
    second = estate.cli.json("localauthority", "jwt", "prepare")["prepared_authority"]["authority_id"]
    assert second in by_id(ours(estate, KEYS))
    until(lambda: by_id(provider.ask(KEYS)) == by_id(ours(estate, KEYS)), "the second key")
    first = estate.cli.json("localauthority", "jwt", "show")["active"]["authority_id"]
    for step, wanted in (("activate", second), ("taint", first), ("revoke", first)):
        estate.cli.ok("localauthority", "jwt", step, "-authorityID", wanted)
    assert set(by_id(ours(estate, KEYS))) == {second}
    until(lambda: by_id(provider.ask(KEYS)) == by_id(ours(estate, KEYS)), "the end of the first key")
