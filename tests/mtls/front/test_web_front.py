# SPDX-License-Identifier: Apache-2.0
"""The web front, as programs without an identity meet it: OpenSSL through the standard library."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from firedoor import mtls
from tests.mtls.front.conftest import CLIENT, SERVER, material
from tests.simulator import SimulatedTrustDomain
from tests.waiting import PATIENCE, async_until
from tests.web_pki import WebPki

ID = f"spiffe://td{SERVER}"


@pytest.fixture
async def backend() -> AsyncIterator[str]:
    """A private server that answers one line and ends, as ours does."""
    address = mtls.private_address()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        writer.write(b"you said " + line)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    bound.bind("\0" + address.removeprefix("unix-abstract:"))
    server = await asyncio.start_unix_server(serve, sock=bound)
    yield address
    server.close()


@pytest.fixture
def front(core: mtls.Core, td: SimulatedTrustDomain, backend: str) -> mtls.WebFront:
    """With the SVID of the trust domain's server."""
    core.publish(material(td, td.svid(SERVER)))
    return core.web_front(listen="127.0.0.1:0", backend=backend, as_id=ID)


def unverified(*alpn: str) -> ssl.SSLContext:
    """Take whatever is shown; the tests look at it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def port(address: str) -> int:
    return int(address.rpartition(":")[2])


async def ask(address: str, context: ssl.SSLContext | None = None, name: str = "") -> tuple[bytes, ssl.SSLObject]:
    """Say hello; return what comes back until the end, and the TLS session."""
    context = context or unverified()
    reader, writer = await asyncio.open_connection("127.0.0.1", port(address), ssl=context, server_hostname=name)
    writer.write(b"hello\n")
    answer = await asyncio.wait_for(reader.read(), PATIENCE)
    session = writer.get_extra_info("ssl_object")
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return answer, session


async def shown(address: str) -> bytes:
    """Return the certificate that is served, DER."""
    _, session = await ask(address)
    certificate = session.getpeercert(binary_form=True)
    assert certificate
    return certificate


async def test_anybody_is_served(front: mtls.WebFront) -> None:
    answer, session = await ask(front.address)
    assert answer == b"you said hello\n"
    assert session.version() == "TLSv1.3"


@pytest.mark.parametrize(("offered", "agreed"), [((), None), (("h2", "http/1.1"), "http/1.1")])
async def test_http1_is_spoken(front: mtls.WebFront, offered: tuple[str, ...], agreed: str | None) -> None:
    answer, session = await ask(front.address, unverified(*offered))
    assert (answer, session.selected_alpn_protocol()) == (b"you said hello\n", agreed)


def tls12() -> ssl.SSLContext:
    context = unverified()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


REFUSED: dict[str, Callable[[], ssl.SSLContext]] = {"HTTP/2 alone": lambda: unverified("h2"), "TLS 1.2": tls12}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_is_not_spoken(core: mtls.Core, front: mtls.WebFront, case: str) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await ask(front.address, REFUSED[case]())
    await async_until(lambda: core.stats()["handshakes_failed"] == 1)


async def test_plaintext_is_not_answered(core: mtls.Core, front: mtls.WebFront) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port(front.address))
    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert b"HTTP" not in await reader.read()
    await async_until(lambda: core.stats()["handshakes_failed"] == 1)
    writer.close()


async def test_nobody_is_asked_for_a_certificate(front: mtls.WebFront, td: SimulatedTrustDomain, folder: Path) -> None:
    """One of another trust domain, which a front with client authentication refuses, goes unseen."""
    stranger = SimulatedTrustDomain("stranger.example", at=td.at).svid(CLIENT)
    context = unverified()
    (folder / "stranger.pem").write_bytes(stranger.chain_pem + stranger.key_pem)
    context.load_cert_chain(folder / "stranger.pem")
    answer, _ = await ask(front.address, context)
    assert answer == b"you said hello\n"


async def test_the_present_svid_is_shown(core: mtls.Core, front: mtls.WebFront, td: SimulatedTrustDomain) -> None:
    first = await shown(front.address)
    fresh = td.svid(SERVER)
    core.publish(material(td, fresh))
    assert first != fresh.chain[0]
    assert await shown(front.address) == fresh.chain[0]
    # Without one there is no handshake, and the next one makes it good.
    core.publish(material(td))
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await shown(front.address)
    core.publish(material(td, fresh))
    assert await shown(front.address) == fresh.chain[0]


async def test_a_certificate_of_the_web_is_shown_and_replaced(core: mtls.Core, backend: str) -> None:
    pki = WebPki()
    front = core.web_front(listen="127.0.0.1:0", backend=backend, certificate=pki.pair("bundle.example"))
    context = pki.client()
    answer, _ = await ask(front.address, context, "bundle.example")
    assert answer == b"you said hello\n"
    with pytest.raises(ssl.SSLCertVerificationError):
        await ask(front.address, context, "other.example")
    chain, key = pki.pair("other.example")
    front.set_certificate(chain, key)
    answer, _ = await ask(front.address, context, "other.example")
    assert answer == b"you said hello\n"


async def test_a_certificate_that_cannot_be_served_changes_nothing(core: mtls.Core, backend: str) -> None:
    pki = WebPki()
    (chain, key), (_, other) = pki.pair("a.example"), pki.pair("a.example")
    front = core.web_front(listen="127.0.0.1:0", backend=backend, certificate=(chain, key))
    wrong = {"not that of the certificate": (chain, other), "no certificate": ([], key), "key cannot": (chain, b"x")}
    for words, (certificates, secret) in wrong.items():
        with pytest.raises(mtls.ListenError, match=words):
            front.set_certificate(certificates, secret)
        with pytest.raises(mtls.ListenError, match=words):
            core.web_front(listen="127.0.0.1:0", backend=backend, certificate=(certificates, secret))
    assert await shown(front.address) == chain[0]


async def test_exactly_one_of_svid_and_certificate(core: mtls.Core, backend: str) -> None:
    for given in ({}, {"as_id": ID, "certificate": WebPki().pair("a.example")}):
        with pytest.raises(mtls.MtlsError, match="either as_id or certificate"):
            core.web_front(listen="127.0.0.1:0", backend=backend, **given)


async def test_one_address_has_its_share_and_gives_it_back(
    core: mtls.Core, td: SimulatedTrustDomain, backend: str
) -> None:
    core.publish(material(td, td.svid(SERVER)))
    front = core.web_front(listen="127.0.0.1:0", backend=backend, as_id=ID, most=8)
    # It has longer to ask something than to shake hands.
    _, held = await asyncio.open_connection("127.0.0.1", port(front.address), ssl=unverified(), server_hostname="")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await ask(front.address)
    await async_until(lambda: core.stats()["web_crowded"] == 1)
    held.close()

    async def answer() -> bytes:
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            return (await ask(front.address))[0]
        return b""

    assert await async_until(answer, "a place for another one") == b"you said hello\n"


async def test_whoever_says_nothing_is_cut(core: mtls.Core, front: mtls.WebFront) -> None:
    _, raw = await asyncio.open_connection("127.0.0.1", port(front.address))
    reader, shaken = await asyncio.open_connection(
        "127.0.0.1", port(front.address), ssl=unverified(), server_hostname=""
    )
    await async_until(lambda: core.stats()["handshakes_failed"] == 1)
    await async_until(lambda: core.stats()["web_slow"] == 1)
    with contextlib.suppress(OSError):
        assert await reader.read() == b""
    raw.close()
    shaken.close()


async def test_stop_closes_it(core: mtls.Core, front: mtls.WebFront) -> None:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port(front.address), ssl=unverified(), server_hostname=""
    )
    front.stop()
    with contextlib.suppress(OSError):
        assert await reader.read() == b""
    writer.close()

    def closed() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port(front.address)), 5):
            return False
        return True

    await async_until(lambda: asyncio.to_thread(closed))
