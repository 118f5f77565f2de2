# SPDX-License-Identifier: Apache-2.0
"""The SPIFFE bundle endpoint: our trust bundle for other trust domains (SPIFFE_Federation.md 5.2).

Anybody may have it; who fetches it is told by TLS that it is ours. It is at `/`, as at a SPIRE server.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from firedoor.broker.http import JSON, Answer, Request
from firedoor.certs import TrustBundle

if TYPE_CHECKING:
    from firedoor.broker.state import State

PATH: Final = "/"


class BundlePage:
    """Answers with the present bundle. `refresh_hint` is how often others should ask, in seconds."""

    def __init__(self, state: State, refresh_hint: int) -> None:
        self._state, self._hint = state, refresh_hint
        # Writing a bundle reads every certificate in it; it is written once for each bundle.
        self._written: tuple[TrustBundle, Answer] | None = None

    def __call__(self, request: Request) -> Answer:
        """Answer one request."""
        return unless_known(request, self._present())

    def _present(self) -> Answer:
        bundle = self._state.bundles.get(self._state.trust_domain)
        if bundle is None:
            return Answer(503, b"there is no bundle yet\n")
        if self._written is None or self._written[0] is not bundle:
            body = replace(bundle, refresh_hint=self._hint).to_json()
            # A cache may hold it back no longer than whoever polls by the hint would.
            self._written = bundle, document(body, f"public, max-age={self._hint}")
        return self._written[1]


def document(body: bytes, caching: str) -> Answer:
    """Return a JSON document with a tag that changes when it does."""
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    return Answer(200, body, JSON, {"Cache-Control": caching, "ETag": tag, "X-Content-Type-Options": "nosniff"})


def unless_known(request: Request, answer: Answer) -> Answer:
    """Return 304 for a document that the client says it has (RFC 9110 section 13.1.2)."""
    tag = answer.headers.get("ETag")
    known = {one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")}
    if tag is None or not known & {tag, "*"}:
        return answer
    return Answer(304, headers=answer.headers)
