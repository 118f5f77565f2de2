# SPDX-License-Identifier: Apache-2.0
"""Agents with a good SVID that misuse HTTP/2 or gRPC, by a client that sends what it likes. The server stays up."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import pytest

from tests.mtls.control.conftest import AGENT, Broker, hello
from tests.simulator import Identity, SimulatedTrustDomain
from tests.waiting import PATIENCE, NotInTime

METHOD = "/firedoor.control.v1.Control/Stream"
HEADERS = [
    (":method", "POST"),
    (":scheme", "https"),
    (":authority", "firedoor"),
    (":path", METHOD),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
]


def framed(message: bytes, *, compressed: int = 0, length: int | None = None) -> bytes:
    return struct.pack(">BI", compressed, len(message) if length is None else length) + message


class Client:
    """An HTTP/2 connection on which any frame can be sent."""

    def __init__(self, address: str, identity: Identity, folder: Path) -> None:
        (folder / "id.pem").write_bytes(identity.chain_pem + identity.key_pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.load_cert_chain(folder / "id.pem")
        context.set_alpn_protocols(["firedoor-control/1"])
        host, port = address.rsplit(":", 1)
        self.socket = context.wrap_socket(socket.create_connection((host, int(port)), timeout=PATIENCE))
        assert self.socket.selected_alpn_protocol() == "firedoor-control/1"
        config = h2.config.H2Configuration(client_side=True, validate_outbound_headers=False)
        # What has come and was not yielded yet.
        self._come: list[h2.events.Event] = []
        self.http2 = h2.connection.H2Connection(config)
        self.http2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self.socket.sendall(self.http2.data_to_send())

    def raw(self, raw: bytes) -> None:
        self.flush()
        self.socket.sendall(raw)

    def start(self, *messages: bytes, headers: list[tuple[str, str]] = HEADERS) -> int:
        stream = self.http2.get_next_available_stream_id()
        self.http2.send_headers(stream, headers)
        for message in messages:
            self.http2.send_data(stream, message)
        self.flush()
        return stream

    def events(self) -> Iterator[h2.events.Event]:
        """Yield what the server sends until it closes the connection."""
        with contextlib.suppress(ConnectionError, ssl.SSLEOFError):
            while True:
                while self._come:
                    yield self._come.pop(0)
                data = self.socket.recv(65536)
                if not data:
                    return
                self._come += self.http2.receive_data(data)
                self.flush()

    def status(self, stream: int) -> str:
        """Wait for the stream's end and return its gRPC status, "reset", or "closed" with the connection."""
        for event in self.events():
            if isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
                headers = dict(event.headers)
                if event.stream_id == stream and b"grpc-status" in headers:
                    return headers[b"grpc-status"].decode()
            if isinstance(event, h2.events.StreamReset) and event.stream_id == stream:
                return "reset"
        return "closed"


@pytest.fixture
def client(broker: Broker, td: SimulatedTrustDomain, folder: Path) -> Iterator[Client]:
    made = Client(broker.front.address, td.svid(AGENT), folder)
    yield made
    made.socket.close()


@pytest.fixture(autouse=True)
def still_serving(broker: Broker) -> Iterator[None]:
    """After each test, a good sidecar gets its view."""
    yield
    sidecar = broker.sidecar("/spire/agent/good").connected()
    broker.control.publish([([sidecar.id], b"view")])
    assert sidecar.received(1) == [b"view"]
    assert [event[1] for event in broker.said("hello") if event[1] == sidecar.id] == [sidecar.id]


def test_the_twin_that_behaves(broker: Broker, client: Client) -> None:
    broker.control.publish([([f"spiffe://td{AGENT}"], b"view")])
    stream = client.start(framed(hello()))
    data = next(event.data for event in client.events() if isinstance(event, h2.events.DataReceived))
    assert data == framed(b"view")
    client.http2.end_stream(stream)
    client.flush()
    assert client.status(stream) == "0"


