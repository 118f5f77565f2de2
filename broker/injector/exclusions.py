# SPDX-License-Identifier: Apache-2.0
r"""What passes by a captured pod's sidecar, as an annotation has it: in a sentence, with its reason.

>>> [one] = read("inbound tcp 9100,9101 from 10.0.0.0/8: metrics of the node")
>>> one.ports, one.addresses, one.reason
((9100, 9101), ('10.0.0.0/8',), 'metrics of the node')

An exclusion names ports, or addresses, or both; the reason is one line of printable ASCII, without `;`, `"`, `\`
and `$`, which a kubelet replaces.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Any, Final

from firedoor.segments.well_known import EXCLUDE

MOST: Final = 16
_PORTS: Final = "[1-9][0-9]{0,4}(,[1-9][0-9]{0,4}){0,15}"
_ADDRESSES: Final = "[0-9A-Fa-f.:/]{1,45}(,[0-9A-Fa-f.:/]{1,45}){0,15}"
PATTERN: Final = (
    rf"(?P<way>inbound|outbound) (?P<protocol>tcp|udp)(?: (?P<ports>{_PORTS}))?"
    rf"(?: (?:from|to) (?P<addresses>{_ADDRESSES}))?: (?P<reason>[ !#%-:<-\[\]-~]{{1,200}})"
)
_PATTERN: Final = re.compile(PATTERN)
_HIGHEST_PORT: Final = 65535


class InjectionRefused(Exception):
    """The pod cannot have a sidecar as it is. `str()` says what to change."""


@dataclass(frozen=True, slots=True)
class Exclusion:
    """One of them; what is given of ports and addresses must match."""

    way: str
    protocol: str
    ports: tuple[int, ...]
    addresses: tuple[str, ...]
    reason: str

    def setting(self) -> dict[str, Any]:
        """Return it as a sidecar's configuration has it."""
        return {
            "direction": self.way,
            "protocol": self.protocol,
            **({"ports": list(self.ports)} if self.ports else {}),
            **({"addresses": list(self.addresses)} if self.addresses else {}),
            "reason": self.reason,
        }


def read(text: str) -> tuple[Exclusion, ...]:
    """Read an annotation. Raise InjectionRefused."""
    words = [word.strip() for word in text.split(";") if word.strip()]
    if len(words) > MOST:
        raise InjectionRefused(f"{EXCLUDE} has more than {MOST} exclusions")
    return tuple(_one(word) for word in words)


def _one(word: str) -> Exclusion:
    matched = _PATTERN.fullmatch(word)
    if matched is None or not (matched["ports"] or matched["addresses"]):
        raise InjectionRefused(
            f"{EXCLUDE}: {word[:100]!r} must say what passes and why, as `inbound tcp 9100 from 10.0.0.0/8: metrics`"
        )
    ports = tuple(int(port) for port in (matched["ports"] or "").split(",") if port)
    addresses = tuple(one for one in (matched["addresses"] or "").split(",") if one)
    if any(port > _HIGHEST_PORT for port in ports):
        raise InjectionRefused(f"{EXCLUDE}: {word[:100]!r} names a port above {_HIGHEST_PORT}")
    bad = next((one for one in addresses if not _is_network(one)), None)
    if bad is not None:
        raise InjectionRefused(f"{EXCLUDE}: {bad!r} must be an address, or a network with no bits after its length")
    return Exclusion(matched["way"], matched["protocol"], ports, addresses, matched["reason"])


def _is_network(text: str) -> bool:
    """Whether it is one for API servers too, which take no IPv4 inside IPv6, nor a length written otherwise."""
    try:
        found = ipaddress.ip_network(text)
    except ValueError:
        return False
    _, slash, length = text.partition("/")
    plain = not slash or length == str(found.prefixlen)
    return plain and not (isinstance(found, ipaddress.IPv6Network) and found.network_address.ipv4_mapped is not None)
