# SPDX-License-Identifier: Apache-2.0
"""What another trust domain, or whoever stands in its place, may not do to us.

Bundles that are refused, endpoints that waste time, and one that would keep others from being asked.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import json as json_module
import ssl
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import web
from sqlalchemy import Connection

from firedoor.broker.errors import EndpointError
from firedoor.broker.federation import Federation, _interval
from firedoor.broker.fetched import check_successor
from firedoor.certs import TrustBundle
from firedoor.wire import bundle_pb2, types
from tests.broker.harness import RunningBroker, running
from tests.broker.test_federation import (
    SERVER,
    create,
    endpoint,
    give,
    held,
    json,
    refresh,
    relationship,
    spiffe_context,
)
from tests.simulator import SimulatedTrustDomain, odd_root
from tests.waiting import async_until


@pytest.fixture
def other() -> SimulatedTrustDomain:
    found = SimulatedTrustDomain("other.org", at=int(time.time()))
    found.rotate_jwt()
    return found


def spoiled(trust: SimulatedTrustDomain, spoil: Callable[[dict[str, Any]], object]) -> web.Response:
    """Return the bundle with something wrong."""
    document = json_module.loads(trust.bundle.to_json())
    spoil(document)
    return web.Response(text=json_module.dumps(document), content_type="application/json")


def leaf_for_root(trust: SimulatedTrustDomain) -> Callable[[dict[str, Any]], object]:
    """A workload's certificate among the authorities: its holder could name others."""
    leaf = base64.b64encode(trust.svid("/segment/a/x").chain[0]).decode()
    return lambda document: document["keys"][0].update(x5c=[leaf])


def repeat(document: dict[str, Any]) -> None:
    document["keys"].append(document["keys"][-1])


SPOILED: dict[str, tuple[Callable[[SimulatedTrustDomain], Callable[[dict[str, Any]], object]], str]] = {
    "empty": (lambda _: lambda d: d.update(keys=[]), "the bundle is empty; the one before stays"),
    "nothing that is known": (lambda _: lambda d: [k.update(use="enc") for k in d["keys"]], "the bundle is empty"),
    "no X.509 authority": (lambda _: lambda d: d["keys"].pop(0), "has no X.509 authority"),
    "no keys at all": (lambda _: lambda d: d.pop("keys"), "keys is missing"),
    "a kid that stands twice": (lambda _: repeat, "repeats a kid"),
    "a kid that is empty": (lambda _: lambda d: d["keys"][-1].update(kid=""), "has no kid"),
    "a key that is none": (lambda _: lambda d: d["keys"][-1].update(x="AAAA"), "jwt-svid"),
    "a leaf": (leaf_for_root, "none of a CA that may sign SVIDs"),
    "garbage for a certificate": (lambda _: lambda d: d["keys"][0].update(x5c=["AAAA"]), "cannot be read"),
    "a sequence that is no number": (lambda _: lambda d: d.update(spiffe_sequence="9"), "not a number that counts"),
    "a sequence below zero": (lambda _: lambda d: d.update(spiffe_sequence=-1), "not a number that counts"),
    "many keys": (lambda _: lambda d: d.update(keys=d["keys"] * 1000), "more than 1024 keys"),
}


@pytest.mark.parametrize("name", SPOILED)
async def test_a_bundle_that_is_refused_changes_nothing(
    broker: RunningBroker, other: SimulatedTrustDomain, name: str
) -> None:
    spoil, words = SPOILED[name]
    await give(broker, other)
    generation, before = broker.broker.state.generation, held(broker)
    async with endpoint(spiffe_context(other), lambda _: spoiled(other, spoil(other))) as server:
        await create(broker, relationship(server.url, SERVER))
        generation = broker.broker.state.generation
        code, said = await refresh(broker)
        assert (code, words in said) == ("INTERNAL", True), said
        # Its twin is taken.
        server.answer = lambda _: json(other)
        assert (held(broker), broker.broker.state.generation) == (before, generation)
        assert await refresh(broker) == ("OK", "")
        assert broker.broker.state.generation > generation


