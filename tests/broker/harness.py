# SPDX-License-Identifier: Apache-2.0
"""A whole broker in the test's own process, and an agent that speaks to it over the network with raw grpcio.

async with running(tmp, POLICY) as broker:
    token = await broker.token()
    agent = await broker.attest(token)
    entry = await broker.entry("/segment/registry/x", agent.id, ["unix:user:registry"])
    (result,) = await agent.sign(entry.id)
"""

from __future__ import annotations

import contextlib
import json
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc

from firedoor import mtls
from firedoor.broker import config
from firedoor.broker.broker import Broker
from firedoor.broker.rpc.gate import SEGMENTS
from firedoor.certs import (
    Challenge,
    KeyType,
    PrivateKey,
    SpiffeId,
    TrustDomain,
    X509Svid,
    generate_key,
    make_csr,
    parse_x509_svid,
    private_key_der,
    write_evidence,
)
from firedoor.wire import (
    admin_grpc,
    admin_pb2,
    agent_grpc,
    agent_pb2,
    bundle_grpc,
    bundle_pb2,
    entry_grpc,
    entry_pb2,
    health_grpc,
    svid_grpc,
    svid_pb2,
    types,
)
from tests.node_pki import Held

TD = "example.org"
SERVER = f"spiffe://{TD}/spire/server"
POLICY = """\
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {name: registry}
spec:
  function: registry
  trust: high
  mode: enforce
  members: ["spiffe://{td}/segment/registry/**"]
  admission: {entry: ["unix:user:registry"]}
---
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {name: inference}
spec:
  function: inference
  trust: medium
  mode: enforce
  members: ["spiffe://{td}/segment/inference/**"]
  admission: {entry: ["unix:user:inference"]}
---
apiVersion: firedoor.dev/v1alpha1
kind: Flow
metadata: {name: inference-pulls-models}
spec:
  owner: ml-platform
  reason: model weights at start-up
  from: {segment: inference}
  to: {segment: registry, port: 9000}
  allow: [{http: {methods: [GET], paths: ["/models/**"]}}]
"""

# Whoever asks a broker that was killed a moment ago wants to know soon that it is back.
CHANNEL: Sequence[tuple[str, Any]] = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 100),
    # How long a connection may take: this machine may be busy.
    ("grpc.min_reconnect_backoff_ms", 20_000),
)


def spiffe_id(path: str, trust_domain: str = TD) -> types.SPIFFEID:
    return types.SPIFFEID(trust_domain=trust_domain, path=path)


def selectors(*texts: str) -> list[types.Selector]:
    return [types.Selector(type=t.partition(":")[0], value=t.partition(":")[2]) for t in texts]


def entry(path: str, parent: str, having: Sequence[str], **fields: Any) -> types.Entry:
    return types.Entry(spiffe_id=spiffe_id(path), parent_id=spiffe_id(parent), selectors=selectors(*having), **fields)


# Makes the answer to a challenge; None: none is sent.
Answer = Callable[[bytes], bytes | None]


def right_answer(key: PrivateKey) -> Answer:
    return lambda message: Challenge.read(message).answer(key, secrets.token_bytes(32))


async def failure(call: Any) -> grpc.aio.AioRpcError:
    """Return what a stream ended with."""
    code, trailing = await call.code(), await call.trailing_metadata()
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details=await call.details())


def write_whole(file: Path, text: str | bytes) -> None:
    """Replace a file at once: a broker may read it at any moment, and half a policy is another policy."""
    fresh = file.with_suffix(".new")
    fresh.write_bytes(text.encode() if isinstance(text, str) else text)
    fresh.replace(file)


