# SPDX-License-Identifier: Apache-2.0
"""grpcio clients and servers with what the library gives them: mTLS that follows rotations, required peers, tokens."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

import firedoor
from firedoor import errors
from tests.client.conftest import Sidecar
from tests.sidecar.auth_socket import X
from tests.simulator import Identity, SimulatedTrustDomain
from tests.waiting import PATIENCE, SHORT, until

ALLOW = ["spiffe://example.org/segment/b/*"]
METHODS = ("uu", "us", "su", "ss")


def handlers(table: dict[str, Callable[..., Any]]) -> grpc.GenericRpcHandler:
    made = {
        "uu": grpc.unary_unary_rpc_method_handler(table["uu"]),
        "us": grpc.unary_stream_rpc_method_handler(table["us"]),
        "su": grpc.stream_unary_rpc_method_handler(table["su"]),
        "ss": grpc.stream_stream_rpc_method_handler(table["ss"]),
    }
    return grpc.method_handlers_generic_handler("t.T", made)


def who() -> bytes:
    return str(firedoor.peer()).encode()


def sync_handlers() -> grpc.GenericRpcHandler:
    def stream(request: Any, context: Any) -> Iterator[bytes]:
        yield who()
        yield who()

    return handlers({"uu": lambda r, c: who(), "us": stream, "su": lambda r, c: who(), "ss": stream})


def aio_handlers() -> grpc.GenericRpcHandler:
    async def one(request: Any, context: Any) -> bytes:
        return who()

    async def stream(request: Any, context: Any) -> AsyncIterator[bytes]:
        yield who()
        yield who()

    return handlers({"uu": one, "us": stream, "su": one, "ss": stream})


def ask(channel: grpc.Channel, kind: str = "uu", **more: Any) -> list[bytes]:
    """Call one of the four kinds and return all answers."""
    makers = {
        "uu": channel.unary_unary,
        "us": channel.unary_stream,
        "su": channel.stream_unary,
        "ss": channel.stream_stream,
    }
    request: Any = b"" if kind[0] == "u" else iter([b""])
    found = makers[kind](f"/t.T/{kind}")(request, timeout=PATIENCE, wait_for_ready=True, **more)
    return [found] if kind[1] == "u" else list(found)


def refusal(channel: grpc.Channel, kind: str = "uu", **more: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        ask(channel, kind, **more)
    code: grpc.StatusCode = caught.value.code()
    return code


def tls(port: int, sidecar: Sidecar, peer: Identity | None) -> grpc.Channel:
    """A channel of a plain grpcio client that trusts the simulator and presents `peer`."""
    roots = sidecar.trust.bundle.to_pem().encode()
    credentials = grpc.ssl_channel_credentials(roots, peer and peer.key_pem, peer and peer.chain_pem)
    return grpc.secure_channel(f"localhost:{port}", credentials, options=[("grpc.use_local_subchannel_pool", 1)])


@pytest.fixture
def client(sidecar: Sidecar) -> Iterator[firedoor.Client]:
    sidecar.trust.rotate_jwt()
    sidecar.entitle(X)
    sidecar.hold(X, dns_names=["localhost"])
    with firedoor.Client(sidecar.url) as found:
        yield found


@pytest.fixture
def port(client: firedoor.Client) -> Iterator[int]:
    """A server with its own mTLS."""
    interceptor = firedoor.server_interceptor(client, allow=ALLOW)
    server = grpc.server(ThreadPoolExecutor(4), handlers=[sync_handlers()], interceptors=[interceptor])
    credentials = firedoor.grpc_server_credentials(client.x509_source())
    found = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    yield found
    server.stop(0).wait(PATIENCE)


@pytest.mark.parametrize("kind", METHODS)
def test_a_peer_that_may_and_one_that_may_not(sidecar: Sidecar, port: int, kind: str) -> None:
    good, other = sidecar.trust.svid("/segment/b/z"), sidecar.trust.svid("/segment/c/z")
    with tls(port, sidecar, good) as channel:
        assert set(ask(channel, kind)) == {b"spiffe://example.org/segment/b/z"}
    with tls(port, sidecar, other) as channel:
        assert refusal(channel, kind) == grpc.StatusCode.PERMISSION_DENIED
        claim = (("x-forwarded-client-cert", "URI=spiffe://example.org/segment/b/z"),)
        assert refusal(channel, kind, metadata=claim) == grpc.StatusCode.PERMISSION_DENIED


def test_a_federated_authority_cannot_make_our_names(sidecar: Sidecar, client: firedoor.Client) -> None:
    """One pool of TLS roots takes its certificate; the interceptor goes by the bundle of the peer's trust domain."""
    other = SimulatedTrustDomain("other.org", at=sidecar.trust.at)
    sidecar.entitle(*[_federated(other)], others=(other,))
    sidecar.hold(_federated(other), dns_names=["localhost"])
    allow = [*ALLOW, "spiffe://other.org/segment/b/*"]
    interceptor = firedoor.server_interceptor(client, allow=allow)
    server = grpc.server(ThreadPoolExecutor(2), handlers=[sync_handlers()], interceptors=[interceptor])
    until(lambda: len(client.bundles()) >= 2 and _has_dns(client), "the other bundle, and the name")
    port = server.add_secure_port("127.0.0.1:0", firedoor.grpc_server_credentials(client.x509_source()))
    server.start()
    forged = other.svid("/segment/b/z", uris=["spiffe://example.org/segment/b/z"])
    with tls(port, sidecar, other.svid("/segment/b/z")) as channel:
        assert ask(channel) == [b"spiffe://other.org/segment/b/z"]
    with tls(port, sidecar, forged) as channel:
        assert refusal(channel) == grpc.StatusCode.UNAUTHENTICATED
    server.stop(0).wait(PATIENCE)


