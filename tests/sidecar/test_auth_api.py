# SPDX-License-Identifier: Apache-2.0
"""The Auth API on a real front, by gRPC, by HTTP and by curl."""

import asyncio
import json
import shutil
import socket as sockets_of_python
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from firedoor.certs import validate_jwt_svid
from firedoor.sidecar.config import Config
from firedoor.wire import auth_grpc, auth_pb2
from tests.sidecar.auth_socket import PEER, STRANGER, AuthSocket, X, Y, inbound, opened
from tests.sidecar.conftest import Bench

HEADER = (("workload.spiffe.io", "true"),)
READ = {"peer": PEER, "service_port": 9000, "protocol": "http", "method": "GET", "path": "/models/a"}


@pytest.fixture
async def auth(bench: Bench, settings: Config) -> AsyncIterator[AuthSocket]:
    async with opened(bench, settings, inbound(X)) as one:
        yield one


@pytest.fixture
async def stub(auth: AuthSocket) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"unix:{auth.path}") as channel:
        yield auth_grpc.AuthStub(channel)


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def test_who_am_i_is_the_same_by_grpc_and_http(auth: AuthSocket, stub: Any) -> None:
    auth.entitle(X, Y, STRANGER)
    answer = await stub.WhoAmI(auth_pb2.WhoAmIRequest(), metadata=HEADER)
    assert [(one.spiffe_id, one.segment, one.hint) for one in answer.identities] == [
        (str(X.spiffe_id), "a", "inner"),
        (str(Y.spiffe_id), "a", ""),
    ]
    assert all(one.expires_at > auth.bench.trust.at for one in answer.identities)
    status, found = await auth.http("GET", "/v1/whoami")
    assert status == 200
    assert [one["spiffe_id"] for one in found["identities"]] == [str(X.spiffe_id), str(Y.spiffe_id)]
    assert found["identities"][0]["expires_at"] == answer.identities[0].expires_at


@pytest.mark.parametrize("method", ["firedoor.auth.v1.Auth/Check", "SpiffeWorkloadAPI/FetchX509SVID"])
async def test_bytes_that_are_no_message(auth: AuthSocket, caplog: pytest.LogCaptureFixture, method: str) -> None:
    """One sentence to the caller, and not a word in the log, which any local program could fill."""
    auth.entitle(X)
    async with grpc.aio.insecure_channel(f"unix:{auth.path}") as channel:
        code, said = await refused(channel.unary_unary(f"/{method}")(b"\xff\xff\xff", metadata=HEADER))
    assert (code.name, said) == ("INVALID_ARGUMENT", "the request is no message of this method")
    assert caplog.records == []


async def test_an_svid_that_is_not_issued_yet(auth: AuthSocket) -> None:
    auth.entitle(X, issue=False)
    assert (await auth.http("GET", "/v1/whoami"))[1]["identities"][0]["expires_at"] == 0


async def test_a_program_without_an_entry(auth: AuthSocket, stub: Any) -> None:
    auth.entitle(STRANGER)
    assert (await refused(stub.WhoAmI(auth_pb2.WhoAmIRequest(), metadata=HEADER)))[0].name == "PERMISSION_DENIED"
    assert (await auth.http("GET", "/v1/whoami"))[0] == 403
    assert (await auth.http("POST", "/v1/check", READ))[0] == 403


async def test_before_the_server_was_heard(auth: AuthSocket) -> None:
    assert (await auth.http("GET", "/v1/whoami"))[0] == 503


@pytest.mark.parametrize("metadata", [(), (("workload.spiffe.io", "false"),), (*HEADER, *HEADER)])
async def test_the_security_header(auth: AuthSocket, stub: Any, metadata: Any) -> None:
    auth.entitle(X)
    calls = (
        stub.WhoAmI(auth_pb2.WhoAmIRequest(), metadata=metadata),
        stub.FetchJWTSVID(auth_pb2.FetchJWTSVIDRequest(), metadata=metadata),
        stub.Check(auth_pb2.CheckRequest(**READ), metadata=metadata),
    )
    for call in calls:
        assert (await refused(call))[0].name == "INVALID_ARGUMENT"
    assert (await stub.Check(auth_pb2.CheckRequest(**READ), metadata=HEADER)).allowed