@pytest.mark.parametrize(
    ("message", "status"),
    [
        (framed(b"\xff\xff\xff"), "3"),
        (framed(b""), "3"),
        (framed(b"\x0a\x7f"), "3"),
        (framed(hello(), compressed=1), "13"),
        (framed(hello(), compressed=7), "13"),
        (framed(b"", length=2**32 - 1), "11"),
        (framed(b"", length=(1 << 20) + 1), "11"),
        (framed(hello()) + framed(hello()), "9"),
        (framed(b"\x0a" + b"\x81\x80\x04" + b"\0" * 65537), "8"),
    ],
    ids=["malformed", "empty", "short", "compressed", "flags", "4 GiB", "too large", "two hellos", "large hello"],
)
def test_bad_messages_end_the_stream_with_a_status(client: Client, message: bytes, status: str) -> None:
    stream = client.http2.get_next_available_stream_id()
    client.http2.send_headers(stream, HEADERS)
    for start in range(0, len(message), 16384):
        part = message[start : start + 16384]
        # The window of the connection and that of the stream open one after the other.
        while client.http2.local_flow_control_window(stream) < len(part):
            next(event for event in client.events() if isinstance(event, h2.events.WindowUpdated))
        client.http2.send_data(stream, part)
        client.flush()
    assert client.status(stream) == status


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({":path": "/firedoor.control.v1.Control/Other"}, "12"),
        ({":path": METHOD + "/"}, "12"),
        ({":method": "GET"}, "3"),
        ({"content-type": "application/json"}, "3"),
    ],
    ids=["method", "slash", "GET", "json"],
)
def test_only_one_method_is_served(client: Client, change: dict[str, str], status: str) -> None:
    headers = [(name, change.get(name, value)) for name, value in HEADERS]
    assert client.status(client.start(headers=headers)) == status


def test_the_end_of_the_requests_ends_the_stream(broker: Broker, client: Client) -> None:
    stream = client.start()
    client.http2.end_stream(stream)
    client.flush()
    assert client.status(stream) == "0"
    assert broker.read() == []


def test_headers_are_capped(client: Client) -> None:
    large = [*HEADERS, *((f"x-{number}", "v" * 1000) for number in range(40))]
    assert client.status(client.start(headers=large)) in ("reset", "closed")


def test_streams_of_a_connection_are_capped(broker: Broker, client: Client) -> None:
    next(event for event in client.events() if isinstance(event, h2.events.RemoteSettingsChanged))
    for _ in range(4):
        client.start(framed(hello()))
    with pytest.raises(h2.exceptions.TooManyStreamsError):
        client.start(framed(hello()))
    broker.said("hello", 4)
    assert broker.control.streams() == 4


def ended(client: Client, send: Callable[[], None]) -> bool:
    """Go on sending until the server ends the connection."""
    deadline = time.monotonic() + PATIENCE
    try:
        while time.monotonic() < deadline:
            send()
    except (ConnectionError, ssl.SSLError, h2.exceptions.ProtocolError):
        return True
    raise NotInTime(f"not within {PATIENCE:.0f} s: the connection's end")


def test_rapid_resets_end_the_connection(client: Client) -> None:
    def open_and_reset() -> None:
        for _ in range(100):
            stream = client.http2.get_next_available_stream_id()
            client.http2.send_headers(stream, HEADERS)
            client.http2.reset_stream(stream)
        client.flush()

    assert ended(client, open_and_reset)


def test_continuation_floods_end_the_connection(client: Client) -> None:
    # HEADERS without END_HEADERS on stream 1, then CONTINUATION frames without end.
    client.raw(struct.pack(">I", 1)[1:] + b"\x01\x00" + struct.pack(">I", 1) + b"\x82")
    continuation = struct.pack(">I", 16384)[1:] + b"\x09\x00" + struct.pack(">I", 1) + b"\x00" * 16384
    assert ended(client, lambda: client.socket.sendall(continuation * 16))


def test_what_is_no_http2_ends_the_connection(client: Client) -> None:
    client.raw(b"GET / HTTP/1.1\r\n\r\n" * 100)
    assert client.status(1) == "closed"


def test_a_reader_that_stalls_holds_nobody_up(broker: Broker, client: Client) -> None:
    client.start(framed(hello()))
    broker.said("hello")
    # It never reads: 32 MiB of views are replaced, not queued.
    for number in range(32):
        broker.control.publish([([f"spiffe://td{AGENT}"], bytes([number]) * (1 << 20))])
