# SPDX-License-Identifier: Apache-2.0
"""Following a sidecar's decision records, to know why something was allowed or denied."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Record = dict[str, Any]

# A sidecar writes records within milliseconds; on a busy machine it may be later.
WAIT_SECONDS = 10.0
POLL_SECONDS = 0.01


class Tail:
    """New lines of one file of records."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.mark()

    def mark(self) -> None:
        """Forget what has been written until now."""
        self._offset = self._path.stat().st_size if self._path.exists() else 0

    def since_mark(self) -> list[Record]:
        """Return the whole lines after the mark."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]

    def wait_for(self, wanted: Callable[[Record], bool]) -> Record | None:
        """Return the first record after the mark that is wanted, or None when none comes."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            found = next((record for record in self.since_mark() if wanted(record)), None)
            if found is not None or time.monotonic() > deadline:
                return found
            time.sleep(POLL_SECONDS)
