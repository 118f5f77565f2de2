# SPDX-License-Identifier: Apache-2.0
"""A broker below a CA in files, with a stock agent and a sidecar of ours: who is admitted, and how it leaves a root.

SPIRE's suite force-rotation-upstream-authority, with the stock command line.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from firedoor.certs import PrivateKey
from tests.broker.below import forge
from tests.broker.test_upstream import Files, made
from tests.e2e.conftest import POLICY, UID
from tests.e2e.test_datapath import CLIENT, SERVER, App, inbound, listening, records
from tests.e2e.test_downstream import exchange
from tests.spire.conftest import TD, Estate, agent_path, api
from tests.spire.programs import SpireAgent
from tests.spire.test_stock_agent import held
from tests.waiting import until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

PEM = serialization.Encoding.PEM
PLAIN = (PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


@pytest.fixture
def app() -> Iterator[App]:
    found = App()
    yield found
    found.close()


def asks(estate: Estate, chain: list[x509.Certificate], key: PrivateKey) -> bytes:
    """Connect to the app's sidecar with a certificate; return what the app says."""
    pem = estate.folder / "client.pem"
    pem.write_bytes(key.private_bytes(*PLAIN) + b"".join(one.public_bytes(PEM) for one in chain))
    return exchange(listening(estate, "r"), pem)


def as_client(estate: Estate, agent: SpireAgent) -> bytes:
    with api(agent) as client:
        svid = client.fetch_x509_svid()
    return asks(estate, list(svid.cert_chain), svid.private_key)


def chain_of(agent: SpireAgent) -> list[x509.Certificate]:
    with api(agent) as client:
        return list(client.fetch_x509_svid().cert_chain)


def serials(estate: Estate) -> set[str]:
    """Return the serial numbers of the agents' own certificates."""
    return {one["x509svid_serial_number"] for one in estate.cli.json("agent", "list")["agents"]}


def test_a_broker_below_a_root_and_below_the_next(estate: Estate, app: App, tmp_path: Path) -> None:
    (tmp_path / "upstream").mkdir(mode=0o700)
    files, old, new = Files(tmp_path / "upstream"), made(), made()
    middle = made(old)
    files.write(middle, old)
    (estate.folder / "policy.yaml").write_text(POLICY)
    words = [word for name, path in files.flags().items() for word in ("--" + name.replace("_", "-"), path)]
    estate.start_broker(*words)
    estate.create_entry(estate.enrol(), SERVER)
    estate.start_sidecar("--inbound", inbound(app), name="r").ready()
    agent = estate.agent()
    agent.start()
    estate.entry(agent_path(agent), CLIENT, f"unix:{UID}")
    until(lambda: held(agent) == [f"spiffe://{TD}{CLIENT}"], "an SVID")
    assert len(chain_of(agent)) == 3
    assert as_client(estate, agent) == b"hello you"

    # Somebody else below the same roots makes up the same ID.
    forged, key = forge(made(old), CLIENT)
    assert asks(estate, [x509.load_der_x509_certificate(der) for der in forged.chain], key) == b""
    until(lambda: len(records(estate, "r")) == 2, "both records")
    assert [one["reason"] for one in records(estate, "r")] == ["allowed", "intermediate_not_listed"]

    agents = serials(estate)
    files.write(new)
    until(lambda: estate.cli.ok("bundle", "show").count("BEGIN") == 2, "the next root in the bundle")
    prepared = estate.cli.json("localauthority", "x509", "prepare")["prepared_authority"]
    assert prepared["upstream_authority_subject_key_id"] == new.authority_id
    estate.cli.ok("localauthority", "x509", "activate", "-authorityID", prepared["authority_id"])
    estate.cli.ok("upstreamauthority", "taint", "-subjectKeyID", old.authority_id)
    until(lambda: len(chain_of(agent)) == 2, "an SVID below the next root")
    # Who is told of the next root first, the agent or the sidecar, is anybody's guess.
    until(lambda: as_client(estate, agent) == b"hello you", "the next root at the app's sidecar")

    def ours_too() -> bool:
        status = estate.status("r")
        return status is not None and status.svids[0].authority_id == prepared["authority_id"]

    until(ours_too, "the sidecar's SVID below the next root")
    until(lambda: not agents & serials(estate), "the agents' own SVIDs below the next root")
    estate.cli.ok("upstreamauthority", "revoke", "-subjectKeyID", old.authority_id)
    assert estate.cli.ok("bundle", "show").count("BEGIN") == 1
    assert as_client(estate, agent) == b"hello you"
