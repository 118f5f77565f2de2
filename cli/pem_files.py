# SPDX-License-Identifier: Apache-2.0
"""Writing what an SVID consists of: each file is replaced in one step, and nobody else can read a key meanwhile."""

import os
from pathlib import Path

KEY_MODE, CERTIFICATE_MODE = 0o600, 0o644


def replace(path: Path, data: bytes, mode: int) -> None:
    """Write a file in place of the one that is there, if one is. Raise OSError."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    fresh.replace(path)
