# SPDX-License-Identifier: Apache-2.0
"""What is recorded of requests, and what happens when it cannot be."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import h2.events
import pytest

from tests.mtls.proxy.datapath import World, dial_tls, exchange, flow, policy
from tests.mtls.proxy.http.web import READ, WRITE, Seen, UnixHTTP, allow, ask, h2_peer, pair, raw, talk
from tests.waiting import until

MakeWorld = Callable[..., World]

LOSSLESS: dict[str, Any] = {"destination_more": "audit_loss: deny", "source_more": "audit_loss: deny"}


def test_a_record_names_method_and_path_and_not_the_query(make_world: MakeWorld) -> None:
    world = make_world(serve=Seen())
    outbound = pair(world, allow(READ))
    assert ask(outbound.address, "GET", "/models/a%20b?X-Amz-Signature=secret")[0] == 200
    assert ask(outbound.address, "PURGE", "/models/../x?token=secret")[0] == 400
    [allowed, refused] = world.records(world.client, 2)
    [into] = world.records(world.server, 1)
    for record in (allowed, into):
        assert (record["method"], record["path"]) == ("GET", "/models/a%20b")
    assert (refused["method"], refused["path"]) == ("PURGE", "/models/../x")
    assert "secret" not in json.dumps([allowed, refused, into])


def test_a_long_path_is_recorded_in_part(make_world: MakeWorld) -> None:
    world = make_world(serve=Seen())
    outbound = pair(world, allow(READ))
    assert ask(outbound.address, "GET", "/models/" + "a" * 5000)[0] == 200
    assert world.records(world.client, 1)[0]["path"] == "/models/" + "a" * 1016


def test_both_ends_name_a_request_alike_and_no_two_requests(make_world: MakeWorld) -> None:
    world = make_world(serve=Seen())
    outbound = pair(world, allow(READ))
    with contextlib.closing(UnixHTTP(outbound.address)) as client:
        for number in range(5):
            client.request("GET", f"/models/{number}")
            assert client.getresponse().read() == b"ok"
    out, into = (
        {one["path"]: one["correlation"] for one in world.records(core, 5)} for core in (world.client, world.server)
    )
    assert out == into
    assert len(set(out.values())) == 5


def test_requests_of_one_http_1_connection_are_told_apart(make_world: MakeWorld) -> None:
    world = make_world(serve=Seen())
    world.publish_server(allow(READ))
    with dial_tls(world.inbound(protocol="http").address, world.vllm, world.folder) as link:
        for _ in range(3):
            assert b" 200 " in talk(link, b"GET /models/a HTTP/1.1\r\nHost: m\r\n\r\n", lambda got: got.endswith(b"ok"))
    records = world.records(world.server, 3)
    assert [record["correlation"].rpartition("-")[2] for record in records] == ["1", "2", "3"]
    assert len({record["correlation"].rpartition("-")[0] for record in records}) == 1


UNREADABLE = {
    "no HTTP": (b"hello\r\n\r\n", "bad_request"),
    "no version": (b"GET /models/a\r\n\r\n", "bad_request"),
    "a bad field": (b"GET /models/a HTTP/1.1\r\nHo st: m\r\n\r\n", "bad_request"),
    "too many fields": (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 1000 + b"\r\n", "headers_too_large"),
    "a head that does not end": (b"GET / HTTP/1.1\r\na: " + b"b" * 100_000, "headers_too_large"),
}


@pytest.mark.parametrize("end", ["outbound", "inbound"])
@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_refused_and_recorded(make_world: MakeWorld, name: str, end: str) -> None:
    data, reason = UNREADABLE[name]
    world = make_world(serve=(app := Seen()))
    outbound = pair(world, allow(READ, WRITE))
    if end == "outbound":
        got = raw(outbound.address, data)
    else:
        inbound = world.inbound(name="second", protocol="http")
        with dial_tls(inbound.address, world.vllm, world.folder) as link:
            got = talk(link, data)
    # What was not read of a large head makes the close a reset, which may overtake the answer.
    assert got.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431")) or (got == b"" and len(data) > 1 << 16), got
    [record] = world.records(world.client if end == "outbound" else world.server, 1)
    assert (record["decision"], record["reason"]) == ("denied", reason)
    assert record["source"] == "spiffe://td/segment/inference/host/h1/svc/vllm"
    assert app.requests == []


def test_a_connection_that_asks_nothing_leaves_no_record(make_world: MakeWorld) -> None:
    world = make_world(serve=Seen())
    outbound = pair(world, allow(READ), header_timeout_ms=200)
    assert raw(outbound.address, b"") == b""
    until(lambda: world.client.stats()["connections"] == 0)
    assert world.client.drain_records(10) == b""


@pytest.mark.parametrize("end", ["client", "server"])
def test_audit_loss_denies_requests_while_records_cannot_be_kept(make_world: MakeWorld, end: str) -> None:
    world = make_world(serve=(app := Seen()), record_capacity=16)
    outbound = pair(world, allow(READ, **LOSSLESS))
    core, other = (world.client, world.server) if end == "client" else (world.server, world.client)
    for _ in range(12):
        assert ask(outbound.address, "GET", "/models/a")[0] == 200
        other.drain_records(100)
    assert ask(outbound.address, "GET", "/models/a")[0] == 403
    assert len(app.requests) == 12
    stats = core.stats()
    assert (stats["allowed"], stats["denied_audit_loss"], stats["records_lost"]) == (12, 1, 0)
    records = world.records(core, 13)
    assert [record["reason"] for record in records] == ["allowed"] * 12 + ["audit_loss"]
    assert ask(outbound.address, "GET", "/models/a")[0] == 200


def test_without_it_losses_are_counted_and_traffic_goes_on(make_world: MakeWorld) -> None:
    world = make_world(serve=(app := Seen()), record_capacity=16)
    outbound = pair(world, allow(READ))
    for _ in range(40):
        assert ask(outbound.address, "GET", "/models/a")[0] == 200
    assert len(app.requests) == 40
    for core in (world.client, world.server):
        stats = core.stats()
        assert stats["decisions"] == 40 == stats["records_waiting"] + stats["records_lost"] + stats["records_drained"]
        assert stats["records_lost"] == 28


def test_audit_loss_denies_opaque_connections_before_the_app(make_world: MakeWorld) -> None:
    world = make_world(record_capacity=16)
    world.publish(policy(flow(), destination_more="audit_loss: deny"))
    inbound = world.inbound()
    outbound = world.outbound(inbound.address)
    for _ in range(12):
        assert exchange(outbound.address) == b"ping"
        world.client.drain_records(100)
    assert exchange(outbound.address) is None
    assert world.app.accepted == 12
    assert world.records(world.server, 13)[-1]["reason"] == "audit_loss"
    assert exchange(outbound.address) == b"ping"


def test_a_promise_is_kept_for_what_runs_at_once(make_world: MakeWorld) -> None:
    """Room is promised to a request before it is sent: many at once never end as a loss."""
    world = make_world(serve=(app := Seen()), record_capacity=64)
    world.publish_server(allow(READ, **LOSSLESS))
    with h2_peer(world.inbound(protocol="http"), world.vllm, world) as peer:
        for _ in range(100):
            peer.ask("GET", "/models/a")
        statuses: list[bytes] = []

        def all_answered(event: h2.events.Event) -> bool:
            if isinstance(event, h2.events.ResponseReceived):
                statuses.extend(bytes(value) for name, value in event.headers if name == b":status")
            return len(statuses) == 100

        assert peer.read(all_answered)
    stats = world.server.stats()
    assert (statuses.count(b"200"), statuses.count(b"403")) == (48, 52)
    assert len(app.requests) == stats["allowed"] == 48
    assert world.server.drain_records(1000).count(b'"decision":"allowed"') == 48
