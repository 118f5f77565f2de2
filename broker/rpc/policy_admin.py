# SPDX-License-Identifier: Apache-2.0
"""Our PolicyAdmin service: show the segments and flows in force, and replace them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from firedoor.broker.db.rows import Generation
from firedoor.broker.rpc.listing import page
from firedoor.broker.views import generation_message
from firedoor.segments import Change, Document
from firedoor.wire import admin_pb2, policy_pb2

if TYPE_CHECKING:
    from firedoor.broker.kubernetes.directory import ClusterDirectory
    from firedoor.broker.policy import PolicyKeeper
    from firedoor.broker.push import Pusher
    from firedoor.broker.rpc.gate import Call
    from firedoor.broker.state import State

_KINDS: Final = {
    "added": admin_pb2.Change.KIND_ADDED,
    "changed": admin_pb2.Change.KIND_CHANGED,
    "removed": admin_pb2.Change.KIND_REMOVED,
}


class PolicyAdminService:
    """`firedoor.admin.v1.PolicyAdmin`."""

    def __init__(
        self,
        state: State,
        policy: PolicyKeeper,
        pusher: Pusher,
        cluster: Callable[[], ClusterDirectory | None],
    ) -> None:
        self._state, self._policy, self._pusher, self._cluster = state, policy, pusher, cluster

    async def GetPolicy(self, _request: admin_pb2.GetPolicyRequest, _: Call) -> admin_pb2.GetPolicyResponse:
        """Show the documents and the table in force."""
        current = self._policy.current
        return admin_pb2.GetPolicyResponse(
            generation=generation_message(self._state.generation),
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
        call.audit["before"] = _fingerprint(self._policy)
        changes, warnings = await self._policy.apply(
            documents, dry_run=request.dry_run, if_generation=expected, now=request.now
        )
        call.audit["changes"] = [f"{change.kind} {change.name} {change.op}" for change in changes]
        call.audit["after"] = _fingerprint(self._policy)
        call.audit["generation"] = str(self._state.generation)
        return admin_pb2.ApplyPolicyResponse(
            generation=generation_message(self._state.generation),
            changes=[_change(c) for c in changes],
            warnings=warnings,
        )

    async def ListServices(self, request: admin_pb2.ListServicesRequest, _: Call) -> admin_pb2.ListServicesResponse:
        """Show the directory, or what has an address."""
        found = {
            service.name: admin_pb2.DirectoryService(service=service, source=source)
            for service, source in self._services()
            if not request.address or request.address in service.addresses
        }
        names, token = page(found, lambda name: name, request.page_size, request.page_token)
        cluster, left_out = self._cluster(), len(self._pusher.directory.left_out)
        trouble = cluster.trouble() if cluster is not None else []
        if left_out:
            trouble.append(f"{left_out} services are left out: sidecars take no more")
        return admin_pb2.ListServicesResponse(
            generation=generation_message(self._state.generation),
            services=[found[name] for name in names],
            next_page_token=token,
            trouble=trouble,
        )

    def _services(self) -> Iterator[tuple[policy_pb2.Service, str]]:
        yield from self._pusher.directory.services()
        for service in self._policy.current.table.services:
            yield service, "policy"


def _fingerprint(policy: PolicyKeeper) -> str:
    """Return what stands for the policy in force in the audit log: the SHA-256 of its decision table."""
    return hashlib.sha256(policy.current.table.SerializeToString(deterministic=True)).hexdigest()


def _change(change: Change) -> admin_pb2.Change:
    return admin_pb2.Change(kind=_KINDS[change.op], object=change.kind, name=change.name, diff=change.text)
