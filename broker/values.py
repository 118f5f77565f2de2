# SPDX-License-Identifier: Apache-2.0
"""How single settings are read. Each function takes the text and raises ValueError with a sentence."""

from __future__ import annotations

import difflib
import ipaddress
import math
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from firedoor.certs import CertsError, TrustDomain

# What the functions here, and the parsers of `certs`, raise.
SETTING_ERRORS: Final = (ValueError, CertsError)
_DURATION: Final = re.compile(r"([0-9]{1,10})(s|m|h|d)")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MAX_PORT: Final = 65535


def text(value: str) -> str:
    """Take any text but an empty one."""
    if not value:
        raise ValueError("must not be empty")
    return value


def path(value: str) -> Path:
    """Take an absolute path, or one from the working directory."""
    if "\0" in value:
        raise ValueError("must not hold a NUL character")
    try:
        return Path(text(value)).expanduser().absolute()
    except RuntimeError:
        raise ValueError("begins with ~ and names no user's home") from None


def paths(value: str) -> tuple[Path, ...]:
    """Take paths with commas between them."""
    return tuple(path(word.strip()) for word in text(value).split(","))


def id_path(value: str) -> str:
    """Take the path of a SPIFFE ID."""
    return TrustDomain.parse("example.org").with_path(value).path


def path_or_off(value: str) -> Path | None:
    """Take a path, or `off`."""
    return None if value in ("off", "false") else path(value)


def socket_path(value: str) -> Path:
    """Take the path of a Unix socket, with or without `unix:`."""
    return path(value.removeprefix("unix://").removeprefix("unix:"))


def address(value: str) -> str:
    """Take HOST:PORT; an IPv6 address stands in brackets."""
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > _MAX_PORT:
        raise ValueError("must be HOST:PORT")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError("an IPv6 address stands in brackets: [::1]:8081")
    return value


def loopback(value: str) -> str | None:
    """Take HOST:PORT on loopback, :PORT, or `off`."""
    if value in ("off", "false"):
        return None
    found = address("127.0.0.1" + value if value.startswith(":") else value)
    host = found.rpartition(":")[0].strip("[]")
    if host != "localhost":
        try:
            if not ipaddress.ip_address(host).is_loopback:
                raise ValueError
        except ValueError:
            raise ValueError("must be an address on loopback: it answers anybody who asks") from None
    return found


def duration(least: int, most: int) -> Callable[[str], int]:
    """Take a length of time such as 90s, 30m, 24h or 7d."""

    def read(value: str) -> int:
        found = _DURATION.fullmatch(value)
        if not found:
            raise ValueError("must be a length of time such as 90s, 30m, 24h or 7d")
        seconds = int(found[1]) * _SECONDS[found[2]]
        if not least <= seconds <= most:
            raise ValueError(f"must be between {least}s and {most}s")
        return seconds

    return read


def integer(least: int, most: int) -> Callable[[str], int]:
    """Take a whole number."""

    def read(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", value) or not least <= int(value) <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return int(value)

    return read


def number(least: float, most: float) -> Callable[[str], float]:
    """Take a number."""

    def read(value: str) -> float:
        try:
            found = float(value)
        except ValueError:
            found = math.nan
        if not least <= found <= most:
            raise ValueError(f"must be a number from {least:g} to {most:g}")
        return found

    return read


def one_of(*words: str) -> Callable[[str], str]:
    """Take one of the words."""

    def read(value: str) -> str:
        if value not in words:
            raise ValueError(f"must be {' or '.join(words)}")
        return value

    return read


def nearest(word: str, known: Collection[str]) -> str:
    """Return `; did you mean X?` when one of the known words is close."""
    close = difflib.get_close_matches(word, sorted(known), n=1)
    return f"; did you mean `{close[0]}`?" if close else f"; known are {', '.join(sorted(known))}"
