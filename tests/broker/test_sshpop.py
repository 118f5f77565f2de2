# SPDX-License-Identifier: Apache-2.0
"""Attestation by the SSH certificate of a host, over the network."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from firedoor.broker.agent_path import SshPath
from firedoor.broker.config import load, validate
from firedoor.broker.errors import AttestationRefused, ConfigError
from firedoor.certs import SshChallenge, write_ssh_evidence
from firedoor.wire import agent_pb2, details
from tests.broker.harness import POLICY, Answer, RunningBroker, code_of, flags, running, spiffe_id
from tests.ssh_ca import USER, SshCa, SshHost, rsa_blob
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
  admission: {entry: ["unix:user:training"], node: ["spire_agent:id:spiffe://example.org/spire/agent/sshpop/host/gpu-1"]}
"""
NAMED = {"sshpop_canonical_domain": "example.org", "sshpop_agent_path": "host/{hostname}"}


@pytest.fixture(scope="module")
def ca() -> SshCa:
    return SshCa(int(time.time()))


@pytest.fixture
def keys(folder: Path, ca: SshCa) -> Path:
    file = folder / "hosts-ca.pub"
    file.write_bytes(ca.line)
    return file


@pytest.fixture
async def broker(folder: Path, keys: Path) -> AsyncIterator[RunningBroker]:
    async with running(folder, POLICY, sshpop_cert_authorities=str(keys)) as found:
        yield found


def put(file: Path, data: bytes) -> None:
    file.write_bytes(data)


def right(host: SshHost) -> Answer:
    return lambda message: SshChallenge.read(message).answer(host.key, secrets.token_bytes(32))


async def refusal(broker: RunningBroker, payload: bytes, answer: Answer) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await broker.client().show(payload, answer, "sshpop")
    assert not broker.broker.state.agents
    return refused.value


