# SPDX-License-Identifier: Apache-2.0
"""What both ends of the control stream must compute alike."""

import hashlib
from collections.abc import Iterable

from firedoor.wire._generated.firedoor_control_v1_control_pb2 import Generation, Part, Update


def view_hash(parts: Iterable[Part]) -> bytes:
    """Return the SHA-256 of a view: of an Update that holds its parts and nothing else, the same bytes each time."""
    return encoded_view_hash(Update(parts=parts).SerializeToString(deterministic=True))


def encoded_view_hash(parts: bytes) -> bytes:
    """Return the same of that Update, encoded."""
    return hashlib.sha256(parts).digest()


def generation_key(generation: Generation) -> tuple[int, int]:
    """Return what generations are ordered by."""
    return generation.epoch, generation.number
