# SPDX-License-Identifier: Apache-2.0
"""The clients: boto3, the MCP SDK, grpcio and plain HTTP, one process a user.

Reads one JSON object a line from stdin, `{"do": ACTION, "at": ADDRESS, ...}`, and answers one line: `{"ok", "saw",
"detail", "ms"}`; `saw` is the status that came back, or how the connection ended. Ends when stdin does, so that it
never outlives who started it.
"""

import asyncio
import base64
import http.client
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import grpc
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from grpc_health.v1 import health_pb2, health_pb2_grpc
from httpx2 import AsyncClient, Response
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client

SECONDS = 5
REGION = "us-east-1"
MODEL = {"Bucket": "models", "Key": "llm/weights.bin"}
# Whatever lies beside the models in the same store.
SECRET = {"Bucket": "secrets", "Key": "key"}
# Everything in the store, for whoever signs with the key that belongs to it.
S3_POLICY = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}

Told = tuple[str, str]


class Refused(Exception):
    """Something answered, and the answer was no: what it said."""


def s3_get(at: str, keys: list[str], what: str = "model", **_: Any) -> Told:
    """Read from the object store."""
    answer = _aws("s3", at, keys).get_object(**(SECRET if what == "secret" else MODEL))
    return _status(answer), f"{len(answer['Body'].read())} bytes"


def s3_put(at: str, keys: list[str], **_: Any) -> Told:
    """Replace the model."""
    return _status(_aws("s3", at, keys).put_object(**MODEL, Body=b"\1" * 65536)), "stored"


def s3_fill(at: str, **_: Any) -> Told:
    """Fill the store, make a key for it, and let it check every signature from then on. Tells the key."""
    iam, s3 = _aws("iam", at, ["setup", "setup"]), _aws("s3", at, ["setup", "setup"])
    iam.create_user(UserName="demo")
    iam.put_user_policy(UserName="demo", PolicyName="store", PolicyDocument=json.dumps(S3_POLICY))
    key = iam.create_access_key(UserName="demo")["AccessKey"]
    for thing in (MODEL, SECRET):
        s3.create_bucket(Bucket=thing["Bucket"])
        s3.put_object(**thing, Body=b"\0" * 65536)
    # How many more requests it takes without looking at their signature.
    connection = http.client.HTTPConnection(at, timeout=SECONDS)
    connection.request("POST", "/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"})
    status = connection.getresponse().status
    connection.close()
    if status != http.client.OK:
        raise Refused(str(status))
    return str(status), json.dumps([key["AccessKeyId"], key["SecretAccessKey"]])


def _aws(service: str, at: str, keys: list[str]) -> Any:
    config = Config(
        retries={"total_max_attempts": 1},
        connect_timeout=SECONDS,
        read_timeout=SECONDS,
        proxies={},
        s3={"addressing_style": "path"},
        request_checksum_calculation="when_required",
    )
    signing = {"aws_access_key_id": keys[0], "aws_secret_access_key": keys[1], "region_name": REGION}
    return boto3.client(service, endpoint_url=f"http://{at}", config=config, **signing)


def _status(answer: dict[str, Any]) -> str:
    return str(answer["ResponseMetadata"]["HTTPStatusCode"])


def plain(at: str, method: str, target: str, keys: list[str] | None = None, **_: Any) -> Told:
    """Send one request whose target goes out byte by byte as it is given, signed if there are `keys`."""
    signed = AWSRequest(method, f"http://{at}{target}")
    if keys:
        S3SigV4Auth(Credentials(*keys), "s3", REGION).add_auth(signed)
    connection = http.client.HTTPConnection(at, timeout=SECONDS)
    try:
        connection.putrequest(method, target)
        for name, value in signed.headers.items():
            connection.putheader(name, value)
        connection.putheader("Content-Length", "0")
        connection.endheaders()
        answer = connection.getresponse()
        length = len(answer.read())
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise Refused(str(answer.status))
    return str(answer.status), f"{length} bytes"


