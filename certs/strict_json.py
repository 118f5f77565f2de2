# SPDX-License-Identifier: Apache-2.0
"""What `json.loads` takes and two readers would understand differently; give these to it and it refuses.

RFC 8259 section 4 leaves open which of two equal names counts, and section 6 knows no NaN and no Infinity.
"""

from typing import Any, NoReturn


def unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object's members, as `object_pairs_hook`. Raise ValueError when a name is repeated."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("repeated name")
    return members


def refuse_constant(name: str) -> NoReturn:
    """Refuse NaN and the infinities, as `parse_constant`. Raise ValueError."""
    raise ValueError(name)
