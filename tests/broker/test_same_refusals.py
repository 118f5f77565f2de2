# SPDX-License-Identifier: Apache-2.0
"""Whatever refuses a certificate refuses a token too, with the same status and the same sentence.

Each case stands beside a twin that gets both, so that no refusal is the broker's only answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from firedoor.broker.policy import compile_documents
from firedoor.certs import TrustDomain
from firedoor.segments import Document, Loader
from firedoor.wire import details, entry_pb2
from tests.broker.harness import POLICY, AgentClient, RunningBroker, running
from tests.broker.test_issuing import NODE, STRICTER, change
from tests.broker.test_tokens import ID, MINT, PATH, USER, mint, mint_token

# Status, sentence, and why the agent's standing does not allow it (0: that is not the reason).
Answer = tuple[str, str, int]
# Makes what is to be refused, and returns the entry's ID.
Prepare = Callable[[RunningBroker, AgentClient], Awaitable[str]]

EMPTIED = POLICY.replace("spiffe://{td}/segment/registry/**", "spiffe://{td}/segment/registry/other")
assert EMPTIED != POLICY


async def answer(call: Awaitable[Any]) -> Answer:
    """Return how a call ended; a batch of one ends as its one result does."""
    try:
        made = await call
    except grpc.aio.AioRpcError as error:
        reason = details.permission_denied_reason(tuple(error.trailing_metadata() or ())) or 0
        return error.code().name, error.details() or "", reason
    status = made[0].status if isinstance(made, list) else None
    if status is None or status.code == 0:
        return "OK", "", 0
    return next(code.name for code in grpc.StatusCode if code.value[0] == status.code), status.message, 0


async def both(agent: AgentClient, entry_id: str) -> tuple[Answer, Answer]:
    return await answer(agent.sign(entry_id)), await answer(agent.token(entry_id))


async def not_selected(broker: RunningBroker, agent: AgentClient) -> str:
    made = await broker.entry(PATH, agent.path, USER)
    await change(broker, STRICTER)
    return made.id


async def not_attested(broker: RunningBroker, agent: AgentClient) -> str:
    made = await broker.entry(PATH, agent.path, USER)
    await change(broker, NODE)
    return made.id


async def in_no_segment(broker: RunningBroker, agent: AgentClient) -> str:
    made = await broker.entry(PATH, agent.path, USER)
    await change(broker, EMPTIED)
    return made.id


async def refused_by_what_comes(broker: RunningBroker, agent: AgentClient) -> str:
    """While an edit waits for holders of old certificates, both policies have to admit."""
    made = await broker.entry(PATH, agent.path, USER)
    document = Document("segments.yaml", STRICTER)
    broker.broker.policy._coming = compile_documents([document], Loader(TrustDomain.parse("example.org")))
    return made.id


async def somebody_elses(broker: RunningBroker, _: AgentClient) -> str:
    return (await broker.entry(PATH, (await broker.attest()).path, USER)).id


async def deleted(broker: RunningBroker, agent: AgentClient) -> str:
    made = await broker.entry(PATH, agent.path, USER)
    await broker.entries.BatchDeleteEntry(entry_pb2.BatchDeleteEntryRequest(ids=[made.id]))
    return made.id


async def expired(broker: RunningBroker, agent: AgentClient) -> str:
    now = broker.broker.clock.now()
    made = await broker.entry(PATH, agent.path, USER, expires_at=now + 60)
    broker.broker.clock._last = now + 61.0
    return made.id


async def alias(broker: RunningBroker, _: AgentClient) -> str:
    await broker.attest(agent_id="/node/gpu-1")
    return next(entry.id for entry in broker.broker.state.entries if entry.spiffe_id.path == "/node/gpu-1")


async def none_at_all(_: RunningBroker, __: AgentClient) -> str:
    return "no-such-entry"


async def unnamed(_: RunningBroker, __: AgentClient) -> str:
    return ""


async def banned(broker: RunningBroker, agent: AgentClient) -> str:
    made = await broker.entry(PATH, agent.path, USER)
    await broker.ban(agent.id)
    agent.channel = agent.connect()
    return made.id


CASES: dict[str, tuple[Prepare, str, str]] = {
    "a selector that the segment asks for": (not_selected, "PERMISSION_DENIED", "unix:path"),
    "a node selector that nobody attested": (not_attested, "PERMISSION_DENIED", "spire_agent:alias"),
    "an ID in no segment": (in_no_segment, "PERMISSION_DENIED", "no segment"),
    "the policy that comes": (refused_by_what_comes, "PERMISSION_DENIED", "unix:path"),
    "another agent's entry": (somebody_elses, "NOT_FOUND", "entry not found or not authorized"),
    "a deleted entry": (deleted, "NOT_FOUND", "entry not found or not authorized"),
    "an expired entry": (expired, "NOT_FOUND", "entry not found or not authorized"),
    "a node alias": (alias, "NOT_FOUND", "entry not found or not authorized"),
    "no such entry": (none_at_all, "NOT_FOUND", "entry not found or not authorized"),
    "no entry named": (unnamed, "INVALID_ARGUMENT", "missing entry ID"),
    "a banned agent": (banned, "PERMISSION_DENIED", "agent is banned"),
}


@pytest.mark.parametrize("case", CASES)
async def test_a_workload_is_refused_both(broker: RunningBroker, case: str) -> None:
    prepare, code, words = CASES[case]
    agent = await broker.attest()
    twin = await broker.entry(PATH + "-twin", agent.path, USER)
    assert [one[0] for one in await both(agent, twin.id)] == ["OK", "OK"]
    certificate, token = await both(agent, await prepare(broker, agent))
    assert certificate == token
    assert (certificate[0], words in certificate[1]) == (code, True), certificate


async def test_without_segments_a_workload_is_refused_both(folder: Path) -> None:
    async with running(folder, None) as broker:
        agent = await broker.attest()
        made = await broker.entry(PATH, agent.path, USER)
        certificate, token = await both(agent, made.id)
        assert certificate == token
        assert certificate[0] == "FAILED_PRECONDITION"
        await broker.apply(POLICY)
        assert [one[0] for one in await both(agent, made.id)] == ["OK", "OK"]


MINTED = {
    "a segment that does not say so": ("example.org", "/segment/inference/x", "PERMISSION_DENIED"),
    "no segment": ("example.org", "/elsewhere/x", "PERMISSION_DENIED"),
    "an agent's ID": ("example.org", "/spire/agent/join_token/x", "INVALID_ARGUMENT"),
    "the broker's own": ("example.org", "/spire/server", "INVALID_ARGUMENT"),
    "no path": ("example.org", "", "INVALID_ARGUMENT"),
    "another trust domain": ("other.org", PATH, "INVALID_ARGUMENT"),
}


# SPIRE's words for where the ID came from.
PREFIXES = ("CSR URI SAN is invalid: ", "invalid SPIFFE ID: ")


def unprefixed(found: Answer) -> Answer:
    sentence = found[1]
    for prefix in PREFIXES:
        sentence = sentence.removeprefix(prefix)
    return found[0], sentence, found[2]


@pytest.mark.parametrize("case", MINTED)
async def test_neither_is_minted(folder: Path, case: str) -> None:
    trust_domain, path, code = MINTED[case]
    async with running(folder, MINT) as broker:
        certificate = unprefixed(await answer(mint(broker, f"spiffe://{trust_domain}{path}")))
        token = unprefixed(await answer(mint_token(broker, path, trust_domain)))
        assert certificate == token
        assert certificate[0] == code
        twins = await answer(mint(broker, ID)), await answer(mint_token(broker))
        assert [one[0] for one in twins] == ["OK", "OK"]