def mcp(at: str, **_: Any) -> Told:
    """Call a tool of the MCP server. The SDK keeps HTTP's status to itself, so that it is noted on the way."""
    statuses: list[int] = []

    async def note(response: Response) -> None:
        statuses.append(response.status_code)

    async def call() -> str:
        async with (
            asyncio.timeout(SECONDS),
            AsyncClient(event_hooks={"response": [note]}) as carrier,
            Client(streamable_http_client(f"http://{at}/mcp", http_client=carrier)) as client,
        ):
            answer = await client.call_tool("add", {"a": 20, "b": 22})
            return f"add(20, 22) = {getattr(answer.content[0], 'text', None)}"

    try:
        detail = asyncio.run(call())
    except Exception as error:
        if not statuses:
            raise
        raise Refused(str(statuses[-1])) from error
    return str(statuses[-1]), detail


def _channel(at: str) -> grpc.Channel:
    options = [
        ("grpc.default_authority", "llm.example"),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),
    ]
    return grpc.insecure_channel(at, options=options)


def health(at: str, method: str = "Check", **_: Any) -> Told:
    """Ask the gRPC service whether the model is being served, or what else its service is asked."""
    with _channel(at) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        if method == "List":
            return "OK", str(stub.List(health_pb2.HealthListRequest(), timeout=SECONDS))
        return "OK", _serving(stub.Check(health_pb2.HealthCheckRequest(service="llm"), timeout=SECONDS))


def _serving(answer: Any) -> str:
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


class Watch:
    """A stream that is left open between two lines of input."""

    def __init__(self, at: str) -> None:
        self._channel = _channel(at)
        asked = health_pb2.HealthCheckRequest(service="llm")
        self.answers: Iterator[Any] = health_pb2_grpc.HealthStub(self._channel).Watch(asked, timeout=4 * SECONDS)

    def close(self) -> None:
        """End it."""
        self._channel.close()


_open: list[Watch] = []


def watch(at: str, keep: bool = False, **_: Any) -> Told:
    """Open a stream that tells whether the model is served, and read what it says first."""
    stream = Watch(at)
    try:
        first = _serving(next(stream.answers))
    except BaseException:
        stream.close()
        raise
    if keep:
        _open.append(stream)
    else:
        stream.close()
    return "OK", first


def watch_end(**_: Any) -> Told:
    """Wait until somebody else ends the stream that is open; tell when that was."""
    stream = _open.pop()
    try:
        for _answer in stream.answers:
            pass
    except grpc.RpcError as error:
        return _describe(error)[0], str(time.time())
    finally:
        stream.close()
    raise Refused("OK")


def svid(at: str, **_: Any) -> Told:
    """Ask an auth socket who we are, with no library but grpcio; the answer is the raw message."""
    with grpc.insecure_channel(f"unix:{at}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        fetch: Any = channel.unary_stream("/SpiffeWorkloadAPI/FetchX509SVID")
        stream = fetch(b"", metadata=(("workload.spiffe.io", "true"),), timeout=SECONDS)
        return "OK", base64.b64encode(next(iter(stream))).decode()


ACTIONS: dict[str, Callable[..., Told]] = {
    action.__name__: action for action in (s3_get, s3_put, s3_fill, plain, mcp, health, watch, watch_end, svid)
}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Do one thing; whatever goes wrong is the answer, with its type."""
    action = ACTIONS[request["do"]]
    started = time.perf_counter()
    try:
        ok, (saw, detail) = True, action(**request)
    except Exception as error:  # noqa: BLE001 - a denied client sees any error of its library
        ok, (saw, detail) = False, _describe(error)
    return {"ok": ok, "saw": saw, "detail": detail, "ms": (time.perf_counter() - started) * 1000}


def _describe(error: BaseException) -> Told:
    """Tell what the client saw: a status where there was an answer, else how the connection ended."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    detail = f"{type(error).__name__}: {error}"[:300]
    if isinstance(error, Refused):
        return str(error), detail
    if isinstance(error, grpc.RpcError) and isinstance(error, grpc.Call):
        return error.code().name, f"{error.code().name}: {error.details()}"
    answered = getattr(error, "response", None)
    if isinstance(answered, dict):
        return _status(answered), detail
    if answered is not None:
        return str(answered.status_code), detail
    return "no answer", detail


def main() -> None:
    """Answer until stdin ends."""
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
