# SPDX-License-Identifier: Apache-2.0
"""Relationships that a file declares: how each problem is named, and what the file's edits do."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from firedoor.broker import config
from firedoor.broker.errors import ConfigError
from firedoor.broker.relationship_file import read_relationships
from firedoor.certs import TrustDomain
from firedoor.wire import trustdomain_pb2 as pb
from tests.broker.harness import TD, RunningBroker, flags, running, write_whole
from tests.broker.test_federation import (
    SERVER,
    create,
    endpoint,
    held,
    json,
    refresh,
    relationship,
    spiffe_context,
    stub,
    update,
)
from tests.simulator import SimulatedTrustDomain
from tests.waiting import async_until
from tests.web_pki import WebPki

OWN = TrustDomain.parse(TD)
ONE = "- {trust_domain: other.org, url: 'https://a/'}\n"


@pytest.fixture
def other() -> SimulatedTrustDomain:
    return SimulatedTrustDomain("other.org", at=int(time.time()))


@pytest.fixture
def file(folder: Path) -> Path:
    return folder / "federation.yaml"


def test_what_a_file_says(folder: Path, file: Path, other: SimulatedTrustDomain) -> None:
    (folder / "other.json").write_bytes(other.bundle.to_json())
    (folder / "ca.pem").write_bytes(WebPki().root_pem)
    pem = folder / "elsewhere.pem"
    pem.write_bytes(other.authority.certificate.public_bytes(Encoding.PEM))
    file.write_text(
        f"- {{trust_domain: other.org, url: 'https://a:8443/', endpoint_id: {SERVER}, bundle: other.json}}\n"
        "- {trust_domain: web.org, url: 'https://web.org/b.json', ca_file: ca.pem}\n"
        f"- {{trust_domain: pem.org, url: 'https://pem.org/', bundle: {pem}}}\n"
    )
    spiffe, web, by_pem = read_relationships(file, OWN)
    assert spiffe.relationship.trust_domain == other.td
    assert (spiffe.relationship.url, str(spiffe.relationship.endpoint_id)) == ("https://a:8443/", SERVER)
    assert spiffe.bundle == other.bundle
    assert (web.relationship.endpoint_id, web.relationship.ca_file) == (None, folder / "ca.pem")
    assert by_pem.bundle
    assert [root.der for root in by_pem.bundle.x509_roots] == [root.der for root in other.roots]
    for nothing in ("", "# nobody\n", "[]\n"):
        file.write_text(nothing)
        assert read_relationships(file, OWN) == ()


WRONG = {
    "no list": ("trust_domain: a\n", "1: relationships are one list"),
    "two documents": ("[]\n---\n[]\n", "relationships are one list"),
    "no mapping": ("- a\n", "1: must be a mapping of keys to values"),
    "no YAML": ("- {\n", "this is not YAML"),
    "unknown key": (ONE.replace("url", "ulr"), "1: ulr: no such key; did you mean `url`?"),
    "no URL": ("- trust_domain: other.org\n", "1: url: is missing"),
    "no trust domain": ("- url: https://a/\n", "1: trust_domain: is missing"),
    "a wrong trust domain": (ONE.replace("other.org", "Other"), "1: trust_domain: a trust domain name holds only"),
    "our own": (ONE.replace("other.org", TD), f"1: trust_domain: {TD} is the broker's own trust domain"),
    "twice": (ONE + ONE, "2: trust_domain: other.org stands in FILE:1 already"),
    "no https": (ONE.replace("https", "http"), "1: url: bundle endpoint URL must use the https scheme"),
    "a wrong ID": (ONE.replace("}", ", endpoint_id: x}"), "1: endpoint_id: the SPIFFE ID does not begin"),
    "no bundle there": (ONE.replace("}", ", bundle: b.json}"), "1: bundle: FOLDER/b.json cannot be read: No such"),
    "no bundle": (ONE.replace("}", ", bundle: federation.yaml}"), "1: bundle: "),
    "an empty bundle": (ONE.replace("}", ", bundle: empty.json}"), "holds no X.509 authority"),
    "no CAs there": (ONE.replace("}", ", ca_file: ca.pem}"), "1: ca_file: FOLDER/ca.pem cannot be read"),
    "CAs without need": (
        ONE.replace("}", f", endpoint_id: {SERVER}, ca_file: empty.json}}"),
        "1: ca_file: goes with https_web",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(folder: Path, file: Path, name: str) -> None:
    text, words = WRONG[name]
    file.write_text(text)
    (folder / "empty.json").write_text('{"keys": []}')
    with pytest.raises(ConfigError) as wrong:
        read_relationships(file, OWN)
    assert words.replace("FILE", str(file)).replace("FOLDER", str(folder)) in str(wrong.value)
    given = config.load(None, {}, flags(folder, None, federation_relationships=str(file)))
    assert config.validate(given) == list(wrong.value.findings)


def test_a_file_that_is_not_there(file: Path) -> None:
    with pytest.raises(ConfigError, match="the file cannot be read: No such file"):
        read_relationships(file, OWN)


def declare(file: Path, text: str) -> None:
    write_whole(file, text)


async def listed(broker: RunningBroker) -> list[str]:
    answer = await stub(broker).ListFederationRelationships(pb.ListFederationRelationshipsRequest())
    return [one.bundle_endpoint_url for one in answer.federation_relationships]


async def test_what_it_declares_is_fetched_and_is_not_the_apis_to_change(
    folder: Path, file: Path, other: SimulatedTrustDomain
) -> None:
    context = spiffe_context(other)
    (folder / "other.json").write_bytes(other.bundle.to_json())
    other.rotate()
    async with endpoint(context, lambda _: json(other)) as server:
        declare(file, f"- {{trust_domain: other.org, url: '{server.url}', endpoint_id: {SERVER}, bundle: other.json}}")
        async with running(folder, federation_relationships=str(file)) as broker:
            await async_until(lambda: len(held(broker)) == 2)
            assert await listed(broker) == [server.url]
            assert await refresh(broker) == ("OK", "")
            status = await create(broker, relationship("https://elsewhere/"))
            assert (status.code, f"is declared in {file}: change it there" in status.message) == (9, True)
            changed = await update(broker, relationship("https://elsewhere/"))
            assert changed.status.code == 9
            request = pb.BatchDeleteFederationRelationshipRequest(trust_domains=["other.org"])
            assert (await stub(broker).BatchDeleteFederationRelationship(request)).results[0].status.code == 9
            assert await listed(broker) == [server.url]


async def test_an_edit_counts_within_seconds_and_a_wrong_one_changes_nothing(
    folder: Path, file: Path, other: SimulatedTrustDomain, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    pki = WebPki()
    (folder / "ca.pem").write_bytes(pki.root_pem)
    declare(file, "[]")
    async with endpoint(pki.server("127.0.0.1"), lambda _: json(other)) as server:
        async with running(folder, federation_relationships=str(file)) as broker:
            assert await listed(broker) == []
            declare(file, f"- {{trust_domain: other.org, url: '{server.url}', ca_file: ca.pem}}")
            await async_until(lambda: len(held(broker)) == 1)
            declare(file, "- {trust_domain: other.org}")
            await async_until(lambda: "stay as they were" in caplog.text)
            assert await listed(broker) == [server.url]
            declare(file, "[]")
            await async_until(lambda: not broker.broker.federation.relationships)
        # What was fetched stays, as after a deletion by the API.
        async with running(folder) as broker:
            assert len(held(broker)) == 1


async def test_the_given_cas_alone_vouch_for_the_web(folder: Path, file: Path, other: SimulatedTrustDomain) -> None:
    pki = WebPki()
    (folder / "ca.pem").write_bytes(WebPki().root_pem)
    async with endpoint(pki.server("127.0.0.1"), lambda _: json(other)) as server:
        declare(file, f"- {{trust_domain: other.org, url: '{server.url}', ca_file: ca.pem}}")
        async with running(folder, federation_relationships=str(file)) as broker:
            code, words = await refresh(broker)
            assert (code, "certificate verify failed" in words) == ("INTERNAL", True), words
            (folder / "ca.pem").write_bytes(pki.root_pem)
            assert await refresh(broker) == ("OK", "")
            (folder / "ca.pem").write_text("nothing")
            code, words = await refresh(broker)
            assert (code, "ca.pem cannot be read" in words) == ("INTERNAL", True), words


async def test_a_wrong_file_stops_the_start(folder: Path, file: Path) -> None:
    declare(file, "- x")
    with pytest.raises(ConfigError, match="must be a mapping"):
        async with running(folder, federation_relationships=str(file)):
            pass
