# SPDX-License-Identifier: Apache-2.0
"""Files of a node's identity that somebody else makes: read under a cap, and a key only while it is nobody else's."""

import os
import stat
from pathlib import Path

from firedoor.sidecar.errors import NodeCertificateUnusable

MAX_FILE = 256 * 1024


def unusable(attestor: str, key: str, file: Path, what: str) -> NodeCertificateUnusable:
    """Return the error that names setting and file."""
    return NodeCertificateUnusable(f"{attestor}.{key}: {file} {what}")


def read_file(attestor: str, key: str, file: Path, *, secret: bool = False) -> bytes:
    """Read a file that a setting names. Raise NodeCertificateUnusable."""
    try:
        with file.open("rb") as opened:
            if secret:
                _check_private(attestor, file, os.fstat(opened.fileno()))
            data = opened.read(MAX_FILE + 1)
    except OSError as error:
        raise unusable(attestor, key, file, f"cannot be read: {error.strerror}") from error
    if len(data) > MAX_FILE:
        raise unusable(attestor, key, file, f"is longer than {MAX_FILE // 1024} KiB")
    return data


def _check_private(attestor: str, file: Path, found: os.stat_result) -> None:
    """Whoever reads the key can be this node; whoever writes it can put another in its place."""
    if not stat.S_ISREG(found.st_mode):
        raise unusable(attestor, "key", file, "is not a file")
    own = os.geteuid()
    if found.st_uid not in (0, own):
        what = f"belongs to uid {found.st_uid}; it must belong to uid {own} or to root"
        raise unusable(attestor, "key", file, what)
    # A group of its own may read it, as /etc/ssl/private has it.
    if found.st_mode & (stat.S_IRWXO | stat.S_IWGRP):
        what = f"has mode {stat.S_IMODE(found.st_mode):04o}, open to others; chmod 0600 it"
        raise unusable(attestor, "key", file, what)
