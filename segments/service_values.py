# SPDX-License-Identifier: Apache-2.0
"""How the values of a Service are read: the one kind of document that names addresses.

An address there permits nothing. It says which peers are expected to answer at it, and a peer that proves to be another
is not talked to.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final, TypeVar

from firedoor.certs import IdPattern
from firedoor.segments import values
from firedoor.segments.document import Node, Sequence
from firedoor.segments.model import Address
from firedoor.segments.schema import Bad, Read, Reading, clip, list_of, scalar

T = TypeVar("T")
# As many as a listener of the data path takes of each.
MAX_EXPECT: Final = 64
MAX_HINTS: Final = 64
_HOST: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?\.?")


def at_most(most: int, read: Read[tuple[T, ...]], what: str) -> Read[tuple[T, ...]]:
    """Refuse a longer list before its items are read."""

    def bounded(node: Node, reading: Reading) -> tuple[T, ...]:
        if isinstance(node, Sequence) and len(node.items) > most:
            raise Bad("too_many_items", node, f"there are more than {most} {what}", "use fewer, or several services")
        return read(node, reading)

    return bounded


def address(node: Node, _: Reading) -> Address:
    """Read the IP address of a service. One that no other machine can have there is refused."""
    text = scalar(node, "text", "an IP address")
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        problem = "is not an IP address"
    else:
        problem = _unusable(found)
    if problem:
        fix = "write the address that clients connect to, such as 10.20.0.5 or fd00:20::5"
        raise Bad("bad_address", node, f"`{clip(text)}` {problem}", fix)
    return found


def _unusable(found: Address) -> str:
    if isinstance(found, ipaddress.IPv6Address) and (found.ipv4_mapped is not None or found.scope_id is not None):
        return "is an IPv4 address in IPv6, or has a zone"
    if found.is_unspecified or found.is_multicast or found.is_loopback or found.is_link_local:
        return "is an unspecified, loopback, link-local or multicast address, which names no service"
    return ""


def hint(node: Node, _reading: Reading) -> str:
    """Read where a peer may be found: `host:port`, the host a name or an address."""
    text = scalar(node, "text", "host:port")
    host, _, digits = text.rpartition(":")
    port = int(digits) if re.fullmatch(r"[1-9][0-9]{0,4}", digits) else 0
    if not (0 < port < 65536 and _is_host(host)):
        raise Bad("bad_hint", node, f"`{clip(text)}` is not host:port", "write it like gpu-1.internal:19000")
    return text


def _is_host(host: str) -> bool:
    if host.startswith("[") and host.endswith("]"):
        try:
            return ipaddress.IPv6Address(host[1:-1]).scope_id is None
        except ValueError:
            return False
    return _HOST.fullmatch(host) is not None


_patterns: Final[Read[tuple[IdPattern, ...]]] = list_of(values.pattern, "ID patterns", at_least=1)
expected: Final = at_most(MAX_EXPECT, _patterns, "expected ID patterns")
hints: Final = at_most(MAX_HINTS, list_of(hint, "addresses", at_least=1), "addresses to connect to")
