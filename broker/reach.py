# SPDX-License-Identifier: Apache-2.0
"""Asking a host that somebody named, without becoming somebody's tool (server-side request forgery).

A name is looked up once, and the connection goes to an address that was looked at: what DNS says a moment later does
not count. This machine, its links, and what clouds keep at fixed addresses are no nodes. Nothing is followed, and
no more is read than what can be the answer.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from firedoor.broker.errors import EndpointError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# SPIRE's, for all of it.
_SECONDS: Final = 10.0
# Of a name's addresses that may be asked, so many are tried.
_TRIES: Final = 3
_CONNECT_SECONDS: Final = 3.0
_MAX_HEAD: Final = 8192
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?: [\x20-\x7e\x80-\xff\t]*)?")
_OK: Final = b"200"
# What is no node although its kind of address is: metadata and agents of clouds, and IPv6 that carries an IPv4 address.
_FIXED: Final[tuple[Network, ...]] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",
        "100.100.100.200/32",
        "168.63.129.16/32",
        "192.0.0.0/24",
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "2001::/32",
        "2002::/16",
        "fd00:ec2::254/128",
    )
)


def may_be_node(address: Address, networks: Sequence[Network] = ()) -> bool:
    """Say whether a node may be at an address: in one of the networks, or when none is named, wherever nodes can be."""
    plain = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    found = plain or address
    if networks:
        return any(found in network for network in networks)
    special = found.is_loopback or found.is_link_local or found.is_multicast or found.is_unspecified
    if special or found.is_reserved or (isinstance(found, ipaddress.IPv6Address) and found.is_site_local):
        return False
    return not any(found in network for network in _FIXED)


class Reach:
    """Asks hosts. `close` when done."""

    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = networks
        # A name whose servers do not answer holds a thread for half a minute: not one that others need.
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="look-up")

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def get(self, host: str, port: int, path: str, most: int) -> bytes:
        """Return what a host serves at a path by HTTP, at most so many bytes. Raise EndpointError."""
        try:
            async with asyncio.timeout(_SECONDS):
                return await self._get(host, port, path, most)
        except TimeoutError:
            raise EndpointError(f"it did not answer within {_SECONDS:.0f} s") from None

    async def _get(self, host: str, port: int, path: str, most: int) -> bytes:
        reader, writer = await self._connected(host, port)
        try:
            # HTTP/1.0: the answer comes whole, and the connection ends with it.
            writer.write(f"GET {path} HTTP/1.0\r\nHost: {host}:{port}\r\nUser-Agent: firedoor\r\n\r\n".encode())
            await writer.drain()
            length = _length(await reader.readuntil(b"\r\n\r\n"), most)
            return await _read(reader, most, length)
        except asyncio.LimitOverrunError:
            raise EndpointError(f"the head of its answer is longer than {_MAX_HEAD} bytes") from None
        except (OSError, asyncio.IncompleteReadError):
            raise EndpointError("the connection ended before the answer") from None
        finally:
            writer.transport.abort()

    async def _connected(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        tried = 0
        for address in await self._addresses(host, port):
            tried += 1
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    return await asyncio.open_connection(str(address), port, limit=_MAX_HEAD)
            except (OSError, TimeoutError):
                continue
        raise EndpointError(f"no connection could be made to any of {tried} addresses")

    async def _addresses(self, host: str, port: int) -> list[Address]:
        """Look a name up. Raise EndpointError when none of its addresses may be asked."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(
                self._threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            )
        except (OSError, UnicodeError):
            raise EndpointError("the name cannot be looked up") from None
        allowed = [address for address in _each(found) if may_be_node(address, self._networks)]
        if not allowed:
            raise EndpointError("the name leads to no address that may be asked (http_challenge.networks)")
        return allowed[:_TRIES]


def _each(found: Sequence[tuple[object, object, object, object, tuple[object, ...]]]) -> Iterator[Address]:
    for address in dict.fromkeys(str(entry[4][0]) for entry in found):
        # An address with a scope means a link.
        if "%" not in address:
            yield ipaddress.ip_address(address)


def _length(head: bytes, most: int) -> int | None:
    """Return the length of the body when the head says it. Raise EndpointError."""
    status, *lines = head.split(b"\r\n")
    matched = _STATUS.fullmatch(status)
    if matched is None:
        raise EndpointError("it does not answer in HTTP/1")
    if matched[1] != _OK:
        # A redirect too: whoever is asked does not decide who is asked next (SPIRE 1.14.2).
        raise EndpointError(f"it answers {matched[1].decode()}")
    named = [
        value.strip()
        for name, _, value in (line.partition(b":") for line in lines)
        if name.lower() == b"content-length"
    ]
    if not named:
        return None
    if len(named) != 1 or not named[0].isdigit() or len(named[0]) > len(str(most)) or int(named[0]) > most:
        raise EndpointError(f"its answer is longer than {most} bytes")
    return int(named[0])


async def _read(reader: asyncio.StreamReader, most: int, length: int | None) -> bytes:
    if length is not None:
        return await reader.readexactly(length)
    data = b""
    while chunk := await reader.read(most + 1 - len(data)):
        data += chunk
        if len(data) > most:
            raise EndpointError(f"its answer is longer than {most} bytes")
    return data
