# SPDX-License-Identifier: Apache-2.0
"""Conditions in the status of the cluster's objects, by the API's conventions. Pure but for the time of a change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

# Characters; the API takes 32 KiB.
_MAX_MESSAGE: Final = 4096
Condition = dict[str, Any]


def condition(generation: int, kind: str, status: str, reason: str, message: str) -> Condition:
    """Return one condition of an object at a generation, without its time."""
    said = message if len(message) <= _MAX_MESSAGE else message[: _MAX_MESSAGE - 1] + "…"
    return {"type": kind, "status": status, "observedGeneration": generation, "reason": reason, "message": said}


def known(status: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """Return the conditions that a status has; what is none is left out."""
    found = status.get("conditions")
    return tuple(one for one in found if isinstance(one, dict)) if isinstance(found, list) else ()


def timed(wanted: Iterable[Condition], there: Iterable[Mapping[str, Any]]) -> list[Condition]:
    """Add when each last changed: the API's convention is that only another `status` is a change."""
    before = {one.get("type"): one for one in there}
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    made = []
    for one in wanted:
        old = before.get(one["type"], {})
        kept = old.get("lastTransitionTime") if old.get("status") == one["status"] else None
        made.append({**one, "lastTransitionTime": kept or now})
    return made
