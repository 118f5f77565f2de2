# SPDX-License-Identifier: Apache-2.0
"""A whole sidecar that attests by a node's certificate, before a server that speaks SPIRE's APIs."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from firedoor.certs import read_roots
from firedoor.sidecar import updates
from firedoor.sidecar.config import Config
from firedoor.sidecar.errors import AttestationRefused, NodeCertificateUnusable
from tests.node_pki import NodePki
from tests.sidecar.harness import Start, entry, ids, settings, write_files
from tests.sidecar.spire_like import SpireLike
from tests.simulator import SimulatedTrustDomain
from tests.waiting import SHORT


@pytest.fixture(scope="module")
def pki() -> NodePki:
    return NodePki(int(time.time()))


@pytest.fixture
async def server(tmp_path: Path, pki: NodePki, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SpireLike]:
    monkeypatch.setattr(updates, "POLL_SECONDS", 0.1)
    found = SpireLike(SimulatedTrustDomain("example.org", at=int(time.time())))
    found.node_cas = read_roots(pki.root_pem)
    found.entries["x"] = entry("x")
    (tmp_path / "server").mkdir(mode=0o700)
    write_files(tmp_path, found, await found.start(tmp_path / "server"))
    yield found
    await found.stop()


def node_settings(tmp_path: Path, **flags: str | None) -> Config:
    files = {"x509pop_certificate": str(tmp_path / "node.pem"), "x509pop_key": str(tmp_path / "node.key")}
    return settings(tmp_path, join_token_file=None, **files, **flags)


async def test_attests_and_stores_nothing_of_it(
    server: SpireLike, running: Start, tmp_path: Path, pki: NodePki
) -> None:
    pki.node("gpu-1", issuer=pki.ca("Between", issuer=pki.root)).write(tmp_path)
    one = running(node_settings(tmp_path))
    await one.until(lambda p: ids(p) == {"x"}, "an SVID")
    assert {file.name for file in (tmp_path / "data").iterdir()} == {"VERSION", "bundle.json", "run", "workload"}
    await one.stop()
    again = running(node_settings(tmp_path))
    await again.until(lambda p: ids(p) == {"x"}, "an SVID after a restart")
    assert len(server.attested) == 2
    assert len(set(server.attested)) == 1


async def test_attests_again_at_half_life(server: SpireLike, running: Start, tmp_path: Path, pki: NodePki) -> None:
    server.agent_ttl = 3
    pki.node().write(tmp_path)
    one = running(node_settings(tmp_path))
    await one.until(lambda _: len(server.attested) >= 3, "two attestations more")
    server.entries["y"] = entry("y")
    await one.until(lambda p: ids(p) == {"x", "y"}, "a new entry's SVID, asked for as what it is now")
    assert server.renewals == 0


async def test_a_renewed_certificate_is_another_agent(
    server: SpireLike, running: Start, tmp_path: Path, pki: NodePki
) -> None:
    server.agent_ttl = 3
    pki.node().write(tmp_path)
    one = running(node_settings(tmp_path))
    await one.until(lambda p: ids(p) == {"x"}, "an SVID")
    pki.node().write(tmp_path)
    await one.until(lambda _: len(set(server.attested)) == 2, "another agent")
    server.entries["y"] = entry("y")
    await one.until(lambda p: ids(p) == {"x", "y"}, "a new entry's SVID")


@pytest.mark.parametrize("what", ["the file", "the CA"])
async def test_what_goes_wrong_while_the_svid_lives_ends_nothing(
    server: SpireLike, running: Start, tmp_path: Path, pki: NodePki, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    server.agent_ttl = SHORT
    good = pki.node()
    good.write(tmp_path)
    one = running(node_settings(tmp_path))
    await one.until(lambda p: ids(p) == {"x"}, "an SVID")
    if what == "the file":
        (tmp_path / "node.key").chmod(0o644)
        reason = "open to others; chmod 0600 it; the present agent SVID ends in"
    else:
        server.node_cas = ()
        reason = "(x509pop.certificate), and at x509pop.ca_bundles of the broker; the present agent SVID ends in"

    def told(_: object) -> bool:
        return any(reason in str(getattr(record, "reason", "")) for record in caplog.records)

    await one.until(told, "a line that says what is wrong")
    assert ids(one.process) == {"x"}
    (tmp_path / "node.key").chmod(0o600)
    server.node_cas = read_roots(pki.root_pem)
    await one.until(lambda _: len(server.attested) == 2, "another attestation")


async def test_what_is_wrong_at_the_start_ends_the_process(
    server: SpireLike, running: Start, tmp_path: Path, pki: NodePki
) -> None:
    held = pki.node()
    held.write(tmp_path)
    (tmp_path / "node.key").chmod(0o644)
    one = running(node_settings(tmp_path))
    with pytest.raises(NodeCertificateUnusable, match="open to others"):
        await asyncio.wait_for(one.task, 60)
    (tmp_path / "node.key").chmod(0o600)
    server.node_cas = ()
    two = running(node_settings(tmp_path))
    with pytest.raises(
        AttestationRefused, match=r"does not chain to a CA .*; look at .*node\.pem \(x509pop\.certificate"
    ):
        await asyncio.wait_for(two.task, 60)


async def test_goes_over_from_a_join_token(server: SpireLike, running: Start, tmp_path: Path, pki: NodePki) -> None:
    one = running(settings(tmp_path))
    await one.until(lambda p: ids(p) == {"x"}, "an SVID")
    await one.stop()
    assert (tmp_path / "data/agent.key").exists()
    pki.node().write(tmp_path)
    two = running(node_settings(tmp_path))
    await two.until(lambda p: ids(p) == {"x"}, "an SVID")
    assert "x509pop" in str(two.process.holder.agent)
    assert not (tmp_path / "data/agent.key").exists()
