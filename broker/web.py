# SPDX-License-Identifier: Apache-2.0
"""/metrics, /live and /ready on loopback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from firedoor.broker.condition import Condition
from firedoor.broker.http import Answer, HttpServer, Request

_PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"


class Web(HttpServer):
    """Serves health and metrics."""

    def __init__(self, metrics: Callable[[], bytes], condition: Callable[[], Condition]) -> None:
        super().__init__(self._page)
        self._metrics, self._condition = metrics, condition

    def _page(self, request: Request) -> Answer:
        match request.path:
            case "/metrics":
                return Answer(200, self._metrics(), _PROMETHEUS)
            case "/live":
                return Answer(200, b"live\n")
            case "/ready":
                condition = self._condition()
                return Answer(200 if condition.ready else 503, condition.text().encode())
            case _:
                return Answer(404, b"/metrics, /live or /ready\n")
