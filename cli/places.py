# SPDX-License-Identifier: Apache-2.0
"""Where the sockets are when nothing says otherwise: /run/firedoor as root, else below $XDG_RUNTIME_DIR."""

import os
from pathlib import Path


def runtime_dir() -> Path:
    """Return the folder of the sockets for this user."""
    if os.geteuid() == 0:
        return Path("/run/firedoor")
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}") / "firedoor"


def broker_admin_socket() -> str:
    """Return the broker's admin socket: $FIREDOOR_BROKER_ADMIN_SOCKET or the default."""
    return os.environ.get("FIREDOOR_BROKER_ADMIN_SOCKET") or str(runtime_dir() / "broker/admin.sock")


def sidecar_admin_socket() -> str:
    """Return the sidecar's admin socket: $FIREDOOR_SIDECAR_ADMIN_SOCKET or the default."""
    return os.environ.get("FIREDOOR_SIDECAR_ADMIN_SOCKET") or str(runtime_dir() / "sidecar/admin.sock")


def auth_socket() -> str:
    """Return the sidecar's auth socket: $SPIFFE_ENDPOINT_SOCKET (a unix: address) or the default."""
    endpoint = os.environ.get("SPIFFE_ENDPOINT_SOCKET", "")
    if endpoint.startswith("unix:"):
        return endpoint.removeprefix("unix:").replace("///", "/", 1)
    return endpoint or str(runtime_dir() / "sidecar/auth.sock")
