# SPDX-License-Identifier: Apache-2.0
"""Attestation by a node's certificate, over the network."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from firedoor.broker.broker import Broker
from firedoor.broker.rpc import agents
from firedoor.certs import Challenge, KeyType, generate_key, write_evidence
from firedoor.wire import agent_grpc, agent_pb2, details, types
from tests.broker.harness import POLICY, Answer, RunningBroker, code_of, right_answer, running, spiffe_id
from tests.node_pki import Held, NodePki, key_pem, rsa_public_key, usage
from tests.waiting import async_until

NODE_SEGMENT = """\
---
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {name: training}
spec:
  function: training
  trust: high
  mode: enforce
  members: ["spiffe://{td}/segment/training/**"]
  admission: {entry: ["unix:user:training"], node: ["x509pop:subject:cn:gpu-1"]}
"""
NONCE = bytes(32)
SHORT = b64encode(bytes(31)).decode()


@pytest.fixture(scope="module")
def pki() -> NodePki:
    return NodePki(int(time.time()))


def put(file: Path, *pems: bytes) -> None:
    file.write_bytes(b"".join(pems))


@pytest.fixture
def bundle(folder: Path, pki: NodePki) -> Path:
    file = folder / "nodes-ca.pem"
    file.write_bytes(pki.root_pem)
    return file


@pytest.fixture
async def broker(folder: Path, bundle: Path) -> AsyncIterator[RunningBroker]:
    async with running(folder, POLICY + NODE_SEGMENT, x509pop_ca_bundles=str(bundle)) as found:
        yield found


async def shown(broker: RunningBroker, path: str) -> types.Agent:
    return await broker.agents.GetAgent(agent_pb2.GetAgentRequest(id=spiffe_id(path)))


async def refusal(broker: RunningBroker, held: Held, answer: Answer | None = None, **more: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await broker.client().prove(held, answer, **more)
    assert not broker.broker.state.agents
    return refused.value


@pytest.mark.parametrize("key", [None, rsa.generate_private_key(65537, 2048)], ids=["ECDSA", "RSA"])
async def test_a_node_attests_as_often_as_it_likes(broker: RunningBroker, pki: NodePki, key: Any) -> None:
    between = pki.ca("Between", issuer=pki.root)
    uris = ["x509pop://example.org/rack/a7"]
    held = pki.node("gpu-1", issuer=between, key=key, serial=0xABC, uris=uris)
    node = broker.client()
    node.use(await node.prove(held), node.key)
    sha1 = held.certificate.fingerprint(_sha1()).hex()
    assert node.id == f"spiffe://example.org/spire/agent/x509pop/{sha1}"
    agent = await shown(broker, node.path)
    assert (agent.attestation_type, agent.can_reattest, agent.banned) == ("x509pop", True, False)
    assert {f"{one.type}:{one.value}" for one in agent.selectors} == {
        "x509pop:subject:cn:gpu-1",
        "x509pop:serialnumber:0abc",
        "x509pop:san:rack:a7",
        *(f"x509pop:ca:fingerprint:{ca.certificate.fingerprint(_sha1()).hex()}" for ca in (between, pki.root)),
    }
    assert await node.entries() == []
    # It attests instead of renewing, and what it had before counts no longer.
    with pytest.raises(grpc.aio.AioRpcError) as renewed:
        await node.renew(generate_key(KeyType.EC_P256))
    assert renewed.value.details() == "agent must reattest instead of renew"
    old, again = node.channel, await node.prove(held)
    node.use(again, node.key)
    assert await node.entries() == []
    node.channel = old
    with pytest.raises(grpc.aio.AioRpcError):
        await node.entries()


def _sha1() -> Any:
    from cryptography.hazmat.primitives import hashes

    return hashes.SHA1()


REFUSED: dict[str, tuple[Callable[[NodePki], Held], str, str]] = {
    "another CA": (lambda _: NodePki(int(time.time()), "Other").node(), "PERMISSION_DENIED", "does not chain to a CA"),
    "a CA of the same name": (lambda _: NodePki(int(time.time())).node(), "PERMISSION_DENIED", "does not chain"),
    "expired": (lambda pki: pki.node(days=(-30, -1)), "PERMISSION_DENIED", "has expired"),
    "not yet valid": (lambda pki: pki.node(days=(1, 30)), "PERMISSION_DENIED", "is not yet valid"),
    "a CA": (lambda pki: pki.ca("Between", issuer=pki.root), "PERMISSION_DENIED", "is a CA certificate"),
    "no digitalSignature": (
        lambda pki: pki.node(usage=usage("key_agreement")),
        "PERMISSION_DENIED",
        "digitalSignature",
    ),
    "RSA-1024": (lambda pki: pki.node(public_key=rsa_public_key(1024)), "PERMISSION_DENIED", "RSA of 2048 to 8192"),
    "RSA-16384": (lambda pki: pki.node(public_key=rsa_public_key(16384)), "PERMISSION_DENIED", "RSA of 2048 to 8192"),
    "a huge exponent": (
        lambda pki: pki.node(public_key=rsa_public_key(2048, 2**2000 + 1)),
        "PERMISSION_DENIED",
        "an exponent up to 65537",
    ),
    "Ed25519": (
        lambda pki: pki.node(key=ed25519.Ed25519PrivateKey.generate()),
        "PERMISSION_DENIED",
        "a key is none of ECDSA",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_certificate_that_is_refused(broker: RunningBroker, pki: NodePki, case: str) -> None:
    make, code, words = REFUSED[case]
    refused = await refusal(broker, make(pki), lambda _: pytest.fail("it was asked for a signature"))
    assert code_of(refused) == code
    assert refused.details().startswith("failed to attest: x509pop: ")
    assert words in refused.details()
    assert "gpu-1" not in refused.details()


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"", "is not the JSON of its attestor"),
        (b"{", "is not the JSON of its attestor"),
        (b'{"certificates":["AA=="],"certificates":[]}', "is not the JSON of its attestor"),
        (b'{"certificates":["!"]}', "a certificate is not in base64"),
        (b'{"certificates":["AAAA"]}', "cannot be read"),
        (b'{"certificates":[]}', "holds no certificate"),
        (b'{"certificates":["AA==","AA==","AA==","AA==","AA==","AA=="]}', "4 intermediates"),
        (b'{"certificates":["' + b"A" * 65_000 + b'"]}', "cannot be read or is longer than 16 KiB"),
        (b" " * 65_537, "malformed param: the attestation payload is too long"),
    ],
)
async def test_a_payload_that_cannot_be_read(broker: RunningBroker, payload: bytes, words: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await broker.client().show(payload, lambda _: b"")
    assert code_of(refused.value) == "INVALID_ARGUMENT"
    assert words in refused.value.details()


def altered(key: Any, **fields: Any) -> Answer:
    """Return an answer with fields replaced."""

    def answer(message: bytes) -> bytes:
        members = json.loads(Challenge.read(message).answer(key, NONCE))
        members["ecdsa_signature"].update(fields)
        return json.dumps(members).encode()

    return answer


def to_another(key: Any) -> Answer:
    """Return the answer to a challenge that was not asked."""
    return lambda _: Challenge.to(key.public_key(), NONCE).answer(key, NONCE)


ANSWERS: dict[str, tuple[Callable[[Any], Answer], str, str]] = {
    "another key": (
        lambda _: right_answer(ec.generate_private_key(ec.SECP256R1())),
        "PERMISSION_DENIED",
        "is not signed by the key",
    ),
    "another challenge": (to_another, "PERMISSION_DENIED", "is not signed by the key"),
    "a nonce of 31 bytes": (lambda key: altered(key, nonce=SHORT), "INVALID_ARGUMENT", "a nonce has 32 bytes"),
    "no numbers": (lambda key: altered(key, r="", s=""), "PERMISSION_DENIED", "is not signed by the key"),
    "another kind": (
        lambda _: lambda m: m.replace(b'"ecdsa_signature"', b'"x"'),
        "INVALID_ARGUMENT",
        "exactly one of rsa_signature",
    ),
    "the challenge itself": (lambda _: lambda message: message, "INVALID_ARGUMENT", "its r is not in base64"),
    "no JSON": (lambda _: lambda _: b"{", "INVALID_ARGUMENT", "is not the JSON of its attestor"),
    "nothing": (lambda _: lambda _: b"", "INVALID_ARGUMENT", "is not the JSON of its attestor"),
    "much": (lambda _: lambda _: b" " * 2**17, "INVALID_ARGUMENT", "longer than 4 KiB"),
    "no message": (lambda _: lambda _: None, "INVALID_ARGUMENT", "the challenge was not answered"),
}


@pytest.mark.parametrize("case", ANSWERS)
async def test_an_answer_that_is_refused(broker: RunningBroker, pki: NodePki, case: str) -> None:
    make, code, words = ANSWERS[case]
    held = pki.node()
    refused = await refusal(broker, held, make(held.key))
    assert (code_of(refused), words in refused.details()) == (code, True), refused.details()
    assert await broker.client().prove(held)


async def test_an_answer_is_good_for_its_own_challenge_alone(broker: RunningBroker, pki: NodePki) -> None:
    held, seen = pki.node(), []

    def answer(message: bytes) -> bytes:
        seen.append(right_answer(held.key)(message))
        return seen[0]

    assert await broker.client().prove(held, answer)
    # The same node, the same certificate, the answer of before: each challenge has a nonce of its own.
    with pytest.raises(grpc.aio.AioRpcError) as replayed:
        await broker.client().prove(held, answer)
    assert "is not signed by the key" in replayed.value.details()


async def test_a_challenge_is_sent_once(broker: RunningBroker, pki: NodePki) -> None:
    """A second answer is not looked at: the stream has ended by then."""
    held, node = pki.node(), broker.client()
    call = agent_grpc.AgentStub(node.channel).AttestAgent()
    await call.write(agent_pb2.AttestAgentRequest(params=params(node, held)))
    challenge = (await call.read()).challenge
    await call.write(agent_pb2.AttestAgentRequest(challenge_response=b"{}"))
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        await call.write(agent_pb2.AttestAgentRequest(challenge_response=right_answer(held.key)(challenge)))
    # grpcio says INTERNAL where a message was on its way when the stream ended.
    assert await call.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL)
    assert not broker.broker.state.agents


def params(node: Any, held: Held) -> agent_pb2.AttestAgentRequest.Params:
    from firedoor.certs import make_csr

    return agent_pb2.AttestAgentRequest.Params(
        data=types.AttestationData(type="x509pop", payload=write_evidence(held.chain)),
        params=agent_pb2.AgentX509SVIDParams(csr=make_csr(node.key)),
    )


async def test_a_challenge_lives_for_a_short_time(
    broker: RunningBroker, pki: NodePki, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents, "_CHALLENGE_SECONDS", 0.05)
    held, node = pki.node(), broker.client()
    call = agent_grpc.AgentStub(node.channel).AttestAgent()
    await call.write(agent_pb2.AttestAgentRequest(params=params(node, held)))
    assert (await call.read()).challenge
    with contextlib.suppress(grpc.aio.AioRpcError):
        assert await call.read() == grpc.aio.EOF
    assert await call.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert "was not answered within" in await call.details()


async def test_the_number_of_attestations_under_way_is_limited(
    broker: RunningBroker, pki: NodePki, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first one still waits for its answer when the last one comes.
    monkeypatch.setattr(agents, "_CHALLENGE_SECONDS", 3600)
    held, node = pki.node(), broker.client()
    calls = []
    for _ in range(32):
        call = agent_grpc.AgentStub(node.channel).AttestAgent()
        await call.write(agent_pb2.AttestAgentRequest(params=params(node, held)))
        assert (await call.read()).challenge
        calls.append(call)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await broker.client().prove(held)
    assert code_of(refused.value) == "RESOURCE_EXHAUSTED"
    assert refused.value.details() == "too many attestations are under way; try again"
    # Who goes away leaves its place at once, and who answers too.
    calls.pop().cancel()
    await async_until(lambda: _under_way(broker.broker) == 31)
    assert await broker.client().prove(held)
    for call in calls:
        call.cancel()
    await async_until(lambda: _under_way(broker.broker) == 0)


def _under_way(broker: Broker) -> int:
    return int(broker.limits._attesting._taken.total())


async def test_a_banned_node_stays_banned(broker: RunningBroker, pki: NodePki) -> None:
    held, twin = pki.node("gpu-1"), pki.node("gpu-1")
    node = broker.client()
    node.use(await node.prove(held), node.key)
    await broker.ban(node.id)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await broker.client().prove(held)
    assert refused.value.details() == "failed to attest: agent is banned"
    assert details.permission_denied_reason(tuple(refused.value.trailing_metadata())) == (
        types.PermissionDeniedDetails.AGENT_BANNED
    )
    # Another certificate is another agent.
    assert await broker.client().prove(twin)


async def test_an_evicted_node_attests_again(broker: RunningBroker, pki: NodePki) -> None:
    held, node = pki.node(), broker.client()
    node.use(await node.prove(held), node.key)
    await broker.agents.DeleteAgent(agent_pb2.DeleteAgentRequest(id=spiffe_id(node.path)))
    node.use(await node.prove(held), node.key)
    assert await node.entries() == []


async def test_what_the_broker_attested_admits(broker: RunningBroker, pki: NodePki) -> None:
    """`admission.node` asks for a common name: the node that has it gets the SVID, another of the same CA none."""
    results = []
    for name in ("gpu-1", "gpu-2"):
        node = broker.client()
        node.use(await node.prove(pki.node(name)), node.key)
        entry = await broker.entry(f"/segment/training/{name}", node.path, ["unix:user:training"])
        results.append((await node.sign(entry.id))[0].status)
    assert results[0].code == 0
    assert results[1].code == details.PERMISSION_DENIED
    assert "x509pop:subject" in results[1].message
    assert "gpu-1" not in results[1].message


async def test_a_node_alias_by_selectors_outlives_the_certificate(broker: RunningBroker, pki: NodePki) -> None:
    """The ID is the certificate's fingerprint; entries hang on an alias, so that a new certificate changes nothing."""
    await broker.entry("/node/gpu-1", "/spire/server", ["x509pop:subject:cn:gpu-1"])
    await broker.entry("/segment/registry/a", "/node/gpu-1", ["unix:user:registry"])
    paths = set()
    for _ in range(2):
        node = broker.client()
        node.use(await node.prove(pki.node("gpu-1")), node.key)
        paths.add(node.path)
        assert [entry.spiffe_id.path for entry in await node.entries()] == ["/segment/registry/a"]
    assert len(paths) == 2