async def test_a_sequence_number_that_goes_back_is_refused_until_a_person_says_so(
    broker: RunningBroker, other: SimulatedTrustDomain
) -> None:
    """A stale copy, or an attacker with an old one, brings no revoked authority back."""
    other.sequence = 7
    old = other.bundle.to_json()
    await give(broker, other)
    context = spiffe_context(other)
    other.rotate()
    other.sequence = 8
    async with endpoint(context, lambda _: json(other)) as server:
        await create(broker, relationship(server.url, SERVER))
        assert await refresh(broker) == ("OK", "")
        before = held(broker)
        server.answer = lambda _: web.Response(body=old)
        code, said = await refresh(broker)
        assert (code, "went back from 8 to 7; the one before stays" in said) == ("INTERNAL", True), said
        assert held(broker) == before
        assert [event["reason"] for event in broker.audit() if event.get("event") == "bundle_refused"]
        # Set by hand, without a number: that counts until the next fetch, which may be any.
        await give(broker, other)
        assert await refresh(broker) == ("OK", "")
        assert len(held(broker)) == 1


def hold_back(monkeypatch: pytest.MonkeyPatch, federation: Federation, older: TrustBundle) -> None:
    """Have one bundle wait, between the look at what is held and the change, a second at most for another to be put."""
    later, put = asyncio.Event(), federation._put

    async def slow(found: TrustBundle, *more: Any) -> None:
        if found is older:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(later.wait(), 1)
        await put(found, *more)
        later.set()

    monkeypatch.setattr(federation, "_put", slow)


