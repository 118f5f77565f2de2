# SPDX-License-Identifier: Apache-2.0
"""Agents and join tokens in the database: jobs for `Database`."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from firedoor.broker.agent import Agent
from firedoor.broker.db.schema import agent_selectors, agents, issued, join_tokens, spent_tokens
from firedoor.broker.errors import AgentBanned, AlreadyExists, AttestationRefused, InvalidRequest, NotFound
from firedoor.certs import Selector, SpiffeId

# Seconds that a token of a pod may live. The kubelet renews it after a day at the latest.
LONGEST_TOKEN: Final = 24 * 3600
# Stands among used tokens for the time of a restore. It is the hash of none.
_RESTORED: Final = bytes(32)


def load_agents(connection: Connection, ids: Collection[str] | None = None) -> list[Agent]:
    """Return all agents, banned ones too, or those of these IDs that are there."""
    of_selectors, of_agents = select(agent_selectors), select(agents)
    if ids is not None:
        of_selectors = of_selectors.where(agent_selectors.c.agent_id.in_(ids))
        of_agents = of_agents.where(agents.c.id.in_(ids))
    selectors: dict[str, list[Selector]] = defaultdict(list)
    for row in connection.execute(of_selectors):
        selectors[row.agent_id].append(Selector.of(row.type, row.value))
    return [_agent(row, selectors[row.id]) for row in connection.execute(of_agents)]


def put_agent(connection: Connection, agent: Agent) -> bool:
    """Write an agent that has just attested; return whether its selectors are others than before.

    Raise AgentBanned, and change nothing.
    """
    key = str(agent.id)
    known = connection.execute(select(agent_selectors.c.type, agent_selectors.c.value).where(_of(key))).all()
    banned = connection.scalar(select(agents.c.banned).where(agents.c.id == key))
    if banned:
        raise AgentBanned("failed to attest: agent is banned")
    if banned is None:
        connection.execute(insert(agents).values(_row(agent)))
    else:
        connection.execute(update(agents).where(agents.c.id == key).values(_row(agent)))
        connection.execute(delete(agent_selectors).where(_of(key)))
    if agent.selectors:
        rows = [{"agent_id": key, "type": s.type, "value": s.value} for s in sorted(agent.selectors)]
        connection.execute(insert(agent_selectors), rows)
    given = {(one.type, one.value) for one in agent.selectors}
    return banned is not None and {(row.type, row.value) for row in known} != given


def _of(agent_id: str) -> ColumnElement[bool]:
    return agent_selectors.c.agent_id == agent_id


def has_agent(connection: Connection, agent_id: SpiffeId) -> bool:
    """Say whether an agent of that ID has attested before and was not evicted since."""
    return connection.scalar(select(agents.c.id).where(agents.c.id == str(agent_id))) is not None


def renew_agent(connection: Connection, agent: Agent, serial: str, not_after: int) -> None:
    """Write the serial of a renewed certificate beside the present one. Raise NotFound: gone, or banned."""
    where = (agents.c.id == str(agent.id)) & (agents.c.serial == agent.serial) & ~agents.c.banned
    values = {"new_serial": serial, "new_not_after": not_after}
    _one(connection.execute(update(agents).where(where).values(values)).rowcount)


def promote_agent(connection: Connection, agent: Agent) -> None:
    """Make the agent's present serial the one of `agent`, which was its new one, unless another call just did."""
    where = (agents.c.id == str(agent.id)) & (agents.c.new_serial == agent.serial) & ~agents.c.banned
    values = {"serial": agent.serial, "not_after": agent.not_after, "new_serial": "", "new_not_after": 0}
    connection.execute(update(agents).where(where).values(values))


def adopt_agent(connection: Connection, agent: Agent, adopted: Agent, issued_at: int) -> bool:
    """Make a certificate the agent's present one that was signed after the backup which was restored.

    Return False, with nothing changed, for one that this database knows (it was replaced before the backup), or that is
    not newer than those which count.
    """
    columns = (issued.c.issued_at, issued.c.authority_id)
    serials = [*adopted.certificates, *agent.certificates]
    rows = connection.execute(select(issued.c.serial, *columns).where(issued.c.serial.in_(serials))).all()
    if any(row.serial in adopted.certificates or row.issued_at >= issued_at for row in rows):
        return False
    where = (agents.c.id == str(agent.id)) & (agents.c.serial == agent.serial) & ~agents.c.banned
    values = {"serial": adopted.serial, "not_after": adopted.not_after, "new_serial": "", "new_not_after": 0}
    if connection.execute(update(agents).where(where).values(values)).rowcount != 1:
        return False
    row = {
        "serial": adopted.certificates[0],
        "spiffe_id": str(agent.id),
        "entry_id": "",
        "agent_id": str(agent.id),
        # Nothing says which authority signed it; that of the one before is likely.
        "authority_id": max(rows, key=lambda row: int(row.issued_at)).authority_id if rows else "",
        "issued_at": issued_at,
        "not_after": adopted.not_after,
    }
    connection.execute(insert(issued).values(row))
    return True


