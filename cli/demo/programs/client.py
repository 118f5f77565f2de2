# SPDX-License-Identifier: Apache-2.0
"""The clients: boto3, the MCP SDK and grpcio, one process a user.

Reads one JSON object a line from stdin, `{"do": ACTION, "at": ADDRESS, ...}`, and answers one line: `{"ok", "detail",
"ms"}`. Ends when stdin does, so that it never outlives who started it.
"""

import asyncio
import base64
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import boto3
import grpc
from botocore.config import Config
from grpc_health.v1 import health_pb2, health_pb2_grpc
from mcp.client import Client

SECONDS = 5


def s3(at: str, **_: Any) -> str:
    """Read the model from the object store."""
    body = _s3_client(at).get_object(Bucket="models", Key="llm/weights.bin")["Body"].read()
    return f"{len(body)} bytes"


def s3_fill(at: str, **_: Any) -> str:
    """Put the model there, for everybody who can reach the store."""
    client = _s3_client(at)
    client.create_bucket(Bucket="models", ACL="public-read")
    client.put_object(Bucket="models", Key="llm/weights.bin", Body=b"\0" * 65536, ACL="public-read")
    return "filled"


def _s3_client(at: str) -> Any:
    config = Config(
        retries={"total_max_attempts": 1},
        connect_timeout=SECONDS,
        read_timeout=SECONDS,
        proxies={},
        s3={"addressing_style": "path"},
        request_checksum_calculation="when_required",
    )
    keys = {"aws_access_key_id": "demo", "aws_secret_access_key": "demo", "region_name": "us-east-1"}
    return boto3.client("s3", endpoint_url=f"http://{at}", config=config, **keys)


def mcp(at: str, **_: Any) -> str:
    """Call a tool of the MCP server."""

    async def call() -> str:
        async with asyncio.timeout(SECONDS), Client(f"http://{at}/mcp") as client:
            answer = await client.call_tool("add", {"a": 20, "b": 22})
            return f"add(20, 22) = {getattr(answer.content[0], 'text', None)}"

    return asyncio.run(call())


def health(at: str, **_: Any) -> str:
    """Ask the gRPC service whether the model is being served."""
    options = [
        ("grpc.default_authority", "llm.example"),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),
    ]
    with grpc.insecure_channel(at, options=options) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(service="llm"), timeout=SECONDS)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def svid(at: str, **_: Any) -> str:
    """Ask an auth socket who we are, with no library but grpcio; the answer is the raw message."""
    with grpc.insecure_channel(f"unix:{at}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        fetch: Any = channel.unary_stream("/SpiffeWorkloadAPI/FetchX509SVID")
        stream = fetch(b"", metadata=(("workload.spiffe.io", "true"),), timeout=SECONDS)
        return base64.b64encode(next(iter(stream))).decode()


ACTIONS: dict[str, Callable[..., str]] = {action.__name__: action for action in (s3, s3_fill, mcp, health, svid)}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Do one thing; whatever goes wrong is the answer, with its type."""
    action = ACTIONS[request["do"]]
    started = time.perf_counter()
    try:
        ok, detail = True, action(**request)
    except Exception as error:  # noqa: BLE001 - a denied client sees any error of its library
        ok, detail = False, _describe(error)
    return {"ok": ok, "detail": detail, "ms": (time.perf_counter() - started) * 1000}


def _describe(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, grpc.RpcError) and isinstance(error, grpc.Call):
        return f"{error.code().name}: {error.details()}"
    return f"{type(error).__name__}: {error}"[:300]


def main() -> None:
    """Answer until stdin ends."""
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
