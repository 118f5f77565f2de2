# SPDX-License-Identifier: Apache-2.0
"""A whole sidecar, in this process, before a server that speaks SPIRE's APIs and has no control stream."""

import asyncio
import socket
import time
from pathlib import Path

import pytest

from firedoor.certs import TrustDomain
from firedoor.sidecar import process
from firedoor.sidecar.clock import Clock
from firedoor.sidecar.errors import AttestationRefused, ConfigError, StateError, TokenMissing
from firedoor.sidecar.process import Process
from firedoor.wire import control_pb2, policy_pb2, views
from tests.ports import own_port
from tests.sidecar.harness import Start, entry, ids, settings
from tests.sidecar.spire_like import AGENT, SpireLike, wire_bundle
from tests.simulator import SimulatedTrustDomain, odd_root
from tests.waiting import SHORT

POLICY = """\
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {name: a}
spec:
  function: a
  trust: low
  mode: enforce
  members: ["spiffe://{td}/segment/a/**"]
  admission: {entry: ["unix:uid:0"]}
"""


async def test_polls_a_server_without_a_control_stream(server: SpireLike, running: Start, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(POLICY)
    one = running(settings(tmp_path, segments=str(tmp_path / "policy.yaml")))
    await one.until(lambda p: p.report.ready(), "readiness")
    assert str(one.process.report.status().agent_id) == f"spiffe://example.org{AGENT}"
    await one.until(lambda p: [s.segment for s in p.report.status().svids] == ["a"], "an SVID")
    # Entries come, change and go.
    server.entries["y"] = entry("y")
    await one.until(lambda p: ids(p) == {"x", "y"}, "a new entry's SVID")
    before = one.process.holder.identities["x"].svid.serial
    server.entries["x"] = entry("x", revision_number=2)
    await one.until(lambda p: p.holder.identities["x"].svid.serial != before, "an SVID for the changed entry")
    del server.entries["y"]
    await one.until(lambda p: ids(p) == {"x"}, "the entry's end")


async def test_status_lists_what_passes_by_the_sidecar(server: SpireLike, running: Start, tmp_path: Path) -> None:
    excluded = "[{direction: inbound, ports: [9100], addresses: [10.0.0.0/8], reason: metrics}]"
    one = running(settings(tmp_path, capture_uid="990", capture_exclude=excluded))
    await one.until(lambda p: ids(p) == {"x"}, "an SVID")
    (line,) = one.process.report.status().capture_exclusions
    assert line == "exclusion 0: inbound tcp to port 9100 from 10.0.0.0/8: metrics"
    assert one.process.report.status().not_enforcing == ""


async def test_status_says_whom_the_dns_relay_asks(server: SpireLike, running: Start, tmp_path: Path) -> None:
    """It is open before the server has answered anything."""
    port = own_port()
    with socket.create_server(("127.0.0.1", port)):
        flags = {"capture_uid": "990", "capture_dns_port": str(port), "capture_dns_resolvers": "10.0.0.10"}
        one = running(settings(tmp_path, capture_dns_names="**.example.org", **flags))
        missing = f"the DNS relay is not open: DNS relay: cannot listen on 127.0.0.1:{port}"
        await one.until(lambda p: [s for s in p.report.missing() if s.startswith(missing)], "a port that is taken")
    await one.until(lambda p: p.report.status().dns.listen, "the relay")
    found = one.process.report.status().dns
    assert found.listen[0] == f"127.0.0.1:{port}"
    assert (list(found.resolvers), list(found.names), found.every_name) == (["10.0.0.10:53"], ["**.example.org"], False)
    assert one.process.report.values()["dns_queries"] == 0


async def test_without_a_policy_it_is_not_ready(server: SpireLike, running: Start, tmp_path: Path) -> None:
    one = running(settings(tmp_path))
    await one.until(lambda p: ids(p) == {"x"}, "an SVID")
    assert one.process.report.missing() == ["a policy: the server pushes none, and `segments` names none"]


async def test_stored_svids_of_the_future_are_not_served(
    server: SpireLike, running: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Started again with a clock that was set back by an hour, while the server is away."""
    caplog.set_level("INFO")
    kept = settings(tmp_path, keep_workload_keys="disk")
    one = running(kept)
    await one.until(lambda p: ids(p) == {"x"}, "an SVID")
    parts = [
        control_pb2.Part(entries=control_pb2.Entries(entries=server.entries.values())),
        control_pb2.Part(bundles=control_pb2.Bundles(bundles=[wire_bundle(server.trust)])),
        control_pb2.Part(policy=control_pb2.Policy(table=policy_pb2.Table(version=1, trust_domain="example.org"))),
    ]
    generation = control_pb2.Generation(epoch=1, number=1)
    one.process.state.store_generation(
        control_pb2.Update(generation=generation, parts=parts, view_hash=views.view_hash(parts))
    )
    await one.stop()
    await server.stop()
    # Now, it is used: what keeps it from being used below is the time alone.
    again = running(kept)
    await again.until(lambda p: ids(p) == {"x"}, "the stored SVID")
    await again.stop()
    monkeypatch.setattr(process, "Clock", lambda **_: Clock(wall=lambda: time.time() - 3600))
    back = running(kept)
    await back.until(lambda _: "a stored SVID is not used" in caplog.text, "a line that says so")
    assert ids(back.process) == set()


async def test_federated_bundles(server: SpireLike, running: Start, tmp_path: Path) -> None:
    other = SimulatedTrustDomain("other.org", at=server.trust.at)
    server.others["other.org"] = other
    server.entries["x"] = entry("x", federates_with=["other.org", "gone.org"])
    one = running(settings(tmp_path))
    await one.until(lambda p: other.td in p.holder.view.bundles, "the bundle")
    assert set(one.process.holder.view.bundles) == {TrustDomain.parse("example.org"), other.td}


async def test_a_foreign_bundle_that_cannot_be_used_keeps_nothing_else_away(
    server: SpireLike, running: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever runs another trust domain must not be able to stop our entries, or to speak for our authorities."""
    other = SimulatedTrustDomain("other.org", at=server.trust.at)
    stranger = SimulatedTrustDomain("example.org", at=server.trust.at)
    server.others["other.org"] = other
    server.entries["x"] = entry("x", federates_with=["other.org"])
    one = running(settings(tmp_path))
    await one.until(lambda p: other.td in p.holder.view.bundles, "the bundle")
    before, ours = (one.process.holder.view.bundles[td] for td in (other.td, server.trust.td))
    unreadable = wire_bundle(other)
    unreadable.x509_authorities.add(asn1=odd_root(other))
    garbage = wire_bundle(other)
    garbage.x509_authorities.add(asn1=b"no certificate")
    for number, odd in enumerate((unreadable, garbage, wire_bundle(stranger))):
        server.odd_bundles["other.org"] = odd
        server.entries[f"y{number}"] = entry(f"y{number}")
        await one.until(lambda p, n=number: f"y{n}" in ids(p), "a new entry")  # type: ignore[misc]
        bundles = one.process.holder.view.bundles
        assert (bundles[other.td], bundles[server.trust.td]) == (before, ours)
    assert sum("a bundle cannot be used" in record.message for record in caplog.records) == 1
    # Its next one is taken.
    del server.odd_bundles["other.org"]
    other.rotate()
    await one.until(lambda p: len(p.holder.view.bundles[other.td].x509_roots) == 2, "the bundle")


async def test_tainted_authority_means_a_new_svid(server: SpireLike, running: Start, tmp_path: Path) -> None:
    one = running(settings(tmp_path))
    await one.until(lambda p: ids(p) == {"x"}, "an SVID")
    old = server.trust.roots[0].authority_id
    server.trust.rotate()
    server.publish()
    await one.until(lambda p: len(p.holder.view.bundles[server.trust.td].x509_roots) == 2, "the new root")
    assert one.process.holder.identities["x"].svid.authority_id == old
    server.tainted = {server.trust.roots[0].der}
    await one.until(lambda p: p.holder.identities["x"].svid.authority_id != old, "an SVID of the new authority")


async def test_tainted_authority_means_a_new_agent_svid_too(server: SpireLike, running: Start, tmp_path: Path) -> None:
    """Once the authority is revoked, the server will not even shake hands with what it signed."""
    one = running(settings(tmp_path))
    await one.until(lambda p: ids(p) == {"x"}, "an SVID")
    before = one.process.holder.agent
    server.trust.rotate()
    server.publish()
    await one.until(lambda p: len(p.holder.view.bundles[server.trust.td].x509_roots) == 2, "the new root")
    assert (one.process.holder.agent, server.renewals) == (before, 0)
    server.tainted = {server.trust.roots[0].der}
    await one.until(lambda p: p.holder.agent != before, "another agent SVID")
    assert server.renewals == 1


async def test_authority_that_is_revoked_before_it_was_followed(
    server: SpireLike, running: Start, tmp_path: Path
) -> None:
    """Nothing of the revoked authority is kept for the sake of what it signed: not its root, not those SVIDs."""
    one = running(settings(tmp_path))
    await one.until(lambda p: ids(p) == {"x"}, "an SVID")
    old = server.trust.roots[0]
    roots = lambda p: [root.authority_id for root in p.holder.view.bundles[server.trust.td].x509_roots]  # noqa: E731
    server.trust.rotate()
    server.publish()
    await one.until(lambda p: len(roots(p)) == 2, "the new root")
    server.tokens.add(b"t")
    server.trust.forget(old)
    await one.until(lambda p: roots(p) == [server.trust.roots[0].authority_id], "the end of the old root")
    signed = lambda p: {held.svid.authority_id for held in p.holder.identities.values()}  # noqa: E731
    await one.until(lambda p: ids(p) == {"x"} and signed(p) == set(roots(p)), "an SVID of the new authority")
    assert server.tokens == set()


async def test_renews_at_half_life(server: SpireLike, running: Start, tmp_path: Path) -> None:
    server.ttl = 8
    one = running(settings(tmp_path))
    seen: set[str] = set()

    def serials(p: Process) -> bool:
        seen.update(held.svid.serial for held in p.holder.identities.values())
        return len(seen) >= 3

    await one.until(serials, "three SVIDs")
    assert all(held.live(time.time()) for held in one.process.holder.identities.values())


async def test_renews_the_agent(server: SpireLike, running: Start, tmp_path: Path) -> None:
    # Who attested by a join token cannot do so again.
    server.agent_ttl = SHORT
    one = running(settings(tmp_path))
    await one.until(lambda p: ids(p) == {"x"}, "an SVID")
    first = one.process.holder.agent
    await one.until(lambda _: server.renewals >= 2, "two renewals")
    server.entries["y"] = entry("y")
    await one.until(lambda p: ids(p) == {"x", "y"}, "a new entry's SVID, asked for as the renewed agent")
    assert first
    assert one.process.holder.agent != first


async def test_refused_entry_is_told_and_tried_again(
    server: SpireLike, running: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firedoor.sidecar.issuer.REFUSED_SECONDS", 0.3)
    server.entries["y"] = entry("y")
    refused = {"y"}
    server.refuse = lambda entry_id: (7, "segment a does not admit it") if entry_id in refused else (0, "")
    one = running(settings(tmp_path))
    await one.until(lambda p: p.holder.not_admitted() == {"y"}, "the refusal")
    assert ids(one.process) == {"x"}
    refused.clear()
    await one.until(lambda p: ids(p) == {"x", "y"}, "an SVID after all")
    assert one.process.holder.not_admitted() == frozenset()


async def test_svid_of_another_id_is_not_taken(server: SpireLike, running: Start, tmp_path: Path) -> None:
    original = server.sign
    server.sign = lambda path, csr: original(path.replace("/a/x", "/a/z"), csr)  # type: ignore[method-assign]
    one = running(settings(tmp_path))
    await one.until(lambda p: "x" in p.holder.refusals, "the refusal")
    assert "another ID than the entry" in one.process.holder.refusals["x"].refusal
    assert ids(one.process) == set()


async def test_used_token_ends_the_process(server: SpireLike, running: Start, tmp_path: Path) -> None:
    server.tokens.clear()
    one = running(settings(tmp_path))
    with pytest.raises(AttestationRefused, match="already been used; make a token with `firedoor token create`"):
        await asyncio.wait_for(one.task, 60)


async def test_no_token_ends_the_process(server: SpireLike, running: Start, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(" \n")
    one = running(settings(tmp_path))
    with pytest.raises(TokenMissing, match="holds no join token"):
        await asyncio.wait_for(one.task, 60)


async def test_server_of_another_trust_domain_is_not_talked_to(
    server: SpireLike, running: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    foreign = SimulatedTrustDomain("example.org", at=server.trust.at)
    (tmp_path / "bundle.pem").write_text(foreign.bundle.to_pem())
    one = running(settings(tmp_path))
    await one.until(lambda _: "not attested yet" in caplog.text, "a line that says why")
    assert server.tokens == {b"t"}
    await one.stop()
    (tmp_path / "bundle.pem").write_text(server.trust.bundle.to_pem())
    twin = running(settings(tmp_path))
    await twin.until(lambda p: ids(p) == {"x"}, "an SVID")


async def test_missing_bootstrap_bundle(server: SpireLike, tmp_path: Path) -> None:
    (tmp_path / "bundle.pem").unlink()
    with pytest.raises(ConfigError, match=r"bundle\.pem: bootstrap_bundle: the file cannot be read"):
        Process(settings(tmp_path))


async def test_local_policy_after_a_pushed_one(server: SpireLike, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(POLICY)
    (tmp_path / "data").mkdir(mode=0o700)
    (tmp_path / "data/generation.pb").write_bytes(b"")
    with pytest.raises(StateError, match="pushes its policy, and `segments` would replace it"):
        Process(settings(tmp_path, segments=str(tmp_path / "policy.yaml")))


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "address").write_text("127.0.0.1:1")
    assert process.run(settings(tmp_path)) == process.EXIT_OPERATOR
    assert capsys.readouterr().err.startswith("firedoor sidecar: ")
