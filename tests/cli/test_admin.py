# SPDX-License-Identifier: Apache-2.0
"""Admin commands against a real broker."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import transcripts
from tests.cli.conftest import RunningBroker, start_broker, stop

HERE = Path(__file__).parent


def firedoor(broker: RunningBroker, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "firedoor.cli", *words]
    return subprocess.run(
        command, cwd=broker.folder, env=broker.environment, capture_output=True, text=True, timeout=60
    )


def answer(broker: RunningBroker, *words: str) -> Any:
    ran = firedoor(broker, *words, "--output", "json")
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.parametrize("name", sorted(p.stem for p in (HERE / "with_broker").glob("*.txt")))
def test_transcript(name: str, broker: RunningBroker) -> None:
    text = (HERE / "with_broker" / f"{name}.txt").read_text()
    assert transcripts.check(text, broker.folder, broker.environment)


def test_an_entry_lives_from_create_to_delete(broker_with_files: RunningBroker) -> None:
    spiffe_id = "spiffe://example.org/segment/inference/host/gpu-1/svc/vllm"
    parent = "spiffe://example.org/node/gpu-1"
    words = (
        "--spiffe-id",
        spiffe_id,
        "--parent-id",
        parent,
        "--selector",
        "unix:user:vllm",
        "--dns-name",
        "vllm.example.org",
    )
    made = answer(broker_with_files, "entry", "create", *words)
    assert answer(broker_with_files, "entry", "show", made["id"]) == made
    assert [e["id"] for e in answer(broker_with_files, "entry", "list", "--spiffe-id", spiffe_id)] == [made["id"]]
    assert answer(broker_with_files, "entry", "list", "--parent-id", "spiffe://example.org/node/other") == []
    assert answer(broker_with_files, "entry", "delete", made["id"]) == {"deleted": [made["id"]]}
    assert firedoor(broker_with_files, "entry", "show", made["id"]).returncode == 5


def test_what_a_downstream_may_issue_for(broker_with_files: RunningBroker) -> None:
    words = ("--spiffe-id", "spiffe://example.org/segment/inference/host/gpu-1/svc/spire")
    words += ("--parent-id", "spiffe://example.org/node/gpu-1", "--selector", "unix:user:vllm")
    made = answer(broker_with_files, "entry", "create", *words, "--downstream", "--segment", "registry")
    assert (made["segments"], made["authorities"]) == (["registry"], [])
    assert answer(broker_with_files, "entry", "show", made["id"])["segments"] == ["registry"]
    wider = answer(broker_with_files, "entry", "update", made["id"], "--segment", "registry", "--segment", "inference")
    assert (wider["segments"], wider["downstream"]) == (["inference", "registry"], True)
    assert firedoor(broker_with_files, "entry", "update", made["id"], "--segment", "").returncode == 4
    plain = answer(broker_with_files, "entry", "update", made["id"], "--no-downstream")
    assert "segments" not in plain


def test_update_changes_what_is_given_and_nothing_else(broker_with_files: RunningBroker) -> None:
    words = (
        "--spiffe-id",
        "spiffe://example.org/segment/inference/host/gpu-1/svc/vllm",
        "--selector",
        "unix:user:vllm",
    )
    more = ("--parent-id", "spiffe://example.org/node/gpu-1", "--dns-name", "vllm.example.org", "--admin")
    made = answer(broker_with_files, "entry", "create", *words, *more)
    cases: list[tuple[tuple[str, ...], dict[str, Any]]] = [
        (("--x509-svid-ttl", "15m"), {"x509_svid_ttl": 900}),
        (("--hint", "internal"), {"hint": "internal"}),
        (
            ("--dns-name", "a.example.org", "--dns-name", "b.example.org"),
            {"dns_names": ["a.example.org", "b.example.org"]},
        ),
        (("--dns-name", ""), {"dns_names": []}),
        (("--selector", "unix:user:vllm", "--selector", "unix:uid:7"), {"selectors": ["unix:uid:7", "unix:user:vllm"]}),
        (("--parent-id", "spiffe://example.org/node/gpu-2"), {"parent_id": "spiffe://example.org/node/gpu-2"}),
        (("--no-admin", "--no-downstream"), {"admin": False}),
        (("--expires-at", "4000000000"), {"expires_at": 4000000000}),
        (
            ("--x509-svid-ttl", "0", "--hint", "", "--expires-at", "0"),
            {"x509_svid_ttl": 0, "hint": "", "expires_at": 0},
        ),
    ]
    expected = made
    for arguments, changes in cases:
        expected = {**expected, **changes, "revision_number": expected["revision_number"] + 1}
        changed = answer(broker_with_files, "entry", "update", made["id"], *arguments)
        assert {**changed, "selectors": sorted(changed["selectors"])} == expected
    # The segment's admission holds for changes too, and what is refused changes nothing.
    ran = firedoor(broker_with_files, "entry", "update", made["id"], "--selector", "unix:uid:7")
    assert (ran.returncode, "unix:user" in ran.stderr) == (4, True)
    assert answer(broker_with_files, "entry", "show", made["id"])["revision_number"] == expected["revision_number"]


def test_apply_holds_to_the_generation_that_was_read(broker: RunningBroker) -> None:
    before = answer(broker, "segment", "list")["generation"]
    looked = answer(broker, "segment", "apply", "policy", "--dry-run", "--if-generation", before)
    assert (looked["dry_run"], looked["generation"]) == (True, before)
    assert {change["kind"] for change in looked["changes"]} == {"added"}
    assert answer(broker, "segment", "list")["segments"] == []
    applied = answer(broker, "segment", "apply", "policy", "--if-generation", before)
    assert (applied["changes"], applied["generation"] != before) == (looked["changes"], True)
    # Somebody else was first: nothing is replaced, and nothing is shown as if it could be.
    for more in ((), ("--dry-run",)):
        ran = firedoor(broker, "segment", "apply", "policy/registry.yaml", "--if-generation", before, *more)
        assert (ran.returncode, applied["generation"] in ran.stderr) == (4, True), ran.stderr
    assert answer(broker, "segment", "list")["generation"] == applied["generation"]


def test_apply_is_refused_where_files_are_the_source(broker_with_files: RunningBroker) -> None:
    ran = firedoor(broker_with_files, "segment", "apply", "policy")
    assert ran.returncode == 4
    assert "files" in ran.stderr


def test_the_broker_stops_cleanly(tmp_path: Path) -> None:
    running = start_broker(tmp_path)
    assert stop(running.process) == 0


def test_a_port_that_is_taken_is_said_in_a_sentence(broker: RunningBroker, tmp_path: Path) -> None:
    taken = broker.ready.partition("listen=")[2].split()[0]
    words = (
        "--trust-domain",
        "example.org",
        "--listen",
        taken,
        "--metrics",
        "off",
        "--data-dir",
        str(tmp_path / "other"),
    )
    ran = firedoor(broker, "broker", "run", *words, "--admin-socket", str(tmp_path / "other.sock"))
    assert ran.returncode == 2
    assert taken in ran.stderr
    assert "Traceback" not in ran.stderr
