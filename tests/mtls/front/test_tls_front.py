# SPDX-License-Identifier: Apache-2.0
import asyncio
import contextlib
import hashlib
import os
import secrets
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from firedoor import mtls
from tests.mtls.front.conftest import (
    CLIENT,
    OWN_POOL,
    SERVER,
    WhoServer,
    am,
    call,
    material,
    refused,
    roots_pem,
    tls_channel,
)
from tests.simulator import Identity, SimulatedTrustDomain
from tests.waiting import PATIENCE, SHORT, async_until, until

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


async def test_server_learns_who_calls(front: mtls.Front, td: SimulatedTrustDomain) -> None:
    client = td.svid(CLIENT)
    told = await am(tls_channel(front.address, roots_pem(td), client))
    assert told["transport"] == "tls"
    assert told["spiffe_id"] == f"spiffe://td{CLIENT}"
    assert told["serial"] == format(client.leaf.serial_number, "x")
    assert told["not_before"] == int(client.leaf.not_valid_before_utc.timestamp())
    assert told["not_after"] == int(client.leaf.not_valid_after_utc.timestamp())
    assert told["chain_hash"] == hashlib.sha256(b"".join(client.chain)).hexdigest()
    assert told["remote"].startswith("127.0.0.1:")
    assert told["alive"] is True
    assert told["pid"] is None


async def test_no_certificate_is_anonymous(front: mtls.Front, td: SimulatedTrustDomain) -> None:
    told = await am(tls_channel(front.address, roots_pem(td)))
    assert (told["transport"], told["spiffe_id"], told["serial"]) == ("tls", None, None)


async def test_callers_without_a_certificate_share_few_connections(
    core: mtls.Core, td: SimulatedTrustDomain, who: WhoServer
) -> None:
    core.publish(material(td, td.svid(SERVER, dns_names=["localhost"])))
    address = open_to_anybody(core, who, anonymous=16)
    (first, _), _ = [await holding(address, td) for _ in range(2)]
    # One address has an eighth of all. The third waits, whoever has a certificate does not.
    third = asyncio.ensure_future(am(tls_channel(address, roots_pem(td))))
    assert (await am(tls_channel(address, roots_pem(td), td.svid(CLIENT))))["spiffe_id"]
    await async_until(lambda: core.stats()["anonymous"] == 3)
    assert not third.done()
    assert who.open == 2
    await first.close()
    assert (await third)["spiffe_id"] is None
    assert core.stats()["anonymous_crowded"] == 0


async def test_callers_without_a_certificate_are_cut_after_a_while(
    core: mtls.Core, td: SimulatedTrustDomain, who: WhoServer
) -> None:
    core.publish(material(td, td.svid(SERVER, dns_names=["localhost"])))
    # Long enough for a call, which the second one makes, and shorter than anybody waits for a seat.
    address = open_to_anybody(core, who, anonymous=1, anonymous_seconds=5.0)
    _, held = await holding(address, td)
    # Who waits for the seat gets it then.
    assert (await am(tls_channel(address, roots_pem(td))))["spiffe_id"] is None
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await held.read()
    assert caught.value.code() == UNAVAILABLE
    await async_until(lambda: core.stats()["anonymous_slow"] >= 1)


def open_to_anybody(core: mtls.Core, who: WhoServer, **limits: Any) -> str:
    """Open a front with limits for callers without a certificate."""
    who.front = core.tls_front(listen="127.0.0.1:0", as_id=f"spiffe://td{SERVER}", backend=who.backend, **limits)
    return who.front.address


async def holding(address: str, td: SimulatedTrustDomain) -> tuple[grpc.aio.Channel, Any]:
    """Open a connection without a certificate, and a call on it that lasts."""
    channel = tls_channel(address, roots_pem(td))
    call = channel.unary_stream("/t.Who/Hold")(b"")
    assert await call.read() == b"open"
    return channel, call


