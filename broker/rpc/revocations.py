# SPDX-License-Identifier: Apache-2.0
"""Our RevocationAdmin service: end certificates before their time, and show which were."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from firedoor.broker.entry import is_agent
from firedoor.broker.errors import InvalidRequest, NotFound
from firedoor.broker.revoking import Found, Target, look, members, revoke
from firedoor.broker.rpc.promotion import check_entries
from firedoor.broker.views import crl_message, generation_message, revocation_message
from firedoor.certs import CertsError, IdPattern, SpiffeId
from firedoor.wire import admin_pb2

if TYPE_CHECKING:
    from firedoor.broker.db.rows import Revoked
    from firedoor.broker.policy import PolicyKeeper
    from firedoor.broker.rpc.gate import Call
    from firedoor.broker.state import State

# RFC 5280, 4.1.2.2: a serial number has at most 20 octets.
_MAX_SERIAL: Final = 40
_MAX_REASON: Final = 1024


class RevocationAdminService:
    """`firedoor.admin.v1.RevocationAdmin`."""

    def __init__(self, state: State, policy: PolicyKeeper) -> None:
        self._state, self._policy = state, policy

    async def ListRevocations(
        self, _request: admin_pb2.ListRevocationsRequest, _: Call
    ) -> admin_pb2.ListRevocationsResponse:
        """Show what is revoked and could still be valid."""
        found = sorted(self._state.revocations.values(), key=lambda one: (one.kind, one.value))
        return admin_pb2.ListRevocationsResponse(revocations=map(_shown, found))

    async def RevokeSvids(self, request: admin_pb2.RevokeSvidsRequest, call: Call) -> admin_pb2.RevokeSvidsResponse:
        """Revoke what lives of one target, or say what that would end."""
        kind = request.WhichOneof("target") or ""
        call.audit.update(event="revoke", dry_run=request.dry_run, delete_entries=request.delete_entries)
        call.audit.update(reason=request.reason[:_MAX_REASON], target=f"{kind} {getattr(request, kind, '')}"[:2100])
        if len(request.reason) > _MAX_REASON:
            raise InvalidRequest(f"the reason is longer than {_MAX_REASON} characters")
        target = self._target(request, kind)
        found = await look(self._state, target)
        if request.delete_entries:
            check_entries(self._state, call, found.entries)
        if not request.dry_run:
            made = await revoke(self._state, target, entries=found.entries, delete=request.delete_entries)
            found = replace(found, revocations=tuple(made))
        call.audit.update(svids=found.svids, entries=len(found.entries), generation=str(self._state.generation))
        return self._answer(found, request)

    async def ListCrls(self, _request: admin_pb2.ListCrlsRequest, _: Call) -> admin_pb2.ListCrlsResponse:
        """Show the revocation lists that sidecars hand on."""
        found = self._state.vouched_crls()
        return admin_pb2.ListCrlsResponse(
            crls=[admin_pb2.SignedCrl(crl=crl_message(one), left_out=one.left_out) for one in found]
        )

    def _target(self, request: admin_pb2.RevokeSvidsRequest, kind: str) -> Target:
        own = self._state.trust_domain
        try:
            match kind:
                case "spiffe_id":
                    patterns = members([IdPattern.parse(request.spiffe_id, own)], self._state)
                    if not patterns:
                        raise InvalidRequest(f"{request.spiffe_id} is not of {own}: its own issuer revokes it")
                    return Target(patterns)
                case "segment":
                    return Target(self._members(request.segment))
                case "agent_id":
                    return Target(agent_id=self._agent(request.agent_id))
                case "serial":
                    return Target(serial=_serial(request.serial))
        except CertsError as error:
            raise InvalidRequest(f"{getattr(request, kind)!r} cannot be read: {error}") from None
        raise InvalidRequest("say what is to be revoked: an ID, a segment, an agent or a serial number")

    def _members(self, name: str) -> tuple[IdPattern, ...]:
        policy = self._policy.current.policy
        segment = policy.segment(name) if policy else None
        if segment is None:
            raise NotFound(f"there is no segment {name[:64]!r}")
        patterns = members(segment.members, self._state)
        if segment.fallback or not patterns:
            raise InvalidRequest(f"segment {name} has no member patterns of {self._state.trust_domain}: name IDs")
        return patterns

    def _agent(self, text: str) -> SpiffeId:
        agent_id = SpiffeId.parse(text)
        if agent_id.trust_domain != self._state.trust_domain or not is_agent(agent_id):
            raise InvalidRequest(f"{text} is no agent of {self._state.trust_domain}")
        return agent_id

    def _answer(self, found: Found, request: admin_pb2.RevokeSvidsRequest) -> admin_pb2.RevokeSvidsResponse:
        return admin_pb2.RevokeSvidsResponse(
            generation=generation_message(self._state.generation),
            revocations=map(_shown, found.revocations),
            svids=found.svids,
            entries=[
                admin_pb2.RevokedEntry(
                    entry_id=entry.id, spiffe_id=str(entry.spiffe_id), deleted=request.delete_entries
                )
                for entry in found.entries
            ],
        )


def _serial(text: str) -> str:
    found = text.lower().lstrip("0")
    if not found or len(found) > _MAX_SERIAL or set(found) - set("0123456789abcdef"):
        raise InvalidRequest("the serial number is not in hex")
    return found


def _shown(revoked: Revoked) -> admin_pb2.RevocationInForce:
    return admin_pb2.RevocationInForce(revocation=revocation_message(revoked), expires_at=revoked.expires_at)
