# SPDX-License-Identifier: Apache-2.0
"""gRPC's server reflection, on the admin socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any

from firedoor.wire import reflection

if TYPE_CHECKING:
    from google.protobuf.descriptor import ServiceDescriptor

    from firedoor.broker.rpc.gate import Call


class ReflectionService:
    """`grpc.reflection.v1.ServerReflection`, or `v1alpha`'s."""

    def __init__(self, told: reflection.Reflection) -> None:
        self._told = told

    async def ServerReflectionInfo(self, requests: AsyncIterator[Any], _: Call) -> AsyncIterator[Any]:
        """Answer each question by itself."""
        async for request in requests:
            yield self._told.answer(request)


def reflections(services: Iterable[ServiceDescriptor]) -> dict[ServiceDescriptor, ReflectionService]:
    """Return the service in both versions of the protocol."""
    return {service: ReflectionService(told) for service, told in reflection.reflections(services).items()}
