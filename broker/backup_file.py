# SPDX-License-Identifier: Apache-2.0
r"""The file that a backup is: a header, then what was put in, sealed piece by piece.

    firedoor-backup\n
    {"version": 1, "cipher": "aes-256-gcm", "kdf": "scrypt", "n": 131072, "r": 8, "p": 1, "salt": "..."}\n
    pieces of 1 MiB, the last one shorter or as long, each followed by its tag

The key is made of a passphrase and a salt of its own (RFC 7914), so that the nonce may count pieces; it also says which
piece is the last. So no piece can be changed, moved, left out or appended. With `"cipher": "none"` the tag is a
SHA-256: it tells damage, and nothing about who wrote the file. Sizes are bounded before anything is read or computed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from firedoor.broker.errors import BackupError
from firedoor.certs.strict_json import refuse_constant, unique_members

MAGIC: Final = b"firedoor-backup\n"
VERSION: Final = 1
PIECE: Final = 1024 * 1024
SALT_BYTES: Final = 16
# 128 MiB and a few tenths of a second for each guess. What a file may ask for at most is four times as much.
_N: Final = 2**17
_MOST_N: Final = 2**19
_R: Final = 8
_P: Final = 1
_MAX_HEADER: Final = 1024
_MAX_PASSPHRASE: Final = 1024


class _Seal(Protocol):
    """Closes and opens pieces."""

    tag: int

    def close(self, nonce: bytes, piece: bytes) -> bytes:
        """Return the piece with its tag."""

    def open(self, nonce: bytes, sealed: bytes) -> bytes:
        """Return the piece. Raise BackupError."""


class _Encrypted:
    """AES-256-GCM, bound to the header."""

    tag = 16

    def __init__(self, key: bytes, header: bytes) -> None:
        self._cipher, self._header = AESGCM(key), header

    def close(self, nonce: bytes, piece: bytes) -> bytes:
        return self._cipher.encrypt(nonce, piece, self._header)

    def open(self, nonce: bytes, sealed: bytes) -> bytes:
        try:
            return self._cipher.decrypt(nonce, sealed, self._header)
        except InvalidTag:
            # The first piece cannot tell one from the other.
            raise BackupError("the passphrase is wrong, or the backup is damaged or was changed") from None


class _Plain:
    """Tells damage."""

    tag = 32

    def __init__(self, header: bytes) -> None:
        self._header = header

    def close(self, nonce: bytes, piece: bytes) -> bytes:
        return piece + self._digest(nonce, piece)

    def open(self, nonce: bytes, sealed: bytes) -> bytes:
        piece, tag = sealed[: -self.tag], sealed[-self.tag :]
        if not hmac.compare_digest(tag, self._digest(nonce, piece)):
            raise BackupError("the backup is damaged")
        return piece

    def _digest(self, nonce: bytes, piece: bytes) -> bytes:
        return hashlib.sha256(self._header + nonce + piece).digest()


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


class Writer:
    """Writes a backup. `finish` it: before that it is no backup."""

    def __init__(self, file: BinaryIO, passphrase: bytes | None, random: Callable[[int], bytes]) -> None:
        header: dict[str, object] = {"version": VERSION, "cipher": "none"}
        salt = random(SALT_BYTES)
        if passphrase is not None:
            text = base64.b64encode(salt).decode()
            header |= {"cipher": "aes-256-gcm", "kdf": "scrypt", "n": _N, "r": _R, "p": _P, "salt": text}
        line = MAGIC + json.dumps(header).encode() + b"\n"
        self._seal: _Seal = _Plain(line) if passphrase is None else _Encrypted(_key(passphrase, salt, _N), line)
        self._file, self._waiting, self._number = file, bytearray(), 0
        file.write(line)

    def write(self, data: bytes) -> None:
        """Add bytes."""
        self._waiting += data
        while len(self._waiting) > PIECE:
            self._put(bytes(self._waiting[:PIECE]), last=False)
            del self._waiting[:PIECE]

    def finish(self) -> None:
        """Write the last piece."""
        self._put(bytes(self._waiting), last=True)

    def _put(self, piece: bytes, *, last: bool) -> None:
        self._file.write(self._seal.close(_nonce(self._number, last=last), piece))
        self._number += 1


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before the pieces."""

    line: bytes
    # Empty when the backup is not encrypted.
    salt: bytes
    n: int

    @property
    def encrypted(self) -> bool:
        """Whether a passphrase opens it."""
        return bool(self.salt)


def read_header(file: BinaryIO) -> Header:
    """Read the header of a file that was just opened. Raise BackupError."""
    if file.read(len(MAGIC)) != MAGIC:
        raise BackupError("the file is no backup of a firedoor broker")
    line = file.readline(_MAX_HEADER)
    try:
        found = json.loads(line, object_pairs_hook=unique_members, parse_constant=refuse_constant)
        version, cipher = found["version"], found["cipher"]
        if type(version) is not int:
            raise ValueError("version")
        if version > VERSION:
            raise BackupError(f"the backup was written by a newer firedoor (version {version}); restore it with that")
        if version != VERSION or not line.endswith(b"\n") or cipher not in ("none", "aes-256-gcm"):
            raise ValueError("header")
        if cipher == "none":
            return Header(MAGIC + line, b"", 0)
        salt, n = base64.b64decode(found["salt"], validate=True), found["n"]
        known = (found["kdf"], found["r"], found["p"], len(salt)) == ("scrypt", _R, _P, SALT_BYTES)
        if not known or type(n) is not int or n & (n - 1) or not _N <= n <= _MOST_N:
            raise ValueError("kdf")
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
        raise BackupError("the backup's header is damaged") from None
    return Header(MAGIC + line, salt, n)


class Reader:
    """Reads what a `Writer` wrote; nothing is handed out before its piece was checked."""

    def __init__(self, file: BinaryIO, header: Header, passphrase: bytes | None) -> None:
        if header.encrypted:
            if passphrase is None:
                raise BackupError("the backup is encrypted: give its passphrase (--backup-passphrase-file)")
            self._seal: _Seal = _Encrypted(_key(passphrase, header.salt, header.n), header.line)
        else:
            self._seal = _Plain(header.line)
        self._file, self._waiting, self._number, self._ended = file, bytearray(), 0, False
        self._ahead = file.read(PIECE + self._seal.tag)

    def read(self, size: int) -> bytes:
        """Return exactly so many bytes. Raise BackupError."""
        while len(self._waiting) < size and not self._ended:
            self._next()
        if len(self._waiting) < size:
            raise BackupError("the backup is shorter than it says")
        found = bytes(self._waiting[:size])
        del self._waiting[:size]
        return found

    def finish(self) -> None:
        """Check that nothing is left. Raise BackupError."""
        while not self._ended and not self._waiting:
            self._next()
        if self._waiting or not self._ended:
            raise BackupError("the backup is longer than it says")

    def _next(self) -> None:
        sealed, self._ahead = self._ahead, self._file.read(PIECE + self._seal.tag)
        if len(sealed) < self._seal.tag:
            raise BackupError("the backup is cut off")
        last = not self._ahead
        self._waiting += self._seal.open(_nonce(self._number, last=last), sealed)
        self._number, self._ended = self._number + 1, last


def _key(passphrase: bytes, salt: bytes, n: int) -> bytes:
    if not passphrase or len(passphrase) > _MAX_PASSPHRASE:
        raise BackupError(f"a passphrase has 1 to {_MAX_PASSPHRASE} bytes")
    return Scrypt(salt=salt, length=32, n=n, r=_R, p=_P).derive(passphrase)
