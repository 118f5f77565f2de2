# SPDX-License-Identifier: Apache-2.0
"""The admission webhook of the injector: `POST /inject`, and what follows it, by TLS as the broker itself.

The front in Rust ends TLS with the broker's own SVID, which has the configured DNS names beside its SPIFFE ID and is
renewed as ever; API servers verify it by the trust bundle (`caBundle`). Whoever asks learns how a pod would be changed,
and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from functools import partial
from typing import Final

from aiohttp import web

from firedoor import mtls
from firedoor.broker.errors import InvalidRequest, StorageError
from firedoor.broker.injector.demands import PATHS, Demands
from firedoor.broker.injector.review import MAX_REVIEW, answer
from firedoor.broker.injector.settings import InjectorRules
from firedoor.certs import SpiffeId

_log = logging.getLogger("firedoor.broker.injector")
# Reviews that are worked on at once; each may hold 4 MiB.
_AT_ONCE: Final = 4
# API servers wait 5 s as our manifests say, 30 s at most.
_SECONDS: Final = 10.0
_IDLE_SECONDS: Final = 60.0
_MAX_LINE: Final = 8190
_ABSTRACT: Final = "unix-abstract:"
_JSON: Final = "application/json"


class Webhook:
    """The listener. `open`, then `stop` once."""

    def __init__(self, rules: InjectorRules, core: mtls.Core, as_id: SpiffeId) -> None:
        self._rules, self._core, self._as_id = rules, core, as_id
        self._working = asyncio.Semaphore(_AT_ONCE)
        self._front: mtls.WebFront | None = None
        self.address = ""
        application = web.Application(client_max_size=MAX_REVIEW)
        application.add_routes([web.post(path, partial(self._inject, demands)) for path, demands in PATHS.items()])
        self._runner = web.AppRunner(
            application,
            access_log=None,
            keepalive_timeout=_IDLE_SECONDS,
            lingering_time=0,
            max_line_size=_MAX_LINE,
            max_field_size=_MAX_LINE,
            shutdown_timeout=1.0,
        )

    async def open(self) -> None:
        """Listen. Raise StorageError or MtlsError."""
        backend = mtls.private_address()
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            bound.setblocking(False)
            bound.bind("\0" + backend.removeprefix(_ABSTRACT))
        except OSError as error:
            bound.close()
            raise StorageError("a private address cannot be opened") from error
        await self._runner.setup()
        await web.SockSite(self._runner, bound).start()
        self._front = self._core.web_front(listen=self._rules.listen, backend=backend, as_id=str(self._as_id))
        self.address = self._front.address

    async def stop(self) -> None:
        """Close the listener."""
        if self._front is not None:
            self._front.stop()
        await self._runner.cleanup()

    async def _inject(self, demands: Demands, request: web.Request) -> web.Response:
        if request.content_type != _JSON:
            return web.Response(status=415, text=f"a review is {_JSON}\n")
        try:
            async with asyncio.timeout(_SECONDS), self._working:
                body = await request.read()
                # A review of megabytes takes a while, and others are waiting.
                made = await asyncio.to_thread(answer, body, self._rules, self._as_id.trust_domain.name, demands)
        except InvalidRequest as error:
            return web.Response(status=400, text=f"{error}\n")
        except TimeoutError:
            _log.warning("a review was not answered within %.0f s", _SECONDS)
            return web.Response(status=503, text="too busy\n")
        return web.Response(body=made, content_type=_JSON)
