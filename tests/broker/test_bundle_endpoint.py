# SPDX-License-Identifier: Apache-2.0
"""The bundle endpoint of a whole broker, fetched as others fetch it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from firedoor import mtls
from firedoor.broker import config
from firedoor.broker.errors import ConfigError
from firedoor.certs import TrustBundle, TrustDomain
from firedoor.wire import localauthority_grpc, localauthority_pb2
from tests.broker.harness import SERVER, TD, RunningBroker, flags, running
from tests.waiting import async_until
from tests.web_pki import WebPki

LISTEN = {"bundle_endpoint_listen": "127.0.0.1:0"}
DOMAIN = TrustDomain.parse(TD)


@pytest.fixture
async def spiffe_broker(folder: Path) -> AsyncIterator[RunningBroker]:
    async with running(folder, bundle_endpoint_refresh_hint="2m", **LISTEN) as broker:
        yield broker


def url(broker: RunningBroker, host: str = "127.0.0.1") -> str:
    (site,) = broker.broker.sites.values()
    return f"https://{host}:{site.address.rpartition(':')[2]}/"


@contextlib.asynccontextmanager
async def fetched(
    where: str, context: ssl.SSLContext, path: str = "", **more: str
) -> AsyncIterator[aiohttp.ClientResponse]:
    async with aiohttp.ClientSession() as session, session.get(where + path, ssl=context, headers=more) as response:
        yield response


def blind() -> ssl.SSLContext:
    """Take any certificate: who serves is looked at elsewhere."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def test_the_bundle_is_served(spiffe_broker: RunningBroker) -> None:
    async with fetched(url(spiffe_broker), blind()) as response:
        assert (response.status, response.content_type) == (200, "application/json")
        assert response.headers["Cache-Control"] == "public, max-age=120"
        text = await response.read()
    served, present = TrustBundle.parse(DOMAIN, text), spiffe_broker.broker.state.bundles[DOMAIN]
    assert served.x509_roots == present.x509_roots
    assert {key.key_id for key in served.jwt_keys} == {key.key_id for key in present.jwt_keys}
    document = json.loads(text)
    assert (document["spiffe_sequence"], document["spiffe_refresh_hint"]) == (present.sequence, 120)


async def test_it_is_the_servers_svid_that_proves_it(spiffe_broker: RunningBroker, folder: Path) -> None:
    """By the connector, which asks for the SPIFFE ID as our own fetcher and others do."""
    core, inside = mtls.Core(data_threads=1), folder / "inside"
    inside.mkdir(mode=0o700)
    try:
        core.publish(mtls.Material(trust_domain=TD, bundles={TD: spiffe_broker.roots()}))
        addresses = [url(spiffe_broker).removeprefix("https://").removesuffix("/")]
        for expect, status in ((SERVER, 200), (f"spiffe://{TD}/spire/other", None)):
            made = core.connector(path=str(inside / "c"), addresses=addresses, expect=expect, alpn="http/1.1")
            async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(made.path)) as session:
                if status is None:
                    with pytest.raises(aiohttp.ClientError):
                        await session.get("http://a/")
                    assert "another identity than the expected one" in made.last_error()
                else:
                    async with session.get("http://a/") as response:
                        assert response.status == status
            made.stop()
    finally:
        core.stop()


async def test_a_change_is_served_at_once_and_what_is_known_is_not_sent_again(spiffe_broker: RunningBroker) -> None:
    async with fetched(url(spiffe_broker), blind()) as response:
        tag = response.headers["ETag"]
    async with fetched(url(spiffe_broker), blind(), **{"If-None-Match": tag}) as response:
        assert (response.status, await response.read(), response.headers["ETag"]) == (304, b"", tag)
    stub = localauthority_grpc.LocalAuthorityStub(spiffe_broker.admin)
    await stub.PrepareX509Authority(localauthority_pb2.PrepareX509AuthorityRequest())
    async with fetched(url(spiffe_broker), blind(), **{"If-None-Match": f'"other", {tag}'}) as response:
        assert response.status == 200
        assert response.headers["ETag"] != tag
        served = TrustBundle.parse(DOMAIN, await response.read())
    assert len(served.x509_roots) == 2


async def test_there_is_one_path_and_one_method(spiffe_broker: RunningBroker) -> None:
    for path in ("bundle.json", "..", "metrics"):
        async with fetched(url(spiffe_broker), blind(), path) as response:
            assert response.status == (200 if path == ".." else 404)
    where = url(spiffe_broker)
    async with aiohttp.ClientSession() as session, session.post(where, ssl=blind(), data=b"{}") as response:
        assert (response.status, response.headers["Allow"]) == (405, "GET")


