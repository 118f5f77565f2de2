# SPDX-License-Identifier: Apache-2.0
"""A real broker in a process of its own, as an operator runs it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.waiting import PATIENCE

FILES = Path(__file__).parent / "files"


@dataclass(frozen=True)
class RunningBroker:
    folder: Path
    process: "subprocess.Popen[str]"
    ready: str

    @property
    def socket(self) -> str:
        return str(self.folder / "admin.sock")

    @property
    def environment(self) -> dict[str, str]:
        return {"FIREDOOR_BROKER_ADMIN_SOCKET": self.socket, "HOME": str(self.folder)}


def start_broker(folder: Path, *more: str) -> RunningBroker:
    """Start `firedoor broker run` and wait for its one line."""
    shutil.copytree(FILES, folder, dirs_exist_ok=True)
    words = ["--trust-domain", "example.org", "--listen", "127.0.0.1:0", "--metrics", "off"]
    words += ["--data-dir", str(folder / "data"), "--admin-socket", str(folder / "admin.sock"), *more]
    with (folder / "broker.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "firedoor.cli", "broker", "run", *words],
            cwd=folder,
            env=os.environ | {"HOME": str(folder)},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    assert process.stdout is not None
    ready = process.stdout.readline()
    assert "ready" in ready, (folder / "broker.log").read_text()
    return RunningBroker(folder, process, ready)


def stop(process: "subprocess.Popen[str]") -> int:
    """End a process as an init system does, and return its exit code."""
    process.terminate()
    try:
        return process.wait(PATIENCE)
    finally:
        process.kill()
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RunningBroker]:
    """A broker whose policy is in its database; none is declared yet."""
    running = start_broker(tmp_path)
    yield running
    stop(running.process)


@pytest.fixture
def broker_with_files(tmp_path: Path) -> Iterator[RunningBroker]:
    """A broker whose policy is a folder."""
    running = start_broker(tmp_path, "--segments", str(tmp_path / "policy"))
    yield running
    stop(running.process)