async def test_other_selectors_make_a_generation(broker: RunningBroker, bundle: Path, pki: NodePki) -> None:
    other = NodePki(pki.at, "Other Root")
    key = ec.generate_private_key(ec.SECP256R1())
    one, two = (each.ca("Between", issuer=each.root, key=key) for each in (pki, other))
    held = pki.node(issuer=one)
    put(bundle, pki.root_pem, other.root_pem)
    await broker.broker.reread()
    assert await broker.client().prove(held)
    before = broker.broker.state.generation
    assert await broker.client().prove(held)
    assert broker.broker.state.generation == before
    assert await broker.client().prove(held, chain=(held.der, one.der, two.der))
    assert broker.broker.state.generation > before


async def test_the_agent_lives_no_longer_than_its_certificate(broker: RunningBroker, pki: NodePki) -> None:
    # Ten minutes from now, where an SVID would have an hour: the PKI is as old as the first test here.
    held = pki.node(days=(-1, (time.time() - pki.at + 600) / 86_400))
    svid = await broker.client().prove(held)
    assert svid.not_after <= int(held.certificate.not_valid_after_utc.timestamp())


async def test_the_audit_log_has_the_outcome_once(broker: RunningBroker, pki: NodePki) -> None:
    held = pki.node("gpu-1", uris=["x509pop://example.org/secret/s3cret"])
    svid = await broker.client().prove(held)
    with pytest.raises(grpc.aio.AioRpcError):
        await broker.client().prove(held, to_another(held.key))
    lines = [line for line in broker.audit() if line.get("event") == "attest"]
    assert [line["status"] for line in lines] == ["OK", "PERMISSION_DENIED"]
    assert lines[0]["agent_id"] == str(svid.id)
    assert "s3cret" not in json.dumps(broker.audit())
    assert key_pem(held.key).splitlines()[1].decode() not in json.dumps(broker.audit())
