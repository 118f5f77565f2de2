# SPDX-License-Identifier: Apache-2.0
"""Every method, by every kind of caller: each may do what its row of the table says, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from firedoor.broker.rpc.matrix import MATRIX, Who
from firedoor.certs import KeyType, generate_key, make_csr, parse_x509_svid
from firedoor.wire import (
    admin_pb2,
    agent_pb2,
    bundle_pb2,
    debug_pb2,
    entry_pb2,
    health_pb2,
    localauthority_pb2,
    logger_pb2,
    reflection_alpha_pb2,
    reflection_pb2,
    svid_pb2,
    trustdomain_pb2,
)
from tests.broker.harness import TD, RunningBroker, code_of, running, status

MODULES = (admin_pb2, agent_pb2, bundle_pb2, entry_pb2, localauthority_pb2, svid_pb2, trustdomain_pb2)
LOCAL_MODULES = (debug_pb2, health_pb2, logger_pb2, reflection_alpha_pb2, reflection_pb2)
NETWORK = [s for module in MODULES for s in module.DESCRIPTOR.services_by_name.values() if s.name != "SidecarAdmin"]
LOCAL = [s for module in LOCAL_MODULES for s in module.DESCRIPTOR.services_by_name.values()]
METHODS = {f"/{service.full_name}/{m.name}": m for service in (*NETWORK, *LOCAL) for m in service.methods}
LOCAL_PATHS = {f"/{service.full_name}/{m.name}" for service in LOCAL for m in service.methods}
USER = ["unix:user:registry"]
# What a network caller is told of a service that only the admin socket has.
ABSENT = "UNIMPLEMENTED"


def test_every_method_has_a_row_and_every_row_a_method() -> None:
    assert set(METHODS) == set(MATRIX)
    assert all(MATRIX.values())


def test_what_only_the_host_may_ask_is_on_no_network() -> None:
    assert {path for path, row in MATRIX.items() if row == {Who.LOCAL}} == LOCAL_PATHS


# What grpcio's client says in place of the server's answer when a call ended while the client was writing.
CUT_SHORT = ("INTERNAL", "Internal error from Core")


async def outcome(channel: grpc.aio.Channel, path: str) -> str:
    """Call a method with an empty request, and return how it ends or that it has begun to answer."""
    method = METHODS[path]
    if not method.client_streaming and not method.server_streaming:
        return await status(channel, path)
    while True:
        code, details = await stream_outcome(channel, path)
        if (code, details) != CUT_SHORT:
            return code


async def stream_outcome(channel: grpc.aio.Channel, path: str) -> tuple[str, str]:
    """Call a method that streams, and return its code and details, or that it has begun to answer."""
    method = METHODS[path]
    shape = channel.stream_stream if method.client_streaming else channel.unary_stream
    call = shape(path)(iter([b""])) if method.client_streaming else shape(path)(b"")
    try:
        # A stream that ends without an answer is either told by an error or, when it came first, by its end.
        return (
            (str((await call.code()).name), await call.details()) if await call.read() == grpc.aio.EOF else ("OK", "")
        )
    except grpc.aio.AioRpcError as error:
        return code_of(error), str(error.details())
    finally:
        call.cancel()


async def workload(broker: RunningBroker, name: str, **flags: Any) -> grpc.aio.Channel:
    """Return a channel of a workload whose entry has these flags."""
    agent = await broker.attest()
    made = await broker.entry(f"/segment/registry/{name}", agent.path, USER, **flags)
    key = generate_key(KeyType.EC_P256)
    (result,) = await agent.sign(made.id, csr=make_csr(key))
    client = broker.client()
    client.use(parse_x509_svid(tuple(result.svid.cert_chain)), key)
    return client.channel


async def anonymous(broker: RunningBroker) -> grpc.aio.Channel:
    return broker.client().channel


async def agent(broker: RunningBroker) -> grpc.aio.Channel:
    return (await broker.attest()).channel


async def local(broker: RunningBroker) -> grpc.aio.Channel:
    return broker.admin


CALLERS: dict[str, tuple[Callable[..., object], set[Who]]] = {
    "anonymous": (anonymous, {Who.ANYONE}),
    "agent": (agent, {Who.ANYONE, Who.AGENT}),
    "the admin socket": (local, {Who.ANYONE, Who.LOCAL}),
    "an administrator's SVID": (lambda b: workload(b, "boss", admin=True), {Who.ANYONE, Who.ADMIN}),
    "a downstream SVID": (
        lambda b: workload(b, "below", downstream=True, segments="registry"),
        {Who.ANYONE, Who.DOWNSTREAM},
    ),
    "an operator": (lambda b: workload(b, "operator"), {Who.ANYONE, Who.OPERATOR}),
    "who makes policy": (lambda b: workload(b, "policy"), {Who.ANYONE, Who.POLICY}),
    "a viewer": (lambda b: workload(b, "viewer"), {Who.ANYONE, Who.VIEWER}),
    "any other SVID": (lambda b: workload(b, "clerk"), {Who.ANYONE}),
}


@pytest.mark.parametrize("caller", CALLERS)
async def test_may_do_what_its_rows_say(folder: Path, caller: str) -> None:
    make, who = CALLERS[caller]
    roles = {f"{role}_ids": f"spiffe://{TD}/segment/registry/{role}" for role in ("operator", "policy", "viewer")}
    async with running(folder, rate_limits_attestation="1000", **roles) as broker:
        channel: grpc.aio.Channel = await make(broker)  # type: ignore[misc]
        # A connection that is slow to come would look like an answer.
        await channel.channel_ready()
        for path in METHODS:
            found = await outcome(channel, path)
            if path in LOCAL_PATHS and Who.LOCAL not in who:
                assert found == ABSENT, path
            else:
                assert (found != "PERMISSION_DENIED") == bool(MATRIX[path] & who), (path, found)
