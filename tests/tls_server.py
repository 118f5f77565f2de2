# SPDX-License-Identifier: Apache-2.0
"""An application served over TLS on loopback, that leaves nothing open when it ends."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

# A transport that is aborted is closed in one of the next turns of the loop.
_TURNS = 5


@asynccontextmanager
async def serving_tls(app: web.Application, context: ssl.SSLContext, **options: float) -> AsyncIterator[str]:
    """Serve; yield `127.0.0.1:PORT`. At the end connections are cut: one that is closed politely outlives its loop."""
    runner = web.AppRunner(app, **options)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        server = runner.server
        assert server is not None
        for one in list(server.connections):
            if one.transport is not None:
                one.transport.abort()
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        await runner.cleanup()
