# SPDX-License-Identifier: Apache-2.0
"""How two JSON documents differ, as a JSON patch (RFC 6902): `add`, `replace` and `remove`.

>>> difference({"a": [1, 2]}, {"a": [0, 1, 2], "b/c": 3})
[{'op': 'add', 'path': '/a/0', 'value': 0}, {'op': 'add', 'path': '/b~1c', 'value': 3}]
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def difference(before: Any, after: Any) -> list[dict[str, Any]]:
    """Return the operations that make `after` of `before`."""
    return list(_difference(before, after, ""))


def _difference(before: Any, after: Any, path: str) -> Iterator[dict[str, Any]]:
    if _same(before, after):
        return
    if isinstance(before, dict) and isinstance(after, dict):
        yield from _objects(before, after, path)
    elif isinstance(before, list) and isinstance(after, list) and (new := _inserted(before, after)) is not None:
        # From the front, so that each index is that of the list as it is by then.
        for place in new:
            yield {"op": "add", "path": f"{path}/{place}", "value": after[place]}
        kept = [place for place in range(len(after)) if place not in new]
        for old, place in zip(before, kept, strict=True):
            yield from _difference(old, after[place], f"{path}/{place}")
    else:
        yield {"op": "replace", "path": path, "value": after}


def _objects(before: dict[str, Any], after: dict[str, Any], path: str) -> Iterator[dict[str, Any]]:
    for key in before:
        if key not in after:
            yield {"op": "remove", "path": f"{path}/{_escaped(key)}"}
    for key, value in after.items():
        if key in before:
            yield from _difference(before[key], value, f"{path}/{_escaped(key)}")
        else:
            yield {"op": "add", "path": f"{path}/{_escaped(key)}", "value": value}


def _inserted(before: list[Any], after: list[Any]) -> list[int] | None:
    """Return the places of what was put in before or after the rest; None when the lists differ otherwise."""
    many = len(after) - len(before)
    if many < 0:
        return None
    for first in (many, 0):
        if all(_alike(old, new) for old, new in zip(before, after[first:], strict=False)):
            return list(range(first)) if first else list(range(len(before), len(after)))
    return None


def _alike(old: Any, new: Any) -> bool:
    """Whether one is the other, perhaps with something changed inside."""
    if isinstance(old, dict) and isinstance(new, dict) and "name" in old:
        return bool(_same(old["name"], new.get("name")))
    return _same(old, new)


def _same(one: Any, other: Any) -> bool:
    """Whether two are the same JSON: to Python `1`, `1.0` and `True` are alike."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
