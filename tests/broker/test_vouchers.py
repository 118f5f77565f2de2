# SPDX-License-Identifier: Apache-2.0
"""Who vouches for nodes' certificates: CA files, our own SVIDs; and the agent's ID that comes of it."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_private_key

from firedoor.broker.agent_path import X509Path
from firedoor.broker.broker import Broker
from firedoor.broker.config import load, validate
from firedoor.broker.errors import AttestationRefused, ConfigError
from firedoor.certs import make_csr
from tests.broker.harness import POLICY, RunningBroker, code_of, flags, running
from tests.node_pki import Held, NodePki
from tests.simulator import SimulatedTrustDomain
from tests.waiting import async_until


@pytest.fixture(scope="module")
def pki() -> NodePki:
    return NodePki(int(time.time()))


def put(file: Path, *pems: bytes) -> None:
    file.write_bytes(b"".join(pems))


@pytest.fixture
def bundle(folder: Path, pki: NodePki) -> Path:
    file = folder / "nodes-ca.pem"
    put(file, pki.root_pem)
    return file


@pytest.fixture
async def broker(folder: Path, bundle: Path) -> AsyncIterator[RunningBroker]:
    async with running(folder, POLICY, x509pop_ca_bundles=str(bundle)) as found:
        yield found


# --- the CA files -----------------------------------------------------------------------------------------------------


async def test_ca_files_are_read_again(broker: RunningBroker, bundle: Path, pki: NodePki) -> None:
    other = NodePki(pki.at, "Other Root")
    with pytest.raises(grpc.aio.AioRpcError, match="does not chain to a CA that is configured"):
        await broker.client().prove(other.node())
    put(bundle, pki.root_pem, other.root_pem)

    async def attested() -> bool:
        try:
            return bool(await broker.client().prove(other.node()))
        except grpc.aio.AioRpcError:
            return False

    await async_until(attested, "an attestation with the new bundle")
    put(bundle, other.root_pem)
    await broker.broker.reread()
    with pytest.raises(grpc.aio.AioRpcError, match="does not chain"):
        await broker.client().prove(pki.node())


async def test_wrong_ca_files_change_nothing(
    broker: RunningBroker, bundle: Path, pki: NodePki, caplog: pytest.LogCaptureFixture
) -> None:
    for wrong in (b"no PEM", pki.node().pem, b""):
        put(bundle, wrong)
        with caplog.at_level(logging.ERROR, "firedoor.broker.x509pop"):
            await broker.broker.reread()
        assert f"x509pop.ca_bundles: {bundle}" in caplog.text
        caplog.clear()
        assert await broker.client().prove(pki.node())


async def test_a_broker_without_cas_does_not_start(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"x509pop.ca_bundles: .*absent.pem cannot be read: No such file"):
        await Broker(load(None, {}, flags(folder, POLICY, x509pop_ca_bundles=str(folder / "absent.pem")))).start()


async def test_nobody_attests_so_unless_it_is_configured(folder: Path, pki: NodePki) -> None:
    async with running(folder) as broker:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await broker.client().prove(pki.node())
    assert code_of(refused.value) == "FAILED_PRECONDITION"
    assert refused.value.details() == 'error getting node attestor: could not find node attestor type "x509pop"'


# --- the agent's path -------------------------------------------------------------------------------------------------


async def test_a_path_that_the_certificate_fills_in(folder: Path, bundle: Path, pki: NodePki) -> None:
    async with running(folder, x509pop_ca_bundles=str(bundle), x509pop_agent_path="cn/{cn}") as broker:
        first = await broker.client().prove(pki.node("gpu-1"))
        assert str(first.id) == "spiffe://example.org/spire/agent/x509pop/cn/gpu-1"
        assert (await broker.client().prove(pki.node("gpu-1"))).id == first.id
        await broker.ban(str(first.id))
        with pytest.raises(grpc.aio.AioRpcError, match="agent is banned"):
            await broker.client().prove(pki.node("gpu-1"))
        for name in ("../../join_token/x", "..", ".", "a/b", "a b", "gr\u00f6\u00dfe", "a%2fb", "{cn}"):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await broker.client().prove(pki.node(name))
            assert code_of(refused.value) == "PERMISSION_DENIED"
            assert "agent's ID" in refused.value.details()
    assert len(broker.broker.state.agents) == 1


@pytest.mark.parametrize(
    "template", ["", "x", "{}", "{CN}", "{fingerprint", "{other}", "../{cn}", "{cn}/", "/{cn}", "a b/{cn}", "{cn}/../x"]
)
def test_a_template_that_is_none(template: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        X509Path.parse(template)


@pytest.mark.parametrize("value", ["", "..", "a/b", "a\n"])
def test_a_value_fills_one_segment(value: str) -> None:
    with pytest.raises(AttestationRefused):
        X509Path.parse("{cn}").fill({"cn": value})
    assert X509Path.parse("n-{cn}").fill({"cn": "x"}) == "/spire/agent/x509pop/n-x"


# --- our own SVIDs ----------------------------------------------------------------------------------------------------


async def exchange(broker: RunningBroker, path: str) -> Held:
    """Have the broker sign an SVID, and return it as a node would hold it."""
    agent = await broker.attest()
    entry = await broker.entry(path, agent.path, ["unix:user:registry"])
    key = ec.generate_private_key(ec.SECP256R1())
    (result,) = await agent.sign(entry.id, csr=make_csr(key))
    assert result.status.code == 0, result.status.message
    chain = [bytes(der) for der in result.svid.cert_chain]
    return Held(x509.load_der_x509_certificate(chain[0]), key, tuple(chain[1:]))


async def test_an_svid_below_the_prefix_is_exchanged(folder: Path, pki: NodePki) -> None:
    prefix = "/segment/registry/exchange"
    async with running(folder, x509pop_spiffe_prefix=prefix) as broker:
        held = await exchange(broker, f"{prefix}/site/n1")
        svid = await broker.client().prove(held)
        assert str(svid.id) == "spiffe://example.org/spire/agent/x509pop/site/n1"
        outside = await exchange(broker, "/segment/registry/exchange-not/n2")
        for wrong, words in ((outside, "does not begin with"), (pki.node(), "chain"), (_foreign(), "chain")):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await broker.client().prove(wrong)
            assert code_of(refused.value) == "PERMISSION_DENIED"
            assert words in refused.value.details()


async def test_a_revoked_svid_is_not_exchanged(folder: Path) -> None:
    prefix = "/segment/registry/exchange"
    async with running(folder, x509pop_spiffe_prefix=prefix) as broker:
        held = await exchange(broker, f"{prefix}/n1")
        assert await broker.client().prove(held)
        (holder,) = (each for each in broker.broker.state.agents if "/join_token/" in each.path)
        await broker.ban(str(holder))
        with pytest.raises(grpc.aio.AioRpcError, match="is revoked"):
            await broker.client().prove(held)


def _foreign() -> Held:
    made = SimulatedTrustDomain("example.org", at=int(time.time())).svid("/segment/registry/exchange/n1")
    return Held(x509.load_der_x509_certificate(made.chain[0]), load_der_private_key(made.key_der, None))


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"x509pop_ca_bundles": "a.pem", "x509pop_spiffe_prefix": "/x"}, "stands without x509pop.ca_bundles"),
        ({"x509pop_ca_bundles": "a.pem", "x509pop_agent_path": "{path}"}, "{path} needs x509pop.spiffe_prefix"),
        ({"x509pop_spiffe_prefix": "x"}, "--x509pop-spiffe-prefix: x509pop.spiffe_prefix"),
        ({"x509pop_agent_path": "nodes"}, "must name at least one of {fingerprint}"),
        ({"x509pop_ca_bundles": ","}, "x509pop.ca_bundles: is missing or empty: files with"),
    ],
)
def test_what_is_configured_wrong(folder: Path, given: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(None, {}, flags(folder, **given))
    assert words in str(refused.value)


def test_validate_reads_the_cas(folder: Path, bundle: Path) -> None:
    assert validate(load(None, {}, flags(folder, POLICY, x509pop_ca_bundles=str(bundle)))) == []
    bundle.write_text("no PEM")
    (finding,) = validate(load(None, {}, flags(folder, POLICY, x509pop_ca_bundles=str(bundle))))
    assert finding.startswith(f"x509pop.ca_bundles: {bundle}: ")
