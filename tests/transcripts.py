# SPDX-License-Identifier: Apache-2.0
"""Transcripts of the command line, as readable text: run each command and compare what it says.

A transcript is text with lines `$ firedoor ...` (a backslash at the end goes on), what the command prints on both
streams, and `[exit N]` when that is not 0. `...` stands for anything.
"""

import doctest
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

SECONDS = 110
# What differs from run to run and says nothing.
_VARYING = (
    (r"\d+(\.\d+)? (ms|s)\b", r"N \2"),
    (r"127\.0\.0\.1:\d+", "127.0.0.1:PORT"),
    (r"/tmp/firedoor-demo-\w+", "/tmp/firedoor-demo"),
    # Both sidecars cut a stream whose flow is withdrawn; the client hears of whichever came first.
    (r"\b(INTERNAL|CANCELLED|UNAVAILABLE)( +N ms +flow \S+ withdrawn)(; then \w+ \(\w+ \w+\))?", r"CANCELLED\2"),
)
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Step:
    command: str
    output: str
    exit: int


def steps(text: str) -> Iterator[Step]:
    """Cut a transcript into its commands."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, output = re.sub(r"\\\n\s*", "", part).partition("\n")
        found = re.search(r"^\[exit (\d+)\]\n?", output, flags=re.MULTILINE)
        lines = [line for line in output.splitlines() if not line.startswith(("[exit ", "#"))]
        yield Step(command, "\n".join(lines).strip() + "\n", int(found[1]) if found else 0)


def check(text: str, folder: Path, environment: Mapping[str, str] | None = None) -> int:
    """Run every command in `folder`; return how many there were."""
    count = 0
    for step in steps(text):
        words = shlex.split(step.command)
        assert words[0] == "firedoor", f"a transcript runs firedoor alone, not {words[0]}"
        ran = subprocess.run(
            [sys.executable, "-m", "firedoor.cli", *words[1:]],
            cwd=folder,
            env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1", **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
        )
        said = f"$ {step.command}\n{ran.stdout}[exit {ran.returncode}]"
        assert ran.returncode == step.exit, said
        assert doctest.OutputChecker().check_output(_even(step.output), _even(ran.stdout.strip() + "\n"), _FLAGS), said
        count += 1
    return count


def _even(text: str) -> str:
    for pattern, word in _VARYING:
        text = re.sub(pattern, word, text)
    return text
