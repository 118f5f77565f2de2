# SPDX-License-Identifier: Apache-2.0
"""HTTP over verified TLS with a token, for `api`: aiohttp is loaded only where a cluster is asked.

Nothing is followed, and no more is read than the caller allows. What goes wrong is an OSError without any header.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import aiohttp

from firedoor.cluster.sockets import Sockets

_CONNECT_SECONDS: Final = 10.0
# A watch holds one for as long as it lasts: there are some dozen kinds, and others are to be asked meanwhile.
_CONNECTIONS: Final = 48
_OK: Final = 200


class TooLong(OSError):
    """An answer, or a line of one, has more bytes than it may."""


class Unopened(OSError):
    """An answer that should have lines has another status than 200."""

    def __init__(self, status: int) -> None:
        super().__init__(f"it answers {status}")
        self.status = status


@dataclass(frozen=True, slots=True)
class Call:
    """What is asked of whom, as whom. `name` is whose certificate it shows, if not that of the URL's host."""

    method: str
    url: str
    token: str
    context: ssl.SSLContext
    name: str | None = None
    # In JSON. A list is a patch of operations (RFC 6902), an object what is to be merged (RFC 7386).
    body: object = None

    def headers(self) -> dict[str, str]:
        """Return them; the token is among them."""
        found = {"Authorization": f"Bearer {self.token}", "Accept": "application/json", "User-Agent": "firedoor"}
        if self.method == "PATCH":
            form = "merge-patch" if isinstance(self.body, Mapping) else "json-patch"
            found["Content-Type"] = f"application/{form}+json"
        return found


class Http:
    """Connections that are used again. `close` when done."""

    def __init__(self) -> None:
        self._sockets = Sockets()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=_CONNECTIONS, socket_factory=self._sockets),
            cookie_jar=aiohttp.DummyCookieJar(),
            # Each call has a deadline of its own; a watch lasts.
            timeout=aiohttp.ClientTimeout(total=None, connect=_CONNECT_SECONDS),
        )

    async def close(self) -> None:
        """Close what is open."""
        await self._session.close()
        await self._sockets.end()

    async def fetch(self, call: Call, most: int) -> tuple[int, bytes]:
        """Return status and body of at most so many bytes. Raise OSError."""
        async with self._answer(call) as answer:
            data = bytearray()
            async for chunk in answer.content.iter_any():
                data += chunk
                if len(data) > most:
                    raise TooLong(f"its answer is longer than {most >> 20} MiB")
            return answer.status, bytes(data)

    @asynccontextmanager
    async def lines(self, call: Call, most: int, seconds: float) -> AsyncIterator[Lines]:
        """Ask for lines of at most so many bytes. Raise OSError, TimeoutError without a status in time."""
        async with self._answer(call, seconds) as answer:
            if answer.status != _OK:
                raise Unopened(answer.status)
            yield Lines(answer.content, most)

    @asynccontextmanager
    async def _answer(self, call: Call, seconds: float | None = None) -> AsyncIterator[aiohttp.ClientResponse]:
        """Ask; `seconds`: until there is a status, and none for a caller who has a deadline."""
        asked = self._session.request(
            call.method,
            call.url,
            json=call.body,
            headers=call.headers(),
            ssl=call.context,
            server_hostname=call.name,
            allow_redirects=False,
        )
        try:
            # A connection that is used again may lead to somebody who is gone without a word.
            async with asyncio.timeout(seconds):
                answer = await asked
            async with answer:
                yield answer
        except aiohttp.ClientConnectorCertificateError as error:
            raise OSError(f"its certificate does not verify: {_why(error.certificate_error)}") from None
        except (aiohttp.ClientError, ssl.SSLError) as error:
            # The texts of aiohttp hold addresses, never headers; of those of others the kind is enough.
            raise OSError(f"it cannot be asked ({type(error).__name__})") from None


class Lines:
    """What comes of an answer, line by line."""

    def __init__(self, content: aiohttp.StreamReader, most: int) -> None:
        self._content, self._most = content, most
        self._data = bytearray()

    async def until_silent(self, seconds: float) -> AsyncGenerator[bytes, None]:
        """Yield those that are not empty, until the server ends or nothing comes for so long. Raise OSError."""
        while True:
            try:
                async with asyncio.timeout(seconds):
                    chunk = await self._content.readany()
            except TimeoutError:
                return
            if not chunk:
                return
            for line in self._whole(chunk):
                yield line

    def _whole(self, chunk: bytes) -> list[bytes]:
        """Take a chunk; return the lines that it ends."""
        self._data += chunk
        # What is long is not looked through with each chunk.
        if b"\n" not in chunk:
            if len(self._data) > self._most:
                raise TooLong("a line of its answer is longer than an object can be")
            return []
        *found, rest = self._data.split(b"\n")
        self._data = bytearray(rest)
        return [bytes(line) for line in found if line]


def _why(error: Exception) -> str:
    return error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else type(error).__name__
