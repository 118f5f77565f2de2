# SPDX-License-Identifier: Apache-2.0
"""The sockets below a client's connections, which end with the client.

A TLS connection ends with a farewell that the other side answers. A client that is closed does not wait for it, nor for
connections that were being made: a loop that ends then leaves them open, and to nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any, Final, final

# Of the loop, until a socket that has ended is closed; it takes four.
_TURNS: Final = 50


@final
class Sockets:
    """Opens them, as aiohttp's `socket_factory`; `end` when the client is closed."""

    def __init__(self) -> None:
        self._made: list[socket.socket] = []

    def __call__(self, info: tuple[Any, ...]) -> socket.socket:
        """Open one for an address, as getaddrinfo gives it. Raise OSError."""
        made = socket.socket(*info[:3])
        self._made = [*self._open(), made]
        return made

    async def end(self) -> None:
        """Have what is still open end now."""
        for one in self._open():
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for _ in range(_TURNS):
            if not self._open():
                return
            await asyncio.sleep(0)

    def _open(self) -> list[socket.socket]:
        return [one for one in self._made if one.fileno() >= 0]
