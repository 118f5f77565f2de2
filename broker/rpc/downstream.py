# SPDX-License-Identifier: Apache-2.0
"""What authorities below us ask for: a CA, keys in our bundle. And what administrators may see of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection

from firedoor.broker.db.intermediate_rows import Holder, Intermediate, holder_of, insert_intermediate
from firedoor.broker.db.rows import Generation, Revoked, insert_issued, put_revocations
from firedoor.broker.db.settled import settled
from firedoor.broker.downstream import authorize_downstream, counting, giving_way, segments_of
from firedoor.broker.downstream_keys import Kind, publish, read_key
from firedoor.broker.errors import NotAdmitted, NotAuthorized, NotFound
from firedoor.broker.issuing import AuthorizedIssuance, read_csr
from firedoor.broker.rpc.wit_svids import read_ttl
from firedoor.certs import NOT_BEFORE_CUSHION, DownstreamCa, SpiffeId, key_hash
from firedoor.wire import admin_pb2, svid_pb2, types

if TYPE_CHECKING:
    from firedoor.broker.issuing import Signer
    from firedoor.broker.limits import Limits
    from firedoor.broker.policy import PolicyKeeper
    from firedoor.broker.rpc.gate import Call
    from firedoor.broker.state import State

# How long a CA is held back for sidecars that have not acknowledged it: what it signs they would refuse until then.
_WAIT_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 0.05
# Digits of a serial number: RFC 5280 section 4.1.2.2 has 20 octets at most.
_MAX_SERIAL: Final = 40

# Returns the agents that have not acknowledged a generation.
Missing = Callable[[Generation], list[SpiffeId]]


class Downstream:
    """What authorities below us call, of SPIRE's services SVID and Bundle."""

    def __init__(
        self, state: State, policy: PolicyKeeper, signer: Signer, limits: Limits, ca_ttl: int, missing: Missing
    ) -> None:
        self._state, self._policy, self._signer, self._limits = state, policy, signer, limits
        self._ca_ttl, self._missing = ca_ttl, missing
        # Held from the count to the commit, so that many at once are no more than one after the other.
        self._counting = asyncio.Lock()

    async def new_ca(
        self, request: svid_pb2.NewDownstreamX509CARequest, call: Call
    ) -> svid_pb2.NewDownstreamX509CAResponse:
        """Sign a CA. It is on the sidecars' lists, as far as they answer soon, before it is handed out."""
        call.audit.update(event="issue_downstream_ca")
        self._limits.signing(call.caller, 1)
        ttl = min(read_ttl(request.preferred_ttl, self._ca_ttl), self._ca_ttl)
        key = read_csr(request.csr)
        holder = await self._holder(call)
        self._limits.downstream(holder.entry_id)
        agent_id, key_sha256 = SpiffeId.parse(holder.agent_id), key_hash(key)
        call.audit.update(agent_id=str(agent_id), entry_id=holder.entry_id, key_sha256=key_sha256)

        def authorize() -> AuthorizedIssuance:
            return authorize_downstream(self._state, self._policy, agent_id, holder.entry_id, ttl)

        proof = authorize()
        if self._is_revoked(key_sha256):
            raise NotAdmitted("a CA with this key is revoked; ask with another key")
        made = await self._signer.sign_ca(proof, key)
        call.audit.update(serial=made.serial, not_after=made.not_after, authority_id=made.authority_id)
        await self._commit(proof, made, key_sha256)
        if authorize() != proof or self._is_revoked(key_sha256):
            raise NotAdmitted("the entry changed, or its key was revoked, while the CA was signed; ask again")
        await self._pushed(self._state.generation)
        roots = self._state.bundles[self._state.trust_domain].x509_roots
        return svid_pb2.NewDownstreamX509CAResponse(
            ca_cert_chain=made.chain, x509_authorities=[root.der for root in roots]
        )

    async def publish(self, kind: Kind, given: types.JWTKey | types.WITKey, call: Call) -> None:
        """Put a key for tokens into our bundle. Raise what asking for a CA raises, or AlreadyExists."""
        call.audit.update(event="publish_downstream_key", kind=kind, authority_id=given.key_id[:255])
        self._limits.publishing(call.caller)
        key = read_key(self._state, kind, given, self._ca_ttl)
        holder = await self._holder(call)
        self._limits.downstream(holder.entry_id)
        call.audit.update(agent_id=holder.agent_id, entry_id=holder.entry_id, not_after=key.expires_at)
        authorize_downstream(self._state, self._policy, SpiffeId.parse(holder.agent_id), holder.entry_id, self._ca_ttl)
        call.audit["gave_way"] = await publish(self._state, kind, key, holder)
        await self._pushed(self._state.generation)

    async def _holder(self, call: Call) -> Holder:
        """Say through which entry and agent the caller has its SVID. Raise NotAuthorized.

        By the serial number: an SVID that we did not issue through an entry, or that somebody below us made up, opens
        nothing, whatever ID it has.
        """
        serial = call.caller.serial or ""
        found = await self._state.database.read(lambda connection: holder_of(connection, serial))
        if found is None or not found.entry_id or not found.agent_id:
            raise NotAuthorized(f"authorization denied for method {call.method}")
        return found

    def _is_revoked(self, key_sha256: str) -> bool:
        return any(
            one.key_sha256 == key_sha256 and ("serial", serial) in self._state.revocations
            for serial, one in self._state.intermediates.items()
        )

    async def _commit(self, proof: AuthorizedIssuance, made: DownstreamCa, key_sha256: str) -> None:
        issued_at = made.not_before + NOT_BEFORE_CUSHION
        one = Intermediate(made.serial, key_sha256, proof.entry_id, made.authority_id, issued_at, made.not_after)
        row = self._signer.issued_row(proof, made)

        async def attempt() -> None:
            basis = self._state.database.basis("intermediates", "entries")
            dropped = giving_way(self._state, proof.entry_id)

            def run(connection: Connection) -> None:
                insert_issued(connection, [row])
                insert_intermediate(connection, one, dropped)

            await self._state.change(run, lambda _: self._state.put_intermediate(one, dropped), basis=basis)

        async with self._counting:
            await settled(attempt)

    async def _pushed(self, generation: Generation) -> None:
        """Wait until every sidecar that listens has this generation, or a few seconds."""
        for _ in range(round(_WAIT_SECONDS / _LOOK_SECONDS)):
            if not self._missing(generation):
                return
            await asyncio.sleep(_LOOK_SECONDS)