async def test_it_is_off_unless_it_is_told_where(folder: Path) -> None:
    async with running(folder) as broker:
        assert broker.broker.sites == {}


# --- https_web ------------------------------------------------------------------------------------------------------


def web(folder: Path, pki: WebPki, *names: str) -> dict[str, str]:
    certificate, key = pki.write(folder, *names)
    return {
        "bundle_endpoint_profile": "https_web",
        "bundle_endpoint_certificate": str(certificate),
        "bundle_endpoint_key": str(key),
        **LISTEN,
    }


async def test_a_certificate_of_the_web_is_taken_up_when_it_is_renewed(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    pki = WebPki()
    async with running(folder, **web(folder, pki, "127.0.0.1")) as broker:
        async with fetched(url(broker), pki.client()) as response:
            assert response.status == 200
        # A renewal that is half done, or wrong, changes nothing.
        other = folder / "other"
        other.mkdir()
        WebPki().write(other, "127.0.0.1")[0].replace(folder / "web.pem")
        await async_until(lambda: "stays as it was" in caplog.text)
        assert "is not the key of the first certificate" in caplog.text
        async with fetched(url(broker), pki.client()) as response:
            assert response.status == 200
        pki.write(folder, "localhost")
        await async_until(lambda: "serves with the certificate" in caplog.text)
        async with fetched(url(broker, "localhost"), pki.client()) as response:
            assert response.status == 200
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            async with fetched(url(broker), pki.client()):
                pass


async def test_files_that_are_wrong_stop_the_start(folder: Path) -> None:
    given = web(folder, WebPki(), "127.0.0.1")
    (folder / "web.key").chmod(0o644)
    with pytest.raises(ConfigError, match=r"bundle_endpoint.key: .*web.key is open to others; chmod 0600 it"):
        async with running(folder, **given):
            pass


WRONG = {
    "no file": (lambda f: (f / "web.pem").unlink(), "web.pem cannot be read: No such file"),
    "no certificate": (lambda f: (f / "web.pem").write_text("hello"), "web.pem holds no certificate in PEM"),
    "no key": (lambda f: (f / "web.key").write_text("hello"), "web.key holds no private key in PEM"),
    "very long": (lambda f: (f / "web.pem").write_bytes(b"a" * 300_000), "web.pem is longer than 256 KiB"),
}


@pytest.mark.parametrize("name", WRONG)
def test_validate_looks_at_the_files(folder: Path, name: str) -> None:
    given = web(folder, WebPki(), "127.0.0.1")
    spoil, words = WRONG[name]
    read = config.load(None, {}, flags(folder, None, **given))
    assert config.validate(read) == []
    spoil(folder)
    (finding,) = config.validate(read)
    assert words in finding


NEEDS = {
    "certificate missing": (
        {"bundle_endpoint_profile": "https_web", "bundle_endpoint_key": "/k"},
        "bundle_endpoint.certificate: is missing; profile https_web needs it",
    ),
    "key missing": (
        {"bundle_endpoint_profile": "https_web", "bundle_endpoint_certificate": "/c"},
        "bundle_endpoint.key: is missing",
    ),
    "a certificate without need": ({"bundle_endpoint_certificate": "/c"}, "goes with profile https_web"),
    "profile": ({"bundle_endpoint_profile": "http"}, "must be one of https_spiffe, https_web"),
    "hint": ({"bundle_endpoint_refresh_hint": "1s"}, "refresh_hint"),
    "listen": ({"bundle_endpoint_listen": "8443"}, "bundle_endpoint.listen"),
}


@pytest.mark.parametrize("name", NEEDS)
def test_keys_that_do_not_go_together(folder: Path, name: str) -> None:
    given, words = NEEDS[name]
    with pytest.raises(ConfigError) as wrong:
        config.load(None, {}, flags(folder, None, **{**LISTEN, **given}))
    assert words in str(wrong.value)


async def test_a_hundred_fetch_at_once(spiffe_broker: RunningBroker) -> None:
    """More than one address may have: some are turned away, and all is well afterwards."""

    async def one() -> int:
        try:
            async with fetched(url(spiffe_broker), blind()) as response:
                return response.status
        except aiohttp.ClientError:
            return 0

    answers = await asyncio.gather(*(one() for _ in range(100)))
    assert 200 in answers
    assert set(answers) <= {0, 200}
    # Who has gone counts until the listener has seen it go.
    await async_until(one, "an answer again", when=lambda status: status == 200)
