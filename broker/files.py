# SPDX-License-Identifier: Apache-2.0
"""Files of the broker: private folders, atomic replacement, and the store that the disk key manager writes to.

A file is replaced whole: written beside its place with mode 0600, synced, renamed, and its folder synced, so that a
crash leaves the old content or the new and never a part.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import socket
import stat
from pathlib import Path
from typing import Final

from firedoor.broker.errors import StorageError

# sun_path holds 108 bytes and its end (unix(7)).
MAX_SOCKET_PATH: Final = 107
# What a secret's file must not let: reading by everybody, writing by anybody but its owner.
OPEN_TO_OTHERS: Final = stat.S_IRWXO | stat.S_IWGRP
# Of a broker's ID, in characters.
MAX_ID: Final = 64
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def make_private_folder(path: Path) -> None:
    """Make a folder that only its owner may enter, or check that it is one. Raise StorageError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
    except OSError as error:
        raise StorageError(f"the folder {path} cannot be made: {error.strerror}") from error
    if found.st_uid != os.geteuid():
        raise StorageError(f"the folder {path} belongs to uid {found.st_uid}; it must belong to uid {os.geteuid()}")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise StorageError(f"the folder {path} is open to others; make it 0700")


def lock(path: Path) -> int:
    """Take a lock for as long as this process lives, or until the descriptor is closed. Raise StorageError."""
    make_private_file(str(path))
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise StorageError(f"another broker runs on {path.parent}; stop it, or choose another --data-dir") from error
    return descriptor


def make_private_file(path: str) -> None:
    """Make an empty file of mode 0600 unless it is there: libraries that make it themselves leave it readable."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StorageError(f"the file {path} cannot be opened: {error.strerror}") from error


def own_id(path: Path) -> str:
    """Return the ID in a file, which is made when it is not there. Raise StorageError."""
    try:
        if path.exists():
            found = path.read_text(encoding="ascii").strip()
            if _NAME.fullmatch(found) and len(found) <= MAX_ID:
                return found
            raise StorageError(f"the file {path} holds no ID; delete it together with the keys beside it")
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"the file {path} cannot be read") from error
    made = secrets.token_hex(8)
    replace(path, f"{made}\n".encode())
    return made


def stamp(path: Path) -> object:
    """Return what differs when a file was edited or replaced; cheap to ask for every second."""
    try:
        s = path.stat()
    except OSError as error:
        return error.errno
    return s.st_mtime_ns, s.st_ctime_ns, s.st_size, s.st_ino


def replace(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace a file whole. Raise StorageError, and leave what was there."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise StorageError(f"the file {path} cannot be written: {error.strerror}") from error


def sync_folder(path: Path) -> None:
    """Have what was renamed in a folder outlive a power cut. Raise OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_socket_path(path: Path) -> None:
    """Refuse a path that no Unix socket can have. Raise StorageError."""
    length = len(os.fsencode(path))
    if length > MAX_SOCKET_PATH:
        raise StorageError(f"the socket path {path} has {length} bytes; the system allows {MAX_SOCKET_PATH}")


def prepare_socket(path: Path) -> None:
    """Make a socket's folder and remove what a killed process left there. Raise StorageError when somebody serves."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            probe.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"the socket {path} cannot be opened: {error.strerror or error}") from error
    else:
        raise StorageError(f"another process serves on {path}; stop it, or choose another path")


class FileStore:
    """A folder of small secret files, by name: where the disk key manager keeps its keys."""

    def __init__(self, folder: Path) -> None:
        make_private_folder(folder)
        self._folder = folder

    def load(self, name: str) -> bytes | None:
        """Return a file's content, None when there is none. Raise StorageError."""
        path = self._path(name)
        try:
            found = path.stat()
            if stat.S_IMODE(found.st_mode) & 0o077:
                raise StorageError(f"the key file {path} is open to others; make it 0600")
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"the file {path} cannot be read: {error.strerror}") from error

    def replace(self, name: str, content: bytes) -> None:
        """Replace a file whole. Raise StorageError."""
        replace(self._path(name), content)

    def delete(self, name: str) -> None:
        """Delete a file if it is there. Raise StorageError."""
        try:
            self._path(name).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"the file {name} cannot be deleted: {error.strerror}") from error

    def names(self) -> list[str]:
        """Return the names of the files."""
        return sorted(path.name for path in self._folder.iterdir() if _NAME.fullmatch(path.name))

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise StorageError("a key's name holds letters, digits, dot, dash and underscore")
        return self._folder / name