class DownstreamAdminService:
    """`firedoor.admin.v1.DownstreamAdmin`: what was given out, and taking it back."""

    def __init__(self, state: State, policy: PolicyKeeper) -> None:
        self._state, self._policy = state, policy

    async def ListDownstreams(
        self, _request: admin_pb2.ListDownstreamsRequest, _: Call
    ) -> admin_pb2.ListDownstreamsResponse:
        """Show every downstream entry, its segments and the CAs that count."""
        policy, cas = self._policy.current.policy, sorted(counting(self._state), key=lambda one: one.issued_at)
        entries = sorted((entry for entry in self._state.entries if entry.downstream), key=lambda entry: entry.id)
        return admin_pb2.ListDownstreamsResponse(
            downstreams=[
                admin_pb2.Downstream(
                    entry_id=entry.id,
                    spiffe_id=str(entry.spiffe_id),
                    segments=sorted(segments_of(entry, policy)),
                    authorities=[_shown(one) for one in cas if one.entry_id == entry.id],
                    token_keys=[one.key_id for one in self._state.downstream_keys.values() if one.entry_id == entry.id],
                )
                for entry in entries
            ]
        )

    async def RevokeDownstreamCa(
        self, request: admin_pb2.RevokeDownstreamCaRequest, call: Call
    ) -> admin_pb2.RevokeDownstreamCaResponse:
        """Revoke one CA, with every other of its key: verifiers know CAs by their keys."""
        serial = request.serial.lower().lstrip("0")
        call.audit.update(event="revoke_downstream_ca", serial=serial[:_MAX_SERIAL])
        named = next((one for one in counting(self._state) if one.entry_id and one.serial == serial), None)
        if named is None:
            raise NotFound("no CA that was given out, and counts, has this serial number")
        call.audit.update(entry_id=named.entry_id, key_sha256=named.key_sha256)
        same = [one for one in self._state.intermediates.values() if one.key_sha256 == named.key_sha256]
        made = [Revoked("serial", one.serial, 0, "downstream_ca_revoked", one.not_after) for one in same]
        await self._state.change(lambda connection: put_revocations(connection, made), self._state.revoked)
        return admin_pb2.RevokeDownstreamCaResponse(entry_id=named.entry_id, revoked=map(_shown, same))


def _shown(one: Intermediate) -> admin_pb2.DownstreamCa:
    return admin_pb2.DownstreamCa(
        key_sha256=one.key_sha256, serial=one.serial, authority_id=one.authority_id, not_after=one.not_after
    )
