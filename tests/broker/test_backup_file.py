# SPDX-License-Identifier: Apache-2.0
"""The file of a backup: what is written is read; whatever is changed, cut off or asked for too much is refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firedoor.broker import backup_file
from firedoor.broker.backup_file import MAGIC, Reader, Writer, read_header
from firedoor.broker.backup_manifest import Manifest, Member, read_manifest
from firedoor.broker.errors import BackupError

PASSPHRASE = b"correct horse"


@pytest.fixture(autouse=True, scope="module")
def _small() -> object:
    """Pieces and a key derivation that cost nothing: how large they are changes nothing else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backup_file, "PIECE", 64)
        patch.setattr(backup_file, "_N", 2**10)
        yield


def written(data: bytes, passphrase: bytes | None = None) -> bytes:
    file = io.BytesIO()
    writer = Writer(file, passphrase, os.urandom)
    for start in range(0, len(data), 50):
        writer.write(data[start : start + 50])
    writer.finish()
    return file.getvalue()


def read(text: bytes, size: int, passphrase: bytes | None = None) -> bytes:
    file = io.BytesIO(text)
    reader = Reader(file, read_header(file), passphrase)
    found = reader.read(size)
    reader.finish()
    return found


@given(st.binary(max_size=300), st.booleans())
def test_what_is_written_is_read(data: bytes, encrypted: bool) -> None:
    passphrase = PASSPHRASE if encrypted else None
    text = written(data, passphrase)
    assert read(text, len(data), passphrase) == data
    assert not encrypted or len(data) < 8 or data not in text


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE], ids=["plain", "encrypted"])
def test_no_byte_can_be_changed_and_none_left_out(passphrase: bytes | None) -> None:
    data = os.urandom(200)
    text = written(data, passphrase)
    for place in range(len(text)):
        changed = bytearray(text)
        changed[place] ^= 1
        with pytest.raises(BackupError):
            read(bytes(changed), 200, passphrase)
        with pytest.raises(BackupError):
            read(text[:place], 200, passphrase)
    with pytest.raises(BackupError):
        read(text + b"x", 200, passphrase)


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE], ids=["plain", "encrypted"])
def test_pieces_keep_their_places(passphrase: bytes | None) -> None:
    text = written(bytes(64) + bytes([1]) * 64 + bytes([2]) * 64, passphrase)
    head = text.index(b"\n", len(MAGIC)) + 1
    each = (len(text) - head) // 3
    first, second, third = (text[head + n * each : head + (n + 1) * each] for n in range(3))
    assert read(text, 192, passphrase)
    for order in (second + first + third, first + third, first + second, third):
        with pytest.raises(BackupError):
            read(text[:head] + order, len(order) // each * 64, passphrase)


def test_sizes_must_agree() -> None:
    text = written(bytes(100))
    with pytest.raises(BackupError, match="shorter"):
        read(text, 101)
    with pytest.raises(BackupError, match="longer"):
        read(text, 99)


def test_passphrases() -> None:
    text = written(b"data", PASSPHRASE)
    with pytest.raises(BackupError, match="wrong, or the backup is damaged"):
        read(text, 4, b"other")
    with pytest.raises(BackupError, match="is encrypted: give its passphrase"):
        read(text, 4, None)
    for wrong in (b"", b"x" * 1025):
        with pytest.raises(BackupError, match="a passphrase has"):
            written(b"data", wrong)


HEADER = {"version": 1, "cipher": "aes-256-gcm", "kdf": "scrypt", "n": 2**17, "r": 8, "p": 1, "salt": "A" * 22 + "=="}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "newer firedoor"),
        ({"version": True}, "damaged"),
        ({"cipher": "rot13"}, "damaged"),
        ({"kdf": "md5"}, "damaged"),
        # A terabyte of memory, or a year, is not given to whoever wrote the file.
        ({"n": 2**40}, "damaged"),
        ({"n": 2**17 + 1}, "damaged"),
        ({"n": 1}, "damaged"),
        ({"n": "131072"}, "damaged"),
        ({"r": 2**20}, "damaged"),
        ({"p": 2**20}, "damaged"),
        ({"salt": ""}, "damaged"),
        ({"salt": "?"}, "damaged"),
        ({"salt": None}, "damaged"),
    ],
    ids=str,
)
def test_headers_that_are_refused_before_anything_is_computed(
    change: dict[str, object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup_file, "Scrypt", None)
    with pytest.raises(BackupError, match=said):
        read_header(io.BytesIO(MAGIC + json.dumps({**HEADER, **change}).encode() + b"\n"))


@pytest.mark.parametrize(
    "text",
    [b"", b"PK\x03\x04", MAGIC, MAGIC + b"{}\n", MAGIC + b"[" * 500 + b"\n", MAGIC + b"{" + b" " * 10**6 + b"}\n"],
    ids=["empty", "zip", "nothing", "object", "deep", "long"],
)
def test_what_is_no_backup(text: bytes) -> None:
    with pytest.raises(BackupError):
        read_header(io.BytesIO(text))


DIGEST = hashlib.sha256(b"").hexdigest()
MANIFEST = Manifest(
    "example.org",
    1_700_000_000,
    "0.1.0",
    "sqlite",
    "disk",
    "1.2",
    (Member("broker.db", 4096, DIGEST), Member("keys/x509-CA-A.pem", 200, DIGEST)),
)


def through(manifest: Manifest) -> Manifest:
    return read_manifest(io.BytesIO(manifest.to_bytes()).read)


def test_a_manifest_is_read_as_it_was_written() -> None:
    assert through(MANIFEST) == MANIFEST
    assert (MANIFEST.keys, MANIFEST.has_database) == (1, True)


@pytest.mark.parametrize(
    "name",
    [
        "../broker.db",
        "/etc/passwd",
        "keys/../../x.pem",
        "keys/x.pem/y.pem",
        "keys/..pem",
        "keys/" + "x" * 65 + ".pem",
        "keys/x.pem\x00",
        "keys/x.pem\n",
        "lock",
        "generation",
        "",
        "broker.db",
    ],
    ids=repr,
)
def test_names_that_no_backup_has(name: str) -> None:
    with pytest.raises(BackupError, match=r"no backup of a broker holds|manifest is damaged"):
        through(replace(MANIFEST, members=(MANIFEST.members[0], Member(name, 10, DIGEST))))


Change = Callable[[Manifest], Manifest]


@pytest.mark.parametrize(
    "change",
    [
        lambda one: replace(one, members=()),
        lambda one: replace(one, database="postgresql"),
        lambda one: replace(one, members=(Member("broker.db", 2**60, DIGEST),)),
        lambda one: replace(one, members=(Member("broker.db", 0, DIGEST),)),
        lambda one: replace(one, members=(Member("broker.db", 9, "x"),)),
        lambda one: replace(one, members=(one.members[0], Member("broker-id", 2**20, DIGEST))),
        lambda one: replace(one, members=tuple(Member(f"keys/k{n}.pem", 9, DIGEST) for n in range(300))),
        lambda one: replace(one, trust_domain="\x1b[2J"),
        lambda one: replace(one, generation=1),
        lambda one: replace(one, made_at=-1),
        lambda one: replace(one, database="oracle"),
    ],
    ids=["no-database", "no-dump", "huge", "empty", "digest", "long", "many", "terminal", "number", "time", "kind"],
)
def test_manifests_that_are_refused(change: Change) -> None:
    with pytest.raises(BackupError):
        through(change(MANIFEST))


@given(st.binary(max_size=400))
def test_no_bytes_make_anything_but_a_backup_error(text: bytes) -> None:
    for start in (b"", MAGIC, MAGIC + b'{"version": 1, "cipher": "none"}\n'):
        try:
            file = io.BytesIO(start + text)
            reader = Reader(file, read_header(file), None)
            read_manifest(reader.read)
        except BackupError:
            pass


def test_a_manifest_of_any_length_is_not_read() -> None:
    with pytest.raises(BackupError, match="manifest"):
        read_manifest(io.BytesIO((2**32 - 1).to_bytes(4, "big")).read)


def test_a_newer_format_is_named() -> None:
    text = json.dumps({**json.loads(MANIFEST.to_bytes()[4:]), "format": 2}).encode()
    with pytest.raises(BackupError, match="newer firedoor"):
        read_manifest(io.BytesIO(len(text).to_bytes(4, "big") + text).read)
