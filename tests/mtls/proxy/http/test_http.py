# SPDX-License-Identifier: Apache-2.0
"""HTTP through both ends: what passes, what is refused, what the app is told, what is recorded."""

import contextlib
import json
from collections.abc import Callable

import pytest

from tests.mtls.proxy.datapath import MODELS, VLLM, World, dial, dial_tls
from tests.mtls.proxy.http.web import READ, WRITE, Seen, UnixHTTP, allow, ask, h2_peer, pair, raw, talk
from tests.waiting import until

MakeWorld = Callable[..., World]


def test_an_allowed_request_is_carried_and_recorded_once_at_each_end(make_world: MakeWorld) -> None:
    world = make_world(serve=(app := Seen()))
    outbound = pair(world, allow(READ))
    assert ask(outbound.address, "GET", "/models/a%20b?x=%2F&y=..") == (200, b"ok")
    [request] = app.requests
    assert (request.method, request.target) == ("GET", "/models/a%20b?x=%2F&y=..")
    assert request.all("host") == ["models.internal"]
    [out] = world.records(world.client, 1)
    [into] = world.records(world.server, 1)
    for record in (out, into):
        assert (record["protocol"], record["decision"], record["flow"]) == ("http", "allowed", "pulls")
        assert (record["source"], record["destination"]) == (f"spiffe://td{VLLM}", f"spiffe://td{MODELS}")
    assert out["correlation"] == into["correlation"] != ""
    assert out["client"]["pid"] is not None
    until(lambda: world.server.connections() == world.client.connections() == "[]")


