# SPDX-License-Identifier: Apache-2.0
"""The agent SVID: attested once with a join token or by a DNS name, renewed at half life, kept on disk.

With a node's certificate, X.509 or SSH, it is attested again instead of renewed, and not kept. With the token of a pod
it is attested again by each next token, and kept: a token is good for one attestation, and a restart may come before
there is another.

A renewed SVID becomes the one that counts when it is first used; the server refuses the old one after that. So whoever
renews opens new connections, and closes the old ones.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime

from firedoor.certs import CertsError, parse_x509_svid
from firedoor.mtls import Core
from firedoor.sidecar import keys
from firedoor.sidecar.config import Config
from firedoor.sidecar.errors import AttestationRefused, ServerUnavailable, StateError, TokenMissing
from firedoor.sidecar.evidence import Evidence, JoinToken, Shown
from firedoor.sidecar.keys import Key
from firedoor.sidecar.server import Server
from firedoor.sidecar.servers import Servers
from firedoor.sidecar.state import State, StoredAgent

log = logging.getLogger(__name__)

BOOT_SOCKET = "server-boot.sock"


def evidence_of(config: Config) -> Evidence | None:
    """Return what the configuration says to attest with, None when it says nothing."""
    own = config.x509pop or config.sshpop or config.http_challenge or config.pod_token
    return own or (JoinToken(config.join_token_file) if config.join_token_file else None)


class Enrolment:
    """Gets and renews the agent SVID."""

    def __init__(self, core: Core, config: Config, servers: Servers, state: State, now: Callable[[], float]) -> None:
        self._core, self._config, self._servers, self._state, self._now = core, config, servers, state, now
        self._evidence = evidence_of(config)

    @property
    def _kept(self) -> bool:
        """Whether the agent SVID is on disk: it must be, unless this node can attest again."""
        return self._evidence is None or not self._evidence.again

    def stored(self) -> StoredAgent | None:
        """Return the stored agent SVID if it is of our trust domain and has not expired. Raise StateError."""
        if not self._kept:
            return None
        agent = self._state.load_agent()
        if agent is None or agent.spiffe_id.trust_domain != self._config.trust_domain:
            return None
        if not_after(agent) <= self._now():
            log.warning("the stored agent SVID has expired", extra={"agent_id": str(agent.spiffe_id)})
            return None
        return agent

    async def attest(self) -> StoredAgent:
        """Prove this node. Raise OperatorError, AttestationRefused or ServerUnavailable."""
        evidence = self._evidence
        if evidence is None:
            raise TokenMissing(
                "this sidecar has no usable agent SVID, and none of join_token_file, x509pop, sshpop, "
                f"http_challenge, k8s_pod and k8s_psat is configured; {self._advice('join_token_file')}"
            )
        shown, key = self._shown(evidence), keys.generate()
        if self._kept:
            self._state.prepare_agent_key(self._present_key(), key)
        socket = self._config.run_dir / BOOT_SOCKET
        server = Server.open(self._core, socket, self._servers.order, self._config.server_id)
        try:
            async with shown.serving():
                spiffe_id, chain, reattestable = await server.attest(evidence.kind, shown, keys.csr(key))
        except AttestationRefused as error:
            raise AttestationRefused(f"{error}; {self._advice_for(evidence)}") from error
        except ServerUnavailable:
            self._servers.turn()
            raise
        finally:
            await server.close()
        agent = StoredAgent(spiffe_id, chain, key, reattestable)
        self._check(agent)
        self._keep(agent)
        log.info("attested", extra={"agent_id": str(spiffe_id), "not_after": not_after(agent)})
        return agent

    def _shown(self, evidence: Evidence) -> Shown:
        try:
            return evidence.show(self._now())
        except TokenMissing as error:
            raise TokenMissing(f"{error}; {self._advice_for(evidence)}") from error

    def _advice_for(self, evidence: Evidence) -> str:
        """Say what to do when the server refuses the evidence, or there is none."""
        return self._advice(str(evidence.file)) if isinstance(evidence, JoinToken) else evidence.advice

    def _advice(self, place: str) -> str:
        """Say where another join token comes from, and who it is for when this sidecar was somebody before."""
        try:
            stored = self._state.load_agent()
        except StateError:
            stored = None
        if stored is None or stored.spiffe_id.trust_domain != self._config.trust_domain:
            return "make a token with `firedoor token create` and start the sidecar with it"
        end = datetime.fromtimestamp(not_after(stored), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return (
            f"its agent SVID is good until {end} and a join token for one attestation: have `firedoor token create "
            f"--replaces {stored.spiffe_id}` make another at the broker, write it to {place}, and start this sidecar "
            "again; its data directory stays"
        )

    def _present_key(self) -> Key | None:
        """Return the key that the stored chain needs, for as long as there is no other chain."""
        try:
            stored = self._state.load_agent()
        except StateError:
            return None
        return stored.key if stored else None

    async def renew(self, server: Server, agent: StoredAgent) -> StoredAgent:
        """Have the agent SVID signed anew for a fresh key. Raise ServerError."""
        key = keys.generate()
        if self._kept:
            self._state.prepare_agent_key(agent.key, key)
        renewed = StoredAgent(agent.spiffe_id, await server.renew(keys.csr(key)), key, agent.reattestable)
        self._check(renewed)
        self._keep(renewed)
        log.info("agent SVID renewed", extra={"agent_id": str(agent.spiffe_id), "not_after": not_after(renewed)})
        return renewed

    def _keep(self, agent: StoredAgent) -> None:
        """Store an agent SVID, or see to it that none is stored."""
        if self._kept:
            self._state.store_agent(agent)
        else:
            self._state.forget_agent()

    def _check(self, agent: StoredAgent) -> None:
        """Hold what the server sent against what was asked for; its chain is verified where it is used."""
        prefix = f"{self._config.trust_domain.id}/spire/agent/"
        try:
            svid = parse_x509_svid(agent.chain)
            matches = svid.id == agent.spiffe_id and keys.public_key_of(agent.chain[0]) == agent.key.public
        except (CertsError, ValueError) as error:
            raise ServerUnavailable(f"the server sent an agent SVID that cannot be used: {error}") from error
        if not matches or not str(agent.spiffe_id).startswith(prefix):
            raise ServerUnavailable("the server sent an agent SVID that is not the one that was asked for")


def not_after(agent: StoredAgent) -> int:
    """Return when an agent SVID expires; 0 when it cannot be read."""
    try:
        return parse_x509_svid(agent.chain).not_after
    except CertsError:
        return 0
