# SPDX-License-Identifier: Apache-2.0
"""Node attestation: evidence in, an attested node out.

An attestor proves an agent ID and selectors from evidence, at once or after a challenge. What it uses up (a join token)
it uses up in the transaction that writes the agent: two callers with one token meet in the database, and one of them
wins. A challenge lives in the stream that it was sent on, and takes one answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, final

from sqlalchemy import Connection

from firedoor.broker.agent import join_token_id
from firedoor.broker.db.agent_rows import spend_token
from firedoor.broker.errors import Conflict, InvalidRequest
from firedoor.certs import Selector, SpiffeId, SpiffeIdError, TrustDomain

# A UUID has 36 characters; people may choose their own.
MAX_TOKEN: Final = 255
MAX_PAYLOAD: Final = 64 * 1024
NO_TOKEN: Final = "failed to attest: join token does not exist or has already been used"  # noqa: S105


@final
@dataclass(frozen=True, slots=True, init=False)
class AttestedNode:
    """A node whose evidence was checked. Made by an attestor alone; it counts once `use_up` is committed."""

    agent_id: SpiffeId
    attestation_type: str
    selectors: frozenset[Selector]
    can_reattest: bool
    # When the evidence ends, in Unix seconds; 0 when it does not. The agent's SVID ends no later.
    not_after: int
    # Raises when the evidence does not hold after all; runs in the transaction that writes the agent.
    use_up: Callable[[Connection], None]

    def __init__(self) -> None:
        raise TypeError("AttestedNode is made by an attestor")


def attested(
    agent_id: SpiffeId,
    attestation_type: str,
    *,
    use_up: Callable[[Connection], None] = lambda _: None,
    selectors: frozenset[Selector] = frozenset(),
    can_reattest: bool = False,
    not_after: int = 0,
) -> AttestedNode:
    """Make a node of checked evidence. For attestors alone."""
    made = object.__new__(AttestedNode)
    values = {
        "agent_id": agent_id,
        "attestation_type": attestation_type,
        "selectors": selectors,
        "can_reattest": can_reattest,
        "not_after": not_after,
        "use_up": use_up,
    }
    for name, value in values.items():
        object.__setattr__(made, name, value)
    return made


@dataclass(frozen=True, slots=True)
class Asked:
    """A challenge to send, and what takes the agent's answer to it. Raise InvalidRequest or AttestationRefused."""

    challenge: bytes
    answer: Callable[[bytes], Awaitable[AttestedNode]]


class Attestor(Protocol):
    """Checks one kind of evidence."""

    async def attest(self, payload: bytes, now: int) -> AttestedNode | Asked:
        """Return the node that the evidence proves, or what it is asked. Raise InvalidRequest or AttestationRefused."""


class JoinTokenAttestor:
    """A one-time token that an administrator made. It proves nothing about the node, so there are no selectors."""

    def __init__(self, trust_domain: TrustDomain) -> None:
        self._trust_domain = trust_domain

    async def attest(self, payload: bytes, now: int) -> AttestedNode:
        """Check the form of the token; whether it exists is known when it is spent."""
        if not payload:
            raise InvalidRequest("failed to attest: missing join token")
        try:
            agent_id = join_token_id(self._trust_domain, payload[: MAX_TOKEN + 1].decode("ascii"))
        except (UnicodeDecodeError, SpiffeIdError):
            raise InvalidRequest(NO_TOKEN) from None
        if len(payload) > MAX_TOKEN:
            raise InvalidRequest(NO_TOKEN)

        def use_up(connection: Connection) -> None:
            if spend_token(connection, payload) <= now:
                raise InvalidRequest("join token expired")

        return attested(agent_id, "join_token", use_up=use_up)


def find(known: Mapping[str, Attestor], name: str) -> Attestor:
    """Return an attestor. Raise Conflict, SPIRE's answer to a type that is not configured."""
    attestor = known.get(name)
    if attestor is None:
        raise Conflict(f'error getting node attestor: could not find node attestor type "{name[:64]}"')
    return attestor
