# SPDX-License-Identifier: Apache-2.0
"""GET over verified TLS with a token, for `pod_source`: aiohttp is loaded only where pods are asked for."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp

_CONNECT_SECONDS = 10.0
_OK = 200


class AnswerTooLong(OSError):
    """An answer, or a line of one, has more bytes than it may."""


class StatusRefused(OSError):
    """An answer that should have lines has another status than 200."""

    def __init__(self, status: int) -> None:
        super().__init__(f"it answers {status}")
        self.status = status


@dataclass(frozen=True, slots=True)
class Call:
    """Whom to ask for what, as whom; `name` is whose certificate it shows, if not that of the URL."""

    http: aiohttp.ClientSession
    url: str
    token: str
    context: ssl.SSLContext
    name: str | None

    @asynccontextmanager
    async def answer(self) -> AsyncIterator[aiohttp.ClientResponse]:
        """Ask. Raise OSError, with the reason and no header."""
        headers = {"Authorization": f"Bearer {self.token}", "Accept": "application/json", "User-Agent": "firedoor"}
        try:
            async with self.http.get(
                self.url, headers=headers, ssl=self.context, server_hostname=self.name, allow_redirects=False
            ) as answer:
                yield answer
        except aiohttp.ClientConnectorCertificateError as error:
            raise OSError(f"its certificate does not verify: {_why(error.certificate_error)}") from None
        except (aiohttp.ClientError, ssl.SSLError) as error:
            # The texts of aiohttp hold addresses, never headers; of those of others the kind is enough.
            raise OSError(f"it cannot be asked ({type(error).__name__})") from None


def session() -> aiohttp.ClientSession:
    """Return a session without cookies; each call has its own deadline."""
    return aiohttp.ClientSession(
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, connect=_CONNECT_SECONDS),
    )


async def fetch(call: Call, most: int) -> tuple[int, bytes]:
    """Return status and body of at most so many bytes. Raise OSError."""
    async with call.answer() as answer:
        data = bytearray()
        async for chunk in answer.content.iter_any():
            data += chunk
            if len(data) > most:
                raise AnswerTooLong(f"its answer is longer than {most >> 20} MiB")
        return answer.status, bytes(data)


async def lines(call: Call, most: int, seconds: float) -> AsyncIterator[bytes]:
    """Yield lines of at most so many bytes, each within so many seconds. Raise OSError or TimeoutError."""
    async with call.answer() as answer:
        if answer.status != _OK:
            raise StatusRefused(answer.status)
        data = bytearray()
        while True:
            async with asyncio.timeout(seconds):
                chunk = await answer.content.readany()
            if not chunk:
                return
            data += chunk
            *whole, rest = data.split(b"\n")
            for line in whole:
                if line:
                    yield bytes(line)
            data = bytearray(rest)
            if len(data) > most:
                raise AnswerTooLong("a line of its answer is longer than an object can be")


def _why(error: Exception) -> str:
    return error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else type(error).__name__
