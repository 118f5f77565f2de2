# SPDX-License-Identifier: Apache-2.0
"""What became of the objects that ask for entries, written into their status.

| condition | True | False |
|---|---|---|
| `Accepted` | it can be read | it cannot; the message says what to write |
| `Registered` | each pod that it selects has its entry | some have none, or may; the message says why one has none |
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

from firedoor.broker.kubernetes.conditions import condition, known, timed
from firedoor.cluster.errors import ClusterUnavailable

if TYPE_CHECKING:
    from firedoor.broker.kubernetes.registrar import Claim, Key, Registrar
    from firedoor.broker.kubernetes.registration import Registration
    from firedoor.broker.kubernetes.rules import Rule
    from firedoor.broker.state import State
    from firedoor.cluster.api import ClusterApi

_log = logging.getLogger("firedoor.broker.registration")
# Seconds between two statuses of one object, and statuses that are written at once.
_SECONDS: Final = 1.0
_AT_ONCE: Final = 8
Status = dict[str, Any]


@final
@dataclass(slots=True)
class Tally:
    """What became of the claims of one rule."""

    pods: int = 0
    # Entries that are there by this rule; by another; that could not be drawn; that were refused.
    entries: int = 0
    masked: int = 0
    undrawn: int = 0
    refused: int = 0
    # A namespace of which not all pods are looked at.
    crowd: str = ""
    # Why one of them is not there.
    why: str = ""


def tally(registrar: Registrar, registration: Registration, state: State, key: Key) -> Tally:
    """Count what became of a rule's claims."""
    found = Tally(crowd=registrar.crowd(registrar.rules[key]) if key in registrar.rules else "")
    for subject, claim in sorted(registrar.by_rule.get(key, {}).items()):
        found.pods += 1
        why = _outcome(registrar, registration, state, claim, found)
        if why and not found.why:
            pod = registrar.pods.get(subject)
            found.why = f"{pod.namespace}/{pod.name}: {why}" if pod else why
    return found


def _outcome(registrar: Registrar, registration: Registration, state: State, claim: Claim, found: Tally) -> str:
    """Count one claim; say why its entry is not there."""
    if claim.entry is None:
        found.undrawn += 1
        return claim.trouble
    if why := registration.refused.get(claim.entry.id):
        found.refused += 1
        return why
    there = state.entries.get(claim.entry.id)
    if there is None:
        return "it is not written yet"
    if there.origin == claim.entry.origin:
        found.entries += 1
    else:
        found.masked += 1
    return ""


@final
class RegistrationStatus:
    """Writes statuses. `run` until cancelled.

    By the kind, `paths` says where the API has it, and `write` what a status says.
    """

    def __init__(
        self,
        api: ClusterApi,
        registration: Registration,
        state: State,
        paths: Mapping[str, str],
        write: Mapping[str, Callable[[Rule, Tally], Status]],
    ) -> None:
        self._api, self._registration, self._state = api, registration, state
        self._paths, self._says = paths, write
        # What was written last, by the object.
        self._written: dict[tuple[str, str, str], Status] = {}
        self._trouble = ""

    async def run(self) -> None:
        """Look every second."""
        while True:
            await asyncio.sleep(_SECONDS)
            if not self._registration.leads:
                self._written.clear()
                continue
            try:
                await self._look()
                self._trouble = ""
            except ClusterUnavailable as error:
                if str(error) != self._trouble:
                    _log.warning("statuses of registrations cannot be written: %s", error)
                self._trouble = str(error)

    async def _look(self) -> None:
        registrar = self._registration.registrar
        if registrar.dirty_pods or registrar.dirty_entries:
            # It would be another in a moment.
            return
        keys = [key for key in registrar.dirty_rules if key in registrar.rules and key[0] in self._paths]
        registrar.dirty_rules.clear()
        for at in range(0, len(keys), _AT_ONCE):
            some = keys[at : at + _AT_ONCE]
            try:
                await asyncio.gather(*(self._one(registrar.rules[key]) for key in some))
            except ClusterUnavailable:
                registrar.dirty_rules.update(keys[at:])
                raise

    async def _one(self, rule: Rule) -> None:
        registration = self._registration
        said = self._says[rule.kind](rule, tally(registration.registrar, registration, self._state, rule.key))
        who = (*rule.key, rule.uid)
        before = self._written.get(who)
        if before == said or (before is None and _says_already(rule.status, said)):
            return
        status = {**said, "conditions": timed(said["conditions"], known(rule.status))}
        await self._api.put_status(f"{self._paths[rule.kind]}/{rule.name}", status)
        self._written[who] = said


def identity_status(rule: Rule, found: Tally) -> Status:
    """Return the status of a WorkloadIdentity."""
    return {"pods": found.pods, "entries": found.entries + found.masked, "conditions": conditions(rule, found)}


def conditions(rule: Rule, found: Tally) -> list[dict[str, Any]]:
    """Return what is so about an object."""
    if rule.trouble:
        return [
            condition(rule.generation, "Accepted", "False", "Invalid", rule.trouble),
            condition(rule.generation, "Registered", "False", "Invalid", "it cannot be read"),
        ]
    accepted = condition(rule.generation, "Accepted", "True", "Read", "it can be read")
    there = found.entries + found.masked
    if found.crowd:
        said = f"{there} pods have their entry; namespace {found.crowd} has more pods than are registered of one"
        return [accepted, condition(rule.generation, "Registered", "False", "TooManyPods", said)]
    if there == found.pods:
        masked = f", {found.masked} of them by an older object" if found.masked else ""
        said = f"all {found.pods} pods have their entry{masked}" if found.pods else "it selects no pod"
        return [accepted, condition(rule.generation, "Registered", "True", "Registered", said)]
    said = f"{there} of {found.pods} pods have their entry; {found.why}"
    return [accepted, condition(rule.generation, "Registered", "False", "Refused", said)]


def _says_already(there: Mapping[str, Any], said: Status) -> bool:
    """Say whether another broker, or this one before it was restarted, has written it."""
    untimed = [{key: value for key, value in one.items() if key != "lastTransitionTime"} for one in known(there)]
    return {**there, "conditions": untimed} == said
