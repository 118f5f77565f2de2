# SPDX-License-Identifier: Apache-2.0
"""SPIRE's SVID service, as far as workloads behind an agent need it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from firedoor.broker.errors import BrokerError, InvalidRequest
from firedoor.broker.issuing import AuthorizedIssuance, Order, authorize_workload, read_csr
from firedoor.broker.messages import svid_message
from firedoor.broker.rpc.status import OK, status_of
from firedoor.certs import SpiffeId, X509Svid
from firedoor.wire import svid_pb2

if TYPE_CHECKING:
    from firedoor.broker.issuing import Signer
    from firedoor.broker.limits import Limits
    from firedoor.broker.metrics import Metrics
    from firedoor.broker.policy import PolicyKeeper
    from firedoor.broker.rpc.gate import Call
    from firedoor.broker.state import State

# SPIRE's agents send 500 at most.
MAX_BATCH: Final = 1000
_Result = svid_pb2.BatchNewX509SVIDResponse.Result


class SvidService:
    """`spire.api.server.svid.v1.SVID`."""

    def __init__(
        self, state: State, policy: PolicyKeeper, signer: Signer, limits: Limits, metrics: Metrics, default_ttl: int
    ) -> None:
        self._state, self._policy, self._signer = state, policy, signer
        self._limits, self._metrics, self._default_ttl = limits, metrics, default_ttl

    async def BatchNewX509SVID(
        self, request: svid_pb2.BatchNewX509SVIDRequest, call: Call
    ) -> svid_pb2.BatchNewX509SVIDResponse:
        """Sign SVIDs for entries that the agent is entitled to; each is answered by itself, in the order asked."""
        if not request.params:
            raise InvalidRequest("missing parameters")
        if len(request.params) > MAX_BATCH:
            raise InvalidRequest(f"a batch has at most {MAX_BATCH} items")
        agent_id = call.the_agent().id
        call.audit.update(event="issue", agent_id=str(agent_id))
        self._limits.signing(call.caller, len(request.params))
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
            return authorize_workload(self._state, self._policy, agent_id, param.entry_id, self._default_ttl)

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
