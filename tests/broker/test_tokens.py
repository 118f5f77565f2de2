# SPDX-License-Identifier: Apache-2.0
"""JWT-SVIDs and minting: what they say, who gets none, and that no token is written down. Each refusal has its twin."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import grpc
import pytest
from spiffe import JwtSvid as PySpiffeJwtSvid
from spiffe.bundle.jwt_bundle.jwt_bundle import JwtBundle
from spiffe.spiffe_id.spiffe_id import TrustDomain as PySpiffeTrustDomain

from firedoor.broker.db.rows import issued_by_serial
from firedoor.broker.messages import bundle_message
from firedoor.certs import (
    KeyType,
    TrustBundle,
    TrustDomain,
    ValidatedJwt,
    generate_key,
    make_csr,
    parse_x509_svid,
    validate_jwt_svid,
    verify_x509_svid,
)
from firedoor.wire import svid_pb2, types
from tests.broker.harness import POLICY, RunningBroker, code_of, running, spiffe_id
from tests.broker.test_authority import DAY, jump
from tests.broker.test_issuing import NODE, STRICTER, change

TD = TrustDomain.parse("example.org")
USER = ["unix:user:registry"]
PATH = "/segment/registry/x"
ID = f"spiffe://example.org{PATH}"
MINT = POLICY.replace(
    'admission: {entry: ["unix:user:registry"]}', 'admission: {entry: ["unix:user:registry"], mint: true}'
)
assert MINT != POLICY


def validate(broker: RunningBroker, token: str, audience: str = "models") -> ValidatedJwt:
    """Validate a token with nothing but the bundle that the broker publishes."""
    bundle = broker.broker.state.bundles[TD]
    read = TrustBundle.parse(TD, bundle.to_jwt_json())
    return validate_jwt_svid(token, audience, {TD: read}, broker.broker.clock.now())


async def refusal(call: Awaitable[Any]) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return code_of(caught.value), caught.value.details() or ""


def header(token: str) -> dict[str, Any]:
    part = token.partition(".")[0]
    return dict(json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))))


async def test_an_entitled_agent_gets_the_entrys_token(broker: RunningBroker) -> None:
    agent = await broker.attest()
    made = await broker.entry(PATH, agent.path, USER, hint="h")
    svid = await agent.token(made.id, "models", "tools", "models")
    found = validate(broker, svid.token)
    assert str(found.id) == ID == f"spiffe://{svid.id.trust_domain}{svid.id.path}"
    assert found.claims["aud"] == ["models", "tools"]
    assert found.claims.keys() == {"sub", "aud", "exp", "iat", "jti"}
    assert svid.expires_at - svid.issued_at == 300
    assert (found.claims["exp"], found.claims["iat"]) == (svid.expires_at, svid.issued_at)
    assert svid.hint == "h"
    assert header(svid.token) == {"alg": "ES256", "kid": found.key_id, "typ": "JWT"}
    assert len(found.key_id) == 32
    assert found.key_id.isalnum()
    assert found.claims["jti"] != validate(broker, (await agent.token(made.id)).token).claims["jti"]


@pytest.mark.peer
async def test_py_spiffe_validates_it(broker: RunningBroker) -> None:
    agent = await broker.attest()
    made = await broker.entry(PATH, agent.path, USER)
    bundle = JwtBundle.parse(PySpiffeTrustDomain("example.org"), broker.broker.state.bundles[TD].to_jwt_json())
    read = PySpiffeJwtSvid.parse_and_validate((await agent.token(made.id)).token, bundle, {"models"})
    assert str(read.spiffe_id) == ID


async def test_the_entrys_ttl_counts_and_no_token_outlives_its_key(folder: Path) -> None:
    async with running(folder, ca_ttl="1h", jwt_svid_ttl="90s") as broker:
        agent = await broker.attest()
        plain = await broker.entry(PATH, agent.path, USER)
        short = await broker.entry(PATH + "-2", agent.path, USER, jwt_svid_ttl=20)
        long = await broker.entry(PATH + "-3", agent.path, USER, jwt_svid_ttl=7200)
        lives = [await agent.token(one.id) for one in (plain, short, long)]
        assert [one.expires_at - one.issued_at for one in lives[:2]] == [90, 20]
        assert lives[2].expires_at == broker.broker.jwt_authority.not_after


@pytest.mark.parametrize("kind", ["ec-p384", "rsa-2048"])
async def test_with_every_kind_of_key(folder: Path, kind: str) -> None:
    async with running(folder, ca_key_type=kind) as broker:
        agent = await broker.attest()
        made = await broker.entry(PATH, agent.path, USER)
        token = (await agent.token(made.id)).token
        assert header(token)["alg"] == {"ec-p384": "ES384", "rsa-2048": "RS256"}[kind]
        assert str(validate(broker, token).id) == ID


# --- who gets none ----------------------------------------------------------------------------------------------


async def test_requests_that_say_too_little(broker: RunningBroker) -> None:
    agent = await broker.attest()
    made = await broker.entry(PATH, agent.path, USER)
    stub = agent.channel.unary_unary(
        "/spire.api.server.svid.v1.SVID/NewJWTSVID",
        svid_pb2.NewJWTSVIDRequest.SerializeToString,
        svid_pb2.NewJWTSVIDResponse.FromString,
    )
    assert await refusal(stub(svid_pb2.NewJWTSVIDRequest(audience=["a"]))) == ("INVALID_ARGUMENT", "missing entry ID")
    wanted = ("INVALID_ARGUMENT", "at least one audience is required")
    assert await refusal(stub(svid_pb2.NewJWTSVIDRequest(entry_id=made.id))) == wanted
    code, _ = await refusal(stub(svid_pb2.NewJWTSVIDRequest(entry_id=made.id, audience=["a" * 5000])))
    assert code == "INVALID_ARGUMENT"
    assert (await agent.token(made.id)).token


async def test_another_agents_entry_is_not_found(broker: RunningBroker) -> None:
    agent, other = await broker.attest(), await broker.attest()
    made = await broker.entry(PATH, other.path, USER)
    assert await refusal(agent.token(made.id)) == ("NOT_FOUND", "entry not found or not authorized")
    assert (await other.token(made.id)).token


async def test_admission_refuses_a_token_as_it_refuses_a_certificate(broker: RunningBroker) -> None:
    agent = await broker.attest()
    made = await broker.entry(PATH, agent.path, USER)
    assert (await agent.token(made.id)).token
    await change(broker, STRICTER)
    (certificate,) = await agent.sign(made.id)
    code, details = await refusal(agent.token(made.id))
    assert (code, details) == ("PERMISSION_DENIED", certificate.status.message)
    assert "unix:path" in details
    assert "/srv/registry" not in details


async def test_a_node_selector_that_the_broker_did_not_attest_refuses(folder: Path) -> None:
    async with running(folder, NODE) as broker:
        wrong, right = await broker.attest(agent_id="/node/gpu-2"), await broker.attest(agent_id="/node/gpu-1")
        for agent, alias in ((wrong, "/node/gpu-2"), (right, "/node/gpu-1")):
            made = await broker.entry(PATH, alias, USER)
            if agent is right:
                assert (await agent.token(made.id)).token
            else:
                assert (await refusal(agent.token(made.id)))[0] == "PERMISSION_DENIED"


async def test_nothing_without_segments(folder: Path) -> None:
    async with running(folder, None) as broker:
        code, details = await refusal(
            broker.svids.MintJWTSVID(svid_pb2.MintJWTSVIDRequest(id=spiffe_id(PATH), audience=["a"]))
        )
        assert code == "FAILED_PRECONDITION"
        assert "no segments are declared" in details


async def test_a_banned_agent_gets_none(broker: RunningBroker) -> None:
    agent, twin = await broker.attest(), await broker.attest()
    entries = [await broker.entry(PATH + name, one.path, USER) for name, one in (("-1", agent), ("-2", twin))]
    await broker.ban(agent.id)
    agent.channel = agent.connect()
    assert (await refusal(agent.token(entries[0].id)))[0] in ("PERMISSION_DENIED", "UNAVAILABLE")
    assert (await twin.token(entries[1].id)).token


async def test_signatures_are_limited(folder: Path) -> None:
    async with running(folder, rate_limits_signing="0.01", rate_limits_signing_burst="2") as broker:
        agent = await broker.attest()
        made = await broker.entry(PATH, agent.path, USER)
        for _ in range(2):
            assert (await agent.token(made.id)).token
        wanted = ("RESOURCE_EXHAUSTED", "rejecting request due to JWT signing rate limiting")
        assert await refusal(agent.token(made.id)) == wanted


# --- minting ----------------------------------------------------------------------------------------------------


def mint_token(broker: RunningBroker, path: str = PATH, td: str = "example.org", **fields: Any) -> Awaitable[Any]:
    request = svid_pb2.MintJWTSVIDRequest(id=types.SPIFFEID(trust_domain=td, path=path), audience=["models"], **fields)
    return broker.svids.MintJWTSVID(request)


KEY = generate_key(KeyType.EC_P256)


def mint(broker: RunningBroker, *uris: str, dns_names: tuple[str, ...] = (), ttl: int = 0) -> Awaitable[Any]:
    csr = make_csr(KEY, uris=uris, dns_names=dns_names)
    return broker.svids.MintX509SVID(svid_pb2.MintX509SVIDRequest(csr=csr, ttl=ttl))


async def test_a_segment_that_says_so_lets_its_ids_be_minted(folder: Path) -> None:
    async with running(folder, MINT) as broker:
        token = (await mint_token(broker, ttl=77)).svid
        assert str(validate(broker, token.token).id) == ID
        assert token.expires_at - token.issued_at == 77
        made = (await mint(broker, ID, dns_names=("models.internal",), ttl=120)).svid
        svid = parse_x509_svid(tuple(made.cert_chain))
        verify_x509_svid(svid.chain, {TD: broker.broker.state.bundles[TD]}, broker.broker.clock.now())
        assert (str(svid.id), svid.dns_names, made.expires_at) == (ID, ("models.internal",), svid.not_after)
        assert svid.not_after - svid.not_before == 130
        now = broker.broker.clock.now()
        found = await broker.broker.database.read(lambda c: issued_by_serial(c, svid.serial, now))
        assert found is not None
        assert (found.spiffe_id, found.entry_id, found.agent_id) == (ID, "", "")
        records = {r["event"]: r for r in broker.audit() if str(r.get("event", "")).startswith("mint")}
        assert records["mint"]["serial"] == svid.serial
        assert records["mint"]["caller_uid"] == records["mint_jwt"]["caller_uid"] == os.geteuid()
        assert records["mint_jwt"]["jti"] == validate(broker, token.token).claims["jti"]
        # A segment beside it says no such thing.
        for call in (mint_token(broker, "/segment/inference/x"), mint(broker, ID.replace("registry", "inference"))):
            code, details = await refusal(call)
            assert code == "PERMISSION_DENIED"
            assert "mint: true" in details
        assert sum(r.get("refused") == "not_admitted" for r in broker.audit()) == 2


NOT_MINTED = {
    "no path": "",
    "reserved": "/spire/server",
    "an agent's": "/spire/agent/join_token/x",
    "in no segment": "/elsewhere/x",
}


@pytest.mark.parametrize("name", NOT_MINTED)
async def test_ids_that_are_never_minted(folder: Path, name: str) -> None:
    async with running(folder, MINT) as broker:
        path = NOT_MINTED[name]
        for call in (mint_token(broker, path), mint(broker, f"spiffe://example.org{path}")):
            assert (await refusal(call))[0] in ("INVALID_ARGUMENT", "PERMISSION_DENIED")
        assert (await mint_token(broker)).svid.token


async def test_requests_to_mint_that_make_no_sense(folder: Path) -> None:
    async with running(folder, MINT) as broker:
        invalid = {
            "another trust domain": mint_token(broker, td="other.org"),
            "another trust domain's certificate": mint(broker, f"spiffe://other.org{PATH}"),
            "malformed": mint_token(broker, "x/../y"),
            "negative": mint_token(broker, ttl=-1),
            "negative certificate": mint(broker, ID, ttl=-1),
            "no audience": broker.svids.MintJWTSVID(svid_pb2.MintJWTSVIDRequest(id=spiffe_id(PATH))),
            "no CSR": broker.svids.MintX509SVID(svid_pb2.MintX509SVIDRequest()),
            "no ID": mint(broker),
            "two IDs": mint(broker, ID, ID + "-2"),
            "no SPIFFE ID": mint(broker, "https://example.org/x"),
            "bad DNS name": mint(broker, ID, dns_names=("Models",)),
        }
        for name, call in invalid.items():
            assert (name, (await refusal(call))[0]) == (name, "INVALID_ARGUMENT")
        assert (await mint(broker, ID)).svid.cert_chain


async def test_agents_do_not_mint(folder: Path) -> None:
    async with running(folder, MINT) as broker:
        agent = await broker.attest()
        stub = agent.channel.unary_unary(
            "/spire.api.server.svid.v1.SVID/MintJWTSVID",
            svid_pb2.MintJWTSVIDRequest.SerializeToString,
            svid_pb2.MintJWTSVIDResponse.FromString,
        )
        request = svid_pb2.MintJWTSVIDRequest(id=spiffe_id(PATH), audience=["a"])
        assert (await refusal(stub(request)))[0] == "PERMISSION_DENIED"
        assert (await broker.svids.MintJWTSVID(request)).svid.token


# --- authorities ------------------------------------------------------------------------------------------------


async def test_the_next_key_is_published_before_it_signs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(folder, agent_ttl="7d") as broker:
        authority, state = broker.broker.jwt_authority, broker.broker.state
        agent = await broker.attest()
        made = await broker.entry(PATH, agent.path, USER, x509_svid_ttl=DAY)
        first = authority.issuer().authority_id
        assert [key.key_id for key in state.bundles[TD].jwt_keys] == [first]
        jump(broker, monkeypatch, DAY / 2 + 60)
        generation = state.generation
        await authority.tick()
        second = state.bundles[TD].jwt_keys[1].key_id
        assert state.generation > generation
        assert [key.key_id for key in (await broker.bundle()).jwt_authorities] == [first, second]
        assert header((await agent.token(made.id)).token)["kid"] == first
        jump(broker, monkeypatch, DAY / 3)
        await authority.tick()
        token = (await agent.token(made.id)).token
        assert header(token)["kid"] == second
        assert str(validate(broker, token).id) == ID
        # The first one is pruned a day after its end, and not before.
        await broker.broker.authority.tick()
        assert state.bundles[TD].jwt_keys[0].key_id == first
        jump(broker, monkeypatch, DAY * 1.5)
        await broker.broker.authority.tick()
        assert first not in [key.key_id for key in state.bundles[TD].jwt_keys]


async def test_a_restart_goes_on_with_the_same_key_and_knows_its_end(folder: Path) -> None:
    async with running(folder) as broker:
        first, bundle = broker.broker.jwt_authority.issuer().public, broker.broker.state.bundles[TD]
    async with running(folder) as again:
        assert again.broker.jwt_authority.issuer().public == first
        assert again.broker.state.bundles[TD] == bundle
        assert bundle.jwt_keys == (first,)
        assert first.expires_at


async def test_a_lost_key_is_replaced_and_what_it_signed_stays_good(folder: Path) -> None:
    async with running(folder) as broker:
        agent = await broker.attest()
        made = await broker.entry(PATH, agent.path, USER)
        old = (await agent.token(made.id)).token
    (folder / "data" / "keys" / "JWT-Signer-A.pem").unlink()
    async with running(folder) as again:
        assert len(again.broker.state.bundles[TD].jwt_keys) == 2
        assert str(validate(again, old).id) == ID


async def test_both_kinds_at_once_lose_neither(broker: RunningBroker) -> None:
    await asyncio.gather(broker.broker.authority._prepare(), broker.broker.jwt_authority._prepare())
    bundle = broker.broker.state.bundles[TD]
    assert (len(bundle.x509_roots), len(bundle.jwt_keys)) == (2, 2)


async def test_views_carry_the_keys(broker: RunningBroker) -> None:
    (key,) = bundle_message(broker.broker.state.bundles[TD]).jwt_authorities
    issuer = broker.broker.jwt_authority.issuer()
    assert (key.key_id, key.public_key, key.expires_at) == (
        issuer.authority_id,
        issuer.public.public_key,
        issuer.not_after,
    )


# --- secrets ----------------------------------------------------------------------------------------------------


async def test_no_token_is_in_any_log(
    folder: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    async with running(folder, MINT) as broker:
        agent = await broker.attest()
        made = await broker.entry(PATH, agent.path, USER)
        tokens = [(await agent.token(made.id)).token, (await mint_token(broker)).svid.token]
        log = broker.broker.config.audit_log
        assert log is not None
        everything = log.read_text() + caplog.text + "".join(capfd.readouterr())
        for token in tokens:
            assert token.rpartition(".")[2] not in everything
            assert token.split(".")[1] not in everything
        (record,) = (r for r in broker.audit() if r.get("event") == "issue_jwt")
        found = validate(broker, tokens[0])
        assert (record["spiffe_id"], record["jti"], record["authority_id"], record["audience"]) == (
            ID,
            found.claims["jti"],
            found.key_id,
            ["models"],
        )
        rows = await broker.broker.database.read(lambda c: list(c.exec_driver_sql("select entry_id from issued")))
        assert made.id not in [row[0] for row in rows]


async def test_what_cannot_be_audited_is_not_handed_out(broker: RunningBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = await broker.attest()
    made = await broker.entry(PATH, agent.path, USER)
    monkeypatch.setattr(broker.broker.audit, "_descriptor", os.open("/dev/full", os.O_WRONLY))
    assert (await refusal(agent.token(made.id)))[0] == "UNAVAILABLE"
    broker.broker.audit.reopen()
    assert (await agent.token(made.id)).token
