# SPDX-License-Identifier: Apache-2.0
"""The demo, whole: as the user who runs the tests, and as an ordinary user when that is root."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import PATIENCE

SECONDS = 110
ORDINARY_UID = 60999


def demo(*words: str, **more: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "firedoor.cli", "demo", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/", **more)


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def check(ran: "subprocess.Popen[str]") -> list[dict[str, Any]]:
    out, err = ran.communicate(timeout=SECONDS)
    found = rows(out)
    assert ran.returncode == 0, out + err
    for row in found:
        assert row["expected"] == row["observed"], row
        assert row["observed"] in ("allowed", "denied", "cut", "skipped")
        assert {"from", "to", "action"} <= set(row)
    return found


def in_words(found: list[dict[str, Any]], verdict: str) -> set[str]:
    return {f"{row['from']}: {row['action']}" for row in found if row["observed"] == verdict}


# What the client of a denied row was told, and the reason in the record.
TOLD = {
    "inference: S3 PUT: method not named": ("403", "action_not_named (outbound models)"),
    "inference: S3 GET: path not named": ("403", "action_not_named (outbound models)"),
    "inference: GET /models/../secrets/key": ("400", "bad_request (outbound models)"),
    "inference: GET /models/%2e%2E/secrets/key": ("400", "bad_request (outbound models)"),
    "inference: GET /models/x%2F..%2F..%2Fsecrets": ("400", "bad_request (outbound models)"),
    "inference: POST /admin": ("403", "action_not_named (outbound tools)"),
    "mcp-tools: gRPC Health/List": ("PERMISSION_DENIED", "action_not_named (outbound llm)"),
    "inference, no sidecar: TLS, its own SVID, PUT": ("403", "action_not_named (inbound models)"),
    "inference, no sidecar: TLS, its own SVID, %2e%2e": ("400", "bad_request (inbound models)"),
    "training: S3 GET in opaque TCP": ("no answer", "port_not_named (outbound mirror)"),
}
ALLOWED = {
    "inference: S3 GET",
    "inference: GET /models/llm%2Fweights.bin",
    "training: S3 PUT",
    "inference: MCP call",
    "mcp-tools: gRPC Health/Check",
    "mcp-tools: gRPC Health/Watch, a stream",
    "inference: S3 GET in opaque TCP",
}
DENIED = {
    "anybody: TLS, no certificate",
    "inference: right address, wrong identity",
    "inference, no sidecar: that SVID, expired",
    "elsewhere.example: SVID of that domain",
    "training: S3 GET",
    *TOLD,
}
OTHER_USERS = {"user of training: S3 GET", "user of training: fetch X.509-SVID"}


@pytest.mark.peer
def test_every_row_is_as_expected() -> None:
    found = check(demo("--once", "--output", "json"))
    allowed, denied, skipped = (in_words(found, word) for word in ("allowed", "denied", "skipped"))
    assert allowed >= ALLOWED
    assert denied >= DENIED
    told = {f"{row['from']}: {row['action']}": (row["saw"], row["why"]) for row in found}
    assert told.items() >= TOLD.items()
    (cut,) = (row for row in found if row["observed"] == "cut")
    assert cut["why"].startswith("flow tools-watch-the-model")
    if os.geteuid() == 0 and not skipped:
        assert denied >= OTHER_USERS
    else:
        assert skipped == OTHER_USERS


@pytest.mark.peer
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become an ordinary user")
def test_an_ordinary_user_sees_the_rows_that_need_no_other_user() -> None:
    if not traversable(Path(sys.prefix)):
        pytest.skip("other users cannot enter the environment")
    found = check(demo("--once", "--output", "json", user=ORDINARY_UID, group=ORDINARY_UID, extra_groups=[], env={}))
    assert in_words(found, "skipped") == OTHER_USERS
    assert in_words(found, "denied") >= DENIED


def traversable(path: Path) -> bool:
    return all(parent.stat().st_mode & 0o001 for parent in (path, *path.parents))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path that every user can come through, below which the demo makes its own."""
    top = Path(f"/tmp/firedoor-test-{os.getpid()}")
    top.mkdir(mode=0o755)
    yield top / "d"
    shutil.rmtree(top)


@pytest.mark.peer
def test_it_stays_up_and_follows_the_policy(folder: Path) -> None:
    running = demo("--output", "json", "--dir", str(folder))
    assert running.stdout is not None
    assert running.stderr is not None
    try:
        seen = wait_for(running, "inference", "S3 GET")
        assert seen["observed"] == "allowed"
        flows = folder / "policy/flows.yaml"
        # Whole at once: the broker may look at any time.
        fresh = flows.with_suffix(".new")
        fresh.write_text(without_flow(flows.read_text(), "inference-pulls-models"))
        fresh.replace(flows)
        while (seen := wait_for(running, "inference", "S3 GET"))["observed"] == "allowed":
            pass
        assert seen["observed"] == "denied"
        assert seen["why"].startswith(("no_flow", "port_not_named"))
        processes = children(running.pid)
        assert len(processes) > 8
    finally:
        running.send_signal(signal.SIGTERM)
        running.communicate(timeout=PATIENCE)
    assert running.returncode == 0
    assert not [pid for pid in processes if Path(f"/proc/{pid}").exists()]
    for name in ("broker.yaml", "sidecar-inference.yaml", "commands.sh", "policy/flows.yaml", "bundle.json"):
        assert (folder / name).exists(), name


def without_flow(text: str, name: str) -> str:
    documents = [d for d in re.split(r"^---\n", text, flags=re.MULTILINE) if f"name: {name}" not in d]
    return "---\n".join(documents)


def wait_for(running: "subprocess.Popen[str]", source: str, action: str) -> dict[str, Any]:
    """Read rows until the one that is meant; the test's own time limit bounds this."""
    assert running.stdout is not None
    for line in running.stdout:
        row: dict[str, Any] = json.loads(line)
        if (row["from"], row["action"]) == (source, action):
            return row
    raise AssertionError(running.stderr.read() if running.stderr else "")


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep")
    ran = demo("--once", "--dir", str(tmp_path))
    _, err = ran.communicate(timeout=SECONDS)
    assert ran.returncode == 2
    assert "is not empty" in err
    assert (tmp_path / "mine").read_text() == "keep"


def test_without_the_extra_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import importlib.util

    from firedoor.cli.main import main

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "mcp" else real(name, *more))
    assert main(["demo", "--once"]) == 6
    assert "pip install 'firedoor[demo]'" in capsys.readouterr().err
