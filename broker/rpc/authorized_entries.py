# SPDX-License-Identifier: Apache-2.0
"""What agents may know of entries: SPIRE's GetAuthorizedEntries and SyncAuthorizedEntries.

Agents ask every few seconds, nearly always when nothing has changed. The answer to that is kept for each agent as it
was encoded, about 150 bytes an entry, until its entries change.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from firedoor.broker.admissible import Admissible
from firedoor.broker.entry import Entry
from firedoor.broker.errors import InvalidRequest
from firedoor.broker.messages import entry_message
from firedoor.broker.rpc.masks import show
from firedoor.certs import SpiffeId
from firedoor.wire import entry_pb2, types

if TYPE_CHECKING:
    from firedoor.broker.policy import PolicyKeeper
    from firedoor.broker.rpc.gate import Call
    from firedoor.broker.state import State

T = TypeVar("T")

# SPIRE's page of SyncAuthorizedEntries.
SYNC_PAGE: Final = 500


@dataclass(frozen=True, slots=True)
class Encoded:
    """An answer as it goes over the wire; where the gate writes a message, it writes this too."""

    data: bytes

    def SerializeToString(self) -> bytes:
        """Return it."""
        return self.data


@dataclass(frozen=True, slots=True)
class _First:
    """The first answers to one agent, and from what they were made: `entries` is replaced when it changes."""

    entries: tuple[Entry, ...]
    mask: bytes | None
    answers: tuple[Encoded, ...]


class AuthorizedEntries:
    """Answers agents."""

    def __init__(self, state: State, policy: PolicyKeeper) -> None:
        self._state = state
        self._admissible = Admissible(state, policy)
        self._first: dict[SpiffeId, _First] = {}

    def get(self, request: entry_pb2.GetAuthorizedEntriesRequest, call: Call) -> entry_pb2.GetAuthorizedEntriesResponse:
        """Show an agent all that it is entitled to."""
        mask = request.output_mask if request.HasField("output_mask") else None
        entries = self._admissible.entries(call.the_agent().id)
        return entry_pb2.GetAuthorizedEntriesResponse(entries=[show(entry_message(e), mask) for e in entries])

    async def sync(
        self, requests: AsyncIterator[entry_pb2.SyncAuthorizedEntriesRequest], call: Call
    ) -> AsyncIterator[entry_pb2.SyncAuthorizedEntriesResponse | Encoded]:
        """Show an agent up to 500 entries at once; else their revisions, then those that it asks for."""
        first = await anext(requests, None)
        if first is None:
            return
        mask = _sync_mask(first)
        for answer in self._first_answers(call.the_agent().id, mask):
            yield answer
        seen: tuple[Entry, ...] = ()
        by_id: Mapping[str, Entry] = {}
        async for request in requests:
            if call.again is not None:
                await call.again()
            if request.HasField("output_mask"):
                raise InvalidRequest("specifying the output mask is only allowed in the first request")
            present = self._admissible.entries(call.the_agent().id)
            if present is not seen:
                seen, by_id = present, {entry.id: entry for entry in present}
            asked = [by_id[entry_id] for entry_id in dict.fromkeys(request.ids) if entry_id in by_id]
            for part, more in _pages(asked):
                yield _entries(part, mask, more=more)

    def _first_answers(self, agent_id: SpiffeId, mask: types.EntryMask | None) -> tuple[Encoded, ...]:
        entries = self._admissible.entries(agent_id)
        encoded_mask = mask.SerializeToString(deterministic=True) if mask is not None else None
        kept = self._first.get(agent_id)
        if kept is not None and kept.entries is entries and kept.mask == encoded_mask:
            return kept.answers
        made = tuple(Encoded(answer.SerializeToString()) for answer in _first(entries, mask))
        if len(self._first) > 2 * len(self._state.agents) + 100:
            self._first = {one: kept for one, kept in self._first.items() if one in self._state.agents}
        self._first[agent_id] = _First(entries, encoded_mask, made)
        return made


def _first(
    entries: tuple[Entry, ...], mask: types.EntryMask | None
) -> Iterator[entry_pb2.SyncAuthorizedEntriesResponse]:
    """Yield what is answered to the first request."""
    if len(entries) <= SYNC_PAGE:
        yield _entries(entries, mask)
        return
    for part, more in _pages(entries):
        revisions = [
            entry_pb2.EntryRevision(id=e.id, revision_number=e.revision_number, created_at=e.created_at) for e in part
        ]
        yield entry_pb2.SyncAuthorizedEntriesResponse(entry_revisions=revisions, more=more)


def _entries(
    entries: Sequence[Entry], mask: types.EntryMask | None, *, more: bool = False
) -> entry_pb2.SyncAuthorizedEntriesResponse:
    shown = [show(entry_message(entry), mask) for entry in entries]
    return entry_pb2.SyncAuthorizedEntriesResponse(entries=shown, more=more)


def _sync_mask(first: entry_pb2.SyncAuthorizedEntriesRequest) -> types.EntryMask | None:
    if first.ids:
        raise InvalidRequest("specifying IDs on initial request is not supported")
    if not first.HasField("output_mask"):
        return None
    if not first.output_mask.revision_number:
        raise InvalidRequest("revision number cannot be masked")
    return first.output_mask


def _pages(entries: Sequence[T]) -> list[tuple[Sequence[T], bool]]:
    """Return the pages and whether more follow; nothing asked for is one empty page."""
    starts = range(0, len(entries), SYNC_PAGE) or [0]
    return [(entries[start : start + SYNC_PAGE], start + SYNC_PAGE < len(entries)) for start in starts]