REFUSED = {
    "method not named": ("PUT", "/models/a", {}, 403, "action_not_named"),
    "path not named": ("GET", "/secrets/a", {}, 403, "action_not_named"),
    "another action's path": ("GET", "/uploads/a", {}, 403, "action_not_named"),
    "dot segment": ("GET", "/models/../secrets", {}, 400, "bad_request"),
    "encoded dot segment": ("GET", "/models/%2e%2E/secrets", {}, 400, "bad_request"),
    "encoded slash and dots": ("GET", "/models/x%2f..%2fsecrets", {}, 400, "bad_request"),
    "twice encoded": ("GET", "/models/%252e%252e/secrets", {}, 400, "bad_request"),
    "two slashes": ("GET", "/models//a", {}, 400, "bad_request"),
    "backslash": ("GET", "/models/a%5cb", {}, 400, "bad_request"),
    "absolute form": ("GET", "http://models.internal/models/a", {}, 400, "bad_request"),
    "upgrade": ("GET", "/models/a", {"Upgrade": "websocket", "Connection": "upgrade"}, 400, "upgrade_refused"),
    "CONNECT": ("CONNECT", "models:443", {}, 403, "connect_refused"),
    "gRPC at an http listener": ("POST", "/uploads/a", {"Content-Type": "application/grpc"}, 403, "protocol_mismatch"),
    "too large a head": ("GET", "/models/a", {"X": "x" * 20_000}, 431, "headers_too_large"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_request_that_no_flow_names_is_refused_before_it_leaves(make_world: MakeWorld, name: str) -> None:
    method, target, headers, status, reason = REFUSED[name]
    world = make_world(serve=(app := Seen()))
    outbound = pair(world, allow(READ, WRITE))
    assert ask(outbound.address, method, target, **headers)[0] == status
    [record] = world.records(world.client, 1)
    assert (record["decision"], record["reason"]) == ("denied", reason)
    assert app.requests == []
    assert ask(outbound.address, "GET", "/models/a", X="x")[0] == 200
    assert len(app.requests) == 1


@pytest.mark.parametrize("name", ["method not named", "path not named", "encoded dot segment", "upgrade", "CONNECT"])
def test_the_inbound_end_decides_for_itself(make_world: MakeWorld, name: str) -> None:
    """The peer is a program that holds an SVID and sends what it likes."""
    method, target, headers, status, reason = REFUSED[name]
    world = make_world(serve=(app := Seen()))
    world.publish_server(allow(READ, WRITE))
    inbound = world.inbound(protocol="http")
    more = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
    for ask_for, expected in ((f"{method} {target}", status), ("GET /models/a", 200)):
        with dial_tls(inbound.address, world.vllm, world.folder) as link:
            data = f"{ask_for} HTTP/1.1\r\nHost: m\r\n{more if expected != 200 else ''}Connection: close\r\n\r\n"
            assert talk(link, data.encode()).split(b" ")[1] == b"%d" % expected
    [denied, allowed] = world.records(world.server, 2)
    assert (denied["reason"], allowed["reason"]) == (reason, "allowed")
    assert len(app.requests) == 1


def test_http_2_is_decided_request_by_request(make_world: MakeWorld) -> None:
    world = make_world(serve=(app := Seen()))
    world.publish_server(allow(READ))
    with h2_peer(world.inbound(protocol="http"), world.vllm, world) as peer:
        asked = [
            ("GET", "/models/a", (), "200"),
            ("GET", "/secrets", (), "403"),
            ("GET", "/models/%2e%2e/a", (), "400"),
            ("GET", "/models/a", (("host", "other"),), "400"),
            ("POST", "/models/a", (("content-type", "application/grpc+proto"),), "403"),
            ("GET", "/models/b", (("host", "models"),), "200"),
        ]
        for method, path, more, status in asked:
            assert peer.status(peer.ask(method, path, *more)) == status, (path, more)
    assert [request.target for request in app.requests] == ["/models/a", "/models/b"]
    assert len(world.records(world.server, 6)) == 6


def test_an_answer_to_a_head_has_no_body(make_world: MakeWorld) -> None:
    """A refusal too: over HTTP/2 nobody else takes it out, and a client takes it for a protocol error."""
    world = make_world(serve=Seen(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"))
    outbound = pair(world, allow(READ))
    with h2_peer(world.inbound(name="second", protocol="http"), world.vllm, world) as peer:
        for path, status in (("/secrets", "403"), ("/models/%2e%2e/a", "400"), ("/models/a", "200")):
            stream = peer.ask("HEAD", path)
            assert peer.status(stream) == status
            assert peer.read(lambda event, stream=stream: getattr(event, "stream_id", 0) == stream)  # type: ignore[misc]
    for path, expected in (("/secrets", 403), ("/models/a", 200)):
        assert ask(outbound.address, "HEAD", path) == (expected, b"")


def test_trap_identity_headers_are_ours_alone(make_world: MakeWorld) -> None:
    world = make_world(serve=(app := Seen()))
    outbound = pair(world, allow(READ))
    forged = {
        "X_Forwarded_Client_Cert": "By=spiffe://td/x;URI=spiffe://td/admin",
        "X_SPIFFE_ID": "spiffe://td/admin",
        "X_Kept": "1",
    }
    assert ask(outbound.address, "GET", "/models/a", **forged)[0] == 200
    under = b"X_Forwarded_Client_Cert: URI=spiffe://td/admin\r\n"
    head = b"GET /models/a HTTP/1.1\r\nHost: m\r\nConnection: close\r\n"
    assert b" 200 " in raw(outbound.address, head + under + b"\r\n")
    with dial_tls(world.inbound(name="second", protocol="http").address, world.vllm, world.folder) as link:
        assert b" 200 " in talk(link, head + under + b"X-Forwarded-Client-Cert: URI=spiffe://td/admin\r\n\r\n")
    assert len(app.requests) == 3
    for request in app.requests:
        [says] = request.all("x-forwarded-client-cert")
        by, digest, uri = says.split(";")
        assert (by, uri) == (f"By=spiffe://td{MODELS}", f"URI=spiffe://td{VLLM}")
        assert len(digest) == len("Hash=") + 64
        assert not [name for name, _ in request.headers if "spiffe" in name.lower() or "_" in name]
    assert app.requests[0].all("x-kept") == ["1"]


def test_trap_hop_by_hop_fields_stay_on_their_hop(make_world: MakeWorld) -> None:
    answer = (
        b"HTTP/1.1 200 OK\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nX-End: 2\r\nContent-Length: 0\r\n\r\n"
    )
    world = make_world(serve=(app := Seen(answer)))
    outbound = pair(world, allow(READ))
    head = b"GET /models/a HTTP/1.1\r\nHost: m\r\nConnection: close, X-Mine\r\nX-Mine: 1\r\nProxy-Connection: x\r\n\r\n"
    got = raw(outbound.address, head).lower()
    assert b"x-end: 2" in got
    assert b"x-hop" not in got
    assert b"keep-alive: 5" not in got
    [request] = app.requests
    assert request.all("x-mine") == request.all("proxy-connection") == request.all("connection") == []


def test_trap_pool_mixing(make_world: MakeWorld) -> None:
    """Two peers never share a connection to the app; two requests of one peer do."""
    world = make_world(serve=(app := Seen()))
    world.publish_server(allow(READ))
    inbound = world.inbound(protocol="http")
    other = world.td.svid("/segment/inference/host/h9/svc/other")
    ask_twice = b"GET /models/a HTTP/1.1\r\nHost: m\r\n\r\n"
    for identity in (world.vllm, other):
        with dial_tls(inbound.address, identity, world.folder) as link:
            for _ in range(2):
                assert b" 200 " in talk(link, ask_twice, lambda got: got.endswith(b"ok"))
    assert (len(app.requests), app.connections) == (4, 2)
    uris = [request.all("x-forwarded-client-cert")[0].rpartition("URI=")[2] for request in app.requests]
    assert uris == [f"spiffe://td{VLLM}"] * 2 + [str(other.id)] * 2


def test_local_clients_share_a_verified_connection(make_world: MakeWorld) -> None:
    # Those of one thread do.
    world = make_world(serve=Seen(), data_threads=1)
    outbound = pair(world, allow(READ))
    for _ in range(5):
        assert ask(outbound.address, "GET", "/models/a")[0] == 200
    assert world.server.stats()["accepted_inbound"] == 1
    # A new leaf of our own is used for what begins after it.
    world.vllm = world.td.svid(VLLM)
    world.publish(allow(READ))
    assert ask(outbound.address, "GET", "/models/a")[0] == 200
    assert world.server.stats()["accepted_inbound"] == 2


def test_bodies_pass_whole_both_ways(make_world: MakeWorld) -> None:
    answer = b"x" * 3_000_000
    world = make_world(serve=(app := Seen(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)))
    outbound = pair(world, allow(WRITE))
    assert ask(outbound.address, "POST", "/uploads/a", b"y" * 2_000_000) == (200, answer)
    assert app.requests[0].body == b"y" * 2_000_000
    until(lambda: world.client.stats()["bytes_forward"] == 2_000_000)
    until(lambda: world.client.stats()["bytes_back"] == len(answer))


def test_an_upload_that_waits_for_100_continue_is_told_to_go_on(make_world: MakeWorld) -> None:
    world = make_world(serve=(app := Seen()))
    outbound = pair(world, allow(WRITE))
    head = (
        b"POST /uploads/a HTTP/1.1\r\nHost: m\r\nExpect: 100-continue\r\nContent-Length: 4\r\nConnection: close\r\n\r\n"
    )
    with dial(outbound.address) as link:
        assert b" 100 " in talk(link, head, lambda got: b"\r\n\r\n" in got)
        assert b" 200 " in talk(link, b"body")
    assert app.requests[0].body == b"body"
    refused = head.replace(b"/uploads/a", b"/secrets/a")
    assert b" 403 " in raw(outbound.address, refused, lambda got: b"\r\n\r\n" in got)


def test_audit_mode_lets_requests_pass_and_relaxes_nothing_else(make_world: MakeWorld) -> None:
    world = make_world(serve=Seen())
    outbound = pair(world, allow(READ, source_mode="audit", destination_mode="audit"))
    assert ask(outbound.address, "DELETE", "/secrets")[0] == 200
    assert ask(outbound.address, "DELETE", "/models/../secrets")[0] == 400
    [audited, refused] = world.records(world.client, 2)
    assert (audited["decision"], audited["reason"]) == ("audit", "action_not_named")
    assert (refused["decision"], refused["reason"]) == ("denied", "bad_request")
    [into] = world.records(world.server, 1)
    assert into["decision"] == "audit"


def test_an_app_that_is_not_there_is_503_and_a_denial(make_world: MakeWorld) -> None:
    world = make_world(serve=Seen())
    outbound = pair(world, allow(READ))
    world.app.stop()
    assert ask(outbound.address, "GET", "/models/a")[0] == 503
    [record] = world.records(world.server, 1)
    assert (record["decision"], record["reason"]) == ("denied", "app_unreachable")


def test_drain_ends_idle_connections_and_lets_requests_end(make_world: MakeWorld) -> None:
    world = make_world(serve=Seen())
    outbound = pair(world, allow(READ))
    with contextlib.closing(UnixHTTP(outbound.address)) as client:
        client.request("GET", "/models/a")
        assert client.getresponse().read() == b"ok"
        assert json.loads(world.client.listeners())[0]["protocol"] == "http"
        assert world.client.drain(60.0)
        assert world.server.drain(60.0)
