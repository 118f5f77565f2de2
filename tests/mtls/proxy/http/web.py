# SPDX-License-Identifier: Apache-2.0
"""HTTP servers and clients that do what a test says, on raw sockets and by Python's own libraries."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.events

from firedoor import mtls
from tests.mtls.proxy.datapath import FLOW, PORT, World, dial, dial_tls, policy
from tests.simulator import Identity

READ = '{http: {methods: [GET, HEAD], paths: ["/models/**"]}}'
WRITE = '{http: {methods: [POST], paths: ["/uploads/*"]}}'


def flow(*actions: str, more: str = "") -> str:
    """Write a flow from the client's segment to the server's with these actions."""
    text = FLOW.format(name="pulls", source="spiffe://{td}/segment/inference/**", port=PORT, more=more)
    return text.replace("{tcp: {}}", ", ".join(actions))


def allow(*actions: str, **modes: str) -> bytes:
    return policy(flow(*actions), **modes)


@dataclass
class Request:
    """A request as the app saw it."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name]


@dataclass
class Seen:
    """An app that answers every request and remembers it."""

    answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    requests: list[Request] = field(default_factory=list)
    connections: int = 0

    def __call__(self, link: socket.socket) -> None:
        self.connections += 1
        with link.makefile("rb") as lines:
            while request := read_request(lines):
                self.requests.append(request)
                link.sendall(self.answer)


def read_request(lines: Any) -> Request | None:
    line = lines.readline()
    if not line:
        return None
    method, target, _ = line.decode().split(" ")
    headers = []
    while (line := lines.readline().decode().rstrip("\r\n")) != "":
        name, _, value = line.partition(":")
        headers.append((name, value.strip()))
    request = Request(method, target, headers, b"")
    if request.all("transfer-encoding") == ["chunked"]:
        # Nothing, at the end of a request that was cut.
        while size := int(lines.readline().split(b";")[0] or b"0", 16):
            request.body += lines.read(size)
            lines.readline()
        while lines.readline() not in (b"\r\n", b""):
            pass
    elif length := request.all("content-length"):
        request.body = lines.read(int(length[0]))
    return request


class UnixHTTP(http.client.HTTPConnection):
    """http.client towards "unix:path" or "host:port"."""

    def __init__(self, address: str) -> None:
        super().__init__("models.internal")
        self._at = address

    def connect(self) -> None:
        self.sock = dial(self._at)


def ask(address: str, method: str, target: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """Send one request on a connection of its own."""
    with contextlib.closing(UnixHTTP(address)) as client:
        client.putrequest(method, target, skip_accept_encoding=True)
        for name, value in headers.items():
            client.putheader(name.replace("_", "-"), value)
        if body is not None:
            client.putheader("Content-Length", str(len(body)))
        client.endheaders(body)
        response = client.getresponse()
        return response.status, response.read()


def raw(address: str, data: bytes, until: Callable[[bytes], bool] | None = None) -> bytes:
    """Send bytes and return all that comes until the other side closes, or until it is enough."""
    with dial(address) as link:
        return talk(link, data, until)


def talk(link: socket.socket, data: bytes, until: Callable[[bytes], bool] | None = None) -> bytes:
    got = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        link.sendall(data)
        while not (until and until(got)):
            part = link.recv(1 << 16)
            if not part:
                break
            got += part
    return got


class H2:
    """An HTTP/2 client whose frames a test can make itself."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        config = h2.config.H2Configuration(
            client_side=True, validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self.connection = h2.connection.H2Connection(config)
        self.connection.initiate_connection()
        self.flush()
        self.events: list[h2.events.Event] = []
        # What came of each stream, whichever stream was waited for then: answers come in any order.
        self.answers: dict[int, str] = {}
        # Streams whose windows are not opened again.
        self.stalled: set[int] = set()

    def flush(self) -> None:
        self.link.sendall(self.connection.data_to_send())

    def ask(self, method: str, path: str, *more: tuple[str, str], authority: str = "models", end: bool = True) -> int:
        stream = self.connection.get_next_available_stream_id()
        head = [(":method", method), (":scheme", "https"), (":authority", authority), (":path", path), *more]
        self.connection.send_headers(stream, head, end_stream=end)
        self.flush()
        return stream

    def read(self, until: Callable[[h2.events.Event], bool]) -> bool:
        """Read until an event; say whether it came before the connection ended."""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while True:
                while self.events:
                    event = self.events.pop(0)
                    takes = isinstance(event, h2.events.DataReceived) and event.stream_id not in self.stalled
                    if takes and event.flow_controlled_length:
                        self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    self._note(event)
                    if until(event):
                        return True
                self.flush()
                data = self.link.recv(1 << 16)
                if not data:
                    return False
                self.events += self.connection.receive_data(data)
        return False

    def _note(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ResponseReceived):
            [status] = (value.decode() for name, value in event.headers if name == b":status")
            self.answers[event.stream_id] = status
        elif isinstance(event, h2.events.StreamReset):
            self.answers.setdefault(event.stream_id, "reset")

    def status(self, stream: int) -> str:
        """Wait for the response's head, or "reset", or "closed"."""
        if stream not in self.answers:
            self.read(lambda event: stream in self.answers)
        return self.answers.get(stream, "closed")


@contextlib.contextmanager
def h2_peer(listener: mtls.Listener, identity: Identity, world: World) -> Iterator[H2]:
    """Connect as a peer that speaks HTTP/2 itself."""
    with dial_tls(listener.address, identity, world.folder, alpn=["h2"]) as link:
        yield H2(link)


def pair(world: World, table: bytes, protocol: str = "http", **changes: Any) -> mtls.Listener:
    """Publish, open both listeners and return the outbound one."""
    world.publish(table)
    inbound = world.inbound(protocol=protocol)
    return world.outbound(inbound.address, protocol=protocol, **changes)
