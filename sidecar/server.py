# SPDX-License-Identifier: Apache-2.0
"""Calls to the server, a broker of ours or SPIRE's, through the core's connector.

The channel ends at a private Unix socket; behind it the core makes the mTLS connection with the current agent SVID, to
`spiffe://<td>/spire/server` and nobody else. Every failure becomes one of our own errors here.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc
import grpc.aio

from firedoor.certs import SpiffeId, TrustBundle, TrustDomain
from firedoor.mtls import Core
from firedoor.sidecar import bundles
from firedoor.sidecar.errors import (
    AgentBanned,
    AgentLost,
    AttestationRefused,
    NotEntitled,
    NotServed,
    RequestRefused,
    ServerError,
    ServerUnavailable,
    UpdateRefused,
)
from firedoor.sidecar.evidence import Shown
from firedoor.wire import (
    agent_grpc,
    agent_pb2,
    bundle_grpc,
    bundle_pb2,
    details,
    entry_grpc,
    entry_pb2,
    svid_grpc,
    svid_pb2,
    types,
)

RPC_SECONDS = 30.0
# A call that only asks whether the server knows us.
PROBE_SECONDS = 5.0
# A channel waits before it connects again, a second at most (below); the server may be back meanwhile.
READY_SECONDS = 1.5
# SPIRE's batch size, also in its answers (SyncAuthorizedEntries).
BATCH = 500
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    # Whoever calls decides about another try: it knows what expires when.
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # In spite of its name this is how long a connection may take (GRPC_ARG_MIN_RECONNECT_BACKOFF_MS): behind the socket
    # lies a handshake with a server that may be far away.
    ("grpc.min_reconnect_backoff_ms", 20_000),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # The socket's own path, percent-encoded, is what C-core sends otherwise; not every server takes it.
    ("grpc.default_authority", "localhost"),
    # Two channels to the same path must not share a connection: each may be another identity's.
    ("grpc.use_local_subchannel_pool", 1),
)
ENTRY_MASK = types.EntryMask(
    spiffe_id=True,
    selectors=True,
    federates_with=True,
    admin=True,
    downstream=True,
    expires_at=True,
    revision_number=True,
    store_svid=True,
    hint=True,
    created_at=True,
    additional_attributes=True,
)

_LOST = frozenset(
    {
        types.PermissionDeniedDetails.AGENT_EXPIRED,
        types.PermissionDeniedDetails.AGENT_NOT_ATTESTED,
        types.PermissionDeniedDetails.AGENT_NOT_ACTIVE,
        types.PermissionDeniedDetails.AGENT_MUST_REATTEST,
    }
)
# Codes with which one item of a batch says that the identity is not issued to this agent.
_NOT_THIS_ENTRY = frozenset({details.PERMISSION_DENIED, details.NOT_FOUND})
# Codes with which an attestation is refused for good; others are worth another try.
_REFUSED = frozenset(
    {
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.NOT_FOUND,
    }
)

# What the core says of a server that no root of ours vouches for (`chain_untrusted`).
_UNKNOWN_ROOT = "does not lead to a root of its trust domain"
_UNKNOWN_ROOT_ADVICE = (
    "; if it is the right server, and its authorities were replaced while this sidecar was away, hand over the present "
    "bundle: `firedoor bundle show` there, `firedoor sidecar trust` here"
)


@dataclass(frozen=True, slots=True)
class Issued:
    """The server's answer for one entry: a chain, or why there is none."""

    chain: tuple[bytes, ...] = ()
    refusal: str = ""
    # Whether it is a decision: the ID's segment does not admit it, or we are not entitled to the entry.
    denied: bool = False


class Door(Protocol):
    """The core's connector."""

    @property
    def path(self) -> str: ...  # noqa: D102
    def last_error(self) -> str: ...  # noqa: D102
    def stop(self) -> None: ...  # noqa: D102