CHECKS = {
    "allowed": ({}, (True, "b-reads-a", "allowed")),
    "as another identity of the caller": ({"self": str(Y.spiffe_id)}, (True, "b-reads-a", "allowed")),
    "another method": ({"method": "DELETE"}, (False, "", "action_not_named")),
    "another path": ({"path": "/admin"}, (False, "", "action_not_named")),
    "a dot segment": ({"path": "/models/../admin"}, (False, "", "bad_request")),
    "another port": ({"service_port": 9001}, (False, "", "port_not_named")),
    "another protocol": ({"protocol": "tcp"}, (False, "", "action_not_named")),
    "another peer": ({"peer": str(Y.spiffe_id)}, (False, "", "no_flow")),
    "nobody we know": ({"peer": "spiffe://elsewhere/x"}, (False, "", "unknown_source")),
    "grpc": ({"protocol": "grpc", "grpc_service": "pkg.Models", "grpc_method": "Get"}, (True, "b-reads-a", "allowed")),
    "grpc, another method": (
        {"protocol": "grpc", "grpc_service": "pkg.Models", "grpc_method": "Put"},
        (False, "", "action_not_named"),
    ),
}


@pytest.mark.parametrize(("changes", "expected"), CHECKS.values(), ids=CHECKS)
async def test_check(auth: AuthSocket, stub: Any, changes: Any, expected: Any) -> None:
    auth.entitle(X, Y, STRANGER)
    request = {**READ, **changes}
    answer = await stub.Check(auth_pb2.CheckRequest(**request), metadata=HEADER)
    assert (answer.allowed, answer.flow, answer.reason) == expected
    status, found = await auth.http("POST", "/v1/check", request)
    assert (status, (found["allowed"], found["flow"], found["reason"])) == (200, expected)


REFUSED = {
    "an identity that is not the caller's": ({"self": PEER}, 403, "not_yours"),
    "an identity that nobody has": ({"self": "spiffe://example.org/none"}, 403, "not_yours"),
    "no identity at all": ({"self": "x"}, 400, "bad_request"),
    "a peer that is none": ({"peer": "x"}, 400, "bad_request"),
    "no peer": ({"peer": ""}, 400, "bad_request"),
    "a port that is none": ({"service_port": 65536}, 400, "bad_request"),
    "a protocol that is none": ({"protocol": "udp"}, 400, "bad_request"),
    "no listener fits": ({"protocol": "", "service_port": 1}, 400, "bad_request"),
    "an unknown field": ({"pear": "x"}, 400, "bad_request"),
    "a field of another type": ({"method": 1}, 400, "bad_request"),
}


@pytest.mark.parametrize(("changes", "status", "code"), REFUSED.values(), ids=REFUSED)
async def test_check_refuses(auth: AuthSocket, changes: Any, status: int, code: str) -> None:
    auth.entitle(X, Y, STRANGER)
    found = await auth.http("POST", "/v1/check", {**READ, **changes})
    assert (found[0], found[1]["error"]["code"]) == (status, code)
    assert (await auth.http("POST", "/v1/check", READ))[1]["allowed"]


async def test_port_and_protocol_come_from_the_one_listener(auth: AuthSocket) -> None:
    auth.entitle(X, Y)
    question = {"peer": PEER, "method": "GET", "path": "/models/a"}
    assert (await auth.http("POST", "/v1/check", question))[1]["allowed"]
    assert (await auth.http("POST", "/v1/check", {**question, "self": str(Y.spiffe_id)}))[0] == 400


async def test_the_table_is_the_present_one(auth: AuthSocket) -> None:
    auth.entitle(X)
    assert (await auth.http("POST", "/v1/check", READ))[1]["allowed"]
    auth.bench.entitle(X)
    assert (await auth.http("POST", "/v1/check", READ))[1]["reason"] == "unknown_source"


async def test_a_jwt_svid(auth: AuthSocket, stub: Any) -> None:
    auth.bench.trust.rotate_jwt()
    auth.entitle(X, Y)
    status, found = await auth.http("POST", "/v1/jwt-svid", {"audience": ["models"], "spiffe_id": str(Y.spiffe_id)})
    assert (status, found["spiffe_id"]) == (200, str(Y.spiffe_id))
    now = int(time.time())
    proof = validate_jwt_svid(found["token"], "models", auth.bench.trust.bundles(), now)
    assert (proof.id, proof.expires_at) == (Y.spiffe_id, found["expires_at"])
    answer = await stub.FetchJWTSVID(auth_pb2.FetchJWTSVIDRequest(audience=["models"]), metadata=HEADER)
    assert validate_jwt_svid(answer.token, "models", auth.bench.trust.bundles(), now).id == X.spiffe_id


