# SPDX-License-Identifier: Apache-2.0
"""A server that speaks SPIRE's APIs on a real TLS front, with a control stream or without."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path
from typing import Any

import grpc.aio
from cryptography import x509

from firedoor.certs import (
    CertsError,
    Challenge,
    ClusterKeys,
    HttpChallenge,
    HttpNode,
    PodEvidence,
    PodToken,
    SshChallenge,
    read_evidence,
    read_ssh_evidence,
    verify_node_certificate,
    verify_pod_token,
    verify_ssh_certificate,
)
from firedoor.mtls import Core, Front, Material, Svid
from firedoor.wire import (
    agent_grpc,
    agent_pb2,
    bundle_grpc,
    bundle_pb2,
    entry_grpc,
    entry_pb2,
    svid_grpc,
    svid_pb2,
    types,
)
from tests.service_accounts import AUDIENCE, ISSUER
from tests.simulator import SimulatedTrustDomain

AGENT = "/spire/agent/join_token/t"


def wire_bundle(trust: SimulatedTrustDomain, tainted: Collection[bytes] = ()) -> types.Bundle:
    roots = [types.X509Certificate(asn1=one.der, tainted=one.der in tainted) for one in trust.roots]
    wits = [types.WITKey(public_key=one.public_key, key_id=one.key_id) for one in trust.bundle.wit_keys]
    jwts = [
        types.JWTKey(public_key=one.public_key, key_id=one.key_id, expires_at=one.expires_at or 0)
        for one in trust.bundle.jwt_keys
    ]
    return types.Bundle(
        trust_domain=trust.td.name,
        x509_authorities=roots,
        jwt_authorities=jwts,
        sequence_number=trust.sequence,
        wit_authorities=wits,
    )


class SpireLike(agent_grpc.AgentServicer, bundle_grpc.BundleServicer, entry_grpc.EntryServicer, svid_grpc.SVIDServicer):
    """Issues what it is told to; `entries` may be changed at any time."""

    def __init__(self, trust: SimulatedTrustDomain, *, control: bool = False) -> None:
        self.trust = trust
        self.others: dict[str, SimulatedTrustDomain] = {}
        # Sent as they are, whatever they are.
        self.odd_bundles: dict[str, types.Bundle] = {}
        self.entries: dict[str, types.Entry] = {}
        self.ttl = self.agent_ttl = 3600
        self.renewals = 0
        self.renews = True
        self.tokens = {b"t"}
        # CAs of nodes' certificates, and the path of each agent that attested.
        self.node_cas: tuple[Any, ...] = ()
        self.attested: list[str] = []
        self.ssh_cas: frozenset[bytes] = frozenset()
        # What was found where hosts said that a nonce is.
        self.found: list[str] = []
        # The keys of the cluster whose pods attest, and the tokens that did.
        self.cluster_keys = ClusterKeys(())
        self.spent: set[bytes] = set()
        self.once = True
        # While it is clear, agents that ask whether they are known wait for their answer.
        self.answers = asyncio.Event()
        self.answers.set()
        self.asked = 0
        self.refuse: Callable[[str], tuple[int, str]] = lambda _: (0, "")
        self.tainted: set[bytes] = set()
        self.core = Core(data_threads=1)
        self.control = self.core.control_server() if control else None
        self.front: Front | None = None
        self._server = grpc.aio.server()

    async def start(self, folder: Path) -> str:
        """Listen and return the address; `folder` is open to its owner alone."""
        for add in (
            agent_grpc.add_AgentServicer_to_server,
            bundle_grpc.add_BundleServicer_to_server,
            entry_grpc.add_EntryServicer_to_server,
            svid_grpc.add_SVIDServicer_to_server,
        ):
            add(self, self._server)
        self._server.add_insecure_port(f"unix:{folder / 'b.sock'}")
        await self._server.start()
        self.publish()
        as_id = f"{self.trust.td.id}/spire/server"
        self.front = self.core.tls_front(
            listen="127.0.0.1:0", as_id=as_id, backend=str(folder / "b.sock"), control=self.control
        )
        return self.front.address

    def publish(self) -> None:
        """Tell the front which roots and which SVID of its own count."""
        own = self.trust.svid("/spire/server")
        svid = Svid(id=str(own.id), chain=own.chain, key=own.key_der)
        self.core.publish(Material(trust_domain=self.trust.td.name, bundles=self.trust.roots_by_name(), svids=[svid]))

    async def stop(self) -> None:
        if self.front:
            self.front.stop()
        await self._server.stop(0)
        self.core.stop()

    def sign(self, path: str, csr: bytes) -> types.X509SVID:
        """Sign for a path, whatever the request says."""
        key = x509.load_der_x509_csr(csr).public_key()
        self.trust.at = int(time.time())
        ttl = self.agent_ttl if path.startswith("/spire/agent/") else self.ttl
        made = self.trust.svid(path, public_key=key, expires=self.trust.at + ttl)
        return types.X509SVID(
            cert_chain=made.chain, id=types.SPIFFEID(trust_domain=self.trust.td.name, path=path), expires_at=0
        )

    async def AttestAgent(self, requests: AsyncIterator[agent_pb2.AttestAgentRequest], context: Any) -> Any:
        async for request in requests:
            token = request.params.data.payload
            others = {"x509pop": self._x509pop, "sshpop": self._sshpop, "http_challenge": self._http_challenge}
            others |= {"k8s_pod": self._pod_token, "k8s_psat": self._pod_token}
            if request.params.data.type in others:
                async for response in others[request.params.data.type](request, requests, context):
                    yield response
                return
            if request.params.data.type != "join_token" or token not in self.tokens:
                message = "failed to attest: join token does not exist or has already been used"
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)
            self.tokens.discard(token)
            self.attested.append(AGENT)
            svid = self.sign(AGENT, request.params.params.csr)
            yield agent_pb2.AttestAgentResponse(result=agent_pb2.AttestAgentResponse.Result(svid=svid))

    async def _x509pop(
        self, first: agent_pb2.AttestAgentRequest, requests: AsyncIterator[agent_pb2.AttestAgentRequest], context: Any
    ) -> AsyncIterator[agent_pb2.AttestAgentResponse]:
        try:
            chain = read_evidence(first.params.data.payload)
            node = verify_node_certificate(chain, self.node_cas, int(time.time()))
            challenge = Challenge.to(node.key, secrets.token_bytes(32))
            yield agent_pb2.AttestAgentResponse(challenge=challenge.message())
            challenge.check((await anext(requests)).challenge_response, node.key)
        except CertsError as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        path = f"/spire/agent/x509pop/{node.fingerprint}"
        self.attested.append(path)
        svid = self.sign(path, first.params.params.csr)
        yield agent_pb2.AttestAgentResponse(result=agent_pb2.AttestAgentResponse.Result(svid=svid, reattestable=True))

    async def _sshpop(
        self, first: agent_pb2.AttestAgentRequest, requests: AsyncIterator[agent_pb2.AttestAgentRequest], context: Any
    ) -> AsyncIterator[agent_pb2.AttestAgentResponse]:
        try:
            certificate = read_ssh_evidence(first.params.data.payload)
            node = verify_ssh_certificate(certificate, self.ssh_cas, int(time.time()))
            challenge = SshChallenge.of(secrets.token_bytes(32))
            yield agent_pb2.AttestAgentResponse(challenge=challenge.message())
            challenge.check((await anext(requests)).challenge_response, node.key)
        except CertsError as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        path = f"/spire/agent/sshpop/{node.fingerprint}"
        self.attested.append(path)
        svid = self.sign(path, first.params.params.csr)
        yield agent_pb2.AttestAgentResponse(result=agent_pb2.AttestAgentResponse.Result(svid=svid, reattestable=True))

    async def _http_challenge(
        self, first: agent_pb2.AttestAgentRequest, requests: AsyncIterator[agent_pb2.AttestAgentRequest], context: Any
    ) -> AsyncIterator[agent_pb2.AttestAgentResponse]:
        """As a server that trusts on first use; every name leads to this machine."""
        node, nonce = HttpNode.read(first.params.data.payload), HttpChallenge.of(secrets.token_bytes(32))
        path = f"/spire/agent/http_challenge/{node.hostname}"
        # A server asks before it has sent the nonce to nobody; whoever comes too early finds nothing.
        self.found.append(await _get(node))
        yield agent_pb2.AttestAgentResponse(challenge=nonce.message())
        assert (await anext(requests)).challenge_response == b"\n"
        self.found.append(await _get(node))
        if self.found[-1].rpartition("\r\n")[2].strip() != nonce.nonce or path in self.attested:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "challenge verification failed")
        self.attested.append(path)
        svid = self.sign(path, first.params.params.csr)
        yield agent_pb2.AttestAgentResponse(result=agent_pb2.AttestAgentResponse.Result(svid=svid))

    async def _pod_token(
        self, first: agent_pb2.AttestAgentRequest, _: AsyncIterator[agent_pb2.AttestAgentRequest], context: Any
    ) -> AsyncIterator[agent_pb2.AttestAgentResponse]:
        """A token of k8s_pod is good once."""
        evidence, kind = PodEvidence.read(first.params.data.payload), first.params.data.type
        try:
            token = PodToken.read(evidence.token)
            claims = verify_pod_token(token, self.cluster_keys, ISSUER, AUDIENCE, int(time.time())).claims
        except CertsError as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        if self.once and kind == "k8s_pod" and claims.token_hash() in self.spent:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "the token has already been used")
        self.spent.add(claims.token_hash())
        path = f"/spire/agent/{kind}/{evidence.cluster}/{claims.pod_uid}"
        self.attested.append(path)
        svid = self.sign(path, first.params.params.csr)
        yield agent_pb2.AttestAgentResponse(result=agent_pb2.AttestAgentResponse.Result(svid=svid, reattestable=True))

    async def RenewAgent(self, request: agent_pb2.RenewAgentRequest, context: Any) -> agent_pb2.RenewAgentResponse:
        await self._agents_only(context)
        if not self.renews:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        self.renewals += 1
        return agent_pb2.RenewAgentResponse(svid=self.sign(self.attested[-1], request.params.csr))

    async def PostStatus(self, request: agent_pb2.PostStatusRequest, context: Any) -> agent_pb2.PostStatusResponse:
        await self._agents_only(context)
        self.asked += 1
        await self.answers.wait()
        return agent_pb2.PostStatusResponse()

    async def GetBundle(self, request: bundle_pb2.GetBundleRequest, context: Any) -> types.Bundle:
        return wire_bundle(self.trust, self.tainted)

    async def GetFederatedBundle(self, request: bundle_pb2.GetFederatedBundleRequest, context: Any) -> types.Bundle:
        if request.trust_domain in self.odd_bundles:
            return self.odd_bundles[request.trust_domain]
        if request.trust_domain not in self.others:
            await context.abort(grpc.StatusCode.NOT_FOUND, "bundle not found")
        return wire_bundle(self.others[request.trust_domain])

    async def GetAuthorizedEntries(
        self, request: entry_pb2.GetAuthorizedEntriesRequest, context: Any
    ) -> entry_pb2.GetAuthorizedEntriesResponse:
        await self._agents_only(context)
        return entry_pb2.GetAuthorizedEntriesResponse(entries=self.entries.values())

    async def BatchNewX509SVID(
        self, request: svid_pb2.BatchNewX509SVIDRequest, context: Any
    ) -> svid_pb2.BatchNewX509SVIDResponse:
        await self._agents_only(context)
        response = svid_pb2.BatchNewX509SVIDResponse()
        for one in request.params:
            code, message = self.refuse(one.entry_id)
            result = response.results.add(status=types.Status(code=code, message=message))
            if code == 0:
                result.svid.CopyFrom(self.sign(self.entries[one.entry_id].spiffe_id.path, one.csr))
        return response

    async def BatchNewWITSVID(
        self, request: svid_pb2.BatchNewWITSVIDRequest, context: Any
    ) -> svid_pb2.BatchNewWITSVIDResponse:
        """As a spire-server does: not at all, or without a status where all is well."""
        await self._agents_only(context)
        if not self.trust.wit_issuers:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "WIT-SVID functionality is disabled")
        response = svid_pb2.BatchNewWITSVIDResponse()
        for one in request.params:
            code, message = self.refuse(one.entry_id)
            if code:
                response.results.add(status=types.Status(code=code, message=message))
                continue
            self.trust.at = int(time.time())
            path = self.entries[one.entry_id].spiffe_id.path
            token = self.trust.wit(path, one.public_key, one.signing_algorithm)
            response.results.add(svid=types.WITSVID(token=token))
        return response

    async def _agents_only(self, context: Any) -> None:
        assert self.front
        caller = self.front.caller(context.peer())
        if caller.spiffe_id not in {f"{self.trust.td.id}{path}" for path in self.attested}:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"who is {caller.spiffe_id}?")


async def _get(node: HttpNode) -> str:
    """Return what this machine answers at a host's port."""
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.write(f"GET {node.path} HTTP/1.1\r\nHost: {node.hostname}\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    return answer
