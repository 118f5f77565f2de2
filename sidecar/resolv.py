# SPDX-License-Identifier: Apache-2.0
"""The resolvers of resolv.conf(5): whom the DNS relay asks.

>>> parse("nameserver fd00::10")
Resolvers(addresses=('[fd00::10]:53',), seconds=5, attempts=2)
"""

import ipaddress
import re
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from firedoor.segments.setting_values import MAX_PORT, integer, split_host_port

PATH: Final = Path("/etc/resolv.conf")
# Where systemd-resolved(8) writes the resolvers that stand behind its own 127.0.0.53.
BEHIND_RESOLVED: Final = Path("/run/systemd/resolve/resolv.conf")
PORT: Final = 53
# As glibc has them (resolv.h: MAXNS, RES_TIMEOUT, RES_DFLRETRY, RES_MAXRETRANS, RES_MAXRETRY).
MOST_NAMESERVERS: Final = 3
SECONDS, MOST_SECONDS = 5, 30
ATTEMPTS, MOST_ATTEMPTS = 2, 5
# Far more than such a file has.
LARGEST_BYTES: Final = 64 * 1024
_OPTION: Final = re.compile(r"(timeout|attempts):([0-9]{1,6})")


@dataclass(frozen=True, slots=True)
class Resolvers:
    """Whom to ask, as IP:PORT; a round over all of them takes so many seconds, and there are so many rounds."""

    addresses: tuple[str, ...] = ()
    seconds: int = SECONDS
    attempts: int = ATTEMPTS

    def elsewhere(self) -> "Resolvers":
        """Return those that are reached from another network namespace of this machine."""
        return replace(self, addresses=tuple(one for one in self.addresses if not is_local(one)))


def is_local(address: str) -> bool:
    """Say whether an address means something in its own network namespace alone."""
    ip = ipaddress.ip_address(split_host_port(address)[0])
    # Link-local addresses of IPv4 are routed in clouds, whose resolvers have them.
    return ip.is_loopback or (ip.version == 6 and ip.is_link_local)


def parse(text: str) -> Resolvers:
    """Read the keywords `nameserver` and, of `options`, `timeout` and `attempts`; what is wrong is left out."""
    found: list[str] = []
    numbers = {"timeout": SECONDS, "attempts": ATTEMPTS}
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or line[0] in "#;":
            continue
        if words[0] == "nameserver" and (address := _nameserver(words[1])) and len(found) < MOST_NAMESERVERS:
            found.append(address)
        elif words[0] == "options":
            options = (_OPTION.fullmatch(word) for word in words[1:])
            numbers |= {option[1]: int(option[2]) for option in options if option}
    seconds = min(max(numbers["timeout"], 1), MOST_SECONDS)
    return Resolvers(tuple(dict.fromkeys(found)), seconds, min(max(numbers["attempts"], 1), MOST_ATTEMPTS))


def _nameserver(word: str) -> str:
    try:
        return with_port(word)
    except (ValueError, OSError):
        return ""


def with_port(value: str, port: int = PORT) -> str:
    """Take the address of a resolver, and return it with a port, its zone as a number. Raise ValueError or OSError."""
    found = ipaddress.ip_address(value)
    ip = (found.ipv4_mapped or found) if isinstance(found, ipaddress.IPv6Address) else found
    if ip.is_unspecified or ip.is_multicast:
        raise ValueError("is nobody's address")
    if ip.version == 4:
        return f"{ip}:{port}"
    host, _, zone = str(ip).partition("%")
    if zone and not zone.isdecimal():
        zone = str(socket.if_nametoindex(zone))
    return f"[{host}%{zone}]:{port}" if zone else f"[{host}]:{port}"


def resolver(value: str) -> str:
    """Take what the configuration says: an address, or IP:PORT with an IPv6 address in brackets."""
    host, port = value, str(PORT)
    if value.count(":") == 1 or value.startswith("["):
        host, port = value.rpartition(":")[0].strip("[]"), value.rpartition(":")[2]
    try:
        return with_port(host, integer(1, MAX_PORT)(port))
    except (ValueError, OSError):
        raise ValueError("must be the address of a resolver, with :PORT unless it is 53") from None


class ResolvConf:
    """Reads the file again when it has changed. `elsewhere`: we are in another network namespace than it speaks of."""

    def __init__(self, *, elsewhere: bool) -> None:
        self._elsewhere, self._paths = elsewhere, (PATH, BEHIND_RESOLVED)
        self._seen: object = None
        self._found = Resolvers()

    def read(self) -> Resolvers:
        """Return the resolvers; none when there is no file."""
        stats = tuple(_stat(path) for path in self._paths)
        if stats != self._seen:
            self._seen, self._found = stats, self._read()
        return self._found

    def _read(self) -> Resolvers:
        path, behind = self._paths
        found = parse(_text(path))
        if not self._elsewhere:
            return found
        there = found.elsewhere()
        # A loopback address is a stub's, and this is the one that says who is behind it.
        return there if there.addresses or not found.addresses else parse(_text(behind)).elsewhere()


def _stat(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(LARGEST_BYTES).decode("latin-1")
    except OSError:
        return ""