def set_agent_version(connection: Connection, agent_id: SpiffeId, version: str) -> None:
    """Write the version that an agent tells. Raise NotFound."""
    statement = update(agents).where(agents.c.id == str(agent_id)).values(agent_version=version)
    _one(connection.execute(statement).rowcount)


def ban_agent(connection: Connection, agent_id: SpiffeId) -> None:
    """Ban an agent for good: its serials are blanked. Raise NotFound."""
    values: dict[str, Any] = {"banned": True, "serial": "", "new_serial": "", "new_not_after": 0}
    _one(connection.execute(update(agents).where(agents.c.id == str(agent_id)).values(values)).rowcount)


def delete_agent(connection: Connection, agent_id: SpiffeId) -> None:
    """Delete an agent with its selectors. Raise NotFound."""
    _one(connection.execute(delete(agents).where(agents.c.id == str(agent_id))).rowcount)


def _one(count: int) -> None:
    if count != 1:
        raise NotFound("agent not found")


def token_hash(token: str | bytes) -> bytes:
    """Return what stands for a join token wherever one is kept or compared."""
    return hashlib.sha256(token.encode() if isinstance(token, str) else token).digest()


def insert_token(connection: Connection, token: str, expires_at: int) -> None:
    """Add a join token. Raise AlreadyExists."""
    try:
        with connection.begin_nested():
            connection.execute(insert(join_tokens).values(token_sha256=token_hash(token), expires_at=expires_at))
    except IntegrityError:
        raise AlreadyExists("join token already exists") from None


def spend_token(connection: Connection, token: bytes) -> int:
    """Delete a join token and return when it expires. Raise InvalidRequest unless this very call deleted it.

    Looking first and deleting after would let two callers in (SPIRE 1.14.6): the deletion itself is the check.
    """
    statement = delete(join_tokens).where(join_tokens.c.token_sha256 == token_hash(token))
    expires_at: int | None = connection.scalar(statement.returning(join_tokens.c.expires_at))
    if expires_at is None:
        raise InvalidRequest("failed to attest: join token does not exist or has already been used")
    return expires_at


def expire_tokens(connection: Connection) -> int:
    """End every join token, in a database that was restored: which of them were used since is not known."""
    return int(connection.execute(update(join_tokens).values(expires_at=0)).rowcount)


def delete_expired_tokens(connection: Connection, now: int) -> list[bytes]:
    """Delete join tokens that nobody used in time, and return what stood for them."""
    statement = delete(join_tokens).where(join_tokens.c.expires_at <= now)
    return list(connection.scalars(statement.returning(join_tokens.c.token_sha256)))


def note_spent_token(connection: Connection, digest: bytes, issued_at: float, expires_at: int) -> None:
    """Note that a token which others issue was used. Raise AttestationRefused when it was before.

    As with join tokens the writing is the check: of two brokers that see one token at once, the database takes one.
    """
    since = select(spent_tokens.c.expires_at).where(spent_tokens.c.token_sha256 == _RESTORED)
    restored: int | None = connection.scalar(since)
    if restored is not None and issued_at <= restored - LONGEST_TOKEN:
        raise AttestationRefused(
            "the token is from before the broker's database was restored, and may have been used since the backup; the "
            "next one of the pod attests"
        )
    try:
        with connection.begin_nested():
            connection.execute(insert(spent_tokens).values(token_sha256=digest, expires_at=expires_at))
    except IntegrityError:
        raise AttestationRefused("the token has already been used to attest an agent") from None


def distrust_tokens(connection: Connection, now: int) -> None:
    """Take no token from before now, in a database that was restored: which were used since is not known."""
    connection.execute(delete(spent_tokens).where(spent_tokens.c.token_sha256 == _RESTORED))
    connection.execute(insert(spent_tokens).values(token_sha256=_RESTORED, expires_at=now + LONGEST_TOKEN))


def delete_expired_spent_tokens(connection: Connection, now: int) -> None:
    """Forget tokens that nobody could use again."""
    connection.execute(delete(spent_tokens).where(spent_tokens.c.expires_at <= now))


def _row(agent: Agent) -> dict[str, Any]:
    return {
        "id": str(agent.id),
        "attestation_type": agent.attestation_type,
        "serial": agent.serial,
        "not_after": agent.not_after,
        "new_serial": agent.new_serial,
        "new_not_after": agent.new_not_after,
        "can_reattest": agent.can_reattest,
        "banned": agent.banned,
        "agent_version": agent.agent_version,
    }


def _agent(row: Any, selectors: list[Selector]) -> Agent:
    return Agent(
        id=SpiffeId.parse(row.id),
        attestation_type=row.attestation_type,
        serial=row.serial,
        not_after=row.not_after,
        selectors=frozenset(selectors),
        new_serial=row.new_serial,
        new_not_after=row.new_not_after,
        can_reattest=row.can_reattest,
        banned=row.banned,
        agent_version=row.agent_version,
    )
