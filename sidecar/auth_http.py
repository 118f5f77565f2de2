# SPDX-License-Identifier: Apache-2.0
"""The Auth API by plain HTTP/1.1, for programs without gRPC.

    curl --unix-socket auth.sock http://localhost/v1/whoami
    curl --unix-socket auth.sock http://localhost/v1/jwt-svid -d '{"audience": ["models"]}'
    curl --unix-socket auth.sock http://localhost/v1/check -d '{"peer": "spiffe://td/segment/a/x", "protocol": "tcp", \
"service_port": 9000}'

The front splices what is not HTTP/2 to this server and binds the same kind of name, so that callers are known as by
gRPC. `Host` must be `localhost` and `Origin` absent: whoever speaks for a browser is refused. Names of fields are those
of auth.proto; an error is `{"error": {"code", "message"}}`.
"""

import json
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from google.protobuf import json_format
from google.protobuf.message import Message

from firedoor.certs.strict_json import refuse_constant, unique_members
from firedoor.sidecar.auth import AuthApi
from firedoor.sidecar.errors import RequestRefused, SidecarError
from firedoor.wire import auth_pb2

M = TypeVar("M", bound=Message)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MAX_BODY_BYTES = 64 * 1024
# A head is a request line and a few headers.
MAX_LINE_BYTES = 8190
IDLE_SECONDS = 30.0
STOP_SECONDS = 1.0
HOST = "localhost"

STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.UNAVAILABLE: 503,
}


class AuthHttp:
    """The server; `start` has it serve a socket behind the front."""

    def __init__(self, api: AuthApi) -> None:
        self._api = api
        application = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_guard])
        application.add_routes(
            [
                web.get("/v1/whoami", self._who_am_i, allow_head=False),
                web.post("/v1/jwt-svid", self._jwt_svid),
                web.post("/v1/check", self._check),
            ]
        )
        self._runner = web.AppRunner(
            application,
            access_log=None,
            logger=_quiet_logger(),
            keepalive_timeout=IDLE_SECONDS,
            lingering_time=0,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            shutdown_timeout=STOP_SECONDS,
        )

    async def start(self, bound: socket.socket) -> None:
        """Serve a bound socket."""
        await self._runner.setup()
        await web.SockSite(self._runner, bound).start()

    async def stop(self) -> None:
        """End the server and its connections."""
        await self._runner.cleanup()

    async def _who_am_i(self, request: web.Request) -> web.Response:
        return _json(200, as_json(await self._api.who_am_i(peer_of(request))))

    async def _jwt_svid(self, request: web.Request) -> web.Response:
        wanted = read_json(await request.read(), auth_pb2.FetchJWTSVIDRequest())
        return _json(200, as_json(await self._api.fetch_jwt_svid(peer_of(request), wanted)))

    async def _check(self, request: web.Request) -> web.Response:
        wanted = read_json(await request.read(), auth_pb2.CheckRequest())
        return _json(200, as_json(await self._api.check(peer_of(request), wanted)))


def _quiet_logger() -> logging.Logger:
    """Return a logger that drops what aiohttp says of malformed requests: any local program can send many."""
    log = logging.getLogger(f"{__name__}.server")
    log.addFilter(_not_malformed)
    return log


def _not_malformed(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


def peer_of(request: web.Request) -> str:
    """Return the name of the connection, that the front bound before it connected; "" when it has none."""
    name = request.transport.get_extra_info("peername") if request.transport else None
    if isinstance(name, bytes):
        name = name.decode("ascii", "replace")
    return name if isinstance(name, str) else ""


def read_json(body: bytes, into: M) -> M:
    """Read a JSON object with the fields of a message, each once. Raise RequestRefused."""
    try:
        found = json.loads(body.decode("utf-8"), object_pairs_hook=unique_members, parse_constant=refuse_constant)
        if not isinstance(found, dict):
            raise RequestRefused("the body must be a JSON object")
        return json_format.ParseDict(found, into)
    except (ValueError, RecursionError) as error:
        raise RequestRefused("the body is not JSON in UTF-8 with every name once") from error
    except json_format.ParseError as error:
        raise RequestRefused("the body has a field that is unknown or of another type; auth.proto has them") from error


def as_json(message: Message) -> dict[str, Any]:
    """Return every field under its own name; numbers are numbers, all of them are times below 2^53."""
    return {
        field.name: [as_json(one) for one in getattr(message, field.name)]
        if field.is_repeated
        else getattr(message, field.name)
        for field in message.DESCRIPTOR.fields
    }


def _json(status: int, value: object) -> web.Response:
    return web.json_response(value, status=status, headers={"Cache-Control": "no-store"})


def _error(status: int, code: str, message: str) -> web.Response:
    return _json(status, {"error": {"code": code, "message": message}})


@web.middleware
async def _guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what a browser could send; answer every failure as JSON."""
    if request.headers.getall("Host", []) != [HOST] or "Origin" in request.headers or request.url.host != HOST:
        return _error(403, "not_local", "Host must be localhost, and Origin absent")
    try:
        return await handler(request)
    except SidecarError as error:
        return _error(STATUS.get(error.status, 500), error.code, str(error))
    except web.HTTPRequestEntityTooLarge:
        return _error(413, "too_large", f"a body has at most {MAX_BODY_BYTES} bytes")
    except web.HTTPMethodNotAllowed:
        return _error(405, "wrong_method", "GET /v1/whoami, POST /v1/jwt-svid, POST /v1/check")
    except web.HTTPException as error:
        return _error(error.status, "not_found", "there are /v1/whoami, /v1/jwt-svid and /v1/check")