def _federated(other: SimulatedTrustDomain) -> Any:
    return replace(X, federates_with=(other.td,))


def _has_dns(client: firedoor.Client) -> bool:
    return b"localhost" in client.x509_svid().chain[0]


def test_a_certificate_counts_until_its_end_on_an_open_connection(sidecar: Sidecar, port: int) -> None:
    short = sidecar.trust.svid("/segment/b/z", expires=int(time.time()) + SHORT)
    with tls(port, sidecar, short) as channel:
        assert ask(channel)

        def code() -> grpc.StatusCode | None:
            try:
                ask(channel)
            except grpc.RpcError as error:
                return error.code()  # type: ignore[no-any-return]
            return None

        assert until(code, "a refusal") == grpc.StatusCode.UNAUTHENTICATED


def test_a_peer_below_our_own_intermediate(sidecar: Sidecar, client: firedoor.Client, port: int) -> None:
    below, version = sidecar.trust.intermediate(), client.x509_source().version
    sidecar.hold(X, dns_names=["localhost"], issuer=below)
    client.x509_source().wait_for_change(version, 60)
    with tls(port, sidecar, sidecar.trust.svid("/segment/b/z", issuer=below)) as channel:
        assert ask(channel) == [b"spiffe://example.org/segment/b/z"]


def test_without_a_certificate(sidecar: Sidecar, port: int) -> None:
    with tls(port, sidecar, None) as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary("/t.T/uu")(b"", timeout=3)


def test_new_connections_meet_the_rotated_certificate(sidecar: Sidecar, client: firedoor.Client, port: int) -> None:
    good = sidecar.trust.svid("/segment/b/z")
    with tls(port, sidecar, good) as channel:
        assert ask(channel)
    old, version = sidecar.trust.roots[0], client.x509_source().version
    sidecar.trust.rotate()
    sidecar.trust_also()
    fresh = sidecar.hold(X, dns_names=["localhost"])
    while client.x509_svid().serial != fresh.svid.serial:
        version = client.x509_source().wait_for_change(version, 60)
    sidecar.trust.forget(old)
    with tls(port, sidecar, sidecar.trust.svid("/segment/b/z")) as channel:
        assert ask(channel) == [b"spiffe://example.org/segment/b/z"]


@pytest.fixture
def outbound(client: firedoor.Client, tmp_path: Path) -> Iterator[str]:
    """A server that wants a JWT-SVID, on a Unix socket as an outbound listener has one."""
    interceptor = firedoor.server_interceptor(client, allow=["spiffe://example.org/segment/a/x"], audience="models")
    server = grpc.server(ThreadPoolExecutor(4), handlers=[sync_handlers()], interceptors=[interceptor])
    server.add_insecure_port(f"unix:{tmp_path}/out.sock")
    server.start()
    yield f"unix:{tmp_path}/out.sock"
    server.stop(0).wait(PATIENCE)


