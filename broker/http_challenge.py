# SPDX-License-Identifier: Apache-2.0
"""Node attestor `http_challenge`: the broker finds a nonce at the host whose DNS name the node claims.

Wire compatible with SPIRE's: ID, selector, messages, and trust on first use. It proves no more than that the name led
to whoever listened at that port, which is why names must be allowed, ports are those that take a privilege, and an
agent attests once unless the configuration says otherwise.
"""

from __future__ import annotations

import hmac
import logging
import secrets
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from firedoor.broker.attest import Asked, AttestedNode, attested
from firedoor.broker.db.agent_rows import has_agent
from firedoor.broker.errors import AttestationRefused, EndpointError, InvalidRequest
from firedoor.broker.ratelimit import Slots
from firedoor.broker.reach import Network, Reach
from firedoor.certs import (
    FIRST_OPEN_PORT,
    HTTP_CHALLENGE,
    DnsPattern,
    EvidenceError,
    HttpChallenge,
    HttpNode,
    Selector,
    TrustDomain,
)
from firedoor.certs.evidence import NONCE_BYTES
from firedoor.certs.http_challenge import MAX_NONCE_BYTES

_log = logging.getLogger("firedoor.broker.http_challenge")
# Hosts that are being asked at once, and how often one of them is: nobody makes us flood it.
_ASKED: Final = 16
_ASKED_EACH: Final = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class HttpChallengeRules:
    """Which hosts may attest, and at which ports."""

    allowed_dns_patterns: tuple[DnsPattern, ...]
    # None: any that the next one allows.
    required_port: int | None
    allow_non_root_ports: bool
    # Trust on first use: an agent that has attested does so again only after it was evicted.
    tofu: bool
    # Where nodes are; empty: wherever nodes can be.
    networks: tuple[Network, ...]

    def check(self, node: HttpNode) -> None:
        """Raise InvalidRequest or AttestationRefused."""
        if self.required_port is not None and node.port != self.required_port:
            raise InvalidRequest(f"failed to attest: http_challenge: the port must be {self.required_port}")
        if not self.allow_non_root_ports and node.port >= FIRST_OPEN_PORT:
            raise InvalidRequest(
                f"failed to attest: http_challenge: port {node.port} is not below {FIRST_OPEN_PORT}, and any user of "
                "the host could listen there (http_challenge.allow_non_root_ports)"
            )
        if not any(pattern.matches(node.hostname) for pattern in self.allowed_dns_patterns):
            raise AttestationRefused("failed to attest: http_challenge: no pattern allows this host name")


class HttpChallengeAttestor:
    """Sends a nonce, and looks for it at the host."""

    def __init__(self, trust_domain: TrustDomain, rules: HttpChallengeRules) -> None:
        self._trust_domain, self._rules = trust_domain, rules
        self._reach = Reach(rules.networks)
        self._asked = Slots(_ASKED, _ASKED_EACH, "challenges by HTTP")

    def close(self) -> None:
        """End the threads."""
        self._reach.close()

    async def attest(self, payload: bytes, now: int) -> Asked:
        """Check what the node says of itself, and return the nonce that it is to serve."""
        try:
            node = HttpNode.read(payload)
        except EvidenceError as error:
            raise InvalidRequest(f"failed to attest: http_challenge: {error}") from None
        self._rules.check(node)
        challenge = HttpChallenge.of(secrets.token_bytes(NONCE_BYTES))

        async def answer(_: bytes) -> AttestedNode:
            with self._asked.hold(f"{node.hostname}:{node.port}"):
                await self._find(node, challenge)
            return self._attested(node)

        return Asked(challenge.message(), answer)

    async def _find(self, node: HttpNode, challenge: HttpChallenge) -> None:
        """Look for the nonce. Raise AttestationRefused; what went wrong is in the log, for us alone.

        A caller that was told whether a port is open could have us look through the network.
        """
        try:
            found = await self._reach.get(node.hostname, node.port, node.path, MAX_NONCE_BYTES)
            if not hmac.compare_digest(found.strip(), challenge.nonce.encode()):
                raise EndpointError("it serves something else")
        except EndpointError as error:
            _log.warning("http_challenge: http://%s:%d: %s", node.hostname, node.port, error)
            raise AttestationRefused(
                "failed to attest: http_challenge: the nonce was not found at the host; the broker's log says why"
            ) from None

    def _attested(self, node: HttpNode) -> AttestedNode:
        agent_id = self._trust_domain.with_path(f"/spire/agent/{HTTP_CHALLENGE}/{node.hostname}")

        def use_up(connection: Connection) -> None:
            if self._rules.tofu and has_agent(connection, agent_id):
                raise AttestationRefused(
                    "failed to attest: http_challenge: attestation data has already been used to attest an agent; "
                    "`firedoor agent evict` lets the host attest again"
                )

        return attested(
            agent_id,
            HTTP_CHALLENGE,
            use_up=use_up,
            selectors=frozenset({Selector.of(HTTP_CHALLENGE, f"hostname:{node.hostname}")}),
            can_reattest=not self._rules.tofu,
        )


def check_rules(rules: HttpChallengeRules) -> tuple[str, str] | None:
    """Return a setting and what is wrong with it, None when all is well."""
    port = rules.required_port
    if port is not None and port >= FIRST_OPEN_PORT and not rules.allow_non_root_ports:
        return "required_port", f"is not below {FIRST_OPEN_PORT}; allow_non_root_ports must be true for it"
    if not rules.tofu and rules.allow_non_root_ports and (port is None or port >= FIRST_OPEN_PORT):
        # As in SPIRE.
        return "tofu", f"must be true where ports from {FIRST_OPEN_PORT} on are allowed: any user could be the agent"
    return None
