# SPDX-License-Identifier: Apache-2.0
"""Apps that answer whatever reaches them and remember it: HTTP/1.1 and gRPC, on plain sockets."""

from __future__ import annotations

import socket
import threading

import h2.config
import h2.connection
import h2.events


class Reached:
    """What an app was asked: (method, target, authority), in the order of arrival."""

    def __init__(self) -> None:
        self._all: list[tuple[str, str, str]] = []
        self._lock = threading.Lock()

    def note(self, method: str, target: str, authority: str) -> None:
        with self._lock:
            self._all.append((method, target, authority))

    def take(self) -> list[tuple[str, str, str]]:
        with self._lock:
            found, self._all = self._all, []
            return found


class Http(Reached):
    """Answers requests without a body. The head of the answer says what was asked."""

    def __call__(self, link: socket.socket) -> None:
        with link.makefile("rb") as lines:
            while line := lines.readline():
                method, target, _ = line.decode().split(" ")
                host = ""
                while (field := lines.readline()) not in (b"\r\n", b""):
                    name, _, value = field.decode().partition(":")
                    host = value.strip() if name.lower() == "host" else host
                self.note(method, target, host)
                body = b"" if method == "HEAD" else b"ok"
                link.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Target: {target}\r\n\r\n".encode() + body)


class Grpc(Reached):
    """Answers calls with an empty message and grpc-status 0, as soon as their head is there."""

    def __call__(self, link: socket.socket) -> None:
        config = h2.config.H2Configuration(client_side=False, validate_inbound_headers=False, header_encoding="utf-8")
        connection = h2.connection.H2Connection(config)
        connection.initiate_connection()
        link.sendall(connection.data_to_send())
        while data := link.recv(1 << 16):
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    self._answer(connection, event)
                elif isinstance(event, h2.events.DataReceived):
                    connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            link.sendall(connection.data_to_send())

    def _answer(self, connection: h2.connection.H2Connection, event: h2.events.RequestReceived) -> None:
        asked = dict(event.headers)
        self.note(asked[":method"], asked[":path"], asked[":authority"])
        head = [(":status", "200"), ("content-type", "application/grpc"), ("x-target", asked[":path"])]
        connection.send_headers(event.stream_id, head)
        connection.send_data(event.stream_id, b"\0\0\0\0\0")
        connection.send_headers(event.stream_id, [("grpc-status", "0")], end_stream=True)
