# SPDX-License-Identifier: Apache-2.0
"""Builds the Go programs that tests drive, and says where they are.

Each folder beside this file that has a go.mod is one module, pinned by its go.sum; its programs are the `tool` lines of
go.mod, or the module's own main package; without either it is there for its sources. A file `ldflags` beside go.mod is
what else the linker is told: versions that a program finds out in its own tree alone. They are built once for each
content of the module and each version of Go, into `$XDG_CACHE_HOME/firedoor/peers` (`~/.cache` without it), so that a
fresh clone finds them.

Run by `make peers` (`python -m tests.peers.build`). Without Go it builds nothing and says so; the tests then skip.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Half of the cores: a build takes minutes and somebody may be working. In CI nobody is.
_CORES = os.cpu_count() or 2
_JOBS = _CORES if os.environ.get("CI") == "true" else max(1, _CORES // 2)
_FLAGS = ("-p", str(_JOBS), "-trimpath", "-buildvcs=false")
_LDFLAGS = "-s -w"
_REPORT_SECONDS = 15


class Missing(Exception):
    """A program is not built; the sentence says what to do."""


def modules() -> list[Path]:
    """Return the folders with a Go module of their own."""
    return sorted(path.parent for path in HERE.glob("*/go.mod"))


@functools.cache
def go_version() -> str:
    """Return the version of Go that builds. Raise Missing."""
    go = shutil.which("go")
    if go is None:
        raise Missing("Go is not installed, and these tests drive programs that it builds")
    # In a module that asks for a newer Go than is here, this is where Go says so.
    answer = subprocess.run([go, "env", "GOVERSION"], cwd=HERE / "spire", capture_output=True, text=True, check=False)
    if answer.returncode:
        raise Missing(f"Go is too old for these programs: {answer.stderr.strip()}")
    return answer.stdout.strip()


def binary(module: str, name: str) -> Path:
    """Return a program that was built. Raise Missing."""
    path = _folder(HERE / module) / name
    if not path.exists():
        raise Missing(f"{name} is not built: run `make peers`")
    return path


def _folder(module: Path) -> Path:
    digest = hashlib.sha256(go_version().encode())
    for path in sorted(module.rglob("*")):
        if path.suffix == ".go" or path.name in ("go.mod", "go.sum", "ldflags"):
            digest.update(str(path.relative_to(module)).encode() + b"\0" + path.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "firedoor/peers" / f"{module.name}-{digest.hexdigest()[:16]}"


def programs(module: Path) -> dict[str, str]:
    """Return the programs of a module, by name, and the packages that they are built from."""
    text = (module / "go.mod").read_text()
    tools = re.findall(r"^tool ([^\s(]+)$", text, re.M)
    for block in re.findall(r"^tool \(\n(.*?)^\)", text, re.M | re.S):
        tools += block.split()
    is_program = any("\npackage main\n" in file.read_text() for file in module.glob("*.go"))
    return {tool.rpartition("/")[2]: tool for tool in tools} or ({module.name: "."} if is_program else {})


def source(module: str, path: str) -> Path:
    """Return the files of a module that one of ours requires, checked by its go.sum. Raise Missing."""
    go_version()
    found = subprocess.run(
        ["go", "mod", "download", "-json", path], cwd=HERE / module, capture_output=True, text=True, check=False
    )
    if found.returncode:
        raise Missing(f"{path} cannot be downloaded: {found.stderr.strip() or found.stdout.strip()}")
    return Path(json.loads(found.stdout)["Dir"])


def ldflags(module: Path) -> str:
    """Return what the linker is told when it makes a module's programs."""
    own = module / "ldflags"
    return " ".join([_LDFLAGS, *(own.read_text().split() if own.exists() else ())])


def build(module: Path) -> None:
    """Build the programs of one module unless they are there. Raise Missing or CalledProcessError."""
    target = _folder(module)
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f"{module.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name, package in programs(module).items():
            if not (target / name).exists():
                _build_one(module, package, target / name)


def _build_one(module: Path, package: str, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    fresh = target.with_name(f".{target.name}.new")
    command = ["go", "build", "-v", *_FLAGS, f"-ldflags={ldflags(module)}", "-o", str(fresh), package]
    _say(f"{target.name}: building; nothing needs to be done meanwhile")
    with subprocess.Popen(
        command, cwd=module, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: os.nice(15)
    ) as process:
        assert process.stderr is not None
        said = list(_watched(process.stderr, target.name))
    if process.returncode:
        print("\n".join(said[-20:]), file=sys.stderr)
        raise subprocess.CalledProcessError(process.returncode, command)
    fresh.rename(target)


def _watched(lines: Iterator[str], name: str) -> Iterator[str]:
    """Pass on what Go says, and tell now and then how far it is."""
    began = told = time.monotonic()
    for packages, line in enumerate(lines, 1):
        yield line.rstrip()
        if time.monotonic() - told > _REPORT_SECONDS:
            told = time.monotonic()
            _say(f"{name}: {packages} packages in {told - began:.0f} s")
    _say(f"{name}: built in {time.monotonic() - began:.0f} s")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Build everything."""
    try:
        for module in modules():
            build(module)
    except Missing as missing:
        _say(f"{missing}: they will be skipped")
    except subprocess.CalledProcessError as failed:
        _say(f"error: {' '.join(failed.cmd)} failed with {failed.returncode}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