@pytest.mark.parametrize(
    "key",
    [
        ed25519.Ed25519PrivateKey.generate(),
        ec.generate_private_key(ec.SECP256R1()),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["Ed25519", "ECDSA", "RSA"],
)
async def test_a_host_attests_as_often_as_it_likes(broker: RunningBroker, ca: SshCa, key: object) -> None:
    host, node = ca.host(key=key), broker.client()
    node.use(await node.show(write_ssh_evidence(host.certificate), right(host), "sshpop"), node.key)
    digest = base64.urlsafe_b64encode(hashlib.sha256(host.certificate).digest()).decode().rstrip("=")
    assert node.id == f"spiffe://example.org/spire/agent/sshpop/{digest}"
    agent = await broker.agents.GetAgent(agent_pb2.GetAgentRequest(id=spiffe_id(node.path)))
    assert (agent.attestation_type, agent.can_reattest, list(agent.selectors)) == ("sshpop", True, [])
    assert await node.entries() == []
    node.use(await node.show(write_ssh_evidence(host.certificate), right(host), "sshpop"), node.key)
    assert await node.entries() == []


REFUSED: dict[str, tuple[Callable[[SshCa], SshHost], str]] = {
    "another CA": (lambda _: SshCa(int(time.time())).host(), "not of a CA that is configured for sshpop"),
    "a user's": (lambda ca: ca.host(type=USER), "the certificate is none of a host"),
    "expired": (lambda ca: ca.host(days=(-30, -1)), "has expired"),
    "not yet valid": (lambda ca: ca.host(days=(1, 30)), "is not yet valid"),
    "a critical option": (lambda ca: ca.host(critical=[(b"x", b"")]), "has a critical option"),
    "many principals": (lambda ca: ca.host(*(f"h{n}" for n in range(300))), "more than 256 principals"),
    "RSA-16384": (lambda ca: ca.host(public=rsa_blob(16384)), "RSA of 2048 to 8192 bits"),
    "signed by another": (lambda ca: ca.host(signer=ed25519.Ed25519PrivateKey.generate()), "not signed by its CA"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_certificate_that_is_refused(broker: RunningBroker, ca: SshCa, case: str) -> None:
    make, words = REFUSED[case]
    payload = write_ssh_evidence(make(ca).certificate)
    refused = await refusal(broker, payload, lambda _: pytest.fail("it was asked for a signature"))
    assert code_of(refused) == "PERMISSION_DENIED"
    assert refused.details().startswith("failed to attest: sshpop: ")
    assert words in refused.details()
    assert "gpu-1" not in refused.details()


@pytest.mark.parametrize("payload", [b"", b"{", b'{"Certificate":"AAAA"}', b" " * 40_000, b'{"Certificate":"!"}'])
async def test_a_payload_that_cannot_be_read(broker: RunningBroker, payload: bytes) -> None:
    refused = await refusal(broker, payload, lambda _: b"")
    assert code_of(refused) == "INVALID_ARGUMENT"
    assert refused.details().startswith("failed to attest: sshpop: ")


async def test_an_answer_that_is_refused(broker: RunningBroker, ca: SshCa) -> None:
    host = ca.host()
    payload = write_ssh_evidence(host.certificate)
    other = SshHost(host.certificate, ed25519.Ed25519PrivateKey.generate())
    before = SshChallenge.of(bytes(32)).answer(host.key, bytes(32))
    for answer, code in (
        (right(other), "PERMISSION_DENIED"),
        (lambda _: before, "PERMISSION_DENIED"),
        (lambda message: message, "INVALID_ARGUMENT"),
        (lambda _: b"{}", "INVALID_ARGUMENT"),
        (lambda _: b" " * 2**17, "INVALID_ARGUMENT"),
        (lambda _: None, "INVALID_ARGUMENT"),
    ):
        assert code_of(await refusal(broker, payload, answer)) == code


async def test_a_renamed_certificate_of_a_banned_host_stays_out(folder: Path, keys: Path, ca: SshCa) -> None:
    """With IDs of names a ban holds for every certificate of the host; and the name can be asked for by a segment."""
    async with running(folder, POLICY + NODE_SEGMENT, sshpop_cert_authorities=str(keys), **NAMED) as broker:
        results = []
        for name in ("gpu-1", "gpu-2"):
            host, node = ca.host(f"{name}.example.org"), broker.client()
            node.use(await node.show(write_ssh_evidence(host.certificate), right(host), "sshpop"), node.key)
            assert node.path == f"/spire/agent/sshpop/host/{name}"
            entry = await broker.entry(f"/segment/training/{name}", node.path, ["unix:user:training"])
            results.append((await node.sign(entry.id))[0].status.code)
        assert results == [0, details.PERMISSION_DENIED]
        await broker.ban("spiffe://example.org/spire/agent/sshpop/host/gpu-1")
        again = ca.host("gpu-1.example.org")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await broker.client().show(write_ssh_evidence(again.certificate), right(again), "sshpop")
        assert refused.value.details() == "failed to attest: agent is banned"
        stranger = ca.host("gpu-3.example.net")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await broker.client().show(write_ssh_evidence(stranger.certificate), right(stranger), "sshpop")
        assert "is not in the canonical domain" in refused.value.details()


@pytest.mark.parametrize("value", ["..", "a/b", "*", "", "a b", "a%2Fb", "é"])
def test_a_name_that_makes_no_agents_id(value: str) -> None:
    with pytest.raises(AttestationRefused):
        SshPath.parse("host/{hostname}").fill({"hostname": value})


async def test_the_cas_follow_their_files(broker: RunningBroker, keys: Path, ca: SshCa) -> None:
    other = SshCa(ca.at)
    host = other.host()
    assert "not of a CA" in (await refusal(broker, write_ssh_evidence(host.certificate), right(host))).details()
    put(keys, ca.line + other.line)
    authorities = broker.broker.ssh_authorities
    assert authorities
    await async_until(lambda: len(authorities.value) == 2)
    assert await broker.client().show(write_ssh_evidence(host.certificate), right(host), "sshpop")
    # What is wrong changes nothing.
    for wrong in (b"x\n", b""):
        put(keys, wrong)
        await authorities.poll()
        assert len(authorities.value) == 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sshpop_canonical_domain": "example.org"}, "sshpop.cert_authorities: is missing or empty: files with"),
        ({"sshpop_cert_authorities": "/x", "sshpop_agent_path": "host"}, "at least one of {fingerprint}, {hostname}"),
        ({"sshpop_cert_authorities": "/x", "sshpop_agent_path": "{cn}"}, "at least one of {fingerprint}, {hostname}"),
        ({"sshpop_cert_authorities": "/x", "sshpop_canonical_domain": ".example.org"}, "must be a DNS name in lower"),
    ],
)
def test_what_is_configured_wrong(folder: Path, given: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(None, {}, flags(folder, **given))
    assert words in str(refused.value)


def test_validate_reads_the_cas(folder: Path, keys: Path) -> None:
    assert validate(load(None, {}, flags(folder, POLICY, sshpop_cert_authorities=str(keys)))) == []
    for wrong in (json.dumps({}), "", None):
        keys.unlink() if wrong is None else keys.write_text(wrong)
        (finding,) = validate(load(None, {}, flags(folder, POLICY, sshpop_cert_authorities=str(keys))))
        assert finding.startswith(f"sshpop.cert_authorities: {keys}")