@pytest.mark.parametrize("kind", METHODS)
def test_a_token_on_each_call(client: firedoor.Client, outbound: str, kind: str) -> None:
    with firedoor.grpc_target(outbound, client=client, audience="models").channel() as channel:
        assert set(ask(channel, kind)) == {b"spiffe://example.org/segment/a/x"}
    with firedoor.grpc_target(outbound, client=client, audience="other").channel() as channel:
        assert refusal(channel, kind) == grpc.StatusCode.UNAUTHENTICATED
    with firedoor.grpc_target(outbound).channel() as channel:
        assert refusal(channel, kind) == grpc.StatusCode.UNAUTHENTICATED


def test_a_token_of_somebody_else(sidecar: Sidecar, outbound: str) -> None:
    with firedoor.grpc_target(outbound).channel() as channel:
        for path, code in (("/segment/b/z", grpc.StatusCode.PERMISSION_DENIED), ("/segment/a/x", None)):
            bearer = (("authorization", f"Bearer {sidecar.trust.token(path, 'models')}"),)
            if code is None:
                assert ask(channel, metadata=bearer)
            else:
                assert refusal(channel, metadata=bearer) == code


def test_a_token_is_kept_until_half_its_life(sidecar: Sidecar, client: firedoor.Client) -> None:
    first = client.jwt_svid("models")
    assert client.jwt_svid("models") is first
    assert client.jwt_svid("other") != first
    assert first.token not in repr(first)
    assert client.validate_jwt_svid(first.token, "models").claims["aud"] == ["models"]
    assert sidecar.bench.fetched.count(X.id) == 2


def test_the_authority_is_what_the_server_sees(client: firedoor.Client) -> None:
    found = firedoor.grpc_target("unix:///run/out.sock", authority="models.internal")
    assert (found.target, found.credentials) == ("unix:/run/out.sock", None)
    assert ("grpc.default_authority", "models.internal") in found.options
    for bad in ("/run/out.sock", "unix:out.sock", "127.0.0.1:80", "unix://host/out.sock"):
        with pytest.raises(errors.BadArgument):
            firedoor.grpc_target(bad)
    with pytest.raises(errors.BadArgument):
        firedoor.grpc_target("unix:/run/out.sock", audience="models")


def test_a_token_leaves_by_a_local_socket_alone(client: firedoor.Client) -> None:
    server = grpc.server(ThreadPoolExecutor(1), handlers=[sync_handlers()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    found = firedoor.grpc_target("unix:/run/out.sock", client=client, audience="models")
    assert found.credentials
    with grpc.secure_channel(f"127.0.0.1:{port}", found.credentials) as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary("/t.T/uu")(b"", timeout=2)
    server.stop(0).wait(PATIENCE)


@pytest.mark.parametrize("kind", METHODS)
async def test_asyncio(sidecar: Sidecar, client: firedoor.Client, tmp_path: Path, kind: str) -> None:
    good, other = sidecar.trust.svid("/segment/b/z"), sidecar.trust.svid("/segment/c/z")
    async with firedoor.AsyncClient(sidecar.url) as own:
        await own.x509_svid()
        by_certificate = firedoor.aio_server_interceptor(own, allow=ALLOW)
        by_token = firedoor.aio_server_interceptor(own, allow=["spiffe://example.org/segment/a/x"], audience="models")
        first = grpc.aio.server(interceptors=[by_certificate])
        second = grpc.aio.server(interceptors=[by_token])
        for server in (first, second):
            server.add_generic_rpc_handlers((aio_handlers(),))
        port = first.add_secure_port("127.0.0.1:0", firedoor.grpc_server_credentials(own.x509_source()))
        second.add_insecure_port(f"unix:{tmp_path}/out.sock")
        await first.start()
        await second.start()

        def calls() -> None:
            with tls(port, sidecar, good) as channel:
                assert set(ask(channel, kind)) == {b"spiffe://example.org/segment/b/z"}
            with tls(port, sidecar, other) as channel:
                assert refusal(channel, kind) == grpc.StatusCode.PERMISSION_DENIED
            with firedoor.grpc_target(f"unix:{tmp_path}/out.sock").channel() as channel:
                assert refusal(channel, kind) == grpc.StatusCode.UNAUTHENTICATED

        await asyncio.to_thread(calls)
        with_token = firedoor.grpc_target(f"unix:{tmp_path}/out.sock", client=client, audience="models")
        async with with_token.aio_channel() as channel:
            if kind == "uu":
                answer = await channel.unary_unary("/t.T/uu")(b"", timeout=60)
                assert answer == b"spiffe://example.org/segment/a/x"
        await first.stop(0)
        await second.stop(0)


def test_a_handler_without_an_interceptor_knows_nobody() -> None:
    with pytest.raises(errors.PeerUnknown):
        firedoor.peer()
