# SPDX-License-Identifier: Apache-2.0
"""Where a policy comes from when it is not kept in the database alone: a folder, or a cluster's custom resources."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Final, Protocol, final

from firedoor.broker.errors import ConfigError
from firedoor.segments import Document

_SUFFIXES: Final = (".yaml", ".yml")
MAX_FILES: Final = 4096
MAX_TOTAL_BYTES: Final = 16 * 1024 * 1024


class Origin(Protocol):
    """What the keeper of the policy asks now and then."""

    @property
    def source(self) -> str:
        """Say where the policy comes from, as a person reads it."""

    def fingerprint(self) -> tuple[object, ...]:
        """Return what differs when something may have changed; cheap to ask for every second, on any thread."""

    def read(self) -> tuple[Document, ...]:
        """Return the set as it is now, on any thread. Raise ConfigError."""


@final
class Files:
    """A policy file, or a folder of them."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def source(self) -> str:
        """Name the path."""
        return f"files: {self._path}"

    def fingerprint(self) -> tuple[object, ...]:
        """Return what differs when a file was edited, replaced, added or removed."""
        try:
            found = [(str(file), file.stat()) for file in _files(self._path)]
        except (OSError, ConfigError) as error:
            return (type(error).__name__, str(error))
        return tuple((name, s.st_mtime_ns, s.st_ctime_ns, s.st_size, s.st_ino) for name, s in found)

    def read(self) -> tuple[Document, ...]:
        """Read them. Raise ConfigError."""
        return read_files(self._path)


def read_files(path: Path) -> tuple[Document, ...]:
    """Read a policy file, or all of a folder's (not of its sub-folders), by name. Raise ConfigError."""
    try:
        files = _files(path)
        if sum(file.stat().st_size for file in files) > MAX_TOTAL_BYTES:
            raise ConfigError(f"the policy in {path} is larger than {MAX_TOTAL_BYTES // 2**20} MiB")
        return tuple(Document(str(file), file.read_text(encoding="utf-8")) for file in files)
    except OSError as error:
        raise ConfigError(f"the policy in {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the policy in {path} is not UTF-8 text") from error


def _files(path: Path) -> list[Path]:
    if not stat.S_ISDIR(path.stat().st_mode):
        return [path]
    files = sorted(f for f in path.iterdir() if f.suffix in _SUFFIXES and not f.name.startswith(".") and f.is_file())
    if len(files) > MAX_FILES:
        raise ConfigError(f"the policy in {path} has more than {MAX_FILES} files")
    return files
