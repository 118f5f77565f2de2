# SPDX-License-Identifier: Apache-2.0
"""What is left of connections when their client is closed."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
import threading
import warnings
from collections.abc import Iterator

import pytest
import trustme

from firedoor.cluster.http import Call, Http
from tests.waiting import PATIENCE

# Seconds from the call to its end: from before its connection is begun until after it is made.
STEPS = [step / 4000 for step in range(60)]


@pytest.fixture
def server() -> Iterator[tuple[str, ssl.SSLContext]]:
    """Somebody who shakes hands and never answers, on a thread of its own, so that it outlives a client's loop."""
    ca, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    trust = ssl.create_default_context()
    ca.configure_trust(trust)
    with socket.create_server(("127.0.0.1", 0), backlog=len(STEPS)) as listening:
        address = listening.getsockname()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    near, _ = listening.accept()
                    near.settimeout(PATIENCE)
                    with near, contextlib.suppress(OSError), context.wrap_socket(near, server_side=True) as link:
                        while link.recv(1 << 16):
                            pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"https://127.0.0.1:{address[1]}/", trust
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(PATIENCE)


def test_a_loop_may_end_right_after_whatever_was_being_connected(server: tuple[str, ssl.SSLContext]) -> None:
    url, trust = server

    async def cancelled(after: float) -> None:
        http = Http()
        asking = asyncio.create_task(http.fetch(Call("GET", url, "token", trust), 1024))
        await asyncio.sleep(after)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await http.close()

    with warnings.catch_warnings(record=True) as left:
        warnings.simplefilter("always")
        for after in STEPS:
            asyncio.run(cancelled(after))
        gc.collect()
    assert [str(one.message) for one in left] == []
