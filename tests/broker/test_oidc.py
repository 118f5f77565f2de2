# SPDX-License-Identifier: Apache-2.0
"""OIDC discovery of a whole broker: a relying party that knows nothing of SPIFFE validates our JWT-SVIDs with PyJWT."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest

from firedoor.broker import config
from firedoor.broker.errors import ConfigError
from firedoor.broker.oidc import read_issuer
from firedoor.wire import localauthority_grpc, svid_pb2
from firedoor.wire import localauthority_pb2 as authority_pb2
from tests.broker.harness import POLICY, RunningBroker, flags, running, spiffe_id
from tests.broker.test_bundle_endpoint import blind, fetched
from tests.ports import own_port
from tests.web_pki import WebPki

AUDIENCE = "https://cloud.example"
MINTED = POLICY.replace('entry: ["unix:user:registry"]', 'entry: ["unix:user:registry"], mint: true')


class Party:
    """A relying party: it is told the issuer, as a cloud is, and trusts the web's CAs."""

    def __init__(self, issuer: str, pki: WebPki) -> None:
        self.issuer, self._context = issuer, pki.client()

    async def discovered(self) -> dict[str, Any]:
        async with fetched(self.issuer, self._context, "/.well-known/openid-configuration") as response:
            assert (response.status, response.content_type) == (200, "application/json")
            found: dict[str, Any] = await response.json()
        return found

    async def validate(self, token: str) -> dict[str, Any]:
        """Validate a token as OpenID Connect has it. Raise jwt.PyJWTError."""
        found = await self.discovered()
        assert found["issuer"] == self.issuer
        client = jwt.PyJWKClient(found["jwks_uri"], ssl_context=self._context, cache_keys=False)
        key = await asyncio.to_thread(client.get_signing_key_from_jwt, token)
        algorithms = found["id_token_signing_alg_values_supported"]
        claims: dict[str, Any] = jwt.decode(token, key, algorithms=algorithms, audience=AUDIENCE, issuer=self.issuer)
        return claims


@pytest.fixture
def pki() -> WebPki:
    return WebPki()


def served(folder: Path, pki: WebPki, issuer: str, **more: str) -> dict[str, str]:
    certificate, key = pki.write(folder, "localhost", "127.0.0.1")
    return {
        "jwt_issuer": issuer,
        "oidc_listen": "127.0.0.1:0",
        "oidc_certificate": str(certificate),
        "oidc_key": str(key),
        **more,
    }


@pytest.fixture
def issuer() -> str:
    """An issuer names its port before there is a listener."""
    return f"https://localhost:{own_port()}"


@pytest.fixture(params=["ec-p256", "ec-p384", "rsa-2048"])
async def broker(
    folder: Path, pki: WebPki, issuer: str, request: pytest.FixtureRequest
) -> AsyncIterator[RunningBroker]:
    listen = {"oidc_listen": issuer.removeprefix("https://").replace("localhost", "127.0.0.1")}
    async with running(folder, MINTED, ca_key_type=request.param, **served(folder, pki, issuer, **listen)) as found:
        yield found


async def token(broker: RunningBroker) -> str:
    request = svid_pb2.MintJWTSVIDRequest(id=spiffe_id("/segment/registry/x"), audience=[AUDIENCE, "models"])
    return str((await broker.svids.MintJWTSVID(request)).svid.token)


async def test_a_relying_party_validates_our_tokens(broker: RunningBroker, pki: WebPki, issuer: str) -> None:
    party = Party(issuer, pki)
    claims = await party.validate(await token(broker))
    assert (claims["sub"], claims["iss"]) == ("spiffe://example.org/segment/registry/x", issuer)
    # After a forced rotation both keys are there, and the new one signs.
    stub = localauthority_grpc.LocalAuthorityStub(broker.admin)
    old = await token(broker)
    prepared = await stub.PrepareJWTAuthority(authority_pb2.PrepareJWTAuthorityRequest())
    wanted = prepared.prepared_authority.authority_id
    await stub.ActivateJWTAuthority(authority_pb2.ActivateJWTAuthorityRequest(authority_id=wanted))
    assert jwt.get_unverified_header(await token(broker))["kid"] == wanted
    for one in (old, await token(broker)):
        assert await party.validate(one)


