# SPDX-License-Identifier: Apache-2.0
"""What an API server's lists and events say, as far as following them needs it. Pure.

>>> Page.read({"kind": "PodList", "metadata": {"resourceVersion": "9"}, "items": []}, "Pod")
Page(items=[], version='9', more='')

An empty list takes every object away from whoever believes it. So it is believed only when it is what was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from firedoor.cluster.errors import Gone, ObjectsUnreadable

_GONE: Final = 410
Seen = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Page:
    """Some objects of a list, the version of all of it, and what to ask the next page with; empty at the end."""

    items: Sequence[Seen]
    version: str
    more: str

    @classmethod
    def read(cls, answer: Seen, kind: str) -> Page:
        """Read a list of objects of a kind, such as `Pod`. Raise ObjectsUnreadable."""
        metadata, items = answer.get("metadata"), answer.get("items")
        if answer.get("kind") != f"{kind}List" or not isinstance(metadata, dict) or not isinstance(items, list):
            raise ObjectsUnreadable(f"its answer is no {kind}List")
        version, more = metadata.get("resourceVersion"), metadata.get("continue") or ""
        if not isinstance(version, str) or not version or not isinstance(more, str):
            raise ObjectsUnreadable(f"its {kind}List has no version")
        if not all(isinstance(item, dict) for item in items):
            raise ObjectsUnreadable(f"its {kind}List has items that are no objects")
        return cls(items, version, more)


@dataclass(frozen=True, slots=True)
class Event:
    """What became of one object, and the version that a watch goes on from. `BOOKMARK` says the version alone."""

    what: str
    seen: Seen
    version: str

    @classmethod
    def read(cls, found: Seen) -> Event:
        """Read a line of a watch. Raise Gone when the watch cannot go on from where it was, and ObjectsUnreadable."""
        what, seen = found.get("type"), found.get("object")
        if not isinstance(what, str) or not isinstance(seen, dict):
            raise ObjectsUnreadable("it sent an event without an object")
        if what == "ERROR":
            if seen.get("code") == _GONE:
                raise Gone("it has forgotten where the watch was to go on")
            raise ObjectsUnreadable("it ended the watch by an error")
        metadata = seen.get("metadata")
        version = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
        if not isinstance(version, str) or not version:
            raise ObjectsUnreadable("it sent an event without a version")
        return cls(what, seen, version)


def metadata(seen: Seen) -> Mapping[str, Any]:
    """Return an object's metadata, empty when it has none."""
    return mapping(seen.get("metadata"))


def mapping(value: object) -> Mapping[str, Any]:
    """Take a mapping for what it is, and anything else for an empty one."""
    return value if isinstance(value, dict) else {}


def text(value: object) -> str:
    """Take a text for what it is, and anything else for an empty one."""
    return value if isinstance(value, str) else ""
