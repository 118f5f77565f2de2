# SPDX-License-Identifier: Apache-2.0
"""An agent that has attested by join token, for measurements of the broker: it calls over mTLS as a sidecar does."""

from pathlib import Path

import grpc

from bench.world import TRUST_DOMAIN, Server
from firedoor.certs import KeyType, generate_key, make_csr, parse_x509_svid, private_key_der
from firedoor.mtls import Core, Material, Svid
from firedoor.wire import agent_grpc, agent_pb2, types

SERVER = f"spiffe://{TRUST_DOMAIN}/spire/server"


class Agent:
    """One agent with a core of its own. Close it."""

    def __init__(self, server: Server, token: str, folder: Path) -> None:
        self.core = Core(data_threads=1)
        self.address, self._folder = server.address, folder
        self._roots = [root.der for root in server.bundle().x509_roots]
        self._publish([])
        key = generate_key(KeyType.EC_P256)
        svid = parse_x509_svid(self._attest(token, make_csr(key)))
        self._publish([Svid(id=str(svid.id), chain=svid.chain, key=private_key_der(key))])
        self.id = str(svid.id)

    def _publish(self, svids: list[Svid]) -> None:
        bundles = {TRUST_DOMAIN: self._roots}
        self.core.publish(Material(trust_domain=TRUST_DOMAIN, bundles=bundles, svids=svids))

    def _attest(self, token: str, csr: bytes) -> tuple[bytes, ...]:
        params = agent_pb2.AttestAgentRequest.Params(
            data=types.AttestationData(type="join_token", payload=token.encode()),
            params=agent_pb2.AgentX509SVIDParams(csr=csr),
        )
        with grpc.insecure_channel(self._connect("attest", None)) as channel:
            requests = iter([agent_pb2.AttestAgentRequest(params=params)])
            (answer,) = agent_grpc.AgentStub(channel).AttestAgent(requests, timeout=30)
        return tuple(answer.result.svid.cert_chain)

    def target(self, name: str) -> str:
        """Return what a gRPC channel connects to in order to call the broker as this agent; a connection a name."""
        return self._connect(name, self.id)

    def _connect(self, name: str, as_id: str | None) -> str:
        path = str(self._folder / f"{name}.sock")
        return f"unix:{self.core.connector(path=path, addresses=[self.address], expect=SERVER, as_id=as_id).path}"

    def close(self) -> None:
        """End its threads."""
        self.core.stop()