async def test_what_a_relying_party_refuses(broker: RunningBroker, pki: WebPki, issuer: str) -> None:
    party, good = Party(issuer, pki), await token(broker)
    head, claims, signature = good.split(".")
    forged = ".".join([head, jwt.utils.base64url_encode(b'{"sub":"spiffe://example.org/x"}').decode(), signature])
    for wrong in (forged, f"{head}.{claims}.{signature[:-8]}AAAAAAAA", jwt.encode({"aud": AUDIENCE}, "x" * 32)):
        with pytest.raises(jwt.PyJWTError):
            await party.validate(wrong)
    # A revoked key is gone at once: nothing holds it back.
    stub = localauthority_grpc.LocalAuthorityStub(broker.admin)
    kid = jwt.get_unverified_header(good)["kid"]
    prepared = await stub.PrepareJWTAuthority(authority_pb2.PrepareJWTAuthorityRequest())
    await stub.ActivateJWTAuthority(
        authority_pb2.ActivateJWTAuthorityRequest(authority_id=prepared.prepared_authority.authority_id)
    )
    await stub.TaintJWTAuthority(authority_pb2.TaintJWTAuthorityRequest(authority_id=kid))
    assert await party.validate(good)
    await stub.RevokeJWTAuthority(authority_pb2.RevokeJWTAuthorityRequest(authority_id=kid))
    with pytest.raises(jwt.PyJWKClientError):
        await party.validate(good)


async def test_the_documents_are_those_of_spires_provider(broker: RunningBroker, pki: WebPki, issuer: str) -> None:
    assert await Party(issuer, pki).discovered() == {
        "issuer": issuer,
        "jwks_uri": f"{issuer}/keys",
        "authorization_endpoint": "",
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256", "ES256", "ES384"],
    }
    async with fetched(issuer, pki.client(), "/keys") as response:
        (key,) = json.loads(await response.read())["keys"]
        assert response.headers["Cache-Control"] == "no-cache"
    assert (key["kty"], key["use"], key["alg"]) in {
        ("EC", "sig", "ES256"),
        ("EC", "sig", "ES384"),
        ("RSA", "sig", "RS256"),
    }
    assert set(key) == {"kid", "use", "alg", "kty"} | ({"n", "e"} if key["kty"] == "RSA" else {"crv", "x", "y"})


async def test_another_host_is_not_served(folder: Path, pki: WebPki) -> None:
    """Whoever could choose the host could choose the issuer."""
    more = served(folder, pki, "https://oidc.example.org", oidc_domains="oidc.example.org,localhost")
    async with running(folder, **more) as broker:
        (site,) = broker.broker.sites.values()
        where = f"https://127.0.0.1:{site.address.rpartition(':')[2]}"
        for path in ("/keys", "/.well-known/openid-configuration"):
            for host, status in (
                ("oidc.example.org", 200),
                ("OIDC.example.org:443", 200),
                ("localhost", 200),
                ("oidc.example.org.", 200),
                ("evil.example", 400),
                ("oidc.example.org.evil.example", 400),
                ("127.0.0.1", 400),
                ("[::1]:8443", 400),
                ("", 400),
            ):
                async with fetched(where, blind(), path, Host=host) as response:
                    assert response.status == status, host
        # No bundle there, no metrics, and nothing is taken from a header.
        for path in ("/", "/metrics", "/keys/", "/..//keys"):
            async with fetched(where, blind(), path, Host="oidc.example.org") as response:
                assert response.status in (200, 404) if path == "/..//keys" else response.status == 404
        async with fetched(
            where,
            blind(),
            "/.well-known/openid-configuration",
            Host="localhost",
            **{"X-Forwarded-Host": "evil.example"},
        ) as response:
            assert (await response.json())["issuer"] == "https://oidc.example.org"


async def test_an_issuer_with_a_path(folder: Path, pki: WebPki) -> None:
    async with running(folder, **served(folder, pki, "https://localhost/tenants/a")) as broker:
        (site,) = broker.broker.sites.values()
        where = f"https://localhost:{site.address.rpartition(':')[2]}"
        async with fetched(where, pki.client(), "/tenants/a/.well-known/openid-configuration") as response:
            assert (await response.json())["jwks_uri"] == "https://localhost/tenants/a/keys"
        async with fetched(where, pki.client(), "/tenants/a/keys") as response:
            assert response.status == 200
        async with fetched(where, pki.client(), "/keys") as response:
            assert response.status == 404


