# SPDX-License-Identifier: Apache-2.0
"""How a gRPC client calls through its sidecar: the outbound listener's Unix socket, with a JWT-SVID if wanted.

The sidecar makes the mTLS connection and checks who answers; the program speaks plain gRPC to a local socket. A token
goes over that socket only: the credential is bound to a local connection (grpcio's local credentials), so that a
channel to anywhere else fails instead of showing it.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from firedoor.client import Client
from firedoor.errors import BadArgument, FiredoorError

Tell = Callable[[tuple[tuple[str, str], ...], BaseException | None], None]


@dataclass(frozen=True, slots=True)
class GrpcTarget:
    """Target, channel options and, with an audience, credentials; `channel()` and `aio_channel()` join them."""

    target: str
    options: tuple[tuple[str, Any], ...]
    credentials: grpc.ChannelCredentials | None = field(default=None, repr=False)

    def channel(self) -> grpc.Channel:
        """Open a channel."""
        if self.credentials is None:
            return grpc.insecure_channel(self.target, options=self.options)
        return grpc.secure_channel(self.target, self.credentials, options=self.options)

    def aio_channel(self) -> grpc.aio.Channel:
        """Open a channel for asyncio."""
        if self.credentials is None:
            return grpc.aio.insecure_channel(self.target, options=self.options)
        return grpc.aio.secure_channel(self.target, self.credentials, options=self.options)


def grpc_target(
    socket: str, *, authority: str = "localhost", client: Client | None = None, audience: str | None = None
) -> GrpcTarget:
    """Return how to call through an outbound listener at `unix:/path`; with `audience` every call bears a JWT-SVID.

    `authority` is what the server sees as host. Raise BadArgument.
    """
    path = socket.removeprefix("unix://") if socket.startswith("unix:///") else socket.removeprefix("unix:")
    if not socket.startswith("unix:") or not path.startswith("/") or path.startswith("//"):
        raise BadArgument("the outbound socket must be unix:/absolute/path")
    if (client is None) != (audience is None):
        raise BadArgument("a JWT-SVID credential needs both client and audience")
    options: tuple[tuple[str, Any], ...] = (
        ("grpc.default_authority", authority),
        ("grpc.enable_http_proxy", 0),
        # Two listeners are two identities.
        ("grpc.use_local_subchannel_pool", 1),
    )
    credentials = None
    if client is not None and audience is not None:
        local = grpc.local_channel_credentials(grpc.LocalConnectionType.UDS)
        bearer = grpc.metadata_call_credentials(_JwtSvidPlugin(client, audience), "firedoor")
        credentials = grpc.composite_channel_credentials(local, bearer)
    return GrpcTarget(f"unix:{path}", options, credentials)


class _JwtSvidPlugin(grpc.AuthMetadataPlugin):
    """Puts `authorization: Bearer <JWT-SVID>` on each call."""

    def __init__(self, client: Client, audience: str) -> None:
        self._client, self._audience = client, audience

    def __call__(self, context: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback) -> None:
        # grpcio's own thread asks, and must not wait for a sidecar.
        threading.Thread(target=self._fetch, args=(callback,), name="firedoor-jwt-svid", daemon=True).start()

    def _fetch(self, tell: Tell) -> None:
        try:
            token = self._client.jwt_svid(self._audience).token
        except FiredoorError as error:
            tell((), error)
        else:
            tell((("authorization", f"Bearer {token}"),), None)
