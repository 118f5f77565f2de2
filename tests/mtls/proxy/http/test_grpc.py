# SPDX-License-Identifier: Apache-2.0
"""gRPC through both ends, with grpcio as client and server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest

from tests.mtls.proxy.datapath import World
from tests.mtls.proxy.http.web import READ, Seen, allow, ask, pair
from tests.waiting import until

MakeWorld = Callable[..., World]

GET = "{grpc: {service: pkg.Models, methods: [Get, Watch, Chat]}}"


def dialled(address: str) -> grpc.Channel:
    """Connect with an authority: that of a Unix socket's path is no authority that HTTP/2 knows."""
    return grpc.insecure_channel(address, [("grpc.default_authority", "models")])


class Models(grpc.GenericRpcHandler):
    """Answers every service and method with bytes."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, str]]] = []

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        self.calls.append((details.method, {key: str(value) for key, value in details.invocation_metadata}))
        name = details.method.rpartition("/")[2]
        if name == "Watch":
            return grpc.unary_stream_rpc_method_handler(self.watch)
        if name == "Chat":
            return grpc.stream_stream_rpc_method_handler(lambda requests, context: requests)
        return grpc.unary_unary_rpc_method_handler(self.get)

    def get(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        if request == b"missing":
            context.set_trailing_metadata((("x-why", "gone"),))
            context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
        return request

    def watch(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield b"first"
        ended = threading.Event()
        if context.add_callback(ended.set):
            ended.wait(30)


@pytest.fixture
def models(world: World) -> Iterator[tuple[Models, str]]:
    """A grpcio server behind an inbound listener, and the address of the outbound one."""
    handler = Models()
    server = grpc.server(futures.ThreadPoolExecutor(8), handlers=[handler])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    world.publish(allow(GET))
    inbound = world.inbound(protocol="grpc", app={"address": f"127.0.0.1:{port}"})
    yield handler, world.outbound(inbound.address, protocol="grpc").address
    server.stop(0).wait()


def test_a_call_is_carried_with_its_trailers(world: World, models: tuple[Models, str]) -> None:
    handler, address = models
    with dialled(address) as channel:
        get = channel.unary_unary("/pkg.Models/Get")
        assert get(b"hello", timeout=60) == b"hello"
        with pytest.raises(grpc.RpcError) as refused:
            get(b"missing", timeout=60)
        assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.NOT_FOUND, "no such model")
        assert ("x-why", "gone") in refused.value.trailing_metadata()
    assert "URI=spiffe://td/segment/inference/" in handler.calls[0][1]["x-forwarded-client-cert"]
    for core in (world.client, world.server):
        for record in world.records(core, 2):
            assert (record["protocol"], record["decision"]) == ("grpc", "allowed")


def test_a_stream_goes_both_ways(models: tuple[Models, str]) -> None:
    with dialled(models[1]) as channel:
        chat = channel.stream_stream("/pkg.Models/Chat")
        sent = [b"%d" % number for number in range(1000)]
        assert list(chat(iter(sent), timeout=60)) == sent


@pytest.mark.parametrize("method", ["/pkg.Models/Delete", "/pkg.Other/Get", "/pkg.models/Get"])
def test_a_method_that_no_flow_names_is_denied(world: World, models: tuple[Models, str], method: str) -> None:
    handler, address = models
    with dialled(address) as channel:
        with pytest.raises(grpc.RpcError) as denied:
            channel.unary_unary(method)(b"", timeout=60)
        assert denied.value.code() == grpc.StatusCode.PERMISSION_DENIED
        assert channel.unary_unary("/pkg.Models/Get")(b"x", timeout=60) == b"x"
    assert [call for call, _ in handler.calls] == ["/pkg.Models/Get"]
    [record, _] = world.records(world.client, 2)
    assert (record["decision"], record["reason"]) == ("denied", "action_not_named")


def test_a_live_call_ends_when_its_flow_does(world: World, models: tuple[Models, str]) -> None:
    with dialled(models[1]) as channel:
        watching = channel.unary_stream("/pkg.Models/Watch")(b"", timeout=60)
        assert next(watching) == b"first"
        world.publish_server(allow(READ))
        with pytest.raises(grpc.RpcError):
            for _ in watching:
                pass
    until(lambda: world.server.connections() == "[]")


def test_http_is_not_grpc(make_world: MakeWorld) -> None:
    """An http flow does not open a grpc listener, nor a grpc flow an http one."""
    world = make_world(serve=(app := Seen()))
    outbound = pair(world, allow(GET))
    assert ask(outbound.address, "POST", "/pkg.Models/Get", b"")[0] == 403
    assert app.requests == []
    world.publish(allow(READ))
    assert ask(outbound.address, "GET", "/models/a")[0] == 200
