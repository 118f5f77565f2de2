# SPDX-License-Identifier: Apache-2.0
"""Whatever a program sends to the auth socket by gRPC: an answer or a status that names a fault of the caller's, and
the next program is served. Through the front, to the server that a sidecar runs.

What fails is kept as tests/fuzz/corpus/auth_grpc/found; give it a name of its own when it is repaired. A file there is
the method's name, a line's end, and the message.
"""

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firedoor.wire import auth_pb2
from tests.sidecar.auth_socket import PEER, X
from tests.waiting import PATIENCE

CORPUS = Path(__file__).parent / "corpus" / "auth_grpc"
HEADER = (("workload.spiffe.io", "true"),)
OK = grpc.StatusCode.OK
CALLERS_FAULT = (OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.PERMISSION_DENIED)
# About this many examples a second; without a time to fill, a quick look.
EXAMPLES = max(100, int(os.environ.get("FIREDOOR_FUZZ_SECONDS", "0")) * 50)

fuzz = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
names = st.sampled_from(["WhoAmI", "FetchJWTSVID", "Check"])
words = st.text(max_size=20) | st.sampled_from([PEER, str(X.spiffe_id), "http", "grpc", "tcp", "/models/a", "GET"])
FIELDS = [field.name for field in auth_pb2.CheckRequest.DESCRIPTOR.fields if field.name != "service_port"]
checks = st.builds(auth_pb2.CheckRequest, service_port=st.integers(0, 2**32 - 1), **dict.fromkeys(FIELDS, words))
fetches = st.builds(auth_pb2.FetchJWTSVIDRequest, audience=st.lists(words, max_size=4), spiffe_id=words)


@pytest.fixture(scope="module")
def channel(path: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"unix:{path}") as one:
        yield one


def call(channel: grpc.Channel, method: str, message: bytes, metadata: Any = HEADER) -> tuple[Any, bytes]:
    try:
        return OK, channel.unary_unary(f"/firedoor.auth.v1.Auth/{method}")(message, metadata=metadata, timeout=PATIENCE)
    except grpc.RpcError as error:
        return error.code(), b""  # type: ignore[attr-defined]


def check(channel: grpc.Channel, method: str, message: bytes) -> None:
    try:
        status, _ = call(channel, method, message)
        assert status in CALLERS_FAULT, status
        assert call(channel, "WhoAmI", b"")[0] == OK
    except BaseException:
        CORPUS.mkdir(parents=True, exist_ok=True)
        (CORPUS / "found").write_bytes(method.encode() + b"\n" + message)
        raise


@pytest.mark.parametrize("seed", sorted(CORPUS.glob("*")), ids=lambda found: found.name)
def test_corpus(channel: grpc.Channel, seed: Path) -> None:
    method, _, message = seed.read_bytes().partition(b"\n")
    check(channel, method.decode(), message)


@fuzz
@given(method=names, message=st.binary(max_size=200))
def test_any_message(channel: grpc.Channel, method: str, message: bytes) -> None:
    check(channel, method, message)


@fuzz
@given(message=checks | fetches, data=st.data())
def test_a_message_with_something_else_in_it(channel: grpc.Channel, message: Any, data: st.DataObject) -> None:
    good = message.SerializeToString()
    start, end = sorted((data.draw(st.integers(0, len(good))), data.draw(st.integers(0, len(good)))))
    altered = good[:start] + data.draw(st.binary(max_size=8)) + good[end:]
    check(channel, "Check" if isinstance(message, auth_pb2.CheckRequest) else "FetchJWTSVID", altered)


@fuzz
@given(question=checks)
def test_any_question(channel: grpc.Channel, question: auth_pb2.CheckRequest) -> None:
    status, answer = call(channel, "Check", question.SerializeToString())
    assert status in CALLERS_FAULT
    if status == OK:
        found = auth_pb2.CheckResponse.FromString(answer)
        assert found.allowed == bool(found.flow) == (found.reason == "allowed")
        assert not found.allowed or question.peer == PEER


@fuzz
@given(wanted=fetches)
def test_any_token(channel: grpc.Channel, wanted: auth_pb2.FetchJWTSVIDRequest) -> None:
    status, answer = call(channel, "FetchJWTSVID", wanted.SerializeToString())
    assert status in CALLERS_FAULT
    # Nobody gets a token of another identity, or for nobody.
    if status == OK:
        assert auth_pb2.FetchJWTSVIDResponse.FromString(answer).spiffe_id == str(X.spiffe_id)
        assert all(wanted.audience)
        assert wanted.audience
        assert wanted.spiffe_id in ("", str(X.spiffe_id))


printable = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12)


@fuzz
@given(values=st.lists(printable | st.just("true"), max_size=3))
def test_any_security_header(channel: grpc.Channel, values: list[str]) -> None:
    status, _ = call(channel, "WhoAmI", b"", tuple(("workload.spiffe.io", value) for value in values))
    assert status == (OK if values == ["true"] else grpc.StatusCode.INVALID_ARGUMENT), values


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
frames = st.builds(
    lambda kind, flags, stream, payload: (
        struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload
    ),
    st.integers(0, 12) | st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 9),
    st.binary(max_size=60),
)


@fuzz
@given(made=st.lists(frames, max_size=8).map(b"".join) | st.binary(max_size=200))
def test_any_frames(channel: grpc.Channel, path: str, made: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as one, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        one.settimeout(PATIENCE)
        one.connect(path)
        one.sendall(PREFACE + made)
        one.shutdown(socket.SHUT_WR)
        while one.recv(65536):
            pass
    assert call(channel, "WhoAmI", b"")[0] == OK
