# SPDX-License-Identifier: Apache-2.0
"""A server of a cluster: objects read, written and watched, a token reviewed.

It is an API server, or a kubelet, which answers alike. No more is read than an object can have, unless more is allowed.
No error holds a token.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, final

from firedoor.cluster.errors import (
    AccessUnusable,
    AnswerTooLong,
    ClusterUnavailable,
    Gone,
    WrittenMeanwhile,
)

if TYPE_CHECKING:
    from firedoor.cluster.access import Access
    from firedoor.cluster.http import Call, Http

_SECONDS: Final = 10.0
# etcd takes objects of 1.5 MiB.
_MAX_ANSWER: Final = 2 * 1024 * 1024
# Of objects that others wrote: in JSON a byte of theirs is six where it is escaped.
MAX_OBJECT: Final = 16 * 1024 * 1024
_OK: Final = (200, 201)
_NOT_FOUND: Final = 404
_CONFLICT: Final = 409
_GONE: Final = 410
# Of a method and a path without its query: which right is missing, and where it is written down.
Right = Callable[[str, str], str]


@final
class ClusterApi:
    """One server. `close` when done."""

    def __init__(self, who: str, access: Access, right: Right) -> None:
        """`who` is asked, in the words that its errors begin with."""
        self._who, self._access, self._right = who, access, right
        self._context: tuple[str, ssl.SSLContext] | None = None
        self._http: Http | None = None

    async def close(self) -> None:
        """Close what is open."""
        if self._http is not None:
            await self._http.close()

    async def review(self, token: str, audience: str) -> Mapping[str, Any]:
        """Ask who shows a token; return the review's status. Raise ClusterUnavailable."""
        asked = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [audience]},
        }
        found = await self._call("POST", "/apis/authentication.k8s.io/v1/tokenreviews", asked)
        status = (found or {}).get("status")
        if not isinstance(status, dict):
            raise self._unavailable("a TokenReview came back without a status")
        return status

    async def get(self, path: str, most: int = _MAX_ANSWER) -> Mapping[str, Any] | None:
        """Return an object of at most so many bytes, None when there is none. Raise ClusterUnavailable."""
        return await self._call("GET", path, most=most)

    async def create(self, path: str, body: object) -> Mapping[str, Any]:
        """Make an object below a path of its kind; return it.

        Raise ClusterUnavailable, WrittenMeanwhile when it is there.
        """
        return await self._call("POST", path, body) or {}

    async def merge(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Change some fields of an object; return it, None when there is none. Raise ClusterUnavailable.

        With `metadata.resourceVersion` in the body, WrittenMeanwhile when it was changed meanwhile.
        """
        return await self._call("PATCH", path, body)

    async def delete(self, path: str, body: object = None) -> None:
        """Delete an object, if it is still there. Raise ClusterUnavailable."""
        await self._call("DELETE", path, body)

    async def put_status(self, path: str, status: object) -> None:
        """Set an object's status, if the object is still there. Raise ClusterUnavailable."""
        await self._call("PATCH", f"{path}/status", {"status": status})

    async def patch(self, path: str, operations: Sequence[Mapping[str, Any]]) -> None:
        """Change an object by a JSON patch. Raise ClusterUnavailable, also when it was changed meanwhile."""
        await self._call("PATCH", path, operations)

    async def watch(
        self, path: str, silence: float, opened: Callable[[], None]
    ) -> AsyncGenerator[Mapping[str, Any], None]:
        """Yield what changes, until the server ends it or says nothing for so many seconds.

        `opened` is called once the server has taken the watch. Raise Gone or ClusterUnavailable.
        """
        http, call = await self._prepared("GET", path)
        from firedoor.cluster.http import Unopened

        try:
            async with http.lines(call, MAX_OBJECT, _SECONDS) as lines, aclosing(lines.until_silent(silence)) as said:
                opened()
                async for line in said:
                    yield await asyncio.to_thread(self._read, line)
        except Unopened as error:
            raise self._failure(error.status, "GET", path) from None
        except TimeoutError:
            raise self._unavailable(f"it did not answer within {_SECONDS:.0f} s") from None
        except OSError as error:
            raise self._unavailable(str(error)) from None

    async def _call(
        self, method: str, path: str, body: object = None, *, most: int = _MAX_ANSWER
    ) -> Mapping[str, Any] | None:
        http, call = await self._prepared(method, path, body)
        from firedoor.cluster.http import TooLong

        try:
            async with asyncio.timeout(_SECONDS):
                status, data = await http.fetch(call, most)
        except TooLong as error:
            raise AnswerTooLong(self.said(str(error))) from None
        except TimeoutError:
            raise self._unavailable(f"it did not answer within {_SECONDS:.0f} s") from None
        except OSError as error:
            raise self._unavailable(str(error)) from None
        if status == _NOT_FOUND and method != "POST":
            return None
        if status not in _OK:
            raise self._failure(status, method, path)
        return await asyncio.to_thread(self._read, data)

    async def _prepared(self, method: str, path: str, body: object = None) -> tuple[Http, Call]:
        """Return what asks, and what is asked as who we are now. Raise ClusterUnavailable."""
        if self._http is None:
            await asyncio.to_thread(importlib.import_module, "firedoor.cluster.http")
        from firedoor.cluster.http import Call, Http

        if self._http is None:
            self._http = Http()
        try:
            token, context = await asyncio.to_thread(self._credentials)
            url = self._access.address() + path
        except AccessUnusable as error:
            raise self._unavailable(str(error)) from None
        return self._http, Call(method, url, token, context, self._access.server_name or None, body)

    def _credentials(self) -> tuple[str, ssl.SSLContext]:
        """Return both as they are now. A context that stays is one whose connections are used again."""
        roots = self._access.roots()
        if self._context is None or self._context[0] != roots:
            self._context = (roots, self._access.trusting(roots))
        return self._access.bearer(), self._context[1]

    def _failure(self, status: int, method: str, path: str) -> ClusterUnavailable:
        if status == _GONE:
            return Gone(self.said("it has forgotten what it was asked to go on from"))
        if status == _CONFLICT:
            return WrittenMeanwhile(self.said("somebody else has written it meanwhile"))
        if status in (401, 403):
            return self._unavailable(f"it answers {status}: {self._right(method, path.partition('?')[0])}")
        return self._unavailable(f"it answers {status}")

    def _read(self, data: bytes) -> Mapping[str, Any]:
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            raise self._unavailable("its answer is no JSON") from None
        if not isinstance(found, dict):
            raise self._unavailable("its answer is no object")
        return found

    def _unavailable(self, why: str) -> ClusterUnavailable:
        return ClusterUnavailable(self.said(why))

    def said(self, why: str) -> str:
        """Say something of this server, so that it is clear which."""
        return f"{self._who}: {why}"
