# SPDX-License-Identifier: Apache-2.0
"""What both ends of the control stream must compute alike."""

import hashlib
from collections.abc import Iterable
from typing import Final

from firedoor.wire._generated.firedoor_control_v1_control_pb2 import Generation, Part, Revocation, Update

# A sidecar says in its Hello that it takes deltas, and hashes that are made of its parts' hashes.
DELTA: Final = "delta"
# And that it knows the part with revocation lists.
CRLS: Final = "crls"
# And that updates may say over how long what all sidecars do is to be spread.
SPREAD: Final = "spread"
# The code of a Nack to a delta whose base the sidecar does not have (any more).
UNKNOWN_BASE: Final = "unknown_base"
# Whatever a view grows to by deltas, it could still be sent whole: what the core takes for one message, in bytes.
MAX_VIEW_BYTES: Final = 64 << 20
# Such a hash is never one of a whole view's bytes, which begin otherwise.
_PREFIX: Final = b"firedoor view of parts\n"


def view_hash(parts: Iterable[Part]) -> bytes:
    """Return the SHA-256 of a view: of an Update that holds its parts and nothing else, the same bytes each time."""
    return sha256(Update(parts=parts).SerializeToString(deterministic=True))


def parts_hash(parts: Iterable[Part]) -> bytes:
    """Return the hash of a view that is made of its parts' hashes, the entries' of each entry's hash.

    So who has changed an entry need not read the others.
    """
    found = {part.WhichOneof("kind"): part for part in parts}
    pages: dict[int, list[bytes]] = {}
    for entry in found.get("entries", Part()).entries.entries:
        pages.setdefault(page_of(entry.id), []).append(sha256(entry.SerializeToString(deterministic=True)))
    entries = pages_hash((number, sha256(b"".join(pages[number]))) for number in sorted(pages))
    others = [found.get(kind, Part()) for kind in ("bundles", "policy", "revocations")]
    if "crls" in found:
        # Whoever does not know revocation lists has a view without that part.
        others.append(found["crls"])
    return joined_hash(entries, (sha256(part.SerializeToString(deterministic=True)) for part in others))


def page_of(entry_id: str) -> int:
    """Return on which of 256 pages an entry stands: the first byte of the SHA-256 of its ID."""
    return sha256(entry_id.encode())[0]


def pages_hash(pages: Iterable[tuple[int, bytes]]) -> bytes:
    """Return the hash of all entries, of the pages that have any, in order; a page's is that of its entries' hashes."""
    return sha256(b"".join(bytes([number]) + digest for number, digest in pages))


def joined_hash(entries: bytes, others: Iterable[bytes]) -> bytes:
    """Return the hash of a view, of that of all entries and of those of the parts with the rest, in order."""
    return sha256(b"".join((_PREFIX, entries, *others)))


def sha256(data: bytes) -> bytes:
    """Return the SHA-256 of some bytes."""
    return hashlib.sha256(data).digest()


def generation_key(generation: Generation) -> tuple[int, int]:
    """Return what generations are ordered by."""
    return generation.epoch, generation.number


def revocation_key(one: Revocation) -> tuple[str, str]:
    """Return what revocations are ordered by, and told apart."""
    match one.WhichOneof("kind"):
        case "serial":
            return "serial", one.serial
        case "authority_id":
            return "authority", one.authority_id
        case "issued_before":
            return "pattern", one.issued_before.pattern
        case _:
            return "", ""
