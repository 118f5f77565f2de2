# SPDX-License-Identifier: Apache-2.0
"""SPIRE's LocalAuthority service: forced rotation of the broker's own authorities, WIT ones too.

A rotation that loses nobody: prepare, wait until everybody has the new bundle, activate, wait until every SVID is
signed by it, taint, then revoke. Each step is refused unless the one before was done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from firedoor.broker.authority_kinds import upstream_id
from firedoor.certs import Authority, JwtKey, Status
from firedoor.wire import localauthority_pb2 as pb

if TYPE_CHECKING:
    from firedoor.broker.authority import Manager
    from firedoor.broker.authority_kinds import AuthorityManager, JwtAuthorityManager, WitAuthorityManager
    from firedoor.broker.rpc.gate import Call

# What SPIRE's "old" stands for: whoever signed before, until the next one takes its place.
_OLD = (Status.OLD, Status.TAINTED, Status.REVOKED)


class LocalAuthorityService:
    """`spire.api.server.localauthority.v1.LocalAuthority`."""

    def __init__(self, x509: AuthorityManager, jwt: JwtAuthorityManager, wit: WitAuthorityManager) -> None:
        self._x509, self._jwt, self._wit = x509, jwt, wit

    # --- X.509 --------------------------------------------------------------------------------------------------

    async def GetX509AuthorityState(
        self, _request: pb.GetX509AuthorityStateRequest, _: Call
    ) -> pb.GetX509AuthorityStateResponse:
        """Show the authorities as they stand."""
        return pb.GetX509AuthorityStateResponse(**_states(self._x509))

    async def PrepareX509Authority(
        self, _request: pb.PrepareX509AuthorityRequest, _: Call
    ) -> pb.PrepareX509AuthorityResponse:
        """Make the next authority and put it into the bundle."""
        return pb.PrepareX509AuthorityResponse(prepared_authority=_state(await self._x509.prepare()))

    async def ActivateX509Authority(
        self, request: pb.ActivateX509AuthorityRequest, call: Call
    ) -> pb.ActivateX509AuthorityResponse:
        """Let the prepared authority sign."""
        made = await self._x509.activate(_named(request, call))
        return pb.ActivateX509AuthorityResponse(activated_authority=_state(made))

    async def TaintX509Authority(
        self, request: pb.TaintX509AuthorityRequest, call: Call
    ) -> pb.TaintX509AuthorityResponse:
        """Have everybody replace what the old authority signed."""
        made = await self._x509.taint(_named(request, call))
        return pb.TaintX509AuthorityResponse(tainted_authority=_state(made))

    async def RevokeX509Authority(
        self, request: pb.RevokeX509AuthorityRequest, call: Call
    ) -> pb.RevokeX509AuthorityResponse:
        """Take the tainted authority out of the bundle."""
        made = await self._x509.revoke(_named(request, call))
        return pb.RevokeX509AuthorityResponse(revoked_authority=_name(made))

    async def TaintX509UpstreamAuthority(
        self, request: pb.TaintX509UpstreamAuthorityRequest, call: Call
    ) -> pb.TaintX509UpstreamAuthorityResponse:
        """Have everybody replace what is below a root upstream, that of the present authority excepted."""
        call.audit["authority_id"] = request.subject_key_id[:255]
        await self._x509.taint_upstream(request.subject_key_id)
        return pb.TaintX509UpstreamAuthorityResponse(upstream_authority_subject_key_id=request.subject_key_id)

    async def RevokeX509UpstreamAuthority(
        self, request: pb.RevokeX509UpstreamAuthorityRequest, call: Call
    ) -> pb.RevokeX509UpstreamAuthorityResponse:
        """Take a tainted root upstream out of the bundle."""
        call.audit["authority_id"] = request.subject_key_id[:255]
        await self._x509.revoke_upstream(request.subject_key_id)
        return pb.RevokeX509UpstreamAuthorityResponse(upstream_authority_subject_key_id=request.subject_key_id)

    # --- JWT ----------------------------------------------------------------------------------------------------

    async def GetJWTAuthorityState(
        self, _request: pb.GetJWTAuthorityStateRequest, _: Call
    ) -> pb.GetJWTAuthorityStateResponse:
        """Show the authorities as they stand."""
        return pb.GetJWTAuthorityStateResponse(**_states(self._jwt))

    async def PrepareJWTAuthority(
        self, _request: pb.PrepareJWTAuthorityRequest, _: Call
    ) -> pb.PrepareJWTAuthorityResponse:
        """Make the next authority and put it into the bundle."""
        return pb.PrepareJWTAuthorityResponse(prepared_authority=_state(await self._jwt.prepare()))

    async def ActivateJWTAuthority(
        self, request: pb.ActivateJWTAuthorityRequest, call: Call
    ) -> pb.ActivateJWTAuthorityResponse:
        """Let the prepared authority sign."""
        made = await self._jwt.activate(_named(request, call))
        return pb.ActivateJWTAuthorityResponse(activated_authority=_state(made))

    async def TaintJWTAuthority(self, request: pb.TaintJWTAuthorityRequest, call: Call) -> pb.TaintJWTAuthorityResponse:
        """Have everybody replace what the old authority signed."""
        made = await self._jwt.taint(_named(request, call))
        return pb.TaintJWTAuthorityResponse(tainted_authority=_name(made))

    async def RevokeJWTAuthority(
        self, request: pb.RevokeJWTAuthorityRequest, call: Call
    ) -> pb.RevokeJWTAuthorityResponse:
        """Take the tainted key out of the bundle."""
        made = await self._jwt.revoke(_named(request, call))
        return pb.RevokeJWTAuthorityResponse(revoked_authority=_name(made))

    # --- WIT ----------------------------------------------------------------------------------------------------

    async def GetWITAuthorityState(
        self, _request: pb.GetWITAuthorityStateRequest, _: Call
    ) -> pb.GetWITAuthorityStateResponse:
        """Show the authorities as they stand."""
        return pb.GetWITAuthorityStateResponse(**_states(self._wit))

    async def PrepareWITAuthority(
        self, _request: pb.PrepareWITAuthorityRequest, _: Call
    ) -> pb.PrepareWITAuthorityResponse:
        """Make the next authority and put it into the bundle."""
        return pb.PrepareWITAuthorityResponse(prepared_authority=_state(await self._wit.prepare()))

    async def ActivateWITAuthority(
        self, request: pb.ActivateWITAuthorityRequest, call: Call
    ) -> pb.ActivateWITAuthorityResponse:
        """Let the prepared authority sign."""
        made = await self._wit.activate(_named(request, call))
        return pb.ActivateWITAuthorityResponse(activated_authority=_state(made))

    async def TaintWITAuthority(self, request: pb.TaintWITAuthorityRequest, call: Call) -> pb.TaintWITAuthorityResponse:
        """Have everybody replace what the old authority signed."""
        made = await self._wit.taint(_named(request, call))
        return pb.TaintWITAuthorityResponse(tainted_authority=_name(made))

    async def RevokeWITAuthority(
        self, request: pb.RevokeWITAuthorityRequest, call: Call
    ) -> pb.RevokeWITAuthorityResponse:
        """Take the tainted key out of the bundle."""
        made = await self._wit.revoke(_named(request, call))
        return pb.RevokeWITAuthorityResponse(revoked_authority=_name(made))


def _named(request: Any, call: Call) -> str:
    call.audit["authority_id"] = request.authority_id[:255]
    return str(request.authority_id)


def _states(manager: Manager[Any]) -> dict[str, pb.AuthorityState]:
    states = {"active": _state(manager.active())}
    other = manager.slots.other
    if other is not None:
        states["old" if other.status in _OLD else "prepared"] = _state(other)
    return states


def _state(authority: Authority) -> pb.AuthorityState:
    return pb.AuthorityState(
        authority_id=authority.authority_id,
        expires_at=authority.not_after,
        upstream_authority_subject_key_id=upstream_id(authority),
    )


def _name(found: Authority | JwtKey) -> pb.AuthorityState:
    return pb.AuthorityState(authority_id=found.authority_id if isinstance(found, Authority) else found.key_id)
