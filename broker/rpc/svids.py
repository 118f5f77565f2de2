# SPDX-License-Identifier: Apache-2.0
"""SPIRE's SVID service: what workloads behind an agent need, and minting for administrators."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from firedoor.broker.entry import check_dns_names, check_workload_id
from firedoor.broker.errors import BrokerError, InvalidRequest
from firedoor.broker.issuing import (
    AuthorizedIssuance,
    Order,
    authorize_mint,
    authorize_workload,
    read_csr,
    read_named_csr,
)
from firedoor.broker.messages import svid_message, token_message
from firedoor.broker.rpc.listing import batch
from firedoor.broker.rpc.status import OK, status_of
from firedoor.broker.rpc.wit_svids import MAX_BATCH, WitSvids, read_minted_id, read_ttl
from firedoor.broker.tokens import authorize_minted_token, authorize_token, read_audience
from firedoor.certs import JwtSvid, SpiffeId, SpiffeIdError, TrustDomain, X509Svid
from firedoor.wire import svid_pb2

if TYPE_CHECKING:
    from firedoor.broker.issuing import Signer
    from firedoor.broker.limits import Limits
    from firedoor.broker.metrics import Metrics
    from firedoor.broker.policy import PolicyKeeper
    from firedoor.broker.rpc.downstream import Downstream
    from firedoor.broker.rpc.gate import Call
    from firedoor.broker.state import State
    from firedoor.broker.tokens import TokenSigner, WitSigner

_Result = svid_pb2.BatchNewX509SVIDResponse.Result


@dataclass(frozen=True, slots=True)
class Ttls:
    """How long SVIDs live that nothing says more about, in seconds."""

    x509: int
    jwt: int


class SvidService:
    """`spire.api.server.svid.v1.SVID`."""

    def __init__(
        self,
        state: State,
        policy: PolicyKeeper,
        signer: Signer,
        tokens: TokenSigner,
        wits: WitSigner,
        limits: Limits,
        metrics: Metrics,
        ttls: Ttls,
        downstream: Downstream,
    ) -> None:
        self._state, self._policy, self._signer, self._tokens = state, policy, signer, tokens
        self._limits, self._metrics, self._ttls = limits, metrics, ttls
        self._downstream = downstream
        self._wits = WitSvids(state, policy, wits, limits, metrics, ttls.x509)

    async def BatchNewX509SVID(
        self, request: svid_pb2.BatchNewX509SVIDRequest, call: Call
    ) -> svid_pb2.BatchNewX509SVIDResponse:
        """Sign SVIDs for entries that the agent is entitled to; each is answered by itself, in the order asked."""
        if not request.params:
            raise InvalidRequest("missing parameters")
        batch(request.params, MAX_BATCH)
        agent_id = call.the_agent().id
        call.audit.update(event="issue", agent_id=str(agent_id))
        self._limits.signing(call.caller, len(request.params))
        await self._state.learn(agent_id, (param.entry_id for param in request.params))
        orders = [self._order(agent_id, param) for param in request.params]
        wanted = [order for order in orders if isinstance(order, Order)]
        made = iter(await self._signer.issue(wanted))
        answers = [next(made) if isinstance(order, Order) else order for order in orders]
        call.audit["each"] = [self._record(*pair) for pair in zip(request.params, answers, strict=True)]
        return svid_pb2.BatchNewX509SVIDResponse(
            results=[self._result(*pair) for pair in zip(request.params, answers, strict=True)]
        )

    def _order(self, agent_id: SpiffeId, param: svid_pb2.NewX509SVIDParams) -> Order | BrokerError:
        def authorize() -> AuthorizedIssuance:
            return authorize_workload(self._state, self._policy, agent_id, param.entry_id, self._ttls.x509)

        try:
            if not param.entry_id:
                raise InvalidRequest("missing entry ID")
            # What is entitled first: an agent pays for its own signatures to be checked, not others for its nonsense.
            proof = authorize()
            return Order(proof, read_csr(param.csr), authorize)
        except BrokerError as error:
            return error

    def _record(self, param: svid_pb2.NewX509SVIDParams, answer: X509Svid | BrokerError) -> dict[str, Any]:
        if isinstance(answer, BrokerError):
            self._metrics.refused.labels(answer.code).inc()
            entry = self._state.entries.get(param.entry_id)
            status = status_of(answer)
            return {
                "entry_id": param.entry_id[:255],
                "spiffe_id": str(entry.spiffe_id) if entry else "",
                "refused": answer.code,
                "status": status.code.name,
                "status_code": status.code.value[0],
                "status_message": status.message,
            }
        return {
            "entry_id": param.entry_id,
            "spiffe_id": str(answer.id),
            "serial": answer.serial,
            "not_after": answer.not_after,
            "authority_id": answer.authority_id,
        }

    def _result(self, param: svid_pb2.NewX509SVIDParams, answer: X509Svid | BrokerError) -> _Result:
        if isinstance(answer, BrokerError):
            return _Result(status=status_of(answer).in_batch())
        entry = self._state.entries.get(param.entry_id)
        return _Result(status=OK.in_batch(), svid=svid_message(answer, entry.hint if entry else ""))

    # --- tokens -------------------------------------------------------------------------------------------------

    async def NewJWTSVID(self, request: svid_pb2.NewJWTSVIDRequest, call: Call) -> svid_pb2.NewJWTSVIDResponse:
        """Sign a JWT-SVID for an entry that the agent is entitled to."""
        agent_id = call.the_agent().id
        call.audit.update(event="issue_jwt", agent_id=str(agent_id), entry_id=request.entry_id[:255])
        if not request.entry_id:
            raise InvalidRequest("missing entry ID")
        audience = read_audience(request.audience)
        self._limits.tokens(call.caller)
        await self._state.learn(agent_id, (request.entry_id,))
        authorize = partial(authorize_token, self._state, self._policy, agent_id, request.entry_id, self._ttls.jwt)
        with self._refusals(call):
            made = await self._tokens.sign(authorize, audience)
        _note(call, made)
        entry = self._state.entries.get(request.entry_id)
        return svid_pb2.NewJWTSVIDResponse(svid=token_message(made, entry.hint if entry else ""))

    # --- minting ------------------------------------------------------------------------------------------------

    async def MintJWTSVID(self, request: svid_pb2.MintJWTSVIDRequest, call: Call) -> svid_pb2.MintJWTSVIDResponse:
        """Sign a JWT-SVID without a workload, where the ID's segment lets that be done."""
        call.audit.update(event="mint_jwt")
        spiffe_id = read_minted_id(request.id, self._state.trust_domain)
        call.audit.update(spiffe_id=str(spiffe_id))
        audience, ttl = read_audience(request.audience), read_ttl(request.ttl, self._ttls.jwt)
        self._limits.tokens(call.caller)
        with self._refusals(call):
            authorize = partial(authorize_minted_token, self._state, self._policy, spiffe_id, ttl)
            made = await self._tokens.sign(authorize, audience)
        _note(call, made)
        return svid_pb2.MintJWTSVIDResponse(svid=token_message(made))

    async def MintX509SVID(self, request: svid_pb2.MintX509SVIDRequest, call: Call) -> svid_pb2.MintX509SVIDResponse:
        """Sign an X.509-SVID without a workload, for the ID that the CSR names."""
        call.audit.update(event="mint")
        csr, ttl = read_named_csr(request.csr), read_ttl(request.ttl, self._ttls.x509)
        spiffe_id, dns_names = _asked_id(csr.uris, self._state.trust_domain), check_dns_names(csr.dns_names)
        call.audit.update(spiffe_id=str(spiffe_id))
        self._limits.signing(call.caller, 1)

        def authorize() -> AuthorizedIssuance:
            return authorize_mint(self._state, self._policy, spiffe_id, ttl, dns_names)

        with self._refusals(call):
            (made,) = await self._signer.issue([Order(authorize(), csr.key, authorize)])
            if isinstance(made, BrokerError):
                raise made
        call.audit.update(serial=made.serial, not_after=made.not_after, authority_id=made.authority_id)
        return svid_pb2.MintX509SVIDResponse(svid=svid_message(made))

    # --- authorities below us -----------------------------------------------------------------------------------

    async def NewDownstreamX509CA(
        self, request: svid_pb2.NewDownstreamX509CARequest, call: Call
    ) -> svid_pb2.NewDownstreamX509CAResponse:
        """Sign a CA for an authority below us."""
        with self._refusals(call):
            return await self._downstream.new_ca(request, call)

    # --- WIT-SVIDs ----------------------------------------------------------------------------------------------

    async def BatchNewWITSVID(
        self, request: svid_pb2.BatchNewWITSVIDRequest, call: Call
    ) -> svid_pb2.BatchNewWITSVIDResponse:
        """Sign WIT-SVIDs for entries that the agent is entitled to."""
        return await self._wits.batch(request, call)

    async def MintWITSVID(self, request: svid_pb2.MintWITSVIDRequest, call: Call) -> svid_pb2.MintWITSVIDResponse:
        """Sign a WIT-SVID without a workload, where the ID's segment lets that be done."""
        return await self._wits.mint(request, call)

    @contextlib.contextmanager
    def _refusals(self, call: Call) -> Iterator[None]:
        """Count a refusal and note its code."""
        try:
            yield
        except BrokerError as error:
            self._metrics.refused.labels(error.code).inc()
            call.audit["refused"] = error.code
            raise


def _note(call: Call, made: JwtSvid) -> None:
    """Keep what tells a token from others, and nothing that can be used as one."""
    call.audit.update(
        spiffe_id=str(made.id),
        audience=list(made.audience),
        jti=made.token_id,
        authority_id=made.key_id,
        not_after=made.expires_at,
    )


def _asked_id(uris: tuple[str, ...], trust_domain: TrustDomain) -> SpiffeId:
    if not uris:
        raise InvalidRequest("CSR URI SAN is required")
    if len(uris) > 1:
        raise InvalidRequest("only one URI SAN is expected")
    try:
        return check_workload_id(SpiffeId.parse(uris[0]), trust_domain)
    except (SpiffeIdError, InvalidRequest) as error:
        raise InvalidRequest(f"CSR URI SAN is invalid: {error}") from None
