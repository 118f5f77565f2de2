# SPDX-License-Identifier: Apache-2.0
"""Single settings that are the sidecar's own; the others are read by `firedoor.segments.setting_values`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from firedoor.certs import SpiffeId, TrustDomain
from firedoor.segments.setting_values import text
from firedoor.segments.settings import Findings

# sizeof(sockaddr_un.sun_path) less its NUL (unix(7)).
MAX_SOCKET_PATH_BYTES = 107


def path(value: str) -> Path:
    """Take an absolute path or one from the working directory."""
    try:
        return Path(text(value)).expanduser().absolute()
    except RuntimeError:
        raise ValueError("begins with ~ and names no user's home") from None


def socket_path(value: str) -> Path:
    """Take the path of a Unix socket, with or without `unix:`."""
    found = path(value.removeprefix("unix://").removeprefix("unix:"))
    check_socket_path(found)
    return found


def check_socket_path(value: Path) -> None:
    """Raise ValueError when the kernel could not bind it."""
    length = len(str(value).encode())
    if length > MAX_SOCKET_PATH_BYTES:
        raise ValueError(
            f"the socket path has {length} bytes, and the kernel takes {MAX_SOCKET_PATH_BYTES} at most; "
            "choose a shorter folder"
        )


def workload_id(value: str) -> SpiffeId:
    """Take a SPIFFE ID with a path."""
    found = SpiffeId.parse(value)
    if not found.path:
        raise ValueError("must be a workload's ID, with a path")
    return found


def own_workload_id(trust_domain: TrustDomain) -> Callable[[str], SpiffeId]:
    """Take a SPIFFE ID with a path, of this trust domain."""

    def parser(value: str) -> SpiffeId:
        found = workload_id(value)
        if found.trust_domain != trust_domain:
            raise ValueError(f"must be an ID of our own trust domain, {trust_domain}")
        return found

    return parser


def unique(names: Sequence[tuple[object, str, str]], findings: Findings) -> None:
    """Note each (place, key, name) whose name an earlier one has."""
    seen: Mapping[str, object] = {}
    for at, key, name in names:
        if name in seen:
            findings.add(at, key, f"the name `{name}` is taken by {seen[name]}")
        else:
            seen = {**seen, name: at}