async def test_one_listener_for_the_bundle_and_discovery(folder: Path, pki: WebPki) -> None:
    certificate, key = pki.write(folder, "localhost")
    more = {
        "jwt_issuer": "https://localhost",
        "oidc_listen": "127.0.0.1:0",
        "bundle_endpoint_listen": "127.0.0.1:0",
        "bundle_endpoint_profile": "https_web",
        "bundle_endpoint_certificate": str(certificate),
        "bundle_endpoint_key": str(key),
    }
    async with running(folder, **more) as broker:
        (site,) = broker.broker.sites.values()
        where = f"https://localhost:{site.address.rpartition(':')[2]}"
        for path in ("/", "/keys", "/.well-known/openid-configuration"):
            async with fetched(where, pki.client(), path) as response:
                assert response.status == 200


async def test_tokens_have_no_issuer_unless_it_is_given(folder: Path) -> None:
    async with running(folder, MINTED) as broker:
        assert "iss" not in jwt.decode(await token(broker), options={"verify_signature": False})


async def test_two_listeners(folder: Path, pki: WebPki) -> None:
    more = served(folder, pki, "https://localhost", bundle_endpoint_listen="localhost:0")
    async with running(folder, **more) as broker:
        assert len(broker.broker.sites) == 2
        async with aiohttp.ClientSession() as session:
            for site, path in zip(broker.broker.sites.values(), ("/", "/keys"), strict=True):
                where = f"https://localhost:{site.address.rpartition(':')[2]}{path}"
                async with session.get(where, ssl=blind()) as response:
                    assert response.status == 200


@pytest.mark.parametrize("good", ["https://a", "https://a.example:8443", "https://a.example/b/c.d", "https://[::1]:1"])
def test_an_issuer(good: str) -> None:
    assert read_issuer(good) == good


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "a",
        "http://a",
        "https://",
        "https://a/",
        "https://a/b/",
        "https://a//b",
        "https://A",
        "HTTPS://a",
        "https://a?b",
        "https://a#b",
        "https://u:p@a",
        "https://a:99999",
        "https://a/b c",
        "https://a/%2e",
        "https://a\n",
        "https://" + "a" * 3000,
    ],
)
def test_no_issuer(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"must be|no URL"):
        read_issuer(wrong)


NEEDS = {
    "no issuer": ({"jwt_issuer": None}, "oidc.listen: needs jwt_issuer"),
    "no certificate": ({"oidc_certificate": None}, "oidc.certificate: is missing; a listener of its own needs it"),
    "no key": ({"oidc_key": None}, "oidc.key: is missing"),
    "a wrong issuer": ({"jwt_issuer": "https://a/"}, "jwt_issuer: must be"),
    "a wrong domain": ({"oidc_domains": "a,B"}, "oidc.domains[1]: must be a host name in lower case"),
    "where the SVID listens": (
        {"bundle_endpoint_listen": "127.0.0.1:0", "oidc_certificate": None, "oidc_key": None},
        "bundle_endpoint listens there with https_spiffe; OIDC needs https_web",
    ),
    "two certificates for one listener": (
        {"bundle_endpoint_listen": "127.0.0.1:0"},
        "oidc.certificate: goes with a listener of its own",
    ),
}


@pytest.mark.parametrize("name", NEEDS)
def test_keys_that_do_not_go_together(folder: Path, pki: WebPki, name: str) -> None:
    changes, words = NEEDS[name]
    given: dict[str, str | None] = {**flags(folder, None, **served(folder, pki, "https://a")), **changes}
    with pytest.raises(ConfigError) as wrong:
        config.load(None, {}, given)
    assert words in str(wrong.value)


def test_validate_looks_at_the_files(folder: Path, pki: WebPki) -> None:
    read = config.load(None, {}, flags(folder, None, **served(folder, pki, "https://a")))
    assert config.validate(read) == []
    (folder / "web.key").unlink()
    assert "oidc.key" in config.validate(read)[0]
