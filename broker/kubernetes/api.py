# SPDX-License-Identifier: Apache-2.0
"""As much of a cluster's API as a broker needs: a token reviewed, objects read, written and watched.

Credentials are files, as kubelets renew them: what is in them counts at each call. Nothing is followed, and no more is
read than an object can have. No error holds a token.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from firedoor.broker.errors import AnswerTooLong, ClusterUnavailable, ConfigError, Gone, WrittenMeanwhile
from firedoor.broker.files import stamp
from firedoor.broker.read_files import read_capped

# Where a pod finds what its own cluster gave it.
IN_CLUSTER: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_SECONDS: Final = 10.0
# etcd takes objects of 1.5 MiB.
_MAX_ANSWER: Final = 2 * 1024 * 1024
# Of objects that others wrote: in JSON a byte of theirs is six where it is escaped.
MAX_OBJECT: Final = 16 * 1024 * 1024
_CONNECTIONS: Final = 16
_OK: Final = (200, 201)
_NOT_FOUND: Final = 404
_CONFLICT: Final = 409
_GONE: Final = 410
# Steps of the path of a kind of the core API in all namespaces: `/api/v1/pods`.
_LISTED: Final = 3


@dataclass(frozen=True, slots=True)
class ApiAccess:
    """Where a cluster's API server is, and as whom we come."""

    # Empty: the cluster that this broker runs in.
    server: str
    ca: Path
    token: Path

    def address(self) -> str:
        """Return the server's URL. Raise ConfigError."""
        if self.server:
            return self.server.rstrip("/")
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "")
        if not host or not port:
            raise ConfigError("`server` is missing, and this broker runs in no pod, which would say where its own is")
        return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"

    def check(self, setting: str) -> None:
        """Read what is needed, as it is now. Raise ConfigError."""
        try:
            self.address()
            self.context()
            self.bearer()
        except ConfigError as error:
            raise ConfigError(f"{setting}: {error}") from None

    def context(self) -> ssl.SSLContext:
        """Trust the cluster's CA, and nobody else. Raise ConfigError."""
        try:
            text = read_capped("ca", self.ca).decode("ascii")
            # Without a text it would trust what the system trusts.
            if "-----BEGIN" not in text:
                raise ValueError("empty")
            context = ssl.create_default_context(cadata=text)
        except (ssl.SSLError, ValueError):
            raise ConfigError(f"ca: {self.ca} holds no certificates in PEM") from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context

    def bearer(self) -> str:
        """Return our own token. Raise ConfigError."""
        text = read_capped("token", self.token).strip()
        if not text or not text.isascii() or len(text.split()) != 1:
            raise ConfigError(f"token: {self.token} holds no token: one word is expected")
        return text.decode("ascii")