async def test_required_certificate(core: mtls.Core, td: SimulatedTrustDomain, who: WhoServer) -> None:
    core.publish(material(td, td.svid(SERVER, dns_names=["localhost"])))
    who.front = core.tls_front(
        listen="127.0.0.1:0", as_id=f"spiffe://td{SERVER}", backend=who.backend, client="required"
    )
    address = who.front.address
    assert (await am(tls_channel(address, roots_pem(td), td.svid(CLIENT))))["spiffe_id"]
    assert await refused(lambda: am(tls_channel(address, roots_pem(td)))) == UNAVAILABLE


BAD = {
    "expired": lambda td, _: td.svid(CLIENT, starts=td.at - 7200, expires=td.at - 3600),
    "not yet valid": lambda td, _: td.svid(CLIENT, starts=td.at + 3600, expires=td.at + 7200),
    "foreign trust domain": lambda _, stranger: stranger.svid(CLIENT),
    "ours, signed by a foreign authority": lambda _, stranger: stranger.svid(CLIENT, uris=[f"spiffe://td{CLIENT}"]),
    "no URI": lambda td, _: td.svid(CLIENT, uris=[], dns_names=["x"]),
    "two URIs": lambda td, _: td.svid(CLIENT, uris=[f"spiffe://td{CLIENT}", "spiffe://td/b"]),
    "a trust domain's own ID": lambda td, _: td.svid(""),
    "a CA": lambda td, _: td.svid(CLIENT, ca=True),
    "may sign": lambda td, _: td.svid(CLIENT, key_usage=frozenset({"digital_signature", "key_cert_sign"})),
}


@pytest.mark.parametrize("case", BAD)
async def test_bad_certificate_is_never_anonymous(
    case: str, core: mtls.Core, front: mtls.Front, td: SimulatedTrustDomain, stranger: SimulatedTrustDomain
) -> None:
    bad = BAD[case](td, stranger)
    assert await refused(lambda: am(tls_channel(front.address, roots_pem(td), bad))) == UNAVAILABLE
    await async_until(lambda: core.stats()["certificates_refused"] > 0)
    assert core.stats()["anonymous"] == 0
    # The twin: the same path, good in that one respect.
    assert (await am(tls_channel(front.address, roots_pem(td), td.svid(CLIENT))))["spiffe_id"]


async def test_federated_client(
    core: mtls.Core, front: mtls.Front, td: SimulatedTrustDomain, stranger: SimulatedTrustDomain
) -> None:
    foreign = stranger.svid(CLIENT)
    assert await refused(lambda: am(tls_channel(front.address, roots_pem(td), foreign))) == UNAVAILABLE
    core.publish(material(td, td.svid(SERVER, dns_names=["localhost"]), others=[stranger]))
    told = await am(tls_channel(front.address, roots_pem(td), foreign))
    assert told["spiffe_id"] == f"spiffe://stranger.example{CLIENT}"
    # Its roots sign for nobody else.
    posing = stranger.svid(CLIENT, uris=[f"spiffe://td{CLIENT}"])
    assert await refused(lambda: am(tls_channel(front.address, roots_pem(td), posing))) == UNAVAILABLE


def test_a_bundle_alone_does_not_federate(
    core: mtls.Core, td: SimulatedTrustDomain, stranger: SimulatedTrustDomain, folder: Path
) -> None:
    server = td.svid(SERVER)
    given = mtls.Svid(id=str(server.id), chain=server.chain, key=server.key_der)
    core.publish(mtls.Material(trust_domain="td", bundles=td.roots_by_name(stranger), svids=[given]))
    front = core.tls_front(listen="127.0.0.1:0", as_id=str(server.id), backend=str(folder / "back.sock"))
    with pytest.raises((ssl.SSLError, ConnectionError)):
        read_after_handshake(front, stranger.svid(CLIENT))
    until(lambda: core.stats()["certificates_refused"] == 1)


