# SPDX-License-Identifier: Apache-2.0
"""What the status of SPIRE's objects says: what its controller manager writes there, and conditions beside it.

SPIRE's own definitions have no conditions, and API servers leave them out then; the log says the same.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from firedoor.broker.kubernetes.conditions import condition
from firedoor.broker.kubernetes.registrar import Registrar
from firedoor.broker.kubernetes.registration_status import Status, Tally, conditions
from firedoor.broker.kubernetes.rules import Rule

_log: Final = logging.getLogger("firedoor.broker.registration")


def cluster_id_status(registrar: Registrar, rule: Rule, found: Tally) -> Status:
    """Return the status of a ClusterSPIFFEID."""
    selected = [name for name, labels in registrar.namespaces.items() if rule.namespaces.matches(labels)]
    readable = rule.says is not None
    stats = {
        "namespacesSelected": len(selected) if readable else 0,
        "namespacesIgnored": len(rule.ignored.intersection(selected)) if readable else 0,
        "podsSelected": found.pods,
        "podEntryRenderFailures": found.undrawn,
        "entriesMasked": found.masked,
        "entriesToSet": found.pods - found.undrawn - found.masked,
        "entryFailures": found.refused,
    }
    _said(rule, rule.trouble or found.why)
    return {"stats": stats, "conditions": conditions(rule, found)}


def static_entry_status(rule: Rule, found: Tally) -> Status:
    """Return the status of a ClusterStaticEntry."""
    _said(rule, rule.trouble or found.why)
    return {
        "rendered": not rule.trouble,
        "masked": bool(found.masked),
        "set": bool(found.entries),
        "conditions": _static_conditions(rule, found),
    }


def _static_conditions(rule: Rule, found: Tally) -> list[dict[str, Any]]:
    if rule.trouble:
        return conditions(rule, found)
    accepted = condition(rule.generation, "Accepted", "True", "Read", "it can be read")
    if found.entries:
        return [accepted, condition(rule.generation, "Registered", "True", "Registered", "its entry is there")]
    why = "an older object asks for the same entry" if found.masked else found.why
    return [accepted, condition(rule.generation, "Registered", "False", "Refused", why)]


def _said(rule: Rule, why: str) -> None:
    if why:
        _log.warning("%s %s: %s", rule.kind, rule.name, why)
