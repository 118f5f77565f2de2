# SPDX-License-Identifier: Apache-2.0
"""SPIRE's Agent service: nodes attest and renew here, administrators watch and cut them off."""

from __future__ import annotations

import asyncio
import contextlib
import re
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection

from firedoor.broker.agent import MAX_VERSION, Agent, join_token_id
from firedoor.broker.attest import MAX_PAYLOAD, MAX_TOKEN, Asked, Attestor, find
from firedoor.broker.audit import digest
from firedoor.broker.db.agent_rows import (
    ban_agent,
    delete_agent,
    insert_token,
    put_agent,
    renew_agent,
    set_agent_version,
)
from firedoor.broker.db.entry_rows import delete_entry, insert_entry
from firedoor.broker.db.rows import Revoked, insert_issued, revoke_issued
from firedoor.broker.entry import Entry, is_agent, is_node_alias, is_reserved, parse_spiffe_id
from firedoor.broker.errors import AgentBanned, InvalidRequest, NotFound, TooSlow
from firedoor.broker.finished import finished
from firedoor.broker.issuing import authorize_attested, authorize_renewal, read_csr
from firedoor.broker.keys.device import DeviceKey
from firedoor.broker.messages import agent_message, svid_message
from firedoor.broker.rpc.listing import filter_selectors, matches, page
from firedoor.broker.rpc.masks import show
from firedoor.broker.rpc.promotion import check_ids
from firedoor.certs import CertsError, Selector, SpiffeId, SpiffeIdError, X509Svid
from firedoor.wire import agent_pb2, types
from firedoor.wire.well_known import Empty

if TYPE_CHECKING:
    from firedoor.broker.attest import AttestedNode
    from firedoor.broker.issuing import Signer
    from firedoor.broker.limits import Limits
    from firedoor.broker.metrics import Metrics
    from firedoor.broker.rpc.gate import Call
    from firedoor.broker.state import State
    from firedoor.certs import SubjectKey

_TOKEN: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
# Seconds that a caller, who may be anybody, has for its first message.
_PATIENCE: Final = 30
# How long a challenge lives. Whoever holds the key signs at once.
_CHALLENGE_SECONDS: Final = 10
# How SPIRE's command line writes `by_expires_before`, Go's "2006-01-02 15:04:05 -0700 -07".
_EXPIRES_BEFORE: Final = "%Y-%m-%d %H:%M:%S %z"


class _Rehearsed(Exception):
    """Undoes a transaction."""


