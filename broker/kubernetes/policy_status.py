# SPDX-License-Identifier: Apache-2.0
"""What became of the policy's custom resources, written into their status.

| condition | True | False | Unknown |
|---|---|---|---|
| `Accepted` | it is part of the policy in force | it, or another of the set, has an error | it was not looked at yet |
| `Enforced` | every sidecar has acknowledged it | some have not, or it is not in force | |

A set comes into force as a whole: with an error in one object, no object's change does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, final

from firedoor.broker.errors import DatabaseError
from firedoor.broker.followers import Looked, News
from firedoor.broker.kubernetes.conditions import Condition, condition, timed
from firedoor.cluster.errors import ClusterUnavailable
from firedoor.segments import PolicyErrors

if TYPE_CHECKING:
    from firedoor.broker.kubernetes.policy_resources import Resource, Resources
    from firedoor.broker.policy import PolicyKeeper
    from firedoor.broker.state import State
    from firedoor.cluster.api import ClusterApi
    from firedoor.segments import Document

_log = logging.getLogger("firedoor.broker.policy")
_SECONDS: Final = 1.0
# Objects that are looked at before other calls get a turn, and statuses that are written at once.
_SLICE: Final = 100
_AT_ONCE: Final = 8
# Sidecars that are named, and characters of a message.
_NAMED: Final = 5


@final
class PolicyStatus:
    """Writes what is so about each object. `run` until cancelled."""

    def __init__(
        self,
        api: ClusterApi,
        resources: Resources,
        keeper: PolicyKeeper,
        state: State,
        without_news: Callable[[News], Awaitable[Looked]],
    ) -> None:
        self._api, self._resources, self._keeper, self._state = api, resources, keeper, state
        self._without_news = without_news
        # What every sidecar was seen to have; one that comes back later is told before it serves.
        self._enforced: frozenset[Document] = frozenset()
        # The set in force, and the generation that it was first seen in.
        self._since: tuple[object, News] | None = None
        # What everything was written for; nothing is looked at again before something of it changes.
        self._written: object = None
        self._trouble = ""

    async def run(self) -> None:
        """Look every second."""
        while True:
            await asyncio.sleep(_SECONDS)
            try:
                await self._look()
                self._trouble = ""
            except (ClusterUnavailable, DatabaseError) as error:
                if str(error) != self._trouble:
                    _log.warning("the status of the policy's objects cannot be written: %s", error)
                self._trouble = str(error)

    async def _look(self) -> None:
        if not self._state.database.leads:
            # Another broker writes: two would write over each other.
            self._written = None
            return
        missing = await self._missing()
        seen = (self._resources.looks, self._keeper.current, self._keeper.refused, self._enforced, missing)
        if seen == self._written:
            return
        due = []
        for number, one in enumerate(self._resources.resources()):
            if number % _SLICE == 0:
                await asyncio.sleep(0)
            wanted = self._conditions(one, missing)
            if not _same(wanted, one.conditions):
                due.append((one, wanted))
        for at in range(0, len(due), _AT_ONCE):
            await asyncio.gather(*(self._write(one, wanted) for one, wanted in due[at : at + _AT_ONCE]))
        self._written = seen

    async def _write(self, one: Resource, wanted: list[Condition]) -> None:
        await self._api.put_status(one.path, {"conditions": timed(wanted, one.conditions)})

    async def _missing(self) -> str:
        """Say who has not acknowledged the set in force; nothing when all have."""
        current = self._keeper.current
        if self._since is None or self._since[0] is not current:
            self._since = (current, News(self._state.generation, 0))
        if self._enforced == current.members:
            return ""
        looked = await self._without_news(self._since[1])
        if not looked.missing:
            self._enforced = current.members
            return ""
        names = ", ".join(one.who for one in looked.missing[:_NAMED])
        more = f" and {len(looked.missing) - _NAMED} more" if len(looked.missing) > _NAMED else ""
        return f"{len(looked.missing)} of {looked.of} have not acknowledged it: {names}{more}"

    def _conditions(self, one: Resource, missing: str) -> list[Condition]:
        accepted = self._accepted(one)
        if accepted["status"] != "True":
            pending = condition(one.generation, "Enforced", "False", "NotInForce", "what it says is not in force")
        elif missing and one.document not in self._enforced and not _was_enforced(one):
            pending = condition(one.generation, "Enforced", "False", "Pending", missing)
        else:
            pending = condition(one.generation, "Enforced", "True", "Acknowledged", "every sidecar has acknowledged it")
        return [accepted, pending]

    def _accepted(self, one: Resource) -> Condition:
        if one.document in self._keeper.documents:
            return condition(one.generation, "Accepted", "True", "InForce", "it is part of the policy in force")
        refused = self._keeper.refused
        if refused is None:
            return condition(one.generation, "Accepted", "Unknown", "Pending", "it has not been looked at yet")
        if not isinstance(refused, PolicyErrors):
            return condition(one.generation, "Accepted", "False", "SetRefused", str(refused))
        own = [found for found in refused.findings if found.at.file == one.document.name]
        if own:
            said = "; ".join(f"{found.message}: {found.fix} [{found.code}]" for found in own)
            return condition(one.generation, "Accepted", "False", "Refused", said)
        first = refused.findings[0]
        message = f"another object of the set has an error, and the set is taken as a whole: {first}"
        return condition(one.generation, "Accepted", "False", "SetRefused", message)


def _was_enforced(one: Resource) -> bool:
    """Say whether a broker, this one before it was restarted perhaps, has seen it enforced as it is now."""
    return any(
        said.get("type") == "Enforced"
        and said.get("status") == "True"
        and said.get("observedGeneration") == one.generation
        for said in one.conditions
    )


def _same(wanted: list[Condition], there: tuple[Mapping[str, Any], ...]) -> bool:
    """Say whether it is written already. Who is waited for is written once, not each time that one of them is done."""
    return [_essence(one) for one in there] == [_essence(one) for one in wanted]


def _essence(one: Mapping[str, Any]) -> dict[str, Any]:
    left_out = ("lastTransitionTime", "message") if one.get("reason") == "Pending" else ("lastTransitionTime",)
    return {key: value for key, value in one.items() if key not in left_out}
