# SPDX-License-Identifier: Apache-2.0
"""What a namespace demands of its pods, by its labels. Those are the platform's: nothing that a pod says undoes them.

| label of a namespace | |
|---|---|
| `firedoor.dev/inject: enabled` | pods have sidecars, but those that say `disabled` |
| `firedoor.dev/inject: required` | every pod has one, captures all, and has no container that may be its user |
| `firedoor.dev/capture: exclusions` | beside `required`: pods may say what passes by the sidecar |
| `firedoor.dev/capture: optional` | beside `required`: that, and pods may have nothing captured |

API servers know a namespace's labels, and ask the webhook at a path for each; the guards read the labels themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from firedoor.broker.injector.exclusions import InjectionRefused
from firedoor.broker.injector.settings import InjectorRules
from firedoor.broker.injector.wishes import Wishes
from firedoor.segments.well_known import CAPTURE, EXCLUDE, INJECT, LEFT, UDP
from firedoor.segments.well_known import REQUIRED as REQUIRED_WORD


@dataclass(frozen=True, slots=True)
class Demands:
    """`required`: no pod is without a sidecar. The others: what its pods may leave out of capture."""

    required: bool
    may_exclude: bool
    may_leave: bool


ENABLED: Final = Demands(required=False, may_exclude=True, may_leave=True)
REQUIRED: Final = Demands(required=True, may_exclude=False, may_leave=False)
_PATH: Final = "/inject"
PATHS: Final[Mapping[str, Demands]] = MappingProxyType(
    {
        _PATH: ENABLED,
        f"{_PATH}/{REQUIRED_WORD}": REQUIRED,
    }
    | {
        f"{_PATH}/{REQUIRED_WORD}/{word}": Demands(
            required=True, may_exclude=EXCLUDE in left, may_leave=CAPTURE in left
        )
        for word, left in LEFT.items()
    }
)

# Sentences, which the guards say as well.
NO_WAY_OUT: Final = (
    f"its namespace requires a sidecar in every pod ({INJECT}: {REQUIRED_WORD}); take the pod's label disabled away"
)


def not_left(key: str) -> str:
    """Return why a pod may not leave something out of capture that an annotation names."""
    allowed = next(word for word, left in LEFT.items() if key in left)
    said = f"{key}: none" if key == CAPTURE else key
    return (
        f"{said}: its namespace requires that all is captured; take that away, or have the namespace labelled "
        f"{CAPTURE}: {allowed}"
    )


def check(demands: Demands, asked: Wishes) -> None:
    """Refuse what a pod asks for and its namespace does not leave to it. Raise InjectionRefused."""
    if not asked.captured and not demands.may_leave:
        raise InjectionRefused(not_left(CAPTURE))
    for key, given in ((EXCLUDE, bool(asked.exclude)), (UDP, asked.udp_passes)):
        if given and not demands.may_exclude:
            raise InjectionRefused(not_left(key))


def holds_users(demands: Demands, rules: InjectorRules) -> bool:
    """Say whether no container may be, or become, the sidecar's user."""
    return rules.strict_users == "everywhere" or (rules.strict_users == "required" and demands.required)
