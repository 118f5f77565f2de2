# SPDX-License-Identifier: Apache-2.0
"""The parts that an update comes in, by their kind: each stands once, and a kind that nobody knows is refused."""

from collections.abc import Iterable

from firedoor.sidecar.errors import UpdateRefused
from firedoor.wire import control_pb2


def by_kind(parts: Iterable[control_pb2.Part]) -> dict[str, control_pb2.Part]:
    """Return the parts by their kind. Raise UpdateRefused."""
    found: dict[str, control_pb2.Part] = {}
    for part in parts:
        kind = part.WhichOneof("kind")
        if kind is None:
            raise UpdateRefused("unknown_part", "the update has a part of a kind that this sidecar does not know")
        if kind in found:
            raise UpdateRefused("repeated_part", f"the update has two parts of the kind {kind}")
        found[kind] = part
    return found