async def test_of_two_answers_at_once_the_older_does_not_come_last(
    broker: RunningBroker, other: SimulatedTrustDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fetch in its turn and one that somebody asked for overlap, and between look and change there is a commit."""
    await give(broker, other)
    await create(broker, relationship("https://127.0.0.1:1/", SERVER))
    federation = broker.broker.federation
    (one,) = federation.relationships.values()
    other.sequence = 7
    older = other.bundle
    other.rotate()
    hold_back(monkeypatch, federation, older)
    await asyncio.gather(federation._taken(one, older), federation._taken(one, other.bundle))
    assert broker.broker.state.bundles[other.td].sequence == 8


async def test_a_fetch_whose_caller_is_gone_is_taken_before_the_next_looks(
    broker: RunningBroker, other: SimulatedTrustDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its commit goes on: an older answer would be looked at beside what was held before, and come last."""
    await create(broker, relationship("https://127.0.0.1:1/", SERVER))
    federation, state = broker.broker.federation, broker.broker.state
    (one,) = federation.relationships.values()
    other.sequence = 7
    older = other.bundle
    other.rotate()
    newer = other.bundle
    put, looked = federation._put, asyncio.Event()

    async def said(*more: Any) -> None:
        looked.set()
        await put(*more)

    monkeypatch.setattr(federation, "_put", said)
    # Nothing is committed until it may be.
    begun, may = threading.Event(), threading.Event()

    def hold(_: Connection) -> None:
        begun.set()
        may.wait()

    held_up = asyncio.create_task(state.database.write(hold))
    try:
        await async_until(begun.is_set)
        first = asyncio.create_task(federation._taken(one, newer))
        await looked.wait()
        first.cancel()
        second = asyncio.create_task(federation._taken(one, older))
        for _ in range(20):
            await asyncio.sleep(0)
    finally:
        may.set()
    with pytest.raises(EndpointError, match="went back from 8 to 7"):
        await second
    await held_up
    with pytest.raises(asyncio.CancelledError):
        await first
    assert state.bundles[other.td].sequence == 8


async def update(broker: RunningBroker, trust: SimulatedTrustDomain) -> None:
    """Set another bundle with the relationship."""
    (one,) = broker.broker.federation.relationships.values()
    await broker.broker.federation.update(one, trust.bundle)


async def take_away(broker: RunningBroker, trust: SimulatedTrustDomain) -> None:
    request = bundle_pb2.BatchDeleteFederatedBundleRequest(trust_domains=[trust.td.name])
    await broker.bundles.BatchDeleteFederatedBundle(request)


BY_HAND: dict[str, Callable[[RunningBroker, SimulatedTrustDomain], Awaitable[None]]] = {
    "a bundle": give,
    "a relationship": update,
    "no bundle": take_away,
}


@pytest.mark.parametrize("what", BY_HAND)
async def test_what_is_set_by_hand_while_a_fetch_is_taken_counts(
    broker: RunningBroker, other: SimulatedTrustDomain, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    await give(broker, other)
    await create(broker, relationship("https://127.0.0.1:1/", SERVER))
    federation, looked, later = broker.broker.federation, asyncio.Event(), asyncio.Event()
    (one,) = federation.relationships.values()
    other.sequence = 7
    fetched = other.bundle
    other.rotate()
    put = federation._put

    async def slow(*more: Any) -> None:
        looked.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(later.wait(), 1)
        await put(*more)

    async def by_hand() -> None:
        await looked.wait()
        await BY_HAND[what](broker, other)
        later.set()

    monkeypatch.setattr(federation, "_put", slow)
    await asyncio.gather(federation._taken(one, fetched), by_hand())
    assert held(broker) == ([] if what == "no bundle" else [root.authority_id for root in other.roots])


async def test_a_first_bundle_that_is_declared_takes_the_place_of_none_that_was_fetched(
    broker: RunningBroker, other: SimulatedTrustDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create(broker, relationship("https://127.0.0.1:1/", SERVER))
    federation = broker.broker.federation
    (one,) = federation.relationships.values()
    other.sequence = 7
    declared = other.bundle
    other.rotate()
    hold_back(monkeypatch, federation, declared)
    await asyncio.gather(federation._put_first(declared), federation._taken(one, other.bundle))
    assert broker.broker.state.bundles[other.td].sequence == 8


async def test_whoever_does_not_count_is_taken_as_it_comes(broker: RunningBroker, other: SimulatedTrustDomain) -> None:
    other.sequence = 0
    await give(broker, other)
    async with endpoint(spiffe_context(other), lambda _: json(other)) as server:
        await create(broker, relationship(server.url, SERVER))
        other.rotate()
        assert await refresh(broker) == ("OK", "")
        other.forget(other.roots[0])
        assert await refresh(broker) == ("OK", "")
        assert len(held(broker)) == 1


def bundle(trust: SimulatedTrustDomain, **changes: Any) -> TrustBundle:
    return replace(trust.bundle, **changes)


def test_what_may_take_anothers_place(other: SimulatedTrustDomain) -> None:
    whole = bundle(other, sequence=5)
    for held_, fetched in ((None, whole), (whole, whole), (whole, bundle(other, sequence=6)), (bundle(other), whole)):
        check_successor(held_, fetched, proves_itself=True)
    alone = bundle(other, x509_roots=())
    check_successor(None, alone, proves_itself=False)
    for held_, fetched, words in (
        (None, bundle(other, x509_roots=(), jwt_keys=()), "is empty"),
        (None, alone, "no X.509 authority"),
        (whole, bundle(other, sequence=4), "went back"),
        (whole, bundle(other, sequence=0), "went back"),
    ):
        with pytest.raises(EndpointError, match=words):
            check_successor(held_, fetched, proves_itself=True)


# --- roots that one reader takes and the other does not ---------------------------------------------------------------


async def test_a_root_that_the_core_cannot_read_goes_to_no_sidecar(
    broker: RunningBroker, other: SimulatedTrustDomain
) -> None:
    """A sidecar would refuse the whole update with it: our own flows and revocations too."""
    odd = odd_root(other)
    await give(broker, other)
    before = held(broker)
    with_odd = TrustBundle.of(other.td, [*(root.der for root in other.roots), odd]).to_json()
    async with endpoint(spiffe_context(other), lambda _: web.Response(body=with_odd)) as server:
        await create(broker, relationship(server.url, SERVER))
        code, said = await refresh(broker)
        assert (code, "the bundle cannot be used" in said) == ("INTERNAL", True), said
    # Nor by hand, nor into our own.
    given = types.Bundle(trust_domain="other.org", x509_authorities=[types.X509Certificate(asn1=odd)])
    request = bundle_pb2.BatchSetFederatedBundleRequest(bundle=[given])
    (result,) = (await broker.bundles.BatchSetFederatedBundle(request)).results
    assert (result.status.code, result.status.message) == (3, "a key or certificate of the bundle cannot be read")
    with pytest.raises(grpc.aio.AioRpcError, match="failed to convert an X"):
        await broker.bundles.AppendBundle(bundle_pb2.AppendBundleRequest(x509_authorities=given.x509_authorities))
    assert held(broker) == before


# --- endpoints that waste time ----------------------------------------------------------------------------------------


class Raw:
    """A TLS server that writes what it is told, byte by byte if need be."""

    def __init__(self, context: ssl.SSLContext | None, talk: Callable[[asyncio.StreamWriter], Any]) -> None:
        self._context, self._talk = context, talk

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        return f"https://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            if self._context is not None:
                await reader.readuntil(b"\r\n\r\n")
            await self._talk(writer)
        writer.close()


async def drip(writer: asyncio.StreamWriter) -> None:
    """A byte now and then, as long as anybody listens."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
    while not writer.is_closing():
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.02)


async def drip_head(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while not writer.is_closing():
        writer.write(b"X: y\r\n")
        await writer.drain()
        await asyncio.sleep(0.02)


async def endless(writer: asyncio.StreamWriter) -> None:
    """More than anybody asked for, without saying how much."""
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while not writer.is_closing():
        writer.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
        await writer.drain()
        # Once the other side is gone nothing waits any more; without this, nobody else gets a turn.
        await asyncio.sleep(0)


async def bomb(writer: asyncio.StreamWriter) -> None:
    """Little that would become much."""
    body = gzip.compress(b" " * 50_000_000)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()


async def nothing(_: asyncio.StreamWriter) -> None:
    """Hang up."""


async def garbage(writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-x\r\n\r\n")
    await writer.drain()


# How each wastes time, after how many seconds it is given up at the latest, and what is said.
TALKS: dict[str, tuple[Callable[[asyncio.StreamWriter], Any], float, str]] = {
    "a slow body": (drip, 1.5, "does not answer within"),
    "a slow head": (drip_head, 1.5, ""),
    "an endless body": (endless, 60, "serves more than"),
    "a bomb": (bomb, 60, "cannot be used"),
    "nothing": (nothing, 60, ""),
    "no HTTP": (garbage, 60, ""),
}


@pytest.mark.parametrize("name", TALKS)
@pytest.mark.parametrize("profile", ["https_web", "https_spiffe"])
async def test_an_endpoint_that_wastes_time_is_given_up(
    broker: RunningBroker,
    other: SimulatedTrustDomain,
    monkeypatch: pytest.MonkeyPatch,
    web_pki: ssl.SSLContext,
    name: str,
    profile: str,
) -> None:
    talk, seconds, words = TALKS[name]
    monkeypatch.setattr("firedoor.broker.endpoints._SECONDS", seconds)
    await give(broker, other)
    before = held(broker)
    context = web_pki if profile == "https_web" else spiffe_context(other)
    async with Raw(context, talk) as url:
        await create(broker, relationship(url, SERVER if profile == "https_spiffe" else None))
        code, said = await refresh(broker)
        assert (code, words in said) == ("INTERNAL", True), said
    assert held(broker) == before


def of_tls12(context: ssl.SSLContext) -> ssl.SSLContext:
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


@pytest.mark.parametrize("name", ["TLS 1.2", "plaintext"])
@pytest.mark.parametrize("profile", ["https_web", "https_spiffe"])
async def test_what_is_not_spoken(
    broker: RunningBroker, other: SimulatedTrustDomain, web_pki: ssl.SSLContext, name: str, profile: str
) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        body = other.bundle.to_json()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()

    await give(broker, other)
    before = held(broker)
    other.rotate()
    secure = web_pki if profile == "https_web" else spiffe_context(other)
    async with Raw(of_tls12(secure) if name == "TLS 1.2" else None, answer) as url:
        await create(broker, relationship(url, SERVER if profile == "https_spiffe" else None))
        assert (await refresh(broker))[0] == "INTERNAL"
    assert held(broker) == before


async def test_an_endpoint_without_alpn_is_spoken_to(broker: RunningBroker, other: SimulatedTrustDomain) -> None:
    """As programs serve that know nothing of ALPN; what is spoken then is HTTP/1.1."""
    svid = other.svid("/spire/server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (broker.folder / "svid.pem").write_bytes(svid.chain_pem + svid.key_pem)
    context.load_cert_chain(broker.folder / "svid.pem")
    await give(broker, other)
    async with endpoint(context, lambda _: json(other)) as server:
        await create(broker, relationship(server.url, SERVER))
        assert await refresh(broker) == ("OK", "")


async def test_one_that_hangs_holds_up_no_other(
    folder: Path, other: SimulatedTrustDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firedoor.broker.federation._LEAST", 0.1)
    monkeypatch.setattr("firedoor.broker.federation._DEFAULT_HINT", 0.1)
    slow = SimulatedTrustDomain("slow.org", at=other.at)
    async with running(folder) as broker, Raw(spiffe_context(slow), drip) as url:
        await give(broker, slow)
        await give(broker, other)
        async with endpoint(spiffe_context(other), lambda _: json(other)) as server:
            stuck = types.FederationRelationship(
                trust_domain="slow.org",
                bundle_endpoint_url=url,
                https_spiffe={"endpoint_spiffe_id": "spiffe://slow.org/spire/server"},
            )
            await create(broker, stuck)
            await create(broker, relationship(server.url, SERVER))
            await async_until(lambda: server.asked >= 3)
            other.rotate()
            await async_until(lambda: len(held(broker)) == 2)


# --- when -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hint", "failures", "least", "most"),
    [
        (300, 0, 240, 300),
        (1, 0, 48, 60),
        (10**12, 0, 69120, 86400),
        # After a failure sooner than the hint says, then ever later.
        (3600, 1, 48, 60),
        (3600, 2, 96, 120),
        (3600, 3, 192, 240),
        (3600, 10, 2880, 3600),
        (3600, 10**9, 2880, 3600),
    ],
)
def test_when_a_bundle_is_fetched_next(hint: int, failures: int, least: float, most: float) -> None:
    waits = [_interval(hint, failures) for _ in range(200)]
    assert least <= min(waits) < max(waits) <= most


async def test_failures_are_counted_and_end(
    folder: Path, other: SimulatedTrustDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firedoor.broker.federation._LEAST", 0.1)
    monkeypatch.setattr("firedoor.broker.federation._DEFAULT_HINT", 0.1)

    def overdue(broker: RunningBroker) -> float:
        return broker.broker.metrics.registry.get_sample_value("firedoor_broker_bundles_overdue") or 0.0

    async with running(folder) as broker:
        await give(broker, other)
        async with endpoint(spiffe_context(other), lambda _: web.Response(status=500)) as server:
            await create(broker, relationship(server.url, SERVER))
            await async_until(lambda: overdue(broker) == 1)
            server.answer = lambda _: json(other)
            await async_until(lambda: overdue(broker) == 0)
