# SPDX-License-Identifier: Apache-2.0
"""The gRPC servers behind the fronts. Each registers its own services alone and listens on a private address."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import grpc

from firedoor.broker.errors import StorageError
from firedoor.mtls import private_address

if TYPE_CHECKING:
    from google.protobuf.descriptor import ServiceDescriptor

    from firedoor.broker.rpc.gate import Gate

# The largest message that SPIRE's clients and servers take, and gRPC's own default.
MAX_MESSAGE: Final = 4 * 1024 * 1024
# SPIRE's: clients reconnect, so that both sides see new bundles and certificates.
_MAX_AGE_MS: Final = 180_000
_GRACE_MS: Final = 60_000
# The default cancels calls while thousands of sidecars reconnect at once.
_MAX_PENDING: Final = 20_000
_MAX_METADATA: Final = 16 * 1024
# Calls at once on one connection; agents need a handful. The head of each may cost 2.4 MiB before it is refused: 16 KiB
# of HPACK name a field in every byte, and C-core looks at the limit on metadata when it has read all. So who has no
# certificate sends few bytes (mtls/front); an agent that does so is known, and banned.
_MAX_STREAMS: Final = 1000
_OPTIONS: Final[tuple[tuple[str, Any], ...]] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    # Listings are the caller's to page; what it takes is its own limit.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", _MAX_METADATA),
    ("grpc.max_connection_age_ms", _MAX_AGE_MS),
    ("grpc.max_connection_age_grace_ms", _GRACE_MS),
    ("grpc.server.max_pending_requests", _MAX_PENDING),
    ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING),
    ("grpc.max_concurrent_streams", _MAX_STREAMS),
    ("grpc.so_reuseport", 0),
    # C-core would ping the client while it reads a request, to learn how large a window the way to it needs: a tenth of
    # what a call costs. Requests are small, and 64 KiB a round trip is enough for a thousand signing requests in four.
    ("grpc.http2.bdp_probe", 0),
)


async def start_server(gate: Gate, services: Mapping[ServiceDescriptor, object]) -> tuple[grpc.aio.Server, str]:
    """Start a server for these services and return it with its private address. Raise StorageError."""
    server = grpc.aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers([gate.handler(service, made) for service, made in services.items()])
    address = private_address()
    try:
        server.add_insecure_port(address)
    except RuntimeError as error:
        raise StorageError("a private address cannot be opened") from error
    await server.start()
    return server, address
