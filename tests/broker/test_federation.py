# SPDX-License-Identifier: Apache-2.0
"""Federation relationships, and fetching bundles over https_web and https_spiffe from real TLS servers."""

from __future__ import annotations

import contextlib
import socket
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import web

from firedoor.certs import TrustDomain
from firedoor.wire import bundle_pb2, trustdomain_grpc, types
from firedoor.wire import trustdomain_pb2 as pb
from tests.broker.harness import RunningBroker, code_of, running
from tests.simulator import SimulatedTrustDomain
from tests.tls_server import serving_tls
from tests.waiting import async_until

OTHER = TrustDomain.parse("other.org")
SERVER = "spiffe://other.org/spire/server"
Answer = Callable[[web.Request], web.Response]


class Endpoint:
    """A bundle endpoint: what it answers may be changed at any time."""

    def __init__(self, answer: Answer) -> None:
        self.answer, self.asked = answer, 0
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        self.asked += 1
        return self.answer(request)


@contextlib.asynccontextmanager
async def endpoint(context: ssl.SSLContext, answer: Answer) -> AsyncIterator[Endpoint]:
    found = Endpoint(answer)
    application = web.Application()
    application.router.add_route("*", "/{tail:.*}", found.handle)
    async with serving_tls(application, context) as address:
        found.url = f"https://{address}/bundle"
        yield found


