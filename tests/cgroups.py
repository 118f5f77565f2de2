# SPDX-License-Identifier: Apache-2.0
"""Cgroups of the tests' own, in which processes of theirs run as a kubelet and its runtime would have them."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_HIERARCHIES = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))


class Tree:
    """A part of the hierarchy; `root` is how a kubelet's cgroupRoot names it."""

    def __init__(self, folder: Path, root: str) -> None:
        self.folder, self.root = folder, root

    def make(self, path: str) -> Path:
        """Make a cgroup below it."""
        made = self.folder / path
        made.mkdir(parents=True, exist_ok=True)
        return made

    def move(self, pid: int, path: str) -> None:
        """Put a process into a cgroup, which is made if it is not there."""
        (self.make(path) / "cgroup.procs").write_text(str(pid))


@contextmanager
def tree() -> Iterator[Tree]:
    """Make a part of the hierarchy (cgroup2), and remove it; the test skips where that is not allowed."""
    above = next((one for one in _HIERARCHIES if (one / "cgroup.controllers").exists()), None)
    if above is None or not os.access(above, os.W_OK):
        pytest.skip("needs a cgroup2 hierarchy in which this user may make cgroups")
    folder = above / f"firedoor-{secrets.token_hex(4)}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error.strerror}")
    try:
        yield Tree(folder, f"/{folder.name}")
    finally:
        _remove(folder, above)


def _remove(folder: Path, above: Path) -> None:
    """Remove a part with all below it; what still runs there goes up."""
    below = sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True)
    for one in (*below, folder):
        for pid in (one / "cgroup.procs").read_text().split():
            try:
                (above / "cgroup.procs").write_text(pid)
            except ProcessLookupError:
                continue
        one.rmdir()
