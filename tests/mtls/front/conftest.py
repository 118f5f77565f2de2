# SPDX-License-Identifier: Apache-2.0
"""A core, a trust domain of now, and a grpc.aio server that says who calls."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from firedoor import mtls
from tests.simulator import Identity, SimulatedTrustDomain
from tests.waiting import PATIENCE

SERVER = "/spire/server"
CLIENT = "/segment/inference/host/h1/svc/vllm"
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
# So that no test meets a connection that another one opened.
OWN_POOL = [("grpc.use_local_subchannel_pool", 1), *UNLIMITED]


def svid(identity: Identity, **more: Any) -> mtls.Svid:
    return mtls.Svid(id=str(identity.id), chain=identity.chain, key=identity.key_der, **more)


def material(td: SimulatedTrustDomain, *identities: Identity, others: Any = (), **more: Any) -> mtls.Material:
    given = [svid(each, federates_with=[other.td.name for other in others]) for each in identities]
    return mtls.Material(trust_domain=td.td.name, bundles=td.roots_by_name(*others), svids=given, **more)


@pytest.fixture
def td() -> SimulatedTrustDomain:
    return SimulatedTrustDomain("td", at=int(time.time()))


@pytest.fixture
def stranger() -> SimulatedTrustDomain:
    """Another trust domain, of which nobody here has a bundle unless a test says so."""
    return SimulatedTrustDomain("stranger.example", at=int(time.time()))


@pytest.fixture
def core() -> Iterator[mtls.Core]:
    made = mtls.Core(data_threads=1)
    yield made
    made.stop()


class WhoServer:
    """Answers each call with what `front.caller(context.peer())` says, and does what the tests need of a server."""

    def __init__(self, backend: Path | str) -> None:
        # A path, or an abstract address as grpcio writes it.
        self.backend = str(backend)
        self.front: mtls.Front | None = None
        self.cancelled = 0
        self.open = 0
        self.flooded = 0
        self._server = grpc.aio.server(options=UNLIMITED)
        handlers = {
            "Am": grpc.unary_unary_rpc_method_handler(self._am),
            "Echo": grpc.unary_unary_rpc_method_handler(self._echo),
            "Hold": grpc.unary_stream_rpc_method_handler(self._hold),
            "Flood": grpc.unary_stream_rpc_method_handler(self._flood),
            "Sum": grpc.stream_unary_rpc_method_handler(self._sum),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.Who", handlers),))

    async def start(self) -> None:
        abstract = self.backend.startswith("unix-abstract:")
        assert self._server.add_insecure_port(self.backend if abstract else f"unix:{self.backend}")
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    async def caller(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> mtls.Caller:
        assert self.front
        try:
            return self.front.caller(context.peer())
        except mtls.CallerUnknown as error:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))

    async def _am(self, _request: bytes, context: Any) -> bytes:
        caller = await self.caller(context)
        names = ("transport", "connection_id", "spiffe_id", "serial", "not_before", "not_after", "pid", "uid", "gid")
        told = {name: getattr(caller, name) for name in names}
        told |= {"alive": caller.alive(), "chain_hash": caller.chain_hash and caller.chain_hash.hex()}
        return json.dumps(told | {"remote": caller.remote}).encode()

    async def _echo(self, request: bytes, context: Any) -> bytes:
        await self.caller(context)
        return request

    async def _hold(self, _request: bytes, context: Any) -> AsyncIterator[bytes]:
        await self.caller(context)
        self.open += 1
        try:
            yield b"open"
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def _flood(self, _request: bytes, context: Any) -> AsyncIterator[bytes]:
        await self.caller(context)
        part = bytes(1 << 16)
        for _ in range(1600):
            yield part
            self.flooded += len(part)

    async def _sum(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        await self.caller(context)
        total = 0
        async for request in requests:
            total += len(request)
        return str(total).encode()


@pytest.fixture
async def who(folder: Path) -> AsyncIterator[WhoServer]:
    server = WhoServer(folder / "back.sock")
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def front(core: mtls.Core, td: SimulatedTrustDomain, who: WhoServer) -> mtls.Front:
    """A TLS front of the trust domain's server; its name for plain TLS clients is localhost."""
    core.publish(material(td, td.svid(SERVER, dns_names=["localhost"])))
    opened = core.tls_front(listen="127.0.0.1:0", as_id=f"spiffe://td{SERVER}", backend=who.backend)
    who.front = opened
    return opened


@pytest.fixture
def unix_front(core: mtls.Core, folder: Path, who: WhoServer) -> mtls.Front:
    opened = core.unix_front(path=str(folder / "front.sock"), backend=who.backend)
    who.front = opened
    return opened


def tls_channel(address: str, roots: bytes, identity: Identity | None = None) -> grpc.aio.Channel:
    """A plain grpcio channel over its own TLS, as a program that knows nothing of us makes it."""
    chain, key = (identity.chain_pem, identity.key_pem) if identity else (None, None)
    credentials = grpc.ssl_channel_credentials(roots, key, chain)
    options = [*OWN_POOL, ("grpc.ssl_target_name_override", "localhost")]
    return grpc.aio.secure_channel(address, credentials, options=options)


def unix_channel(path: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(f"unix:{path}", options=OWN_POOL)


def roots_pem(td: SimulatedTrustDomain) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return b"".join(root.certificate.public_bytes(Encoding.PEM) for root in td.roots)


async def call(channel: grpc.aio.Channel, method: str, request: bytes = b"", **more: Any) -> bytes:
    return await channel.unary_unary(f"/t.Who/{method}")(request, timeout=PATIENCE, **more)


async def am(channel: grpc.aio.Channel, **more: Any) -> dict[str, Any]:
    """Ask the server who it takes us for, and close the channel."""
    async with channel:
        told: dict[str, Any] = json.loads(await call(channel, "Am", **more))
        return told


async def refused(make: Callable[[], Awaitable[object]]) -> grpc.StatusCode:
    """Return the status of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await make()
    return caught.value.code()


@contextlib.contextmanager
def limit(kind: int, soft: int) -> Iterator[None]:
    import resource

    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)