def tls_socket(front: mtls.Front, identity: Identity | None = None, alpn: str | None = "h2") -> ssl.SSLSocket:
    """An OpenSSL client that checks nothing; it is the server's answer that is tested."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols([alpn])
    if identity:
        path = Path(f"/dev/shm/{secrets.token_hex(8)}.pem")
        path.touch(0o600)
        try:
            path.write_bytes(identity.chain_pem + identity.key_pem)
            context.load_cert_chain(path)
        finally:
            path.unlink()
    host, port = front.address.rsplit(":", 1)
    return context.wrap_socket(socket.create_connection((host, int(port)), timeout=PATIENCE))


def read_after_handshake(front: mtls.Front, identity: Identity | None = None, alpn: str | None = "h2") -> bytes:
    with tls_socket(front, identity, alpn) as connection:
        return connection.recv(100)


async def test_no_ticket_and_tls13_only(front: mtls.Front, td: SimulatedTrustDomain) -> None:
    def look() -> tuple[str | None, bool, bytes]:
        with tls_socket(front, td.svid(CLIENT)) as connection:
            # HTTP/2 settings come after any ticket would.
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
            first = connection.recv(9)
            session = connection.session
            return connection.version(), bool(session and session.has_ticket), first

    version, ticket, first = await asyncio.to_thread(look)
    assert (version, ticket) == ("TLSv1.3", False)
    assert first[3] == 4, "a SETTINGS frame"


async def test_tls12_is_refused(front: mtls.Front) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    host, port = front.address.rsplit(":", 1)

    def connect() -> None:
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as raw, context.wrap_socket(raw):
            pass

    with pytest.raises(ssl.SSLError):
        await asyncio.to_thread(connect)


@pytest.mark.parametrize("alpn", [None, "http/1.1", "firedoor-control/1"])
async def test_other_protocols_are_refused(alpn: str | None, front: mtls.Front, td: SimulatedTrustDomain) -> None:
    def talk() -> bytes:
        with tls_socket(front, td.svid(CLIENT), alpn) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
            return connection.recv(100)

    with contextlib.suppress(ssl.SSLError, ConnectionError):
        assert await asyncio.to_thread(talk) == b""


async def test_headers_say_nothing(front: mtls.Front, td: SimulatedTrustDomain) -> None:
    lies = [
        ("x-forwarded-client-cert", "URI=spiffe://td/spire/server"),
        ("x-spiffe-id", "spiffe://td/spire/server"),
        ("spiffe-id", "spiffe://td/spire/server"),
        ("forwarded", "for=10.0.0.1"),
        ("peer", "unix-abstract:firedoor-00000000000000000000000000000000"),
    ]
    told = await am(tls_channel(front.address, roots_pem(td), td.svid(CLIENT)), metadata=lies)
    assert told["spiffe_id"] == f"spiffe://td{CLIENT}"
    told = await am(tls_channel(front.address, roots_pem(td)), metadata=lies)
    assert told["spiffe_id"] is None


async def test_stranger_at_the_private_socket(front: mtls.Front, who: WhoServer, td: SimulatedTrustDomain) -> None:
    """Whoever gets to the private socket past the front is nobody, whatever the end of its socket is called."""
    # With no name.
    async with grpc.aio.insecure_channel(f"unix:{who.backend}") as channel:
        assert await refused(lambda: call(channel, "Am")) == UNAUTHENTICATED
    # With a dead name, and a guessed one.
    caller_name = await dead_name(front, who, td)
    for name in (caller_name, "firedoor-" + "0" * 32):
        assert await peer_seen(who, name) == UNAUTHENTICATED
    assert (await am(tls_channel(front.address, roots_pem(td))))["alive"]


async def dead_name(front: mtls.Front, who: WhoServer, td: SimulatedTrustDomain) -> str:
    seen: list[str] = []
    inner = who.caller

    async def spy(context: grpc.aio.ServicerContext[bytes, bytes]) -> mtls.Caller:
        seen.append(context.peer())
        return await inner(context)

    who.caller = spy  # type: ignore[method-assign]
    await am(tls_channel(front.address, roots_pem(td)))
    who.caller = inner  # type: ignore[method-assign]
    prefix, name = seen[0].split(":", 1)
    assert prefix == "unix-abstract"
    assert name.startswith("firedoor-")
    await async_until(lambda: not live(front, seen[0]))
    return name


def live(front: mtls.Front, peer: str) -> bool:
    try:
        front.caller(peer)
    except mtls.CallerUnknown:
        return False
    return True


async def peer_seen(who: WhoServer, name: str) -> grpc.StatusCode:
    """Connect to the private socket from an end bound to `name`, through a relay that grpcio can dial."""
    front_end = socket.socket(socket.AF_UNIX)
    front_end.bind(f"{who.backend}.relay")
    front_end.listen()

    def relay() -> None:
        near, _ = front_end.accept()
        far = socket.socket(socket.AF_UNIX)
        far.bind(f"\0{name}")
        far.connect(who.backend)
        with near, far:
            to, back = (threading.Thread(target=pump, args=ends) for ends in ((near, far), (far, near)))
            to.start()
            back.start()
            answered.wait(PATIENCE)
            for end in (near, far):
                end.shutdown(socket.SHUT_RDWR)
            to.join()
            back.join()

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)

    answered = threading.Event()
    relaying = asyncio.create_task(asyncio.to_thread(relay))
    with front_end:
        async with grpc.aio.insecure_channel(f"unix:{who.backend}.relay", options=OWN_POOL) as channel:
            seen = await refused(lambda: call(channel, "Am"))
        answered.set()
        await relaying
    Path(f"{who.backend}.relay").unlink()  # noqa: ASYNC240 - one file, at once
    return seen


async def test_a_live_name_cannot_be_bound_twice(front: mtls.Front, who: WhoServer, td: SimulatedTrustDomain) -> None:
    seen: list[str] = []
    inner = who.caller

    async def spy(context: grpc.aio.ServicerContext[bytes, bytes]) -> mtls.Caller:
        seen.append(context.peer())
        with socket.socket(socket.AF_UNIX) as raw, pytest.raises(OSError, match="Address already in use"):
            raw.bind("\0" + context.peer().split(":", 1)[1])
        return await inner(context)

    who.caller = spy  # type: ignore[method-assign]
    assert await am(tls_channel(front.address, roots_pem(td)))
    assert seen


async def test_large_echo_and_streams(front: mtls.Front, td: SimulatedTrustDomain) -> None:
    async with tls_channel(front.address, roots_pem(td), td.svid(CLIENT)) as channel:
        payload = os.urandom(10 << 20)
        assert await call(channel, "Echo", payload) == payload

        async def parts() -> AsyncIterator[bytes]:
            for _ in range(100):
                yield b"x" * 10_000

        # A stream that the client half-closes: the answer comes after it.
        assert await channel.stream_unary("/t.Who/Sum")(parts(), timeout=PATIENCE) == b"1000000"


async def test_cancellation_and_deadline_reach_the_server(
    front: mtls.Front, who: WhoServer, td: SimulatedTrustDomain
) -> None:
    async with tls_channel(front.address, roots_pem(td), td.svid(CLIENT)) as channel:
        stream = channel.unary_stream("/t.Who/Hold")(b"")
        assert await stream.read() == b"open"
        stream.cancel()
        await async_until(lambda: who.cancelled == 1)
        # Late enough for the call to have arrived.
        stream = channel.unary_stream("/t.Who/Hold")(b"", timeout=5)
        assert await stream.read() == b"open"
        assert await refused(stream.read) == grpc.StatusCode.DEADLINE_EXCEEDED
        await async_until(lambda: who.cancelled == 2)


async def test_close_callers(front: mtls.Front, who: WhoServer, td: SimulatedTrustDomain) -> None:
    other = "/segment/inference/host/h1/svc/other"
    async with (
        tls_channel(front.address, roots_pem(td), td.svid(CLIENT)) as shut_out,
        tls_channel(front.address, roots_pem(td), td.svid(other)) as stays,
    ):
        lost, kept = (each.unary_stream("/t.Who/Hold")(b"") for each in (shut_out, stays))
        assert await lost.read() == await kept.read() == b"open"
        assert front.close_callers(f"spiffe://td{CLIENT}") == 1
        assert await refused(lost.read) == UNAVAILABLE
        await async_until(lambda: who.cancelled == 1)
        assert front.close_callers(f"spiffe://td{CLIENT}") == 0
        assert json_alive(await call(stays, "Am"))


def json_alive(told: bytes) -> bool:
    return b'"alive": true' in told


async def test_connection_ends_at_expiry(core: mtls.Core, front: mtls.Front, td: SimulatedTrustDomain) -> None:
    soon = td.svid(CLIENT, starts=td.at - 60, expires=int(time.time()) + SHORT)
    async with (
        tls_channel(front.address, roots_pem(td), soon) as short,
        tls_channel(front.address, roots_pem(td), td.svid(CLIENT)) as long,
    ):
        lost, kept = (each.unary_stream("/t.Who/Hold")(b"") for each in (short, long))
        assert await lost.read() == await kept.read() == b"open"
        assert await refused(lost.read) == UNAVAILABLE
        await async_until(lambda: core.stats()["closed_expired"] == 1)
        assert json_alive(await call(long, "Am"))


@pytest.mark.parametrize("kind", ["serial", "authority", "pattern", "root forgotten"])
async def test_a_generation_that_refuses_ends_the_connection(
    kind: str, core: mtls.Core, front: mtls.Front, td: SimulatedTrustDomain
) -> None:
    old = td.svid(CLIENT)
    signer = td.authority
    td.rotate()
    kept_svid = td.svid("/segment/inference/host/h1/svc/kept")
    server = td.svid(SERVER, dns_names=["localhost"])
    core.publish(material(td, server))
    async with (
        tls_channel(front.address, roots_pem(td), old) as first,
        tls_channel(front.address, roots_pem(td), kept_svid) as second,
    ):
        lost, kept = (each.unary_stream("/t.Who/Hold")(b"") for each in (first, second))
        assert await lost.read() == await kept.read() == b"open"
        revocations = {
            "serial": [mtls.Revocation(serial=format(old.leaf.serial_number, "x"))],
            "authority": [mtls.Revocation(authority_id=signer.authority_id)],
            "pattern": [mtls.Revocation(pattern=f"spiffe://td{CLIENT}", issued_before=int(time.time()) + 60)],
            "root forgotten": [],
        }[kind]
        if kind == "root forgotten":
            td.forget(signer)
        core.publish(material(td, server, revocations=revocations))
        assert await refused(lost.read) == UNAVAILABLE
        assert json_alive(await call(second, "Am"))
    assert await refused(lambda: am(tls_channel(front.address, roots_pem(td), old))) == UNAVAILABLE


async def test_new_connections_get_the_new_svid(core: mtls.Core, front: mtls.Front, td: SimulatedTrustDomain) -> None:
    def served() -> bytes | None:
        with tls_socket(front) as connection:
            return connection.getpeercert(binary_form=True)

    before = await asyncio.to_thread(served)
    async with tls_channel(front.address, roots_pem(td), td.svid(CLIENT)) as channel:
        assert json_alive(await call(channel, "Am"))
        renewed = td.svid(SERVER, dns_names=["localhost"])
        core.publish(material(td, renewed))
        assert await asyncio.to_thread(served) == renewed.chain[0] != before
        # What was open goes on.
        assert json_alive(await call(channel, "Am"))


async def test_backend_that_is_not_there(
    core: mtls.Core, folder: Path, td: SimulatedTrustDomain, front: mtls.Front
) -> None:
    lonely = core.tls_front(listen="127.0.0.1:0", as_id=f"spiffe://td{SERVER}", backend=str(folder / "nobody.sock"))
    assert await refused(lambda: am(tls_channel(lonely.address, roots_pem(td)))) == UNAVAILABLE
    await async_until(lambda: core.stats()["backend_failed"] > 0)
    assert await am(tls_channel(front.address, roots_pem(td)))


async def test_what_is_no_name(front: mtls.Front) -> None:
    for peer in ("", "ipv4:127.0.0.1:1", "unix:", "unix-abstract:", "unix-abstract:firedoor-", "\0" * 10):
        with pytest.raises(mtls.CallerUnknown) as caught:
            front.caller(peer)
        assert caught.value.code == "caller_unknown"


async def test_reconnect_storm(front: mtls.Front, td: SimulatedTrustDomain) -> None:
    client = td.svid(CLIENT)
    told = await asyncio.gather(*(am(tls_channel(front.address, roots_pem(td), client)) for _ in range(100)))
    assert {each["spiffe_id"] for each in told} == {f"spiffe://td{CLIENT}"}
    assert len({each["connection_id"] for each in told}) == 100
