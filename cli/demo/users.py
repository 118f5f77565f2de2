# SPDX-License-Identifier: Apache-2.0
"""As root each workload runs as a numeric user of its own; no account is made for it."""

import os
import pwd
import subprocess
import sys
import sysconfig
from pathlib import Path

# Between the accounts that Debian's packages and systemd's dynamic users take.
FIRST_UID, LAST_UID = 60100, 60900


def pick(segments: tuple[str, ...]) -> dict[str, int]:
    """Return a uid without an account for each segment."""
    taken = {entry.pw_uid for entry in pwd.getpwall()}
    free = (uid for uid in range(FIRST_UID, LAST_UID) if uid not in taken)
    return dict(zip(segments, free, strict=False))


def obstacle(uid: int, folder: Path) -> str | None:
    """Say in a sentence why this uid could not run our programs, or None; None as well when we are not root."""
    # The environment's own path as well as where it leads: a link to it may lie in a folder that is closed.
    packages = Path(sysconfig.get_paths()["purelib"])
    for needed in (Path(sys.executable), Path(sys.executable).resolve(), packages.resolve(), folder.resolve()):
        closed = closed_folder(needed)
        if closed is not None:
            return f"other users cannot enter {closed}, above {needed}"
    command = [sys.executable, "-I", "-c", "import boto3, grpc, mcp, moto"]
    tried = subprocess.run(
        command, user=uid, group=uid, extra_groups=[], cwd="/", env={}, capture_output=True, check=False
    )
    if tried.returncode:
        last = tried.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        return f"another user cannot run {sys.executable}: {last}"
    return None


def closed_folder(path: Path) -> Path | None:
    """Return the first folder on the way to `path`, itself included, that users in general cannot enter."""
    for part in (*reversed(path.parents), path):
        if part.is_dir() and not part.stat().st_mode & 0o001:
            return part
    return None


def is_root() -> bool:
    """Say whether we may start processes as other users."""
    return os.geteuid() == 0


def our_uid() -> int:
    """Return the uid that we run as."""
    return os.geteuid()
