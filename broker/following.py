# SPDX-License-Identifier: Apache-2.0
"""What other brokers on the same database change comes into memory here; with SQLite there are none.

For each kind of rows one function reads what changed, on the writer's thread, and returns what brings memory up to it,
on the event loop. Entries and agents are many and are told one by one; of the rest there are few, and all are read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from firedoor.broker.db.agent_rows import load_agents
from firedoor.broker.db.crl_rows import load_crls
from firedoor.broker.db.directory_rows import KIND as DIRECTORY
from firedoor.broker.db.directory_rows import load_directory
from firedoor.broker.db.entry_rows import load_entries
from firedoor.broker.db.intermediate_rows import load_downstream_keys, load_intermediates
from firedoor.broker.db.rows import load_bundles, load_revocations, present_generation
from firedoor.certs import SpiffeId

if TYPE_CHECKING:
    from firedoor.broker.state import State

_log = logging.getLogger("firedoor.broker")


def follow(state: State) -> None:
    """Have memory follow the database."""
    database = state.database
    database.watch("entries", lambda connection, ids: _entries(state, connection, ids))
    database.watch("agents", lambda connection, ids: _agents(state, connection, ids))
    database.watch("revocations", lambda connection, _: _revocations(state, connection))
    database.watch("generation", lambda connection, _: _generation(state, connection))
    database.watch(DIRECTORY, lambda connection, names: _directory(state, connection, names))
    for kind, load in {
        "bundles": load_bundles,
        "crls": load_crls,
        "intermediates": load_intermediates,
        "downstream_keys": load_downstream_keys,
    }.items():
        database.watch(kind, _whole(state, kind, load))


def _whole(
    state: State, name: str, load: Callable[[Connection], object]
) -> Callable[[Connection, frozenset[str] | None], Callable[[], None]]:
    def read(connection: Connection, _: frozenset[str] | None) -> Callable[[], None]:
        found = load(connection)
        return lambda: setattr(state, name, found)

    return read


def _revocations(state: State, connection: Connection) -> Callable[[], None]:
    found = load_revocations(connection)
    return lambda: state.follow_revocations(found)


def _entries(state: State, connection: Connection, ids: frozenset[str] | None) -> Callable[[], None]:
    found = {entry.id: entry for entry in load_entries(connection, ids)}

    def apply() -> None:
        looked_at = ids if ids is not None else {entry.id for entry in state.entries}
        for entry_id in looked_at - found.keys():
            state.entries.remove(entry_id)
        for entry in found.values():
            if state.entries.get(entry.id) != entry:
                state.entries.put(entry)

    return apply


def _agents(state: State, connection: Connection, ids: frozenset[str] | None) -> Callable[[], None]:
    found = {agent.id: agent for agent in load_agents(connection, ids)}

    def apply() -> None:
        looked_at = {SpiffeId.parse(text) for text in ids} if ids is not None else set(state.agents)
        for agent_id in looked_at - found.keys():
            state.gone(agent_id)
        for agent in found.values():
            state.followed(agent)

    return apply


def _directory(state: State, connection: Connection, names: frozenset[str] | None) -> Callable[[], None]:
    if not state.has_directory:
        return lambda: None
    found = load_directory(connection, names)

    def apply() -> None:
        looked_at = names if names is not None else state.directory.keys()
        state.change_directory(found, looked_at - found.keys())

    return apply


def _generation(state: State, connection: Connection) -> Callable[[], None]:
    found = present_generation(connection)

    def apply() -> None:
        if found < state.generation:
            state.went_back = True
            _log.error("the database is at generation %s, and %s was reached: it was restored", found, state.generation)
        elif found > state.generation:
            state.reached(found)

    return apply
