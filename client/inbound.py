# SPDX-License-Identifier: Apache-2.0
"""What a gRPC server adds to know who calls: credentials that follow rotations, and an interceptor that requires an ID.

    credentials = firedoor.grpc_server_credentials(client.x509_source())
    interceptor = firedoor.server_interceptor(client, allow=["spiffe://example.org/segment/inference/**"])
    server = grpc.server(pool, interceptors=[interceptor])
    server.add_secure_port("0.0.0.0:9000", credentials)

With `audience` the interceptor wants a JWT-SVID for it in place of a certificate. A handler asks `firedoor.peer()`.
"""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any

import grpc
import grpc.aio

from firedoor.aio import AsyncClient
from firedoor.answers import X509Context
from firedoor.certs import SpiffeId
from firedoor.client import Client
from firedoor.errors import FiredoorError
from firedoor.peers import Allowed, Certificates, Latest, bearer, of_token, set_peer

Handler = Any
MAKERS: dict[tuple[bool, bool], Callable[..., Any]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def grpc_server_credentials(source: Latest) -> grpc.ServerCredentials:
    """Return mTLS credentials with the newest SVID and bundles at each handshake; a client certificate is required.

    They only keep out who has none that any bundle vouches for: who it is, the interceptor says.
    """
    served = [source.latest]

    def newest() -> Any:
        try:
            found = source.latest
        except FiredoorError:
            return None
        if found is served[0]:
            return None
        served[0] = found
        return _configuration(found)

    return grpc.dynamic_ssl_server_credentials(_configuration(served[0]), newest, True)


def _configuration(found: X509Context) -> grpc.ServerCertificateConfiguration:
    svid = found.svids[0]
    roots = "".join(one.to_pem() for one in found.bundles.values()).encode()
    return grpc.ssl_server_certificate_configuration([(svid.key_pem, svid.chain_pem)], roots)


def server_interceptor(client: Client, *, allow: Sequence[str], audience: str | None = None) -> grpc.ServerInterceptor:
    """Require that a caller is one of `allow`, by its certificate, or by a JWT-SVID for `audience`."""
    return _Interceptor(client, Allowed(allow), audience)


def aio_server_interceptor(
    client: AsyncClient, *, allow: Sequence[str], audience: str | None = None
) -> grpc.aio.ServerInterceptor:
    """Require the same before the handlers of an asyncio server, which must be coroutines or async generators."""
    return _AioInterceptor(client, Allowed(allow), audience)


def _handler(like: Any, behave: Callable[..., Any]) -> Any:
    make = MAKERS[like.request_streaming, like.response_streaming]
    return make(behave, request_deserializer=like.request_deserializer, response_serializer=like.response_serializer)


def _behaviour(handler: Any) -> Callable[[Any, Any], Any]:
    found = (handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream)
    return next(one for one in found if one is not None)  # type: ignore[no-any-return]


class _Interceptor(grpc.ServerInterceptor):
    def __init__(self, client: Client, allowed: Allowed, audience: str | None) -> None:
        self._client, self._allowed, self._audience = client, allowed, audience
        self._certificates = None if audience else Certificates(client.x509_source())

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Put the check before the handler."""
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        inner = _behaviour(handler)

        def answer(request: Any, context: Any) -> Any:
            self._require(context)
            try:
                return inner(request, context)
            finally:
                set_peer(None)

        def stream(request: Any, context: Any) -> Iterator[Any]:
            self._require(context)
            try:
                yield from inner(request, context)
            finally:
                set_peer(None)

        return _handler(handler, stream if handler.response_streaming else answer)

    def _require(self, context: grpc.ServicerContext) -> None:
        try:
            set_peer(self._allowed.admit(self._identify(context)))
        except FiredoorError as error:
            context.abort(error.status, str(error))

    def _identify(self, context: Any) -> SpiffeId:
        if self._certificates is not None:
            return self._certificates.identify(context.auth_context())
        token = bearer(context.invocation_metadata())
        try:
            return self._client.validate_jwt_svid(token, self._audience or "").id
        except FiredoorError as error:
            raise of_token(error) from error


class _AioInterceptor(grpc.aio.ServerInterceptor):
    def __init__(self, client: AsyncClient, allowed: Allowed, audience: str | None) -> None:
        self._client, self._allowed, self._audience = client, allowed, audience
        self._certificates = None if audience else Certificates(client.x509_source())

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]], handler_call_details: Any
    ) -> Any:
        """Put the check before the handler."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        inner = _behaviour(handler)

        async def answer(request: Any, context: Any) -> Any:
            await self._require(context)
            return await inner(request, context)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            await self._require(context)
            async for one in inner(request, context):
                yield one

        return _handler(handler, stream if inspect.isasyncgenfunction(inner) else answer)

    async def _require(self, context: Any) -> None:
        try:
            set_peer(self._allowed.admit(await self._identify(context)))
        except FiredoorError as error:
            await context.abort(error.status, str(error))

    async def _identify(self, context: Any) -> SpiffeId:
        if self._certificates is not None:
            return self._certificates.identify(context.auth_context())
        token = bearer(context.invocation_metadata())
        try:
            return (await self._client.validate_jwt_svid(token, self._audience or "")).id
        except FiredoorError as error:
            raise of_token(error) from error
