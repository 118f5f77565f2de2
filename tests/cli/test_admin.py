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
