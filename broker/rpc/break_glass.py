# SPDX-License-Identifier: Apache-2.0
"""Our BreakGlass service. Who calls is a SPIFFE ID: the rows of the matrix have no local caller."""

from __future__ import annotations

from typing import TYPE_CHECKING

from firedoor.broker.breakglass import state_of
from firedoor.broker.db.grant_rows import Grant
from firedoor.broker.errors import NotAuthorized
from firedoor.broker.issuing import read_csr
from firedoor.certs import SpiffeId
from firedoor.wire import admin_pb2

if TYPE_CHECKING:
    from firedoor.broker.breakglass import BreakGlass
    from firedoor.broker.clock import Clock
    from firedoor.broker.rpc.gate import Call


class BreakGlassService:
    """`firedoor.admin.v1.BreakGlass`."""

    def __init__(self, grants: BreakGlass, clock: Clock) -> None:
        self._grants, self._clock = grants, clock

    async def RequestAccess(self, request: admin_pb2.RequestAccessRequest, call: Call) -> admin_pb2.Grant:
        """Ask for access."""
        call.audit.update(event="breakglass_request", reason=request.reason[:1024], ttl=request.ttl)
        made = await self._grants.request(_caller(call), request.reason, request.ttl, request.segment)
        return self._noted(made, call)

    async def ApproveAccess(self, request: admin_pb2.ApproveAccessRequest, call: Call) -> admin_pb2.Grant:
        """Approve what somebody else asked for."""
        call.audit.update(event="breakglass_approve", grant=request.id[:64])
        return self._noted(await self._grants.approve(_caller(call), request.id), call)

    async def TakeAccess(self, request: admin_pb2.TakeAccessRequest, call: Call) -> admin_pb2.TakeAccessResponse:
        """Give whoever asked an SVID."""
        call.audit.update(event="breakglass_take", grant=request.id[:64], alert=True)
        done, svid = await self._grants.take(_caller(call), request.id, read_csr(request.csr))
        call.audit.update(spiffe_id=str(svid.id), not_after=svid.not_after, authority_id=svid.authority_id)
        return admin_pb2.TakeAccessResponse(
            grant=self._noted(done, call), spiffe_id=str(svid.id), cert_chain=svid.chain
        )

    async def EndAccess(self, request: admin_pb2.EndAccessRequest, call: Call) -> admin_pb2.Grant:
        """End a grant."""
        call.audit.update(event="breakglass_end", grant=request.id[:64])
        return self._noted(await self._grants.end(str(_caller(call)), request.id), call)

    async def ListAccess(self, _request: admin_pb2.ListAccessRequest, _: Call) -> admin_pb2.ListAccessResponse:
        """Show all."""
        return admin_pb2.ListAccessResponse(grants=[self._message(one) for one in await self._grants.list()])

    def _noted(self, grant: Grant, call: Call) -> admin_pb2.Grant:
        call.audit.update(grant=grant.id, segment=grant.segment, requester=grant.requester, approver=grant.approver)
        if grant.serial:
            call.audit["serial"] = grant.serial
        return self._message(grant)

    def _message(self, grant: Grant) -> admin_pb2.Grant:
        values = {name: getattr(grant, name) for name in Grant.__slots__}
        return admin_pb2.Grant(state=state_of(grant, self._clock.now()), **values)


def _caller(call: Call) -> SpiffeId:
    if call.caller.spiffe_id is None:
        raise NotAuthorized(f"authorization denied for method {call.method}")
    return SpiffeId.parse(call.caller.spiffe_id)
