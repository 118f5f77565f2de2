# SPDX-License-Identifier: Apache-2.0
"""The nonce of http_challenge, served at the one path where the server looks for it, while this node attests.

It listens for those moments alone, and answers GET for that path alone. Whoever asks learns a nonce that has a meaning
in one attestation, which is ours.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import ClassVar

from firedoor.certs import HTTP_CHALLENGE, CertsError, HttpChallenge, HttpNode
from firedoor.segments.setting_values import split_host_port
from firedoor.sidecar.errors import AttestationRefused, ChallengeNotServed
from firedoor.sidecar.evidence import Shown
from firedoor.sidecar.short_talks import ShortTalks

REQUEST_SECONDS = 5.0
# The server asks once. Others may knock; this many at once have our time.
CONNECTIONS = 16
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True, slots=True)
class HttpNonce:
    """Where the server finds us, and where we listen: the same port, unless something before us passes it on."""

    node: HttpNode
    listen: str
    kind: ClassVar[str] = HTTP_CHALLENGE
    # Most servers take a host once; the agent's SVID must outlive a restart.
    again: ClassVar[bool] = False

    @property
    def advice(self) -> str:
        """Say what to look at."""
        return (
            f"http://{self.node.hostname}:{self.node.port} must lead from the server to {self.listen} "
            "(http_challenge.listen); a host that has attested before is evicted with `firedoor agent evict`"
        )

    def show(self, _: float) -> Shown:
        """Say who we are."""
        server = NonceServer(self.node.path)
        return Shown(self.node.message(), server.take, lambda: server.serving(self.listen))


class NonceServer(ShortTalks):
    """Serves one nonce, once there is one."""

    def __init__(self, path: str) -> None:
        super().__init__(CONNECTIONS)
        self._request = f"GET {path} ".encode()
        self._nonce: str | None = None

    def take(self, challenge: bytes) -> bytes:
        """Take the server's nonce and return the answer, which says that it can be had. Raise AttestationRefused."""
        try:
            self._nonce = HttpChallenge.read(challenge).nonce
        except CertsError as error:
            raise AttestationRefused(f"the server's challenge cannot be answered: {error}") from error
        # SPIRE takes anything but nothing.
        return b"\n"

    @contextlib.asynccontextmanager
    async def serving(self, listen: str) -> AsyncIterator[None]:
        """Listen while the context is open. Raise ChallengeNotServed."""
        host, port = split_host_port(listen)
        try:
            server = await self._listen(host, port)
        except OSError as error:
            what = f"{listen} cannot be listened on: {error.strerror}"
            raise ChallengeNotServed(f"http_challenge.listen: {what}") from error
        try:
            yield
        finally:
            self._close(server)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(REQUEST_SECONDS):
            writer.write(self._answer(await reader.readuntil(b"\r\n\r\n")))
            await writer.drain()

    def _answer(self, head: bytes) -> bytes:
        if self._nonce is None or not head.startswith(self._request):
            return NOT_FOUND
        body = f"{self._nonce}\n"
        lines = ("HTTP/1.1 200 OK", "Content-Type: text/plain", f"Content-Length: {len(body)}", "Connection: close")
        return "\r\n".join((*lines, "", body)).encode()
