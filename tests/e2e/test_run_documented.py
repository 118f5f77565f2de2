# SPDX-License-Identifier: Apache-2.0
"""What docs/capture.md shows of `firedoor run` is what happens: its files and its commands, word for word."""

import doctest
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import netns
from tests.e2e import namespaces
from tests.waiting import until

MISSING = netns.missing()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

ROOT = Path(__file__).resolve().parents[2]
# Folders of broker and sidecars that are nobody else's, and nothing that outlives the shell.
MACHINE = (
    "for one in /var/lib/firedoor /run/firedoor; do mkdir -p $one; mount -t tmpfs none $one; done; exec bash --norc"
)
UNSHARED = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", MACHINE)
END = "--- that was all ---"


class Shell:
    """A root shell on a machine of its own, in a folder with the command `firedoor`."""

    def __init__(self, machine: namespaces.Namespace, folder: Path) -> None:
        command = folder / "bin/firedoor"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m firedoor.cli "$@"\n')
        command.chmod(0o755)
        self.log = folder / "shell.log"
        with self.log.open("wb") as log, (folder / "errors.log").open("wb") as errors:
            self.process = subprocess.Popen(
                [*machine.entering(), *UNSHARED],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=errors,
                cwd=folder,
                text=True,
                bufsize=1,
                env={**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}"},
            )

    def type(self, line: str) -> str:
        """Have a line done, and return what was said until the next one could be typed."""
        before = len(self.said)
        assert self.process.stdin
        self.process.stdin.write(f"{line}\necho '{END}'\n")
        until(lambda: END in self.said[before:], f"an end of {line}")
        return self.said[before:].partition(END)[0]

    @property
    def said(self) -> str:
        """What the shell and all that it started have said on stdout."""
        return self.log.read_text()

    def close(self) -> None:
        """End it, and with it its machine's processes."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()


@contextmanager
def shell() -> Iterator[Shell]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name, namespaces.namespace("alone") as machine:
        folder = Path(name)
        folder.chmod(0o755)
        for text in blocks("yaml"):
            (folder / text.partition("\n")[0].removeprefix("# ")).write_text(text)
        found = Shell(machine, folder)
        try:
            yield found
        finally:
            found.close()


def blocks(kind: str) -> list[str]:
    """Return the blocks of the section."""
    text = (ROOT / "docs/capture.md").read_text().partition("### From nothing\n")[2].partition("\n## ")[0]
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.M | re.S)


def steps() -> Iterator[tuple[str, str]]:
    """Yield the commands with what they say."""
    for block in blocks("console"):
        for part in re.split(r"^# ", block, flags=re.M)[1:]:
            command, _, said = part.replace("\\\n", "").partition("\n")
            yield command, said


def test_it_is_the_line_of_the_readme() -> None:
    (line,) = re.findall(r"^# (firedoor run .*)$", (ROOT / "README.md").read_text(), re.M)
    assert f"{line} &" in [command for command, _ in steps()]


def test_word_for_word() -> None:
    with shell() as machine:
        for command, expected in steps():
            if not expected:
                machine.type(command)
                ready(machine, command)
                continue
            # A server is up a moment after its command was started.
            until(lambda c=command, e=expected: as_shown(e, machine.type(c)), f"{command}: {expected}")  # type: ignore[misc]


def ready(machine: Shell, command: str) -> None:
    if command.startswith("firedoor broker"):
        until(lambda: "ready" in machine.said, "the broker")


def as_shown(expected: str, said: str) -> bool:
    return doctest.OutputChecker().check_output(expected, said, doctest.ELLIPSIS)
