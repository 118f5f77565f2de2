# SPDX-License-Identifier: Apache-2.0
"""Identity-based access for AI infrastructure: SPIFFE identities bound to segments, enforced at both ends.

What a program asks its sidecar is here (docs/client.md); it needs grpcio, protobuf and cryptography alone. The packages
below this one, floor by floor: `certs` and `segments` (pure), `wire` (contracts), `mtls` (the Rust core), `broker` and
`sidecar` (the two programs), `cli` (the `firedoor` command). Names load when they are first used, because every one of
those packages imports this one.

>>> import firedoor
>>> firedoor.__version__.count(".")
2
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firedoor.aio import AsyncClient, AsyncX509Source
    from firedoor.answers import Decision, Identity, JwtSvid, ValidJwt, X509Context, X509Svid
    from firedoor.client import Client
    from firedoor.errors import FiredoorError
    from firedoor.inbound import aio_server_interceptor, grpc_server_credentials, server_interceptor
    from firedoor.outbound import GrpcTarget, grpc_target
    from firedoor.peers import peer
    from firedoor.source import X509Source

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "AsyncX509Source",
    "Client",
    "Decision",
    "FiredoorError",
    "GrpcTarget",
    "Identity",
    "JwtSvid",
    "ValidJwt",
    "X509Context",
    "X509Source",
    "X509Svid",
    "__version__",
    "aio_server_interceptor",
    "grpc_server_credentials",
    "grpc_target",
    "peer",
    "server_interceptor",
]

_HOMES = {
    "aio": ("AsyncClient", "AsyncX509Source"),
    "answers": ("Decision", "Identity", "JwtSvid", "ValidJwt", "X509Context", "X509Svid"),
    "client": ("Client",),
    "errors": ("FiredoorError",),
    "inbound": ("aio_server_interceptor", "grpc_server_credentials", "server_interceptor"),
    "outbound": ("GrpcTarget", "grpc_target"),
    "peers": ("peer",),
    "source": ("X509Source",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
