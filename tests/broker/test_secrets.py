# SPDX-License-Identifier: Apache-2.0
"""What is in the audit log, and what must be in no log at all."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import grpc
import pytest

from firedoor.broker.audit import Audit, redact_id
from firedoor.broker.errors import StorageError
from firedoor.broker.rpc.status import OK
from firedoor.wire import entry_pb2
from tests.broker.harness import RunningBroker, entry
from tests.waiting import async_until

TOKEN = "b5c1a1f2-0001-4000-8000-feedfacecafe"
VALUE = "hunter2-registry-password"


async def test_tokens_and_selector_values_are_in_no_log(
    broker: RunningBroker, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    await broker.token("/node/gpu-1", token=TOKEN)
    unused = "11111111-2222-4333-8444-555555555555"
    await broker.token(token=unused)
    secret = ["unix:user:registry", f"k8s:pod-label:password:{VALUE}"]
    await broker.create(
        entry("/segment/registry/x", f"/spire/agent/join_token/{unused}", secret),
        entry("/segment/registry/x", f"/spire/agent/join_token/{unused}", [f"k8s:pod-label:password:{VALUE}"]),
        entry("/segment/registry/y", "/node/gpu-1", [*secret, ":x"]),
    )
    with pytest.raises(grpc.aio.AioRpcError):
        await broker.client().attest("wrong-token-0123456789")
    with pytest.raises(grpc.aio.AioRpcError):
        await broker.token(token=unused)
    log = broker.broker.config.audit_log
    assert log is not None
    everything = log.read_text() + caplog.text + "".join(capfd.readouterr())
    for word in (TOKEN, unused, "wrong-token-0123456789", VALUE):
        assert word not in everything
    assert "k8s:pod-label:…" in everything or "k8s:pod-label:\\u2026" in everything
    # Once it is spent it is a name, and names are logged.
    agent = await broker.attest(TOKEN)
    assert agent.id in log.read_text()


async def test_what_is_recorded(broker: RunningBroker) -> None:
    token = await broker.token()
    agent = await broker.attest(token)
    made = await broker.entry("/segment/registry/x", agent.path, ["unix:user:registry"])
    await agent.sign(made.id, "nobody")
    await broker.ban(agent.id)
    records = broker.audit()
    by_method = {r["method"].rpartition("/")[2]: r for r in records if "method" in r}
    assert by_method["CreateJoinToken"]["caller_uid"] == os.geteuid()
    assert by_method["CreateJoinToken"]["token_hash"].startswith("sha256:")
    attest = by_method["AttestAgent"]
    assert (attest["event"], attest["status"], attest["agent_id"]) == ("attest", "OK", agent.id)
    assert attest["payload_hash"] == by_method["CreateJoinToken"]["token_hash"]
    assert by_method["BatchCreateEntry"]["spiffe_id"] == "spiffe://example.org/segment/registry/x"
    issued, refused = (r for r in records if r.get("event") == "issue")
    assert (issued["entry_id"], issued["status"], issued["caller_id"]) == (made.id, "OK", agent.id)
    assert issued["serial"]
    assert (refused["entry_id"], refused["refused"], refused["status"]) == ("nobody", "not_entitled", "NOT_FOUND")
    assert by_method["BanAgent"]["agent_id"] == agent.id
    assert all({"time", "type"} <= r.keys() for r in records)
    assert issued["request_id"] == refused["request_id"]


async def test_what_cannot_be_audited_is_not_handed_out(broker: RunningBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = await broker.attest()
    made = await broker.entry("/segment/registry/x", agent.path, ["unix:user:registry"])
    monkeypatch.setattr(broker.broker.audit, "_descriptor", os.open("/dev/full", os.O_WRONLY))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await agent.sign(made.id)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "audit log" in refused.value.details()
    # Reading goes on.
    assert await broker.entries.GetEntry(entry_pb2.GetEntryRequest(id=made.id)) == made
    broker.broker.audit.reopen()
    assert (await agent.sign(made.id))[0].status.code == 0


def test_records_go_whole_to_a_file_that_may_be_moved_away(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "a.jsonl", lambda: 1_800_000_000)
    audit.call("/x", None, OK, {"each": [{"n": 1}, {"n": 2}]})
    (tmp_path / "a.jsonl").rename(tmp_path / "a.1")
    audit.event("still the old one")
    audit.reopen()
    audit.event("new", text="line\nbreak")
    assert len((tmp_path / "a.1").read_text().splitlines()) == 3
    (line,) = (tmp_path / "a.jsonl").read_text().splitlines()
    assert '"time": "2027-01-15T08:00:00Z"' in line
    assert (tmp_path / "a.jsonl").stat().st_mode & 0o777 == 0o600
    audit.close()
    with pytest.raises(StorageError):
        Audit(tmp_path / "no" / "such", lambda: 0)


def test_only_join_tokens_are_hashed_in_ids() -> None:
    assert redact_id("spiffe://td/segment/a/x") == "spiffe://td/segment/a/x"
    assert "s3cret" not in redact_id("spiffe://td/spire/agent/join_token/s3cret")
    assert redact_id("spiffe://td/spire/agent/x509pop/ab") == "spiffe://td/spire/agent/x509pop/ab"


async def test_a_change_is_audited_though_its_caller_went_away(broker: RunningBroker) -> None:
    call = broker.entries.BatchCreateEntry(
        entry_pb2.BatchCreateEntryRequest(
            entries=[entry(f"/segment/registry/x{i}", "/spire/agent/a", ["unix:user:registry"]) for i in range(50)]
        )
    )
    await async_until(lambda: len(broker.broker.state.entries) > 0)
    call.cancel()
    await async_until(lambda: any("BatchCreateEntry" in r.get("method", "") for r in broker.audit()))
    recorded = {r["entry_id"] for r in broker.audit() if r.get("entry_id")}
    assert recorded == {e.id for e in broker.broker.state.entries}
    assert len(recorded) == 50
