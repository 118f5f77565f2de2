# SPDX-License-Identifier: Apache-2.0
"""The wall clock of other processes, set ahead by a test; monotonic time runs on, as where a machine was suspended.

clock = Clock(tmp_path / "clock")
subprocess.Popen([*clock.prefix, "date"])
clock.go(hours=3)
"""

from __future__ import annotations

import time
from pathlib import Path

MISSING = "faketime is not installed: apt-get install faketime"


def library() -> Path | None:
    """Return Debian's libfaketime; None where it is not installed."""
    found = [*Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), *Path("/usr/lib/faketime").glob("*MT.so.1")]
    return found[0] if found else None


class Clock:
    """One clock, for as many processes as are started with `prefix`."""

    def __init__(self, file: Path) -> None:
        self._file, self._ahead = file, 0
        self._write()
        # The file is looked at each time that somebody asks for the time.
        self.prefix = (
            "env",
            f"LD_PRELOAD={library()}",
            f"FAKETIME_TIMESTAMP_FILE={file}",
            "FAKETIME_NO_CACHE=1",
            "FAKETIME_DONT_FAKE_MONOTONIC=1",
        )

    def go(self, *, hours: int) -> None:
        """Set it ahead."""
        self._ahead += hours * 3600
        self._write()

    def now(self) -> float:
        """Return the time that it tells."""
        return time.time() + self._ahead

    def _write(self) -> None:
        """Replace the file whole: it is read at any time."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"+{self._ahead}\n")
        fresh.replace(self._file)
