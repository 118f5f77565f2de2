# SPDX-License-Identifier: Apache-2.0
"""Attested agents, and whether one of them may call. Pure.

An agent has a present certificate and, after a renewal, a new one: both count until the new one is first used, so that
an answer that was lost on the way locks nobody out. Serial numbers are decimal, as SPIRE writes them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from firedoor.broker.errors import AgentBanned, AgentExpired, AgentNotActive, AgentNotAttested
from firedoor.certs import Selector, SpiffeId, TrustDomain

MAX_VERSION: Final = 255
# The join token is the last part of the agent's ID, SPIRE's habit.
JOIN_TOKEN_PATH: Final = "/spire/agent/join_token/"  # noqa: S105


@dataclass(frozen=True, slots=True)
class Agent:
    """An attested node. `new_serial` is empty unless a renewal was not used yet."""

    id: SpiffeId
    attestation_type: str
    serial: str
    not_after: int
    selectors: frozenset[Selector] = frozenset()
    new_serial: str = ""
    new_not_after: int = 0
    can_reattest: bool = False
    banned: bool = False
    agent_version: str = ""

    def promoted(self) -> Agent:
        """Return the agent with its new certificate as the present one."""
        return replace(self, serial=self.new_serial, not_after=self.new_not_after, new_serial="", new_not_after=0)

    @property
    def certificates(self) -> tuple[str, ...]:
        """Serial numbers of what it may call with, in hex as certificates' are shown elsewhere."""
        return tuple(format(int(serial), "x") for serial in (self.serial, self.new_serial) if serial)


def check_agent(agent: Agent | None, serial: str, not_after: int, now: int) -> Agent:
    """Return the agent as it stands after this call: changed when the call is the first to use the new certificate.

    In SPIRE's order: raise AgentExpired, AgentNotAttested, AgentBanned or AgentNotActive.
    """
    if not_after <= now:
        raise AgentExpired("agent SVID is expired")
    if agent is None:
        raise AgentNotAttested("agent is not attested")
    if agent.banned:
        raise AgentBanned("agent is banned")
    if serial and serial == agent.serial:
        return agent
    if serial and serial == agent.new_serial:
        return agent.promoted()
    raise AgentNotActive("agent SVID is not active")


def adopted(agent: Agent, serial: str, not_after: int) -> Agent:
    """Return the agent with a certificate that was signed before its database was put back, and that this lost."""
    return replace(agent, serial=serial, not_after=not_after, new_serial="", new_not_after=0)


def join_token_id(trust_domain: TrustDomain, token: str) -> SpiffeId:
    """Return the ID of the agent that attests with this token. Raise SpiffeIdError for a token that fits no path."""
    return trust_domain.with_path(JOIN_TOKEN_PATH + token)
