# SPDX-License-Identifier: Apache-2.0
"""A server that anybody may connect to: few connections at once, each with one short talk, and then closed."""

import asyncio
from abc import ABC, abstractmethod

# The head of a request, bytes; what is longer ends its connection.
LARGEST_HEAD_BYTES = 4096


class ShortTalks(ABC):
    """Connections beyond `most` are closed at once, unread."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: set[asyncio.StreamWriter] = set()

    async def _listen(self, host: str | None, port: int) -> asyncio.Server:
        """Listen; None: on every address. Raise OSError."""
        return await asyncio.start_server(self._serve, host, port, limit=LARGEST_HEAD_BYTES)

    def _close(self, server: asyncio.Server) -> None:
        """Stop listening, and end what is open."""
        server.close()
        for writer in tuple(self._open):
            writer.transport.abort()

    @abstractmethod
    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read and answer, within a time of its own. What the network or the other end does wrong may be raised."""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            if len(self._open) <= self._most:
                await self._talk(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()