class AgentService:
    """`spire.api.server.agent.v1.Agent`. `cut` closes what an agent has open."""

    def __init__(
        self,
        state: State,
        signer: Signer,
        attestors: Mapping[str, Attestor],
        limits: Limits,
        metrics: Metrics,
        agent_ttl: int,
        cut: Callable[[SpiffeId], None],
    ) -> None:
        self._state, self._signer, self._attestors = state, signer, attestors
        self._limits, self._metrics, self._ttl, self._cut = limits, metrics, agent_ttl, cut

    # --- agents -------------------------------------------------------------------------------------------------

    async def AttestAgent(
        self, requests: AsyncIterator[agent_pb2.AttestAgentRequest], call: Call
    ) -> AsyncIterator[agent_pb2.AttestAgentResponse]:
        """Check a node's evidence and sign its agent SVID."""
        call.audit["event"] = "attest"
        self._limits.attestation(call.caller)
        params = await _params(requests)
        call.audit.update(attestation_type=params.data.type[:64], payload_hash=digest(params.data.payload))
        try:
            attestor, key = self._read(params)
            with self._limits.attesting(call.caller):
                step = await attestor.attest(params.data.payload, self._state.clock.now())
                while isinstance(step, Asked):
                    call.asking = True
                    yield agent_pb2.AttestAgentResponse(challenge=step.challenge)
                    call.asking = False
                    step = await step.answer(await _answer(requests))
            agent, svid = await finished(self._attested(step, key, call))
        except Exception:
            # A type that nobody configured must not make a time series of its own.
            self._metrics.attested.labels(
                params.data.type if params.data.type in self._attestors else "", "refused"
            ).inc()
            raise
        self._metrics.attested.labels(agent.attestation_type, "attested").inc()
        yield agent_pb2.AttestAgentResponse(
            result=agent_pb2.AttestAgentResponse.Result(svid=svid_message(svid), reattestable=agent.can_reattest)
        )

    def _read(self, params: agent_pb2.AttestAgentRequest.Params) -> tuple[Attestor, SubjectKey]:
        """Return what checks the evidence, and the key that asks for a certificate. Raise CallerError."""
        if not params.HasField("data"):
            raise InvalidRequest("malformed param: missing attestation data")
        if not params.data.type:
            raise InvalidRequest("malformed param: missing attestation data type")
        if not params.HasField("params"):
            raise InvalidRequest("malformed param: missing X509-SVID parameters")
        if len(params.data.payload) > MAX_PAYLOAD:
            raise InvalidRequest("malformed param: the attestation payload is too long")
        return find(self._attestors, params.data.type), read_csr(params.params.csr)

    async def _attested(self, node: AttestedNode, key: SubjectKey, call: Call) -> tuple[Agent, X509Svid]:
        present = self._state.agents.get(node.agent_id)
        if present is not None and present.banned:
            raise AgentBanned("failed to attest: agent is banned")
        agent, svid = await self._admit(node, key)
        call.audit.update(agent_id=str(agent.id), serial=agent.serial, not_after=agent.not_after)
        return agent, svid

    async def _admit(self, node: AttestedNode, key: SubjectKey) -> tuple[Agent, X509Svid]:
        """Use the evidence up, sign, and write the agent, all in one transaction."""
        pen = self._signer.pen()
        proof = authorize_attested(node, self._ttl, pen.at)
        ready: X509Svid | None = None
        if isinstance(pen.issuer.key, DeviceKey):
            # Nobody else's transaction waits for a device; and it signs nothing for evidence that is used up.
            await self._rehearse(node)
            ready = await self._signer.sign(proof, key, pen)

        def run(connection: Connection) -> tuple[Agent, X509Svid, bool]:
            node.use_up(connection)
            svid = ready or pen.sign(proof, key)
            agent = Agent(
                id=node.agent_id,
                attestation_type=node.attestation_type,
                serial=_decimal(svid),
                not_after=svid.not_after,
                selectors=node.selectors,
                can_reattest=node.can_reattest,
            )
            others = put_agent(connection, agent)
            insert_issued(connection, [self._signer.issued_row(proof, svid)])
            return agent, svid, others

        def apply(result: tuple[Agent, X509Svid, bool]) -> None:
            self._state.put_agent(result[0])

        # With other selectors it may be entitled to something else now: that is a generation of its own.
        agent, svid, _ = await self._state.change(run, apply, bumps=lambda result: result[2])
        return agent, svid

    async def _rehearse(self, node: AttestedNode) -> None:
        """Look whether the evidence could be used up now, and undo it. Raise what using it up raises."""

        def run(connection: Connection) -> None:
            node.use_up(connection)
            raise _Rehearsed

        with contextlib.suppress(_Rehearsed):
            await self._state.database.write(run)

    async def RenewAgent(self, request: agent_pb2.RenewAgentRequest, call: Call) -> agent_pb2.RenewAgentResponse:
        """Sign a new SVID for an agent; the present one counts until the new one is used."""
        agent = call.the_agent()
        call.audit.update(event="renew", agent_id=str(agent.id))
        self._limits.signing(call.caller, 1)
        proof = authorize_renewal(agent, self._ttl)
        if not request.HasField("params"):
            raise InvalidRequest("params cannot be nil")
        svid = await self._signer.sign(proof, read_csr(request.params.csr))
        row = self._signer.issued_row(proof, svid)

        def run(connection: Connection) -> None:
            renew_agent(connection, agent, _decimal(svid), svid.not_after)
            insert_issued(connection, [row])

        def apply(_: None) -> None:
            self._state.renewed(agent.id, _decimal(svid), svid.not_after)

        await self._state.database.write(run, apply)
        call.audit.update(serial=_decimal(svid), not_after=svid.not_after)
        return agent_pb2.RenewAgentResponse(svid=svid_message(svid))

    async def PostStatus(self, request: agent_pb2.PostStatusRequest, call: Call) -> agent_pb2.PostStatusResponse:
        """Take down which version an agent runs."""
        self._limits.status(call.caller)
        agent = call.the_agent()
        version = request.agent_version
        if len(version) > MAX_VERSION:
            raise InvalidRequest(f"agent version is too long (max {MAX_VERSION} characters)")
        if version and version != agent.agent_version:
            await self._state.database.write(
                lambda connection: set_agent_version(connection, agent.id, version),
                lambda _: self._state.set_version(agent.id, version),
            )
        return agent_pb2.PostStatusResponse()

    # --- administrators -----------------------------------------------------------------------------------------

    async def CountAgents(self, request: agent_pb2.CountAgentsRequest, _: Call) -> agent_pb2.CountAgentsResponse:
        """Count the agents that pass the filter."""
        given = request.filter if request.HasField("filter") else None
        return agent_pb2.CountAgentsResponse(count=len(self._filtered(given)))

    async def ListAgents(self, request: agent_pb2.ListAgentsRequest, _: Call) -> agent_pb2.ListAgentsResponse:
        """List the agents that pass the filter, a page at a time."""
        given = request.filter if request.HasField("filter") else None
        found, token = page(self._filtered(given), lambda agent: str(agent.id), request.page_size, request.page_token)
        mask = request.output_mask if request.HasField("output_mask") else None
        return agent_pb2.ListAgentsResponse(agents=[show(agent_message(a), mask) for a in found], next_page_token=token)

    async def GetAgent(self, request: agent_pb2.GetAgentRequest, _: Call) -> types.Agent:
        """Show one agent."""
        agent = self._state.agents.get(self._agent_id(request.id))
        if agent is None:
            raise NotFound("agent not found")
        return show(agent_message(agent), request.output_mask if request.HasField("output_mask") else None)

    async def BanAgent(self, request: agent_pb2.BanAgentRequest, call: Call) -> Empty:
        """Ban an agent for good: what it has open is closed, what was issued through it is revoked."""
        agent_id = self._agent_id(request.id)
        call.audit.update(agent_id=str(agent_id), keep_svids=call.keep_svids)
        now = self._state.clock.now()

        def run(connection: Connection) -> list[Revoked]:
            ban_agent(connection, agent_id)
            if call.keep_svids:
                return []
            return revoke_issued(connection, "agent_id", str(agent_id), "agent_banned", now)

        def apply(revoked: Sequence[Revoked]) -> None:
            self._state.banned(agent_id, revoked)
            self._cut(agent_id)

        await self._state.change(run, apply)
        return Empty()

    async def DeleteAgent(self, request: agent_pb2.DeleteAgentRequest, call: Call) -> Empty:
        """Evict an agent: it may attest again. Its join token's alias entry goes with it."""
        agent_id = self._agent_id(request.id)
        call.audit["agent_id"] = str(agent_id)
        aliases = [entry.id for entry in self._state.entries.with_parent(agent_id) if is_node_alias(entry)]
        now = self._state.clock.now()

        def run(connection: Connection) -> list[Revoked]:
            delete_agent(connection, agent_id)
            for entry_id in aliases:
                delete_entry(connection, entry_id)
            return revoke_issued(connection, "agent_id", str(agent_id), "agent_evicted", now)

        def apply(revoked: Sequence[Revoked]) -> None:
            for entry_id in aliases:
                self._state.entries.remove(entry_id)
            self._state.evicted(agent_id, revoked)
            self._cut(agent_id)

        await self._state.change(run, apply)
        return Empty()

    async def CreateJoinToken(self, request: agent_pb2.CreateJoinTokenRequest, call: Call) -> types.JoinToken:
        """Make a one-time token; with `agent_id`, the node that uses it gets that alias."""
        if request.ttl < 1:
            raise InvalidRequest("ttl is required, you must provide one")
        token = request.token or str(uuid.uuid4())
        if len(token) > MAX_TOKEN or not _TOKEN.fullmatch(token):
            raise InvalidRequest(f"a token holds letters, digits, dash, dot and underscore, at most {MAX_TOKEN}")
        check_ids(self._state, call, join_token_id(self._state.trust_domain, token))
        expires_at = self._state.clock.now() + request.ttl
        alias = self._alias(request.agent_id, token) if request.HasField("agent_id") else None
        if alias is not None:
            check_ids(self._state, call, alias.spiffe_id)
        call.audit.update(
            token_hash=digest(token.encode()), expires_at=expires_at, alias=str(alias.spiffe_id) if alias else ""
        )

        def run(connection: Connection) -> None:
            insert_token(connection, token, expires_at)
            if alias is not None:
                insert_entry(connection, alias)

        def apply(_: None) -> None:
            if alias is not None:
                self._state.entries.put(alias)

        await self._state.change(run, apply)
        return types.JoinToken(value=token, expires_at=expires_at)

    def _alias(self, message: types.SPIFFEID, token: str) -> Entry:
        try:
            spiffe_id = parse_spiffe_id(message)
        except SpiffeIdError as error:
            raise InvalidRequest(f"invalid agent ID: {error}") from None
        if spiffe_id.trust_domain != self._state.trust_domain:
            raise InvalidRequest(
                f'invalid agent ID: "{spiffe_id}" is not a member of trust domain "{self._state.trust_domain}"'
            )
        if not spiffe_id.path or is_reserved(spiffe_id):
            raise InvalidRequest("invalid agent ID: it must have a path, and not below /spire")
        parent_id = join_token_id(self._state.trust_domain, token)
        return Entry(
            id=str(uuid.uuid4()),
            spiffe_id=spiffe_id,
            parent_id=parent_id,
            selectors=frozenset({Selector.of("spiffe_id", str(parent_id))}),
            created_at=self._state.clock.now(),
        )

    def _agent_id(self, message: types.SPIFFEID) -> SpiffeId:
        try:
            agent_id = parse_spiffe_id(message)
        except CertsError as error:
            raise InvalidRequest(f"invalid agent ID: {error}") from None
        own = self._state.trust_domain
        if agent_id.trust_domain != own:
            raise InvalidRequest(f'invalid agent ID: "{agent_id}" is not a member of trust domain "{own}"')
        if not is_agent(agent_id):
            raise InvalidRequest(
                f'invalid agent ID: "{agent_id}" is not an agent in trust domain "{own}"; '
                "path is not in the agent namespace"
            )
        return agent_id

    def _filtered(
        self, given: agent_pb2.ListAgentsRequest.Filter | agent_pb2.CountAgentsRequest.Filter | None
    ) -> list[Agent]:
        if given is None:
            return list(self._state.agents.values())
        tests = _tests(given)
        return [agent for agent in self._state.agents.values() if all(test(agent) for test in tests)]


