# SPDX-License-Identifier: Apache-2.0
"""Requests that are no message: refused with a sentence, where grpcio would log a traceback for each.

Any local program may send what it likes, as often as it likes.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

Context = grpc.aio.ServicerContext[Any, Any]
_UNREADABLE: Final = object()


class ReadsRequests(grpc.aio.ServerInterceptor):
    """Stands before every method of a server."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the method's handler with a reader that does not raise."""
        found: Any = await continuation(handler_call_details)
        # A method that there is not, or of a kind that we have none of.
        if found is None or (found.request_streaming and not found.response_streaming):
            return found
        readers = (_reader(found.request_deserializer), found.response_serializer)
        if found.request_streaming:
            return grpc.stream_stream_rpc_method_handler(_conversing(found.stream_stream), *readers)
        if found.response_streaming:
            return grpc.unary_stream_rpc_method_handler(_streaming(found.unary_stream), *readers)
        return grpc.unary_unary_rpc_method_handler(_answering(found.unary_unary), *readers)


def _reader(read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def reading(message: bytes) -> Any:
        try:
            return read(message)
        except DecodeError:
            return _UNREADABLE

    return reading


def _answering(method: Callable[[Any, Context], Awaitable[Any]]) -> Callable[[Any, Context], Awaitable[Any]]:
    async def answer(request: Any, context: Context) -> Any:
        await _check(request, context)
        return await method(request, context)

    return answer


def _streaming(
    method: Callable[[Any, Context], AsyncGenerator[Any, None]],
) -> Callable[[Any, Context], AsyncIterator[Any]]:
    async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
        await _check(request, context)
        # Closed with this one, and not when somebody collects it.
        async with aclosing(method(request, context)) as responses:
            async for response in responses:
                yield response

    return stream


def _conversing(
    method: Callable[[AsyncIterator[Any], Context], AsyncGenerator[Any, None]],
) -> Callable[[AsyncIterator[Any], Context], AsyncIterator[Any]]:
    async def readable(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        async for request in requests:
            await _check(request, context)
            yield request

    async def converse(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        async with aclosing(method(readable(requests, context), context)) as responses:
            async for response in responses:
                yield response

    return converse


async def _check(request: Any, context: Context) -> None:
    if request is _UNREADABLE:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request is no message of this method")