def spiffe_context(trust: SimulatedTrustDomain, path: str = "/spire/server") -> ssl.SSLContext:
    """Return the TLS of an endpoint that proves a SPIFFE ID."""
    svid = trust.svid(path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    with tempfile.NamedTemporaryFile() as file:
        file.write(svid.chain_pem + svid.key_pem)
        file.flush()
        context.load_cert_chain(file.name)
    return context


@pytest.fixture
def other() -> SimulatedTrustDomain:
    return SimulatedTrustDomain("other.org", at=int(time.time()))


def json(trust: SimulatedTrustDomain) -> web.Response:
    return web.Response(body=trust.bundle.to_json(), content_type="application/json")


def relationship(url: str, endpoint_id: str | None = None, **fields: Any) -> types.FederationRelationship:
    profile: dict[str, Any] = (
        {"https_web": {}} if endpoint_id is None else {"https_spiffe": {"endpoint_spiffe_id": endpoint_id}}
    )
    return types.FederationRelationship(trust_domain="other.org", bundle_endpoint_url=url, **profile, **fields)


def stub(broker: RunningBroker) -> Any:
    return trustdomain_grpc.TrustDomainStub(broker.admin)


async def create(broker: RunningBroker, one: types.FederationRelationship) -> types.Status:
    request = pb.BatchCreateFederationRelationshipRequest(federation_relationships=[one])
    status: types.Status = (await stub(broker).BatchCreateFederationRelationship(request)).results[0].status
    return status


async def refresh(broker: RunningBroker) -> tuple[str, str]:
    try:
        await stub(broker).RefreshBundle(pb.RefreshBundleRequest(trust_domain="other.org"))
    except grpc.aio.AioRpcError as error:
        return code_of(error), str(error.details())
    return "OK", ""


async def give(broker: RunningBroker, trust: SimulatedTrustDomain) -> None:
    """Set the first bundle by hand."""
    roots = [types.X509Certificate(asn1=root.der) for root in trust.roots]
    bundle = types.Bundle(trust_domain=trust.td.name, x509_authorities=roots)
    await broker.bundles.BatchSetFederatedBundle(bundle_pb2.BatchSetFederatedBundleRequest(bundle=[bundle]))


def held(broker: RunningBroker) -> list[str]:
    bundle = broker.broker.state.bundles.get(OTHER)
    return [root.authority_id for root in bundle.x509_roots] if bundle else []


async def test_https_spiffe_follows_the_endpoint_through_rotations(
    broker: RunningBroker, other: SimulatedTrustDomain
) -> None:
    async with endpoint(spiffe_context(other), lambda _: json(other)) as server:
        await give(broker, other)
        generation = broker.broker.state.generation
        assert (await create(broker, relationship(server.url, SERVER))).code == 0
        other.rotate()
        assert await refresh(broker) == ("OK", "")
        assert held(broker) == [root.authority_id for root in other.roots]
        assert broker.broker.state.generation > generation
        # The same again changes nothing: nobody is told twice.
        generation = broker.broker.state.generation
        assert await refresh(broker) == ("OK", "")
        assert broker.broker.state.generation == generation


async def test_https_spiffe_wants_the_id_that_was_named(broker: RunningBroker, other: SimulatedTrustDomain) -> None:
    """Another ID of that trust domain, and the right ID signed by another, prove nothing; the twin does."""
    await give(broker, other)
    before = held(broker)
    stranger = SimulatedTrustDomain("other.org", at=other.at)
    for context in (spiffe_context(other, "/somebody/else"), spiffe_context(stranger)):
        async with endpoint(context, lambda _: json(stranger)) as server:
            await create(broker, relationship(server.url, SERVER))
            code, words = await refresh(broker)
            assert (code, words.startswith("failed to refresh bundle: ")) == ("INTERNAL", True), words
            assert server.asked == 0
            await stub(broker).BatchDeleteFederationRelationship(
                pb.BatchDeleteFederationRelationshipRequest(trust_domains=["other.org"])
            )
    assert held(broker) == before
    async with endpoint(spiffe_context(other), lambda _: json(other)) as server:
        await create(broker, relationship(server.url, SERVER))
        assert await refresh(broker) == ("OK", "")


async def test_our_own_bundle_vouches_for_no_foreign_endpoint(
    broker: RunningBroker, other: SimulatedTrustDomain
) -> None:
    async with endpoint(spiffe_context(other), lambda _: json(other)) as server:
        await create(broker, relationship(server.url, SERVER))
        code, words = await refresh(broker)
        assert (code, "there is no bundle of other.org to verify" in words) == ("INTERNAL", True)


async def test_https_web(web_pki: ssl.SSLContext, broker: RunningBroker, other: SimulatedTrustDomain) -> None:
    async with endpoint(web_pki, lambda _: json(other)) as server:
        await create(broker, relationship(server.url))
        assert await refresh(broker) == ("OK", "")
        assert held(broker) == [root.authority_id for root in other.roots]


async def test_https_web_goes_by_the_hosts_name_and_known_roots(
    web_pki: ssl.SSLContext, broker: RunningBroker, other: SimulatedTrustDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with endpoint(web_pki, lambda _: json(other)) as server:
        await create(broker, relationship(server.url.replace("127.0.0.1", "localhost")))
        code, words = await refresh(broker)
        assert (code, "certificate" in words) == ("INTERNAL", True), words
        monkeypatch.delenv("SSL_CERT_FILE")
        await update(broker, relationship(server.url))
        assert (await refresh(broker))[0] == "INTERNAL"
        # An SVID is no web certificate either.
    assert held(broker) == []


async def update(broker: RunningBroker, one: types.FederationRelationship, **mask: bool) -> Any:
    fields = {"input_mask": types.FederationRelationshipMask(**mask)} if mask else {}
    request = pb.BatchUpdateFederationRelationshipRequest(federation_relationships=[one], **fields)  # type: ignore[arg-type]
    return (await stub(broker).BatchUpdateFederationRelationship(request)).results[0]


HOSTILE: dict[str, tuple[Answer, str]] = {
    "not found": (lambda _: web.Response(status=404), "answers 404"),
    "no bundle": (lambda _: web.Response(text="<html>"), "cannot be used"),
    "too much": (lambda _: web.Response(body=b" " * (5 * 1024 * 1024)), "serves more than"),
    "nothing at all": (lambda _: web.Response(status=204), "answers 204"),
    "a part": (lambda _: web.Response(status=206, body=b"{}"), "answers 206"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("profile", ["https_web", "https_spiffe"])
async def test_what_is_no_answer_changes_nothing(
    web_pki: ssl.SSLContext, broker: RunningBroker, other: SimulatedTrustDomain, name: str, profile: str
) -> None:
    answer, words = HOSTILE[name]
    await give(broker, other)
    before = held(broker)
    context = web_pki if profile == "https_web" else spiffe_context(other)
    async with endpoint(context, answer) as server:
        await create(broker, relationship(server.url, SERVER if profile == "https_spiffe" else None))
        code, said = await refresh(broker)
        assert (code, words in said) == ("INTERNAL", True), said
        assert server.asked <= 2
    assert held(broker) == before


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("profile", ["https_web", "https_spiffe"])
async def test_no_redirect_is_followed(
    web_pki: ssl.SSLContext, broker: RunningBroker, other: SimulatedTrustDomain, status: int, profile: str
) -> None:
    """Not even to somebody who would pass for the endpoint itself."""
    await give(broker, other)
    before = held(broker)
    context = web_pki if profile == "https_web" else spiffe_context(other)
    other.rotate()
    async with endpoint(context, lambda _: json(other)) as target:
        moved = {"Location": target.url}
        async with endpoint(context, lambda _: web.Response(status=status, headers=moved)) as server:
            await create(broker, relationship(server.url, SERVER if profile == "https_spiffe" else None))
            code, said = await refresh(broker)
            assert (code, f"answers {status}" in said) == ("INTERNAL", True), said
        assert target.asked == 0
    assert held(broker) == before


async def test_an_endpoint_that_hangs_is_given_up(
    broker: RunningBroker, other: SimulatedTrustDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firedoor.broker.endpoints._SECONDS", 0.3)
    await give(broker, other)
    with socket.create_server(("127.0.0.1", 0)) as stuck:
        await create(broker, relationship(f"https://127.0.0.1:{stuck.getsockname()[1]}/", SERVER))
        code, words = await refresh(broker)
    assert (code, "does not answer within" in words) == ("INTERNAL", True)


async def test_bundles_are_fetched_by_themselves(
    folder: Path, other: SimulatedTrustDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firedoor.broker.federation._LEAST", 0.1)
    monkeypatch.setattr("firedoor.broker.federation._DEFAULT_HINT", 0.1)
    async with endpoint(spiffe_context(other), lambda _: json(other)) as server:
        async with running(folder) as broker:
            await give(broker, other)
            await create(broker, relationship(server.url, SERVER))
            other.rotate()
            await async_until(lambda: len(held(broker)) == 2)
        # Relationships are there after a restart, and so is what was fetched.
        async with running(folder) as broker:
            assert len(held(broker)) == 2
            other.rotate()
            await async_until(lambda: len(held(broker)) == 3)
            shown = await stub(broker).GetFederationRelationship(
                pb.GetFederationRelationshipRequest(trust_domain="other.org")
            )
            assert shown.https_spiffe.endpoint_spiffe_id == SERVER
            assert len(shown.trust_domain_bundle.x509_authorities) == 3


async def test_lists_masks_and_updates(broker: RunningBroker, other: SimulatedTrustDomain) -> None:
    url = "https://127.0.0.1:1/a"
    bundle = types.Bundle(
        trust_domain="other.org", x509_authorities=[types.X509Certificate(asn1=root.der) for root in other.roots]
    )
    assert (await create(broker, relationship(url, SERVER, trust_domain_bundle=bundle))).code == 0
    assert held(broker) == [root.authority_id for root in other.roots]
    again = await create(broker, relationship(url))
    assert (again.code, again.message) == (6, "federation relationship already exists")
    shown = (
        await update(broker, relationship("https://127.0.0.1:1/b"), bundle_endpoint_url=True)
    ).federation_relationship
    assert (shown.bundle_endpoint_url, shown.https_spiffe.endpoint_spiffe_id) == ("https://127.0.0.1:1/b", SERVER)
    shown = (await update(broker, relationship(url), bundle_endpoint_profile=True)).federation_relationship
    assert (shown.bundle_endpoint_url, shown.WhichOneof("bundle_endpoint_profile")) == (
        "https://127.0.0.1:1/b",
        "https_web",
    )
    mask = types.FederationRelationshipMask(bundle_endpoint_url=True)
    listed = await stub(broker).ListFederationRelationships(
        pb.ListFederationRelationshipsRequest(output_mask=mask, page_size=1)
    )
    assert [field.name for field, _ in listed.federation_relationships[0].ListFields()] == [
        "trust_domain",
        "bundle_endpoint_url",
    ]
    assert listed.next_page_token == ""


WRONG: dict[str, tuple[types.FederationRelationship, str]] = {
    "our own": (
        types.FederationRelationship(trust_domain="example.org", bundle_endpoint_url="https://a/", https_web={}),
        "unable to create federation relationship for server trust domain",
    ),
    "no trust domain": (types.FederationRelationship(bundle_endpoint_url="https://a/", https_web={}), "trust domain"),
    "no URL": (types.FederationRelationship(trust_domain="other.org", https_web={}), "https scheme"),
    "http": (relationship("http://a/"), "bundle endpoint URL must use the https scheme"),
    "no host": (relationship("https:///x"), "must specify the host"),
    "a password": (relationship("https://a:b@c/"), "must not contain user info"),
    "a port that is none": (relationship("https://a:99999/"), "failed to parse bundle endpoint URL"),
    "a line break": (relationship("https://a/\r\nX: y"), "failed to parse bundle endpoint URL"),
    "no profile": (
        types.FederationRelationship(trust_domain="other.org", bundle_endpoint_url="https://a/"),
        "unsupported bundle endpoint profile",
    ),
    "no endpoint ID": (relationship("https://a/", "me"), "failed to parse endpoint SPIFFE ID"),
    "another's bundle": (
        relationship("https://a/", trust_domain_bundle=types.Bundle(trust_domain="third.org")),
        "must match the trust domain",
    ),
}


@pytest.mark.parametrize("name", WRONG)
async def test_what_is_no_relationship(broker: RunningBroker, name: str) -> None:
    wrong, words = WRONG[name]
    status = await create(broker, wrong)
    assert (status.code, words in status.message) == (3, True), status.message
    assert broker.broker.federation.relationships == {}
