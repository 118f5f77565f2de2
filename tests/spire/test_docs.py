# SPDX-License-Identifier: Apache-2.0
"""What docs/spire.md shows is what happens: its policies, its commands and its agent, from top to bottom."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import transcripts
from tests.e2e.conftest import Program
from tests.spire.programs import FLAGS, Daemon, needed
from tests.waiting import until

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/spire.md").read_text()
BLOCKS = re.findall(r"^```(\w+)(?: (\w+))?\n(.*?)^```", TEXT, re.M | re.S)
NAMED = sorted(set(re.findall(r"`(tests/[\w/.]+)::(\w+)`", TEXT)))
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[f"{f}::{n}" for f, n in NAMED])
def test_a_suites_test_exists(file: str, name: str) -> None:
    assert re.search(rf"def {name}\(", (ROOT / file).read_text()), f"{file} has no {name}"


class Reader:
    """Somebody who follows the document in an empty folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.policies = folder, 0
        self.broker: Program | None = None
        self.agent = Daemon(folder / "agent.log")
        (folder / "policy").mkdir()
        programs = folder / "bin"
        programs.mkdir()
        for name in ("spire-server", "spire-agent"):
            (programs / name).symlink_to(needed("spire", name))
        (programs / "firedoor").write_text(f'#!/bin/sh\nexec {sys.executable} -m firedoor.cli "$@"\n')
        (programs / "firedoor").chmod(0o755)
        self.environment = {**os.environ, **FLAGS, "PATH": f"{programs}:{os.environ['PATH']}", "NO_COLOR": "1"}

    def policy(self, text: str) -> None:
        """Put a policy into the folder that the broker reads."""
        self.policies += 1
        in_force = "in force as generation"
        before = self.broker.text.count(in_force) if self.broker else 0
        # Whole at once: the broker may look at any time.
        (self.folder / "policy.new").write_text(text)
        (self.folder / "policy.new").replace(self.folder / "policy" / f"{self.policies}.yaml")
        if self.broker is not None:
            until(lambda: self.broker and self.broker.text.count(in_force) > before, "the policy")

    def start(self) -> None:
        """Start the broker as the document says."""
        self.broker = Program(
            self.folder / "broker.log",
            *("broker", "run", "--trust-domain", "example.org", "--listen", "127.0.0.1:0", "--metrics", "off"),
            *("--data-dir", str(self.folder / "data"), "--segments", str(self.folder / "policy")),
            *("--admin-socket", str(self.folder / "admin.sock")),
        )
        found = re.search(r"listen=(\S+)", self.broker.ready())
        assert found
        self.address = found[1]

    def console(self, text: str) -> None:
        """Run each command and compare what it says."""
        steps = list(transcripts.steps(text))
        assert steps
        for step in steps:
            ran = subprocess.run(
                ["sh", "-c", step.command],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=60,
            )
            said = f"$ {step.command}\n{ran.stdout}[exit {ran.returncode}]"
            assert ran.returncode == step.exit, said
            assert doctest.OutputChecker().check_output(step.output, ran.stdout.strip() + "\n", _FLAGS), said

    def hcl(self, text: str) -> None:
        """Start the agent as configured, but for where the broker is here."""
        run = subprocess.run
        (self.folder / "agent").mkdir()
        shown = ["spire-server", "bundle", "show", "-socketPath", "admin.sock"]
        bundle = run(shown, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=True).stdout
        (self.folder / "bundle.pem").write_text(bundle)
        made = ["spire-server", "token", "generate", "-socketPath", "admin.sock"]
        token = run(made, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=True).stdout
        host, _, port = self.address.rpartition(":")
        text = text.replace("broker.example.org", host).replace("8081", port)
        text = text.replace("TOKEN", token.split()[1]).replace('"agent/', f'"{self.folder}/agent/')
        text = text.replace('"bundle.pem"', f'"{self.folder}/bundle.pem"')
        (self.folder / "agent.conf").write_text(text)
        self.agent.launch(needed("spire", "spire-agent"), "run", "-config", str(self.folder / "agent.conf"))
        self.agent.logged("Starting agent APIs")

    def close(self) -> None:
        self.agent.close()
        if self.broker is not None:
            self.broker.close()


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    found = Reader(tmp_path)
    yield found
    found.close()


@pytest.mark.peer
@pytest.mark.timeout(300)
def test_the_document_from_top_to_bottom(reader: Reader) -> None:
    kinds = [(language, word) for language, word, _ in BLOCKS]
    assert kinds.count(("yaml", "policy")) == 2
    assert {("hcl", ""), ("yaml", "sidecar")} <= set(kinds)
    for language, word, text in BLOCKS:
        if (language, word) == ("yaml", "policy"):
            reader.policy(text)
        elif language == "console":
            reader.console(text)
            if reader.broker is None:
                reader.start()
        elif (language, word) == ("hcl", ""):
            reader.hcl(text)
        elif (language, word) == ("yaml", "sidecar"):
            (reader.folder / "sidecar.yaml").write_text(text)
            (reader.folder / "token").write_text("a-token")
            reader.console("$ firedoor sidecar validate --config sidecar.yaml\nnothing to repair\n")
