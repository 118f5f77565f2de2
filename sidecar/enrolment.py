# SPDX-License-Identifier: Apache-2.0
"""The agent SVID: attested once with a join token, renewed at half life, kept on disk.

A renewed SVID becomes the one that counts when it is first used; the server refuses the old one after that. So whoever
renews opens new connections, and closes the old ones.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from firedoor.certs import CertsError, parse_x509_svid
from firedoor.mtls import Core
from firedoor.sidecar import keys
from firedoor.sidecar.config import Config
from firedoor.sidecar.errors import AttestationRefused, ServerUnavailable, StateError, TokenMissing
from firedoor.sidecar.keys import Key
from firedoor.sidecar.server import Server
from firedoor.sidecar.state import State, StoredAgent

log = logging.getLogger(__name__)

JOIN_TOKEN = "join_token"  # noqa: S105  # The attestor's name.
BOOT_SOCKET = "server-boot.sock"
# SPIRE's default tokens have 36 characters.
LONGEST_TOKEN = 1024


class Enrolment:
    """Gets and renews the agent SVID."""

    def __init__(self, core: Core, config: Config, state: State, now: Callable[[], float]) -> None:
        self._core, self._config, self._state, self._now = core, config, state, now

    def stored(self) -> StoredAgent | None:
        """Return the stored agent SVID if it is of our trust domain and has not expired. Raise StateError."""
        agent = self._state.load_agent()
        if agent is None or agent.spiffe_id.trust_domain != self._config.trust_domain:
            return None
        if not_after(agent) <= self._now():
            log.warning("the stored agent SVID has expired", extra={"agent_id": str(agent.spiffe_id)})
            return None
        return agent

    async def attest(self) -> StoredAgent:
        """Prove this node with the join token. Raise TokenMissing, AttestationRefused or ServerUnavailable."""
        token = self._token()
        key = keys.generate()
        self._state.prepare_agent_key(self._present_key(), key)
        socket = self._config.run_dir / BOOT_SOCKET
        server = Server.open(self._core, socket, self._config.broker, self._config.server_id)
        try:
            spiffe_id, chain, reattestable = await server.attest(JOIN_TOKEN, token, keys.csr(key))
        except AttestationRefused as error:
            raise AttestationRefused(
                f"{error}; make a token with `firedoor token create` and start the sidecar with it"
            ) from error
        finally:
            await server.close()
        agent = StoredAgent(spiffe_id, chain, key, reattestable)
        self._check(agent)
        self._state.store_agent(agent)
        log.info("attested", extra={"agent_id": str(spiffe_id), "not_after": not_after(agent)})
        return agent

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
        self._state.prepare_agent_key(agent.key, key)
        renewed = StoredAgent(agent.spiffe_id, await server.renew(keys.csr(key)), key, agent.reattestable)
        self._check(renewed)
        self._state.store_agent(renewed)
        log.info("agent SVID renewed", extra={"agent_id": str(agent.spiffe_id), "not_after": not_after(renewed)})
        return renewed

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

    def _token(self) -> bytes:
        file = self._config.join_token_file
        if file is None:
            raise TokenMissing(
                "this sidecar has no usable agent SVID, and no join_token_file is configured; "
                "make a token with `firedoor token create`"
            )
        return read_token(file)


def read_token(file: Path) -> bytes:
    """Return the join token of a file. Raise TokenMissing."""
    try:
        token = file.read_bytes().strip()
    except OSError as error:
        raise TokenMissing(f"the join token file {file} cannot be read: {error.strerror}") from error
    if not token or len(token) > LONGEST_TOKEN or len(token.split()) != 1:
        raise TokenMissing(f"{file} holds no join token: one word is expected")
    return token


def not_after(agent: StoredAgent) -> int:
    """Return when an agent SVID expires; 0 when it cannot be read."""
    try:
        return parse_x509_svid(agent.chain).not_after
    except CertsError:
        return 0
