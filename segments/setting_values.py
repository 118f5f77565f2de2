# SPDX-License-Identifier: Apache-2.0
"""How single settings of broker and sidecar are read: each takes the text and raises ValueError with a sentence.

>>> integer(1, 10)("7"), duration(60, 86400)("30m"), host_port("[::1]:8081")
(7, 1800, '[::1]:8081')
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import re
from collections.abc import Callable, Collection
from typing import Final

from firedoor.certs import CertsError, is_cluster_name
from firedoor.segments.names import is_name

# What the functions here, and the parsers of `certs`, raise.
SETTING_ERRORS: Final = (ValueError, CertsError)
MAX_PORT: Final = 65535
_INTEGER: Final = re.compile(r"[0-9]{1,15}")
_DURATION: Final = re.compile(r"([0-9]{1,10})(s|m|h|d)")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_OFF: Final = ("off", "false")


def text(value: str) -> str:
    """Take any text but an empty one, without NUL, which no path or name of the system may hold."""
    if not value:
        raise ValueError("must not be empty")
    if "\0" in value:
        raise ValueError("must not hold a NUL character")
    return value


def name(value: str) -> str:
    """Take a name that somebody gives to something of ours."""
    if not is_name(value):
        raise ValueError("must be 1 to 63 of a-z, 0-9 and dashes, with no dash at either end")
    return value


def cluster_name(value: str) -> str:
    """Take the name of a Kubernetes cluster."""
    if not is_cluster_name(value):
        raise ValueError("must be letters, digits, dots, dashes and underscores, at most 63")
    return value


def choice(*words: str) -> Callable[[str], str]:
    """Take one of these words."""

    def parser(value: str) -> str:
        if value not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return value

    return parser


def boolean(value: str) -> bool:
    """Take true or false."""
    return choice("true", "false")(value.lower()) == "true"


def is_off(value: str) -> bool:
    """Say whether something is turned off; YAML takes a plain `off` for false."""
    return value in _OFF


def integer(low: int, high: int) -> Callable[[str], int]:
    """Take a whole number within bounds."""

    def parser(value: str) -> int:
        if not (_INTEGER.fullmatch(value) and low <= int(value) <= high):
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(value)

    return parser


def number(low: float, high: float) -> Callable[[str], float]:
    """Take a number within bounds."""

    def parser(value: str) -> float:
        try:
            found = float(value)
        except ValueError:
            found = math.nan
        if not low <= found <= high:
            raise ValueError(f"must be a number from {low:g} to {high:g}")
        return found

    return parser


def duration(low: int, high: int) -> Callable[[str], int]:
    """Take a length of time such as 90s, 30m, 24h or 7d, in seconds."""

    def parser(value: str) -> int:
        found = _DURATION.fullmatch(value)
        if not found:
            raise ValueError("must be a length of time such as 90s, 30m, 24h or 7d")
        seconds = int(found[1]) * _SECONDS[found[2]]
        if not low <= seconds <= high:
            raise ValueError(f"must be between {low}s and {high}s")
        return seconds

    return parser


def host_port(value: str) -> str:
    """Take `host:port`, an IPv6 address in brackets."""
    host, _, port = text(value).rpartition(":")
    if not host or (":" in host and not (host.startswith("[") and host.endswith("]"))):
        raise ValueError("must be host:port, with an IPv6 address in brackets")
    try:
        integer(0, MAX_PORT)(port)
    except ValueError:
        raise ValueError(f"the port must be a whole number from 0 to {MAX_PORT}") from None
    return value


def split_host_port(value: str) -> tuple[str, int]:
    """Divide what `host_port` took."""
    host, _, port = value.rpartition(":")
    return host.strip("[]"), int(port)


def ip_port(value: str) -> str:
    """Take an IP address and a port: what can be bound without asking DNS."""
    host, _ = split_host_port(host_port(value))
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise ValueError("must be an IP address and a port") from None
    return value


def loopback_port(value: str) -> str:
    """Take a loopback address and a port."""
    host, _ = split_host_port(ip_port(value))
    if not ipaddress.ip_address(host).is_loopback:
        raise ValueError("must be a loopback address: the local client is known there alone")
    return value


def metrics(value: str, *, open_to_all: bool = False) -> str | None:
    """Take HOST:PORT, :PORT on loopback, or `off`; another address than loopback's when that was written out."""
    if is_off(value):
        return None
    found = host_port(f"127.0.0.1{value}" if value.startswith(":") else value)
    host, _ = split_host_port(found)
    try:
        if not (open_to_all or host == "localhost" or ipaddress.ip_address(host).is_loopback):
            raise ValueError
    except ValueError:
        raise ValueError("must be an address on loopback: it answers anybody who asks") from None
    return found


def nearest(word: str, known: Collection[str]) -> str:
    """Return `; did you mean X?` when one of the known words is close."""
    close = difflib.get_close_matches(word, sorted(known), n=1)
    return f"; did you mean `{close[0]}`?" if close else f"; known are {', '.join(sorted(known))}"
