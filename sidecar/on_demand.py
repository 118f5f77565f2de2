# SPDX-License-Identifier: Apache-2.0
"""Starts the HTTP/1.1 server of the Auth API when the first program asks by HTTP.

aiohttp is 11 MiB of resident memory that most sidecars never need. The socket listens from the start, and what connects
waits in its queue while the server is loaded, in a thread, so that nobody else waits.
"""

import asyncio
import importlib
import logging
import socket
from typing import TYPE_CHECKING

from firedoor.sidecar.auth import AuthApi

if TYPE_CHECKING:
    from firedoor.sidecar.auth_http import AuthHttp

log = logging.getLogger(__name__)

ABSTRACT = "unix-abstract:"
MODULE = "firedoor.sidecar.auth_http"
BACKLOG = 128


class OnDemand:
    """The socket, and the server once there is one."""

    def __init__(self, api: AuthApi) -> None:
        self._api = api
        self._socket: socket.socket | None = None
        self._starting: asyncio.Task[None] | None = None
        self._server: AuthHttp | None = None

    def listen(self, address: str) -> None:
        """Listen at a `private_address()`. Raise OSError."""
        bound = self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        bound.setblocking(False)
        bound.bind("\0" + address.removeprefix(ABSTRACT))
        bound.listen(BACKLOG)
        asyncio.get_running_loop().add_reader(bound, self._first, bound)

    async def stop(self) -> None:
        """End the server and its connections."""
        if self._socket is None:
            return
        asyncio.get_running_loop().remove_reader(self._socket)
        if self._starting:
            await self._starting
        if self._server:
            await self._server.stop()
        self._socket.close()

    def _first(self, bound: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(bound)
        self._starting = asyncio.create_task(self._start(bound))

    async def _start(self, bound: socket.socket) -> None:
        module = await asyncio.to_thread(importlib.import_module, MODULE)
        self._server = module.AuthHttp(self._api)
        await self._server.start(bound)
        log.debug("the Auth API answers by HTTP")
