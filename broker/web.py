# SPDX-License-Identifier: Apache-2.0
"""/metrics, /live and /ready on loopback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from firedoor.broker.http import Answer, HttpServer, Request

_PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"


class Web(HttpServer):
    """Serves health and metrics. `missing` returns what keeps the process from being ready."""

    def __init__(self, metrics: Callable[[], bytes], missing: Callable[[], list[str]]) -> None:
        super().__init__(self._page)
        self._metrics, self._missing = metrics, missing

    def _page(self, request: Request) -> Answer:
        match request.path:
            case "/metrics":
                return Answer(200, self._metrics(), _PROMETHEUS)
            case "/live":
                return Answer(200, b"live\n")
            case "/ready":
                missing = self._missing()
                return Answer(503 if missing else 200, "".join(f"{m}\n" for m in missing or ["ready"]).encode())
            case _:
                return Answer(404, b"/metrics, /live or /ready\n")