class AgentClient:
    """A node: one key, one SVID once it has attested, and mTLS through a connector."""

    def __init__(self, broker: RunningBroker, folder: Path) -> None:
        self.broker, self._folder = broker, folder
        self.key: PrivateKey = generate_key(KeyType.EC_P256)
        self.svid: X509Svid | None = None
        self.core = mtls.Core()
        self._channels: list[grpc.aio.Channel] = []
        self._number = 0
        self.publish()
        self.channel = self.connect()

    @property
    def id(self) -> str:
        assert self.svid is not None
        return str(self.svid.id)

    @property
    def path(self) -> str:
        assert self.svid is not None
        return self.svid.id.path

    def publish(self) -> None:
        svids = []
        if self.svid is not None:
            svids = [mtls.Svid(id=self.id, chain=self.svid.chain, key=private_key_der(self.key))]
        self.core.publish(mtls.Material(trust_domain=TD, bundles={TD: self.broker.roots()}, svids=svids))

    def connect(self) -> grpc.aio.Channel:
        """Open a channel as what the agent is now: anonymous before it has attested."""
        self._number += 1
        connector = self.core.connector(
            path=str(self._folder / f"c{self._number}.sock"),
            addresses=[self.broker.broker.listen],
            expect=SERVER,
            as_id=self.id if self.svid else None,
        )
        channel = grpc.aio.insecure_channel(f"unix:{connector.path}", options=CHANNEL)
        self._channels.append(channel)
        return channel

    def use(self, svid: X509Svid, key: PrivateKey) -> None:
        """Go on as this SVID."""
        self.svid, self.key = svid, key
        self.publish()
        self.channel = self.connect()

    async def attest(self, token: str, csr: bytes | None = None) -> X509Svid:
        params = agent_pb2.AttestAgentRequest.Params(
            data=types.AttestationData(type="join_token", payload=token.encode()),
            params=agent_pb2.AgentX509SVIDParams(csr=make_csr(self.key) if csr is None else csr),
        )
        return await self.attest_with(params)

    async def attest_with(self, params: agent_pb2.AttestAgentRequest.Params) -> X509Svid:
        call = agent_grpc.AgentStub(self.channel).AttestAgent(iter([agent_pb2.AttestAgentRequest(params=params)]))
        answers = [answer async for answer in call]
        assert len(answers) == 1
        return parse_x509_svid(tuple(answers[0].result.svid.cert_chain))

    async def prove(self, held: Held, answer: Answer | None = None, chain: Sequence[bytes] | None = None) -> X509Svid:
        """Attest by a node's certificate. `answer` makes the answer to a challenge, the right one unless given."""
        return await self.show(write_evidence(held.chain if chain is None else chain), answer or right_answer(held.key))

    async def show(self, payload: bytes, answer: Answer, kind: str = "x509pop", *, again: bool = True) -> X509Svid:
        """Attest by a payload. `again`: whether the broker is to say that the node may do so again."""
        params = agent_pb2.AttestAgentRequest.Params(
            data=types.AttestationData(type=kind, payload=payload),
            params=agent_pb2.AgentX509SVIDParams(csr=make_csr(self.key)),
        )
        call = agent_grpc.AgentStub(self.channel).AttestAgent()
        await call.write(agent_pb2.AttestAgentRequest(params=params))
        asked = await call.read()
        if asked == grpc.aio.EOF:
            raise await failure(call)
        given = answer(asked.challenge)
        if given is not None:
            await call.write(agent_pb2.AttestAgentRequest(challenge_response=given))
        await call.done_writing()
        result = await call.read()
        if result == grpc.aio.EOF:
            raise await failure(call)
        assert result.result.reattestable == again
        return parse_x509_svid(tuple(result.result.svid.cert_chain))

    async def renew(self, key: PrivateKey) -> X509Svid:
        request = agent_pb2.RenewAgentRequest(params=agent_pb2.AgentX509SVIDParams(csr=make_csr(key)))
        answer = await agent_grpc.AgentStub(self.channel).RenewAgent(request)
        return parse_x509_svid(tuple(answer.svid.cert_chain))

    async def entries(self) -> list[types.Entry]:
        stub = entry_grpc.EntryStub(self.channel)
        return list((await stub.GetAuthorizedEntries(entry_pb2.GetAuthorizedEntriesRequest())).entries)

    async def sign(self, *entry_ids: str, csr: bytes | None = None) -> list[svid_pb2.BatchNewX509SVIDResponse.Result]:
        made = make_csr(generate_key(KeyType.EC_P256)) if csr is None else csr
        request = svid_pb2.BatchNewX509SVIDRequest(
            params=[svid_pb2.NewX509SVIDParams(entry_id=entry_id, csr=made) for entry_id in entry_ids]
        )
        return list((await svid_grpc.SVIDStub(self.channel).BatchNewX509SVID(request)).results)

    async def token(self, entry_id: str, *audience: str) -> types.JWTSVID:
        request = svid_pb2.NewJWTSVIDRequest(entry_id=entry_id, audience=audience or ["models"])
        return (await svid_grpc.SVIDStub(self.channel).NewJWTSVID(request)).svid

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()
        self.core.stop()


