# SPDX-License-Identifier: Apache-2.0
"""A network between here and far away: every byte arrives late, in both directions.

with SlowNetwork("127.0.0.1:8081", seconds=0.2) as network:
    connect(network.address)
"""

import asyncio
import contextlib
import threading
from typing import Self

from tests.waiting import PATIENCE


class SlowNetwork:
    """A port before another; what goes through it takes `seconds` each way."""

    def __init__(self, to: str, seconds: float) -> None:
        self._host, _, port = to.rpartition(":")
        self._port, self._seconds = int(port), seconds
        self.address = ""
        # How often what went through was lost.
        self._losses = 0
        self._transports: set[asyncio.WriteTransport] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def turn(self, to: str) -> None:
        """Lead connections that come from now on to another port."""
        self._host, _, port = to.rpartition(":")
        self._port = int(port)

    def lose(self) -> None:
        """Carry nothing more on the connections of now; neither end hears of it. Those that come later are carried."""
        self._losses += 1

    def __enter__(self) -> Self:
        self._thread.start()
        starting = asyncio.start_server(self._carry, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(starting, self._loop).result(PATIENCE)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(PATIENCE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        # What was accepted a moment ago has begun by then, and can be ended.
        for _ in range(10):
            await asyncio.sleep(0.01)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for transport in self._transports:
            transport.abort()
        # And what was closed is closed.
        for _ in range(10):
            await asyncio.sleep(0.01)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._transports.add(writer.transport)
        with contextlib.closing(writer):
            await asyncio.sleep(self._seconds)
            try:
                far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
            except OSError:
                return
            self._transports.add(far_writer.transport)
            with contextlib.closing(far_writer):
                ways = (self._way(reader, far_writer), self._way(far_reader, writer))
                await asyncio.gather(*ways, return_exceptions=True)

    async def _way(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        due: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        loop, losses = asyncio.get_running_loop(), self._losses

        async def arrive() -> None:
            while True:
                at, data = await due.get()
                await asyncio.sleep(at - loop.time())
                if self._losses != losses:
                    continue
                if not data:
                    writer.write_eof()
                    return
                writer.write(data)
                await writer.drain()

        arriving = asyncio.ensure_future(arrive())
        try:
            while data := await reader.read(65536):
                due.put_nowait((loop.time() + self._seconds, data))
            due.put_nowait((loop.time() + self._seconds, b""))
            await arriving
        finally:
            arriving.cancel()