def _tests(
    given: agent_pb2.ListAgentsRequest.Filter | agent_pb2.CountAgentsRequest.Filter,
) -> list[Callable[[Agent], bool]]:
    tests: list[Callable[[Agent], bool]] = []
    if given.by_attestation_type:
        tests.append(lambda agent: agent.attestation_type == given.by_attestation_type)
    if given.HasField("by_selector_match"):
        selectors, how = filter_selectors(given.by_selector_match), given.by_selector_match.match
        tests.append(lambda agent: matches(how, agent.selectors, selectors))
    if given.HasField("by_banned"):
        tests.append(lambda agent: agent.banned == given.by_banned.value)
    if given.HasField("by_can_reattest"):
        tests.append(lambda agent: agent.can_reattest == given.by_can_reattest.value)
    before = _expires_before(given.by_expires_before)
    if before is not None:
        tests.append(lambda agent: agent.not_after < before)
    return tests


def _expires_before(text: str) -> float | None:
    """Read SPIRE's time, "2026-01-31 12:00:00 +0100 +01"; what cannot be read filters nothing, as there."""
    try:
        return datetime.strptime(text[:25], _EXPIRES_BEFORE).timestamp()  # noqa: DTZ007 - it has %z
    except ValueError:
        return None


def _decimal(svid: X509Svid) -> str:
    """Return a serial number as SPIRE writes it."""
    return str(int(svid.serial, 16))


async def _params(requests: AsyncIterator[agent_pb2.AttestAgentRequest]) -> agent_pb2.AttestAgentRequest.Params:
    """Return what an attestation begins with. Raise InvalidRequest."""
    try:
        async with asyncio.timeout(_PATIENCE):
            first = await anext(requests, None)
    except TimeoutError:
        raise InvalidRequest("malformed param: missing params") from None
    if first is None or not first.HasField("params"):
        raise InvalidRequest("malformed param: missing params")
    return first.params


async def _answer(requests: AsyncIterator[agent_pb2.AttestAgentRequest]) -> bytes:
    """Return the answer to a challenge. Raise InvalidRequest or TooSlow."""
    try:
        async with asyncio.timeout(_CHALLENGE_SECONDS):
            message = await anext(requests, None)
    except TimeoutError:
        raise TooSlow(f"failed to attest: the challenge was not answered within {_CHALLENGE_SECONDS} s") from None
    if message is None or message.WhichOneof("step") != "challenge_response":
        raise InvalidRequest("failed to attest: the challenge was not answered")
    return message.challenge_response
