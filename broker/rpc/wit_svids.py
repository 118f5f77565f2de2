# SPDX-License-Identifier: Apache-2.0
"""The part of SPIRE's SVID service that makes WIT-SVIDs: for workloads behind an agent, and for administrators."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from firedoor.broker.entry import MAX_TTL, check_workload_id, parse_spiffe_id
from firedoor.broker.errors import BrokerError, InvalidRequest
from firedoor.broker.messages import wit_message
from firedoor.broker.rpc.listing import batch
from firedoor.broker.rpc.status import OK, status_of
from firedoor.broker.tokens import authorize_minted_token, authorize_wit
from firedoor.certs import SpiffeId, SpiffeIdError, TrustDomain, WitSvid
from firedoor.wire import svid_pb2, types

if TYPE_CHECKING:
    from firedoor.broker.limits import Limits
    from firedoor.broker.metrics import Metrics
    from firedoor.broker.policy import PolicyKeeper
    from firedoor.broker.rpc.gate import Call
    from firedoor.broker.state import State
    from firedoor.broker.tokens import WitSigner

# SPIRE's agents send 500 at most.
MAX_BATCH: Final = 1000
_Result = svid_pb2.BatchNewWITSVIDResponse.Result


class WitSvids:
    """WIT-SVIDs of one broker."""

    def __init__(
        self, state: State, policy: PolicyKeeper, signer: WitSigner, limits: Limits, metrics: Metrics, ttl: int
    ) -> None:
        self._state, self._policy, self._signer = state, policy, signer
        self._limits, self._metrics, self._ttl = limits, metrics, ttl

    async def batch(self, request: svid_pb2.BatchNewWITSVIDRequest, call: Call) -> svid_pb2.BatchNewWITSVIDResponse:
        """Sign for entries that the agent is entitled to; each is answered by itself, and always with a status."""
        if not request.params:
            raise InvalidRequest("missing parameters")
        batch(request.params, MAX_BATCH)
        agent_id = call.the_agent().id
        call.audit.update(event="issue_wit", agent_id=str(agent_id))
        self._limits.wits(call.caller, len(request.params))
        await self._state.learn(agent_id, (param.entry_id for param in request.params))
        if self._signer.by_device:
            made = await asyncio.gather(*(self._answer(agent_id, param) for param in request.params))
        else:
            made = [await self._answer(agent_id, param) for param in request.params]
        call.audit["each"] = [record for _, record in made]
        return svid_pb2.BatchNewWITSVIDResponse(results=[result for result, _ in made])

    async def _answer(self, agent_id: SpiffeId, param: svid_pb2.NewWITSVIDParams) -> tuple[_Result, dict[str, Any]]:
        """Return what one is answered with, and its record."""
        record: dict[str, Any] = {"entry_id": param.entry_id[:255]}
        try:
            made = await self._sign(agent_id, param)
        except BrokerError as error:
            self._metrics.refused.labels(error.code).inc()
            status = status_of(error)
            refused = {"refused": error.code, "status_code": status.code.value[0]}
            return _Result(status=status.in_batch()), {**record, **refused}
        entry = self._state.entries.get(param.entry_id)
        result = _Result(status=OK.in_batch(), svid=wit_message(made, entry.hint if entry else ""))
        return result, {**record, **_kept(made)}

    async def _sign(self, agent_id: SpiffeId, param: svid_pb2.NewWITSVIDParams) -> WitSvid:
        if not param.entry_id:
            raise InvalidRequest("missing entry ID")
        if not param.public_key:
            raise InvalidRequest("missing public key")
        authorize = partial(authorize_wit, self._state, self._policy, agent_id, param.entry_id, self._ttl)
        return await self._signer.sign(authorize, param.public_key, param.signing_algorithm)

    async def mint(self, request: svid_pb2.MintWITSVIDRequest, call: Call) -> svid_pb2.MintWITSVIDResponse:
        """Sign a WIT-SVID without a workload, where the ID's segment lets that be done."""
        call.audit.update(event="mint_wit")
        spiffe_id, ttl = read_minted_id(request.id, self._state.trust_domain), read_ttl(request.ttl, self._ttl)
        call.audit.update(spiffe_id=str(spiffe_id))
        self._limits.wits(call.caller, 1)
        try:
            authorize = partial(authorize_minted_token, self._state, self._policy, spiffe_id, ttl)
            made = await self._signer.sign(authorize, request.public_key, request.signing_algorithm)
        except BrokerError as error:
            self._metrics.refused.labels(error.code).inc()
            call.audit["refused"] = error.code
            raise
        call.audit.update(_kept(made))
        return svid_pb2.MintWITSVIDResponse(svid=wit_message(made))


def read_minted_id(message: types.SPIFFEID, trust_domain: TrustDomain) -> SpiffeId:
    """Read the ID that an administrator asks for. Raise InvalidRequest."""
    try:
        return check_workload_id(parse_spiffe_id(message), trust_domain)
    except (SpiffeIdError, InvalidRequest) as error:
        raise InvalidRequest(f"invalid SPIFFE ID: {error}") from None


def read_ttl(asked: int, default: int) -> int:
    """Read a life in seconds, 0 for the default. Raise InvalidRequest."""
    if not 0 <= asked <= MAX_TTL:
        raise InvalidRequest(f"invalid TTL: it is between 0 and {MAX_TTL} seconds")
    return asked or default


def _kept(made: WitSvid) -> dict[str, Any]:
    """Return what the audit log keeps of a token."""
    return {
        "spiffe_id": str(made.id),
        "jti": made.token_id,
        "authority_id": made.key_id,
        "not_after": made.expires_at,
    }
