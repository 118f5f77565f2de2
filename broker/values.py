# SPDX-License-Identifier: Apache-2.0
"""Single settings that are the broker's own; the others are read by `firedoor.segments.setting_values`."""

from __future__ import annotations

from pathlib import Path

from firedoor.certs import TrustDomain
from firedoor.segments.setting_values import host_port, is_off, text


def path(value: str) -> Path:
    """Take an absolute path, or one from the working directory."""
    try:
        return Path(text(value)).expanduser().absolute()
    except RuntimeError:
        raise ValueError("begins with ~ and names no user's home") from None


def path_or_off(value: str) -> Path | None:
    """Take a path, or `off`."""
    return None if is_off(value) else path(value)


def host_port_or_off(value: str) -> str | None:
    """Take HOST:PORT, or `off`."""
    return None if is_off(value) else host_port(value)


def socket_path(value: str) -> Path:
    """Take the path of a Unix socket, with or without `unix:`."""
    return path(value.removeprefix("unix://").removeprefix("unix:"))


def id_path(value: str) -> str:
    """Take the path of a SPIFFE ID."""
    return TrustDomain.parse("example.org").with_path(value).path
