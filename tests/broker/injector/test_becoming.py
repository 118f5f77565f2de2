# SPDX-License-Identifier: Apache-2.0
"""Why a container has to drop its capabilities, whoever it runs as: the kernel, and files that have some."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_SETUID = 7
_VFS_CAP_REVISION_2_EFFECTIVE = 0x02000001
# What a runtime does before it starts a container's program, in its order: the bounding set, the user, the capabilities
# that were not dropped, no new privileges.
_RUNTIME = """
import ctypes, os, struct, sys
libc, kept, program = ctypes.CDLL(None, use_errno=True), int(sys.argv[1]), sys.argv[2]
for number in range(41):
    if not kept >> number & 1:
        libc.prctl(24, number, 0, 0, 0)
libc.prctl(8, 1, 0, 0, 0)
os.setgroups([]), os.setresgid(7, 7, 7), os.setresuid(7, 7, 7)
header, words = struct.pack("<Ii", 0x20080522, 0), struct.pack("<IIIIII", kept, kept, 0, 0, 0, 0)
assert ctypes.CDLL(None).capset(header, words) == 0
libc.prctl(38, 1, 0, 0, 0)
os.execv(program, [program, "--reuid", "990", "--", "id", "-u"])
"""


@pytest.fixture
def program() -> Iterator[Path]:
    """A program that becomes another user, with the capability at its file, as an image can have it."""
    found = shutil.which("setpriv")
    if os.geteuid() != 0 or found is None:
        pytest.skip("needs root, and setpriv of util-linux")
    with tempfile.TemporaryDirectory(prefix="fd-") as folder:
        copy = Path(shutil.copy(found, f"{folder}/setpriv"))
        for path in (Path(folder), copy):
            path.chmod(0o755)
        capability = struct.pack("<IIIII", _VFS_CAP_REVISION_2_EFFECTIVE, 1 << _SETUID, 0, 0, 0)
        try:
            os.setxattr(copy, "security.capability", capability)
        except OSError as error:
            pytest.skip(f"needs a file system that keeps capabilities: {error.strerror}")
        yield copy


@pytest.mark.parametrize(("kept", "becomes"), [(1 << _SETUID, True), (0, False)], ids=["kept", "dropped"])
def test_who_has_not_dropped_it_becomes_another_without_new_privileges(program: Path, kept: int, becomes: bool) -> None:
    words = [sys.executable, "-S", "-c", _RUNTIME, str(kept), str(program)]
    ran = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert (ran.stdout == "990\n") == becomes, ran.stderr
    assert becomes or "Operation not permitted" in ran.stderr
