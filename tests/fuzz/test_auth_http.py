# SPDX-License-Identifier: Apache-2.0
"""Whatever a program sends to the auth socket as HTTP/1.1: an answer or a closed connection, never a 500, and the next
program is served. Through the front, to the server that a sidecar runs.

What fails is kept as tests/fuzz/corpus/auth_http/found; give it a name of its own when it is repaired.
"""

import contextlib
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firedoor.sidecar.auth_http import read_json
from firedoor.sidecar.errors import RequestRefused
from firedoor.wire import auth_pb2
from tests.sidecar.auth_socket import PEER
from tests.waiting import PATIENCE

CORPUS = Path(__file__).parent / "corpus" / "auth_http"
WHO_AM_I = b"GET /v1/whoami HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
FIELDS = [field.name for field in auth_pb2.CheckRequest.DESCRIPTOR.fields]
# About this many examples a second; without a time to fill, a quick look.
EXAMPLES = max(100, int(os.environ.get("FIREDOOR_FUZZ_SECONDS", "0")) * 50)

fuzz = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([PEER, "http", "grpc"])
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)
questions = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=8), values, max_size=8)
good = st.fixed_dictionaries(
    {
        "peer": st.just(PEER),
        "protocol": st.sampled_from(["tcp", "http", "grpc"]),
        "service_port": st.integers(0, 65536),
    },
    optional={name: st.text() for name in ("authority", "method", "path", "grpc_service", "grpc_method", "self")},
)


def send(path: str, data: bytes, *, more: bool = False) -> bytes:
    """Send, say that there is no more unless there could be, and return all that comes back."""
    with socket.socket(socket.AF_UNIX) as one:
        one.settimeout(PATIENCE)
        one.connect(path)
        found = b""
        try:
            one.sendall(data)
            if not more:
                one.shutdown(socket.SHUT_WR)
            while part := one.recv(65536):
                found += part
        except (BrokenPipeError, ConnectionResetError):
            pass
        return found


def check(path: str, data: bytes, *, more: bool = False) -> bytes:
    try:
        answer = send(path, data, more=more)
        assert b"HTTP/1.1 500" not in answer, answer
        assert b"HTTP/1.0 500" not in answer, answer
        assert send(path, WHO_AM_I, more=True).startswith(b"HTTP/1.1 200 OK\r\n")
    except BaseException:
        CORPUS.mkdir(parents=True, exist_ok=True)
        (CORPUS / "found").write_bytes(data)
        raise
    return answer


def post(body: bytes, target: bytes = b"/v1/check") -> bytes:
    head = f"Host: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    return b"POST " + target + b" HTTP/1.1\r\n" + head + body


@pytest.mark.parametrize("seed", sorted(CORPUS.glob("*")), ids=lambda found: found.name)
def test_corpus(path: str, seed: Path) -> None:
    check(path, seed.read_bytes())


@fuzz
@given(data=st.binary(max_size=300))
def test_any_bytes(path: str, data: bytes) -> None:
    check(path, data)


@fuzz
@given(data=st.data())
def test_a_request_with_something_else_in_it(path: str, data: Any) -> None:
    request = post(json.dumps({"peer": PEER}).encode())
    start, end = sorted((data.draw(st.integers(0, len(request))), data.draw(st.integers(0, len(request)))))
    check(path, request[:start] + data.draw(st.binary(max_size=40)) + request[end:])


@fuzz
@given(question=questions | good, target=st.sampled_from([b"/v1/check", b"/v1/jwt-svid"]))
def test_any_question(path: str, question: dict[str, Any], target: bytes) -> None:
    answer = check(path, post(json.dumps(question).encode(), target), more=True)
    assert answer.split(b" ")[1] in (b"200", b"400", b"403"), answer


@fuzz
@given(body=st.binary() | values.map(lambda one: json.dumps(one).encode()))
def test_any_body(body: bytes) -> None:
    with contextlib.suppress(RequestRefused):
        read_json(body, auth_pb2.CheckRequest())
