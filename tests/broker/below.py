# SPDX-License-Identifier: Apache-2.0
"""An authority below the broker, as a program with raw grpcio: its SVID, its CA, and what it signs with that."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

from firedoor.certs import KeyType, PrivateKey, TrustDomain, X509Issuer, X509Svid, generate_key, issue_x509, make_csr
from firedoor.certs.svid import parse_x509_svid
from firedoor.wire import svid_grpc, svid_pb2, types
from tests.broker.harness import TD, AgentClient, RunningBroker

PATH = "/segment/registry/below"
USER = ["unix:user:registry"]


class Below:
    """See the module."""

    def __init__(self, broker: RunningBroker, agent: AgentClient, client: AgentClient, entry: types.Entry) -> None:
        self.broker, self.agent, self.client, self.entry = broker, agent, client, entry

    @classmethod
    async def make(cls, broker: RunningBroker, segments: str | None = "registry", path: str = PATH) -> Below:
        """Attest an agent and fetch the SVID of a downstream entry."""
        agent = await broker.attest()
        entry = await broker.entry(path, agent.path, USER, segments, downstream=True)
        return cls(broker, agent, await identity(broker, agent, entry.id), entry)

    async def ask(self, key: PrivateKey, ttl: int = 0, csr: bytes | None = None) -> Sequence[bytes]:
        """Ask for a CA and return its chain."""
        made = make_csr(key) if csr is None else csr
        request = svid_pb2.NewDownstreamX509CARequest(csr=made, preferred_ttl=ttl)
        answer = await svid_grpc.SVIDStub(self.client.channel).NewDownstreamX509CA(request)
        assert list(answer.x509_authorities) == self.broker.roots()
        return tuple(answer.ca_cert_chain)

    async def ca(self, ttl: int = 0) -> X509Issuer:
        """Return a fresh CA."""
        key = generate_key(KeyType.EC_P256)
        chain = await self.ask(key, ttl)
        return X509Issuer.load(TrustDomain.parse(TD), chain[0], key, chain[1:])


async def identity(broker: RunningBroker, agent: AgentClient, entry_id: str) -> AgentClient:
    """Return who speaks as the SVID of an entry."""
    key = generate_key(KeyType.EC_P256)
    (result,) = await agent.sign(entry_id, csr=make_csr(key))
    assert result.status.code == 0, result.status.message
    client = broker.client()
    client.use(parse_x509_svid(tuple(result.svid.cert_chain)), key)
    return client


def forge(ca: X509Issuer, path: str) -> tuple[X509Svid, PrivateKey]:
    """Sign any ID with a CA."""
    key = generate_key(KeyType.EC_P256)
    spiffe_id = TrustDomain.parse(TD).with_path(path)
    made = issue_x509(spiffe_id, key.public_key(), ca, at=int(time.time()), random=secrets.token_bytes, ttl=600)
    return made, key
