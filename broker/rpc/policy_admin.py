# SPDX-License-Identifier: Apache-2.0
"""Our PolicyAdmin service: show the segments and flows in force, and replace them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from firedoor.broker.db.rows import Generation
from firedoor.segments import Change, Document
from firedoor.wire import admin_pb2, control_pb2

if TYPE_CHECKING:
    from firedoor.broker.policy import PolicyKeeper
    from firedoor.broker.rpc.gate import Call
    from firedoor.broker.state import State

_KINDS: Final = {
    "added": admin_pb2.Change.KIND_ADDED,
    "changed": admin_pb2.Change.KIND_CHANGED,
    "removed": admin_pb2.Change.KIND_REMOVED,
}


class PolicyAdminService:
    """`firedoor.admin.v1.PolicyAdmin`."""

    def __init__(self, state: State, policy: PolicyKeeper) -> None:
        self._state, self._policy = state, policy

    async def GetPolicy(self, _request: admin_pb2.GetPolicyRequest, _: Call) -> admin_pb2.GetPolicyResponse:
        """Show the documents and the table in force."""
        current = self._policy.current
        return admin_pb2.GetPolicyResponse(
            generation=_generation(self._state.generation),
            source=self._policy.source,
            documents=[admin_pb2.Document(name=d.name, text=d.text) for d in current.documents],
            table=current.table,
        )

    async def ApplyPolicy(self, request: admin_pb2.ApplyPolicyRequest, call: Call) -> admin_pb2.ApplyPolicyResponse:
        """Replace the whole set, or change nothing."""
        expected = None
        if request.HasField("if_generation"):
            expected = Generation(request.if_generation.epoch, request.if_generation.number)
        documents = [Document(document.name, document.text) for document in request.documents]
        call.audit.update(event="apply_policy", dry_run=request.dry_run, now=request.now, documents=len(documents))
        changes, warnings = await self._policy.apply(
            documents, dry_run=request.dry_run, if_generation=expected, now=request.now
        )
        call.audit["changes"] = [f"{change.kind} {change.name} {change.op}" for change in changes]
        call.audit["generation"] = str(self._state.generation)
        return admin_pb2.ApplyPolicyResponse(
            generation=_generation(self._state.generation), changes=[_change(c) for c in changes], warnings=warnings
        )


def _generation(generation: Generation) -> control_pb2.Generation:
    return control_pb2.Generation(epoch=generation.epoch, number=generation.number)


def _change(change: Change) -> admin_pb2.Change:
    return admin_pb2.Change(kind=_KINDS[change.op], object=change.kind, name=change.name, diff=change.text)
