# SPDX-License-Identifier: Apache-2.0
"""Good bytes with a few of them changed."""

from hypothesis import strategies as st

places = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6)


def altered(data: bytes, changes: list[tuple[int, int]]) -> bytes:
    """Return the data with these values at these places."""
    found = bytearray(data)
    for place, value in changes:
        found[place % len(found)] = value
    return bytes(found)
