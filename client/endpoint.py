# SPDX-License-Identifier: Apache-2.0
"""Where the auth socket is: an argument, else SPIFFE_ENDPOINT_SOCKET (SPIFFE Workload Endpoint, section 4).

>>> target("unix:///run/firedoor/sidecar/auth.sock", {})
'unix:/run/firedoor/sidecar/auth.sock'
>>> target(None, {"SPIFFE_ENDPOINT_SOCKET": "tcp://127.0.0.1:8000"})
'ipv4:127.0.0.1:8000'
"""

import ipaddress
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from firedoor.errors import SocketUnknown

VARIABLE = "SPIFFE_ENDPOINT_SOCKET"
# Security header of the Workload API; a browser cannot be tricked into sending it (SPIFFE Workload Endpoint, 6).
HEADER = (("workload.spiffe.io", "true"),)
CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.default_authority", "localhost"),
    # A sidecar that was restarted is found again within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # How long a connection may take, in spite of its name: a sidecar may be busy.
    ("grpc.min_reconnect_backoff_ms", 5000),
    # An inherited proxy setting has no say about a local socket.
    ("grpc.enable_http_proxy", 0),
    # Who calls is known by the connection: no two clients share one.
    ("grpc.use_local_subchannel_pool", 1),
)


def target(socket: str | None, environment: Mapping[str, str]) -> str:
    """Return grpcio's name of the socket: `unix:///absolute/path` or `tcp://IP:port`. Raise SocketUnknown."""
    found = socket or environment.get(VARIABLE)
    if not found:
        raise SocketUnknown(f"no socket was given, and {VARIABLE} is not set")
    try:
        parts = urlsplit(found)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise SocketUnknown("the socket's address is malformed") from None
    if parts.query or parts.fragment or parts.username is not None or "?" in found or "#" in found:
        raise SocketUnknown("the socket's address must have no user, query or fragment")
    if parts.scheme == "unix" and not parts.netloc and parts.path.startswith("/") and "\0" not in found:
        return f"unix:{parts.path}"
    if parts.scheme == "tcp" and host and port and not parts.path:
        return _ip(host, port)
    raise SocketUnknown("the socket's address must be unix:///absolute/path or tcp://IP:port")


def _ip(host: str, port: int) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise SocketUnknown("the socket's host must be an IP address") from None
    return f"ipv4:{address}:{port}" if address.version == 4 else f"ipv6:[{address}]:{port}"