class ClusterApi:
    """One cluster's API server. `close` when done."""

    def __init__(self, name: str, access: ApiAccess) -> None:
        self._name, self._access = name, access
        self._context: tuple[object, ssl.SSLContext] | None = None
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close what is open."""
        if self._session is not None:
            await self._session.close()

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

    async def watch(self, path: str, seconds: int) -> AsyncIterator[Mapping[str, Any]]:
        """Yield what changes, for so long at most. Raise Gone or ClusterUnavailable."""
        try:
            async with self._request("GET", path, None, await self._head()) as answer:
                if answer.status != _OK[0]:
                    raise self._failure(answer.status, "GET", path)
                # An API server that is gone without a word is found out by its silence.
                lines = _lines(answer.content, seconds + _SECONDS)
                async for line in lines:
                    yield await asyncio.to_thread(self._read, line)
        except TimeoutError:
            raise self._unavailable("it fell silent") from None
        except _TooLong:
            raise self._unavailable("its answer is longer than an object can be") from None
        except (aiohttp.ClientError, OSError) as error:
            raise self._unavailable(f"the watch ended ({type(error).__name__})") from None

    async def _head(self) -> tuple[str, ssl.SSLContext]:
        """Return our credentials as they are now. Raise ClusterUnavailable."""
        try:
            return await asyncio.to_thread(self._credentials)
        except ConfigError as error:
            raise self._unavailable(str(error)) from None

    async def _call(
        self, method: str, path: str, body: object = None, *, most: int = _MAX_ANSWER
    ) -> Mapping[str, Any] | None:
        try:
            async with asyncio.timeout(_SECONDS):
                return await self._asked(method, path, body, await self._head(), most)
        except TimeoutError:
            raise self._unavailable(f"it did not answer within {_SECONDS:.0f} s") from None
        except ConfigError as error:
            raise self._unavailable(str(error)) from None
        except (aiohttp.ClientError, OSError) as error:
            # The texts of aiohttp hold addresses, never headers; of those of others the kind is enough.
            raise self._unavailable(f"it cannot be asked ({type(error).__name__})") from None

    def _request(
        self, method: str, path: str, body: object, head: tuple[str, ssl.SSLContext]
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=_CONNECTIONS),
                cookie_jar=aiohttp.DummyCookieJar(),
                # Each caller has a deadline of its own; a watch lasts.
                timeout=aiohttp.ClientTimeout(total=None, connect=_SECONDS),
            )
        headers = {"Authorization": f"Bearer {head[0]}", "Accept": "application/json", "User-Agent": "firedoor"}
        if method == "PATCH":
            # A list is of operations, RFC 6902; an object is what is to be merged, RFC 7386.
            form = "merge-patch" if isinstance(body, Mapping) else "json-patch"
            headers["Content-Type"] = f"application/{form}+json"
        url = self._access.address() + path
        return self._session.request(method, url, json=body, headers=headers, ssl=head[1], allow_redirects=False)

    async def _asked(
        self, method: str, path: str, body: object, head: tuple[str, ssl.SSLContext], most: int
    ) -> Mapping[str, Any] | None:
        async with self._request(method, path, body, head) as answer:
            if answer.status == _NOT_FOUND and method != "POST":
                return None
            if answer.status not in _OK:
                raise self._failure(answer.status, method, path)
            data = b""
            async for chunk in answer.content.iter_any():
                data += chunk
                if len(data) > most:
                    raise AnswerTooLong(self._said(f"its answer is longer than {most >> 20} MiB"))
        return await asyncio.to_thread(self._read, data)

    def _failure(self, status: int, method: str, path: str) -> ClusterUnavailable:
        if status == _GONE:
            return Gone(f"the API server of cluster {self._name} has forgotten what it was asked to go on from")
        if status == _CONFLICT:
            return WrittenMeanwhile(f"the API server of cluster {self._name}: somebody else has written it meanwhile")
        return self._unavailable(_refusal(status, method, path.partition("?")[0]))

    def _read(self, data: bytes) -> Mapping[str, Any]:
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            raise self._unavailable("its answer is no JSON") from None
        if not isinstance(found, dict):
            raise self._unavailable("its answer is no object")
        return found

    def _credentials(self) -> tuple[str, ssl.SSLContext]:
        seen = stamp(self._access.ca)
        if self._context is None or self._context[0] != seen:
            self._context = (seen, self._access.context())
        return self._access.bearer(), self._context[1]

    def _unavailable(self, why: str) -> ClusterUnavailable:
        return ClusterUnavailable(self._said(why))

    def _said(self, why: str) -> str:
        return f"the API server of cluster {self._name}: {why}"


class _TooLong(Exception):
    """A line of a watch does not end."""


async def _lines(content: aiohttp.StreamReader, seconds: float) -> AsyncIterator[bytes]:
    """Split what comes into lines, each within so many seconds. Raise TimeoutError or _TooLong."""
    data = bytearray()
    while True:
        async with asyncio.timeout(seconds):
            chunk = await content.readany()
        if not chunk:
            return
        data += chunk
        # What is long is not looked through with each chunk.
        if b"\n" in chunk:
            *whole, rest = data.split(b"\n")
            for line in whole:
                if line:
                    yield bytes(line)
            data = bytearray(rest)
        if len(data) > MAX_OBJECT:
            raise _TooLong


def _refusal(status: int, method: str, path: str) -> str:
    if status not in (401, 403):
        return f"it answers {status}"
    plural = _plural(path)
    verb = {"GET": "read", "POST": "create", "PATCH": "change", "DELETE": "delete"}[method]
    if path.endswith("/status"):
        verb = "write the status of"
    what = "review tokens" if plural == "tokenreviews" else f"{verb} {plural}"
    # Who attests reads objects by their names; who follows a kind lists it.
    named = len(path.strip("/").split("/")) > _LISTED
    where = "docs/nodes.md" if method == "GET" and path.startswith("/api/v1/") and named else "docs/kubernetes.md"
    where = "docs/nodes.md" if plural == "tokenreviews" else where
    return f"it answers {status}: the broker's service account may not {what} ({where} has the ClusterRole)"


def _plural(path: str) -> str:
    """Return what a path leads to, in the API's word: `/api/v1/pods`, `/apis/<group>/<version>/flows/<name>`."""
    parts = path.strip("/").split("/")[2 if path.startswith("/api/") else 3 :]
    if not parts:
        return "which kinds there are"
    # Objects of a namespace are named below it.
    return parts[2] if parts[0] == "namespaces" and len(parts) > 2 else parts[0]