class Server:
    """One identity's connection to the server, or nobody's, for attestation."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._channel = grpc.aio.insecure_channel(f"unix:{door.path}", options=CHANNEL_OPTIONS)
        self._agent = agent_grpc.AgentStub(self._channel)
        self._bundle = bundle_grpc.BundleStub(self._channel)
        self._entry = entry_grpc.EntryStub(self._channel)
        self._svid = svid_grpc.SVIDStub(self._channel)

    @classmethod
    def open(
        cls, core: Core, path: Path, addresses: Sequence[str], expect: SpiffeId, as_id: SpiffeId | None = None
    ) -> "Server":
        """Open a connector at `path` and a channel through it."""
        path.unlink(missing_ok=True)
        return cls(
            core.connector(path=str(path), addresses=addresses, expect=str(expect), as_id=str(as_id) if as_id else None)
        )

    async def close(self) -> None:
        """Close the channel and the connector."""
        await self._channel.close()
        self._door.stop()

    async def attest(self, kind: str, shown: Shown, csr: bytes) -> tuple[SpiffeId, tuple[bytes, ...], bool]:
        """Attest this node; return agent ID, chain and whether it may attest again. Raise ServerError."""
        request = agent_pb2.AttestAgentRequest(
            params=agent_pb2.AttestAgentRequest.Params(
                data=types.AttestationData(type=kind, payload=shown.payload),
                params=agent_pb2.AgentX509SVIDParams(csr=csr),
            )
        )
        try:
            async with self._told(), asyncio.timeout(RPC_SECONDS):
                call = self._agent.AttestAgent()
                response = await _ask(call, request)
                if response.WhichOneof("step") == "challenge" and shown.answer is not None:
                    # A signature by a large RSA key takes longer than anybody should wait for this thread.
                    answer = await asyncio.to_thread(shown.answer, response.challenge)
                    response = await _ask(call, agent_pb2.AttestAgentRequest(challenge_response=answer))
                await call.done_writing()
        except _Refused as error:
            raise AttestationRefused(f"the server refused this node: {error}") from error
        if response.WhichOneof("step") != "result":
            raise AttestationRefused(f"the server asks for more than the attestor {kind} can answer")
        svid = response.result.svid
        agent_id = TrustDomain.parse(svid.id.trust_domain).with_path(svid.id.path)
        return agent_id, tuple(svid.cert_chain), response.result.reattestable

    async def renew(self, csr: bytes) -> tuple[bytes, ...]:
        """Return a new agent SVID's chain. Raise ServerError."""
        request = agent_pb2.RenewAgentRequest(params=agent_pb2.AgentX509SVIDParams(csr=csr))
        async with self._calling():
            await self._ready()
            return tuple((await self._agent.RenewAgent(request, timeout=RPC_SECONDS)).svid.cert_chain)

    async def post_status(self, version: str) -> None:
        """Tell the server our version; it may not care. Raise ServerError."""
        request = agent_pb2.PostStatusRequest(agent_version=version)
        async with self._calling():
            try:
                await self._agent.PostStatus(request, timeout=PROBE_SECONDS)
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.RESOURCE_EXHAUSTED):
                    raise

    async def bundle(self) -> TrustBundle:
        """Return our own trust domain's bundle. Raise ServerError."""
        async with self._calling():
            return bundles.from_wire(await self._bundle.GetBundle(bundle_pb2.GetBundleRequest(), timeout=RPC_SECONDS))

    async def federated_bundle(self, trust_domain: TrustDomain) -> TrustBundle | None:
        """Return another trust domain's bundle; None when the server has none. Raise ServerError or UpdateRefused."""
        request = bundle_pb2.GetFederatedBundleRequest(trust_domain=trust_domain.name)
        async with self._calling():
            try:
                found = bundles.from_wire(await self._bundle.GetFederatedBundle(request, timeout=RPC_SECONDS))
            except grpc.aio.AioRpcError as error:
                if error.code() == grpc.StatusCode.NOT_FOUND:
                    return None
                raise
        if found.trust_domain != trust_domain:
            raise UpdateRefused("malformed_bundle", f"asked for {trust_domain}, the server sent {found.trust_domain}")
        return found

    async def entries(self) -> list[types.Entry]:
        """Return the entries that this agent is entitled to. Raise ServerError."""
        request = entry_pb2.GetAuthorizedEntriesRequest(output_mask=ENTRY_MASK)
        async with self._calling():
            return list((await self._entry.GetAuthorizedEntries(request, timeout=RPC_SECONDS)).entries)

    async def issue(self, requests: Sequence[tuple[str, bytes]]) -> list[Issued]:
        """Have SVIDs signed for up to BATCH pairs of entry ID and CSR; return answers in order. Raise ServerError."""
        params = [svid_pb2.NewX509SVIDParams(entry_id=entry_id, csr=csr) for entry_id, csr in requests]
        async with self._calling():
            await self._ready()
            request = svid_pb2.BatchNewX509SVIDRequest(params=params)
            response = await self._svid.BatchNewX509SVID(request, timeout=RPC_SECONDS)
        if len(response.results) != len(requests):
            raise ServerUnavailable(f"the server answered {len(response.results)} of {len(requests)} requests")
        return [_issued(result) for result in response.results]

    async def jwt_svid(self, entry_id: str, audience: Sequence[str]) -> str:
        """Have a JWT-SVID signed and return the token. Raise NotEntitled, RequestRefused or ServerError."""
        request = svid_pb2.NewJWTSVIDRequest(entry_id=entry_id, audience=audience)
        async with self._calling():
            try:
                return (await self._svid.NewJWTSVID(request, timeout=PROBE_SECONDS)).svid.token
            except grpc.aio.AioRpcError as error:
                if error.code() == grpc.StatusCode.INVALID_ARGUMENT:
                    raise RequestRefused(error.details() or "the server takes no such audience") from None
                if _is_about_the_entry(error):
                    raise NotEntitled from None
                raise

    async def wit_svid(self, entry_id: str, public_key: bytes, algorithm: str) -> str:
        """Have a WIT-SVID signed for a key and return the token. Raise NotEntitled, NotServed or ServerError."""
        params = svid_pb2.NewWITSVIDParams(entry_id=entry_id, public_key=public_key, signing_algorithm=algorithm)
        async with self._calling():
            try:
                request = svid_pb2.BatchNewWITSVIDRequest(params=[params])
                response = await self._svid.BatchNewWITSVID(request, timeout=PROBE_SECONDS)
            except grpc.aio.AioRpcError as error:
                if error.code() == grpc.StatusCode.UNIMPLEMENTED:
                    raise NotServed("the server issues no WIT-SVIDs") from None
                raise
        if len(response.results) != 1:
            raise ServerUnavailable(f"the server answered {len(response.results)} times to one request")
        (result,) = response.results
        # SPIRE sets no status where all went well.
        if result.status.code in _NOT_THIS_ENTRY:
            raise NotEntitled
        if result.status.code != 0:
            raise ServerUnavailable(result.status.message or f"status {result.status.code}")
        return result.svid.token

    async def _ready(self) -> None:
        """Give the channel a moment to connect; the call that follows says why it has not."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_SECONDS):
                await self._channel.channel_ready()

    @contextlib.asynccontextmanager
    async def _calling(self) -> AsyncIterator[None]:
        """Turn what a call raises into our errors; a refusal that is not about the agent is worth another try."""
        try:
            async with self._told():
                yield
        except _Refused as error:
            raise ServerUnavailable(str(error)) from error

    @contextlib.asynccontextmanager
    async def _told(self) -> AsyncIterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise _translated(error, self._door.last_error()) from error
        except asyncio.CancelledError as error:
            # Closing a channel cancels its calls (grpc.aio), and that is not a cancellation of whoever waits for one.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise ServerUnavailable("the connection was closed to open a new one") from error
        except grpc.aio.UsageError as error:
            # A channel that was closed before the call, or while it waited for a connection.
            raise ServerUnavailable("the connection was closed to open a new one") from error
        except TimeoutError as error:
            raise ServerUnavailable(f"the server did not answer within {RPC_SECONDS:.0f} s") from error


class _Refused(ServerError):
    """The server understood and said no; what that means depends on the call."""


def _translated(error: grpc.aio.AioRpcError, why_no_connection: str) -> ServerError:
    details_text = error.details() or error.code().name
    if error.code() == grpc.StatusCode.PERMISSION_DENIED:
        reason = details.permission_denied_reason(_metadata(error))
        if reason == types.PermissionDeniedDetails.AGENT_BANNED:
            return AgentBanned(f"the server has banned this agent: {details_text}")
        if reason in _LOST:
            return AgentLost(f"the server takes this agent's SVID no longer: {details_text}")
    if error.code() in _REFUSED:
        return _Refused(details_text)
    if error.code() == grpc.StatusCode.UNAVAILABLE and why_no_connection:
        return ServerUnavailable(f"the server cannot be reached: {with_advice(why_no_connection)}")
    return ServerUnavailable(f"the server failed ({error.code().name}): {details_text}")


def with_advice(why_no_connection: str) -> str:
    """Return why there is no connection, with what a person can do where only a person can."""
    return why_no_connection + (_UNKNOWN_ROOT_ADVICE if _UNKNOWN_ROOT in why_no_connection else "")


def _is_about_the_entry(error: grpc.aio.AioRpcError) -> bool:
    """Say whether the server refuses an identity, and not this agent."""
    if error.code() == grpc.StatusCode.PERMISSION_DENIED:
        return details.permission_denied_reason(_metadata(error)) == types.PermissionDeniedDetails.UNKNOWN
    return error.code() == grpc.StatusCode.NOT_FOUND


def _metadata(error: grpc.aio.AioRpcError) -> list[tuple[str, str | bytes]]:
    return [(key, value) for key, value in error.trailing_metadata() or ()]


async def _ask(call: Any, request: agent_pb2.AttestAgentRequest) -> agent_pb2.AttestAgentResponse:
    """Send a message of an attestation and return the answer."""
    await call.write(request)
    response = await call.read()
    if not isinstance(response, agent_pb2.AttestAgentResponse):
        raise await _failure(call)
    return response


async def _failure(call: Any) -> Exception:
    """Return why a stream ended without an answer."""
    code = await call.code()
    if code == grpc.StatusCode.OK:
        return ServerUnavailable("the server ended the attestation without an answer")
    trailing = await call.trailing_metadata()
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details=await call.details())


def _issued(result: svid_pb2.BatchNewX509SVIDResponse.Result) -> Issued:
    if result.status.code != 0:
        denied = result.status.code == details.PERMISSION_DENIED
        return Issued(refusal=result.status.message or f"status {result.status.code}", denied=denied)
    return Issued(tuple(result.svid.cert_chain))
