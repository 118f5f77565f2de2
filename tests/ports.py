# SPDX-License-Identifier: Apache-2.0
"""Ports of loopback for programs that must be told one: of this process alone until it ends.

A port that the system gives and takes back is anybody's a moment later: of whoever asks for any port, and of every
connection that goes out. These are below those that it gives (ip_local_port_range), and tests that run at the same time
tell each other which they have, by names of Unix sockets that go with their processes.
"""

from __future__ import annotations

import itertools
import os
import socket
from pathlib import Path

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
# Above what is somebody's by name.
_LOWEST = 10_000
_SPAN = 20_000
_held: list[socket.socket] = []
_tries = itertools.count(os.getpid() * 97)


def own_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens at, and that nobody else is given."""
    first = int(_RANGE.read_text().split()[0])
    # Where the system gives out all of them, what is left is that tests do not take each other's.
    span = min(_SPAN, first - _LOWEST) if first > _LOWEST + 1000 else _SPAN
    for number in itertools.islice(_tries, span):
        port = _LOWEST + number % span
        if _take(port):
            return port
    raise AssertionError("no port is free")


def _take(port: int) -> bool:
    mark = socket.socket(socket.AF_UNIX)
    try:
        mark.bind(f"\0firedoor-tests-port-{port}")
        with socket.socket() as probe:
            # Connections of before may linger there.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    except OSError:
        mark.close()
        return False
    _held.append(mark)
    return True
