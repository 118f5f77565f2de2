# SPDX-License-Identifier: Apache-2.0
"""Clients that ask many questions over one connection: pipelined HTTP/1.1, and HTTP/2 with all streams at once."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import h2.config
import h2.connection
import h2.events

from tests.mtls.proxy.agreement.questions import GRPC_AUTHORITY, Asked

Connect = Callable[[], socket.socket]
GRPC = ("content-type", "application/grpc")
ENDED = (ConnectionError, ssl.SSLError)


@dataclass(frozen=True)
class Answer:
    """A status, 0 where the stream or the connection was ended instead; of gRPC its own status too."""

    status: int
    grpc: int | None = None
    # What the app says it was asked.
    target: str = ""


CLOSED = Answer(0)


def over_http1(connect: Connect, questions: Sequence[Asked]) -> list[Answer]:
    """Ask everything in order. A request that a parser may stumble over is the last one that is in flight."""
    answers: list[Answer] = []
    while len(answers) < len(questions):
        before = len(answers)
        with contextlib.suppress(*ENDED), contextlib.closing(connect()) as link, link.makefile("rb") as lines:
            while len(answers) < len(questions):
                batch = _batch(questions[len(answers) :])
                link.sendall(b"".join(map(http1, batch)))
                answers.extend(_read(lines, asked) for asked in batch)
        if len(answers) == len(questions) or (len(answers) > before and _may_end(questions[len(answers) - 1])):
            continue
        assert _may_end(questions[len(answers)]), f"the connection ended at {questions[len(answers)]}"
        answers.append(CLOSED)
    return answers


def _batch(questions: Sequence[Asked]) -> Sequence[Asked]:
    count = next((n for n, asked in enumerate(questions) if _may_end(asked)), len(questions))
    return questions[: count + 1]


def _may_end(asked: Asked) -> bool:
    return asked.trap != "" or not asked.plain


def http1(asked: Asked) -> bytes:
    """Write a request as this question, and as its trap wants it."""
    q, trap = asked.question, asked.trap
    line = f"{q['method']} {asked.target}"
    fields = [f"Host: {q['authority']}", "Content-Length: 0"]
    if trap == "two hosts":
        fields.append(f"Host: {q['authority']}")
    elif trap == "no host":
        del fields[0]
    elif trap == "absolute form":
        line = f"{q['method']} http://{q['authority']}{asked.target}"
    elif trap == "grpc":
        fields.append("Content-Type: application/grpc+proto")
    elif trap == "upgrade":
        fields += ["Upgrade: websocket", "Connection: upgrade"]
    elif trap == "connect":
        line = "CONNECT models.corp.example:443"
    elif trap == "asterisk":
        line = "OPTIONS *"
    return "\r\n".join([f"{line} HTTP/1.1", *fields, "", ""]).encode()


def _read(lines: Any, asked: Asked) -> Answer:
    line = lines.readline()
    if not line.startswith(b"HTTP/1.1 "):
        raise ConnectionResetError
    fields = {}
    while (field := lines.readline()) not in (b"\r\n", b""):
        name, _, value = field.decode().partition(":")
        fields[name.lower()] = value.strip()
    if asked.question["method"] == "HEAD" and asked.trap not in ("connect", "asterisk"):
        pass
    elif fields.get("transfer-encoding") == "chunked":
        while size := int(lines.readline(), 16):
            lines.read(size + 2)
        lines.readline()
    else:
        lines.read(int(fields.get("content-length", "0")))
    return Answer(int(line.split(b" ")[1]), None, fields.get("x-target", ""))


def over_http2(connect: Connect, questions: Sequence[Asked]) -> list[Answer]:
    """Ask everything at once, each question on a stream of its own."""
    config = h2.config.H2Configuration(
        validate_outbound_headers=False,
        normalize_outbound_headers=False,
        validate_inbound_headers=False,
        header_encoding="utf-8",
    )
    connection = h2.connection.H2Connection(config)
    connection.initiate_connection()
    heads: dict[int, dict[str, str]] = {}
    waiting: list[int] = []
    for asked in questions:
        stream = connection.get_next_available_stream_id()
        waiting.append(stream)
        head = http2(asked)
        grpc = asked.question["protocol"] == "grpc"
        connection.send_headers(stream, head, end_stream=not grpc)
        if grpc:
            connection.send_data(stream, b"\0\0\0\0\0", end_stream=True)
    streams = list(waiting)
    with contextlib.suppress(*ENDED), contextlib.closing(connect()) as link:
        link.sendall(connection.data_to_send())
        while waiting and (data := link.recv(1 << 16)):
            for event in connection.receive_data(data):
                _take(connection, event, heads, waiting)
            link.sendall(connection.data_to_send())
    return [_answer(heads.get(stream)) for stream in streams]


def _take(
    connection: h2.connection.H2Connection, event: h2.events.Event, heads: dict[int, dict[str, str]], waiting: list[int]
) -> None:
    if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
        heads.setdefault(event.stream_id, {}).update(dict(event.headers))
    elif isinstance(event, h2.events.DataReceived):
        connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
    elif isinstance(event, h2.events.StreamReset):
        heads.pop(event.stream_id, None)
        waiting.remove(event.stream_id)
    elif isinstance(event, h2.events.StreamEnded):
        waiting.remove(event.stream_id)


def _answer(head: dict[str, str] | None) -> Answer:
    if head is None:
        return CLOSED
    grpc = head.get("grpc-status")
    return Answer(int(head[":status"]), None if grpc is None else int(grpc), head.get("x-target", ""))


def http2(asked: Asked) -> list[tuple[str, str]]:
    """Write the head of a request as this question, and as its trap wants it."""
    q, trap = asked.question, asked.trap
    if q["protocol"] == "grpc":
        return _call(f"/{q['grpc_service']}/{q['grpc_method']}", trap)
    authority = f"user@{q['authority']}" if trap == "user info" else q["authority"]
    head = [(":method", q["method"]), (":scheme", "https"), (":authority", authority), (":path", asked.target)]
    more = {"another host": ("host", f"x{q['authority']}"), "grpc": GRPC}.get(trap)
    return [*head, more] if more else head


def _call(path: str, trap: str) -> list[tuple[str, str]]:
    service, _, method = path.rpartition("/")
    path = {
        "query": f"{path}?x",
        "encoded": f"{service}/%{ord(method[0]):02x}{method[1:]}",
        "deeper": f"{path}/x",
        "dot segment": f"{service}/../{method}",
    }.get(trap, path)
    content = {"json": "application/json", "web": "application/grpc-web"}.get(trap, "application/grpc")
    verb = "GET" if trap == "get" else "POST"
    head = [(":method", verb), (":scheme", "https"), (":authority", GRPC_AUTHORITY), (":path", path)]
    return [*head, ("content-type", content), ("te", "trailers")]
