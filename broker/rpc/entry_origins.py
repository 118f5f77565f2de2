# SPDX-License-Identifier: Apache-2.0
"""What made entries that nobody made by hand: SPIRE's entry has no field for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from firedoor.broker.rpc.listing import batch
from firedoor.wire import admin_pb2

if TYPE_CHECKING:
    from firedoor.broker.rpc.gate import Call
    from firedoor.broker.state import State

MAX_IDS: Final = 1000


class EntryAdminService:
    """`firedoor.admin.v1.EntryAdmin`."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def ListOrigins(self, request: admin_pb2.ListOriginsRequest, _: Call) -> admin_pb2.ListOriginsResponse:
        """Say what made entries."""
        found = (self._state.entries.get(entry_id) for entry_id in batch(request.entry_ids, MAX_IDS))
        return admin_pb2.ListOriginsResponse(
            origins=[
                admin_pb2.EntryOrigin(
                    entry_id=entry.id, origin=entry.origin, kept=entry.origin.startswith(self._state.registers)
                )
                for entry in found
                if entry is not None and entry.origin
            ]
        )