class RunningBroker:
    """A broker that serves, with its admin socket at hand."""

    def __init__(self, folder: Path, broker: Broker) -> None:
        self.folder, self.broker = folder, broker
        self.admin = grpc.aio.insecure_channel(
            f"unix:{broker.config.admin_socket}", options=[("grpc.use_local_subchannel_pool", 1)]
        )
        self.agents = agent_grpc.AgentStub(self.admin)
        self.entries = entry_grpc.EntryStub(self.admin)
        self.svids = svid_grpc.SVIDStub(self.admin)
        self.bundles = bundle_grpc.BundleStub(self.admin)
        self.downstream = admin_grpc.DownstreamAdminStub(self.admin)
        self.policy = admin_grpc.PolicyAdminStub(self.admin)
        self.health = health_grpc.HealthStub(self.admin)
        self._clients: list[AgentClient] = []

    def roots(self) -> list[bytes]:
        return [root.der for root in self.broker.state.bundles[TrustDomain.parse(TD)].x509_roots]

    async def token(self, agent_id: str = "", *, ttl: int = 600, token: str = "") -> str:
        given = spiffe_id(agent_id) if agent_id else None
        request = agent_pb2.CreateJoinTokenRequest(ttl=ttl, token=token, agent_id=given)
        return str((await self.agents.CreateJoinToken(request)).value)

    def client(self) -> AgentClient:
        """Return a node that has not attested."""
        client = AgentClient(self, Path(tempfile.mkdtemp(prefix="c", dir=self.folder)))
        self._clients.append(client)
        return client

    async def attest(self, token: str = "", agent_id: str = "") -> AgentClient:
        """Return a node that has attested, by a fresh token unless one is given."""
        client = self.client()
        anonymous = client.channel
        client.use(await client.attest(token or await self.token(agent_id)), client.key)
        # One address has an eighth of the connections without a certificate.
        await anonymous.close()
        return client

    async def create(
        self, *entries: types.Entry, segments: str | None = None
    ) -> list[entry_pb2.BatchCreateEntryResponse.Result]:
        request = entry_pb2.BatchCreateEntryRequest(entries=entries)
        said = ((SEGMENTS, segments),) if segments is not None else ()
        return list((await self.entries.BatchCreateEntry(request, metadata=said)).results)

    async def entry(
        self, path: str, parent: str, having: Sequence[str], segments: str | None = None, **fields: Any
    ) -> types.Entry:
        (result,) = await self.create(entry(path, parent, having, **fields), segments=segments)
        assert result.status.code == 0, result.status.message
        return result.entry

    async def apply(self, *texts: str, **fields: Any) -> admin_pb2.ApplyPolicyResponse:
        documents = [admin_pb2.Document(name=f"{i}.yaml", text=text) for i, text in enumerate(texts)]
        return await self.policy.ApplyPolicy(admin_pb2.ApplyPolicyRequest(documents=documents, **fields))

    async def ban(self, agent_id: str) -> None:
        await self.agents.BanAgent(agent_pb2.BanAgentRequest(id=spiffe_id(SpiffeId.parse(agent_id).path)))

    async def bundle(self) -> types.Bundle:
        return await self.bundles.GetBundle(bundle_pb2.GetBundleRequest())

    def audit(self) -> list[dict[str, Any]]:
        path = self.broker.config.audit_log
        assert path is not None
        return [json.loads(line) for line in path.read_text().splitlines()]

    async def close(self) -> None:
        for client in self._clients:
            await client.close()
        await self.admin.close()
        await self.broker.stop()


def flags(folder: Path, policy: str | None = None, **more: str) -> dict[str, str | None]:
    """Return the flags of a broker below a folder; a policy makes `files` the source."""
    given: dict[str, str | None] = {
        "trust_domain": TD,
        "listen": "127.0.0.1:0",
        "data_dir": str(folder / "data"),
        "admin_socket": str(folder / "admin.sock"),
        "metrics": "127.0.0.1:0",
        # Clients of tests keep their connections, and all have one address.
        "anonymous_connections": "1024",
        **more,
    }
    if policy is not None:
        (folder / "policy").mkdir(exist_ok=True)
        (folder / "policy" / "segments.yaml").write_text(policy)
        given["segments"] = str(folder / "policy")
    return given


@contextlib.asynccontextmanager
async def running(folder: Path, policy: str | None = POLICY, **more: str) -> AsyncIterator[RunningBroker]:
    """Run a broker."""
    broker = Broker(config.load(None, {}, flags(folder, policy, **more)))
    await broker.start()
    found = RunningBroker(folder, broker)
    try:
        yield found
    finally:
        await found.close()


def code_of(error: grpc.aio.AioRpcError) -> str:
    return str(error.code().name)


async def status(channel: grpc.aio.Channel, path: str) -> str:
    """Call a method with an empty request and return how that ends."""
    try:
        await channel.unary_unary(path)(b"")
    except grpc.aio.AioRpcError as error:
        return code_of(error)
    return "OK"
