# SPDX-License-Identifier: Apache-2.0
"""Notices that the database went back: it was restored from a backup.

Beside the database a small file keeps the highest generation that was committed. A database that is behind it, or that
came without it, or that `broker restore` put there, starts a new epoch: then a number that is given a second time is
never taken for the state that had it first, and sidecars take what looks older to them. The file may lag behind after a
power cut, never run ahead.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from firedoor.broker.db.rows import Generation
from firedoor.broker.errors import StorageError

if TYPE_CHECKING:
    from firedoor.broker.audit import Audit
    from firedoor.broker.state import State

_log = logging.getLogger("firedoor.broker")
# Of a fixed length, so that one write replaces it whole, also on a full disk.
_FORM: Final = re.compile(rb"(\d{20})\.(\d{20})\n")
_LENGTH: Final = 42
# What `broker restore` leaves in its place.
RESTORED: Final = b"restored\n"


class Mark:
    """The file. `close` it at the end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(f"the file {path} cannot be opened: {error.strerror}") from error
        self._failed = False

    def read(self) -> Generation | None:
        """Return what it holds; None for a file that is new or damaged."""
        found = _FORM.fullmatch(self._content())
        return Generation(int(found[1]), int(found[2])) if found else None

    @property
    def restored(self) -> bool:
        """Whether `broker restore` was here since."""
        return self._content() == RESTORED

    def _content(self) -> bytes:
        return os.pread(self._descriptor, _LENGTH + 1, 0)

    def write(self, generation: Generation) -> None:
        """Replace what it holds. A failure is logged: only the next restore would miss it."""
        try:
            os.pwrite(self._descriptor, b"%020d.%020d\n" % (generation.epoch, generation.number), 0)
            self._failed = False
        except OSError as error:
            if not self._failed:
                _log.error("%s cannot be written: %s", self._path, error.strerror)
            self._failed = True

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


async def follow(state: State, mark: Mark, audit: Audit) -> None:
    """Start a new epoch if the database went back, and keep the mark from here on."""
    seen, present = mark.read(), state.generation
    # A broker that comes to others has seen nothing yet, and that says nothing.
    came_without = seen is None and present.number > 1 and not state.database.broker_id
    if came_without or mark.restored or (seen is not None and seen > present):
        await state.new_epoch()
        _log.warning(
            "the database was restored: it is at generation %s, and %s was reached; epoch %d begins. What was issued, "
            "banned or revoked since the backup is not known any more: look at it again",
            present,
            seen or "it is not known which",
            state.generation.epoch,
        )
        audit.event("new_epoch", restored=str(present), seen=str(seen or ""), generation=str(state.generation))
    mark.write(state.generation)
    state.watch(lambda: mark.write(state.generation))