async def test_a_jwt_svid_is_refused(auth: AuthSocket) -> None:
    auth.bench.trust.rotate_jwt()
    auth.entitle(X)
    for request, status in (
        ({"audience": ["models"], "spiffe_id": PEER}, 403),
        ({"audience": []}, 400),
        ({"audience": [""]}, 400),
        ({"audience": ["models"]}, 200),
    ):
        assert (await auth.http("POST", "/v1/jwt-svid", request))[0] == status


async def test_a_jwt_svid_while_the_server_is_away(auth: AuthSocket) -> None:
    auth.entitle(X)
    assert (await auth.http("POST", "/v1/jwt-svid", {"audience": ["models"]}))[0] == 503


HTTP = {
    "another host": ("GET", "/v1/whoami", None, {"Host": "example.org"}, 403),
    "a port": ("GET", "/v1/whoami", None, {"Host": "localhost:80"}, 403),
    "an origin": ("GET", "/v1/whoami", None, {"Origin": "http://localhost"}, 403),
    "absolute form": ("GET", "http://example.org/v1/whoami", None, {}, 403),
    "no such path": ("GET", "/v1/nothing", None, {}, 404),
    "another method": ("POST", "/v1/whoami", None, {}, 405),
    "no body": ("POST", "/v1/check", b"", {}, 400),
    "not JSON": ("POST", "/v1/check", b"{", {}, 400),
    "not an object": ("POST", "/v1/check", b"[]", {}, 400),
    "a name twice": ("POST", "/v1/check", b'{"peer": "a", "peer": "b"}', {}, 400),
    "too deep": ("POST", "/v1/check", b"[" * 60_000, {}, 400),
    "not UTF-8": ("POST", "/v1/check", b'{"peer": "\xff"}', {}, 400),
    "half a surrogate pair": ("POST", "/v1/check", b'{"peer": "\\ud800"}', {}, 400),
    "too large": ("POST", "/v1/check", b" " * (64 * 1024 + 1), {}, 413),
}


@pytest.mark.parametrize(("method", "target", "body", "headers", "status"), HTTP.values(), ids=HTTP)
async def test_http_refuses(auth: AuthSocket, method: str, target: str, body: Any, headers: Any, status: int) -> None:
    auth.entitle(X)
    assert (await auth.http(method, target, body, headers))[0] == status
    assert (await auth.http("GET", "/v1/whoami"))[0] == 200


async def test_headers_name_nobody(auth: AuthSocket) -> None:
    auth.entitle(X, STRANGER)
    claims = {"x-forwarded-client-cert": f"URI={PEER}", "x-spiffe-id": PEER, "x-forwarded-for": "firedoor-1"}
    answer = await auth.http("GET", "/v1/whoami", None, claims)
    assert [one["spiffe_id"] for one in answer[1]["identities"]] == [str(X.spiffe_id)]


async def test_past_the_front_is_nobody(auth: AuthSocket) -> None:
    auth.entitle(X)
    name = auth.sockets.http_backend.replace("unix-abstract:", "\0")

    def ask() -> bytes:
        with sockets_of_python.socket(sockets_of_python.AF_UNIX) as one:
            one.settimeout(60)
            one.connect(name)
            one.sendall(b"GET /v1/whoami HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return one.recv(4096)

    assert b" 401 " in (await asyncio.to_thread(ask)).split(b"\r\n")[0]


async def test_the_caller_is_asked_again_at_each_request(auth: AuthSocket) -> None:
    auth.entitle(X)
    reader, writer = await asyncio.open_unix_connection(str(auth.path))

    async def status() -> bytes:
        writer.write(b"GET /v1/whoami HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        return head.split(b" ")[1]

    assert await status() == b"200"
    auth.entitle(STRANGER)
    assert await status() == b"403"
    writer.close()
    await writer.wait_closed()


@pytest.mark.peer
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl(auth: AuthSocket) -> None:
    auth.entitle(X)

    async def curl(*arguments: str) -> Any:
        common = ("curl", "-sS", "--max-time", "10", "--unix-socket", str(auth.path))
        ran = await asyncio.create_subprocess_exec(*common, *arguments, stdout=asyncio.subprocess.PIPE)
        return json.loads((await ran.communicate())[0])

    assert (await curl("http://localhost/v1/whoami"))["identities"][0]["segment"] == "a"
    assert (await curl("http://localhost/v1/check", "-d", json.dumps(READ)))["allowed"]
    assert (await curl("http://example.org/v1/whoami"))["error"]["code"] == "not_local"
