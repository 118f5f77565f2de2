# SPDX-License-Identifier: Apache-2.0
"""Fetches bundles from other trust domains' bundle endpoints (SPIFFE_Federation.md 5.2).

https_web goes by the WebPKI and the host's name. https_spiffe goes by the endpoint's SPIFFE ID and the bundle of *its*
trust domain that we hold now: the core's one verifier checks it, so that no other root can vouch for it. Nobody is told
who we are. Temporary redirects are followed a few times, each target checked like the first; none is remembered.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin

import aiohttp

from firedoor import mtls
from firedoor.broker.errors import EndpointError, InvalidRequest
from firedoor.broker.relationship import Relationship, address, check_url
from firedoor.certs import BundleError, SpiffeId, TrustBundle
from firedoor.certs.bundle import MAX_BUNDLE_BYTES

if TYPE_CHECKING:
    from firedoor.broker.state import State

_SECONDS: Final = 30
_REDIRECTS: Final = 3
_TEMPORARY: Final = (302, 303, 307)


class Fetcher:
    """Fetches one bundle at a time a call. `close` when done."""

    def __init__(self, state: State) -> None:
        self._state = state
        # Of its own: what is trusted here for an endpoint must not open the broker's front to anybody.
        self._core: mtls.Core | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="firedoor-federation-")
        self._number = 0

    def close(self) -> None:
        """Close what is open."""
        if self._core is not None:
            self._core.stop()
        self._folder.cleanup()

    async def fetch(self, one: Relationship) -> TrustBundle:
        """Return the bundle that the endpoint serves now. Raise EndpointError."""
        try:
            async with asyncio.timeout(_SECONDS):
                text = await self._get(one)
            return TrustBundle.parse(one.trust_domain, text)
        except TimeoutError:
            raise EndpointError(f"{one.url} does not answer within {_SECONDS} s") from None
        except BundleError as error:
            raise EndpointError(f"what {one.url} serves cannot be used: {error}") from None

    async def _get(self, one: Relationship) -> bytes:
        url = one.url
        for _ in range(_REDIRECTS + 1):
            try:
                check_url(url)
            except InvalidRequest as error:
                raise EndpointError(f"{one.url} redirects to what is no bundle endpoint: {error}") from None
            async with self._session(url, one.endpoint_id) as session:
                answer = await _answer(session, url)
            if isinstance(answer, bytes):
                return answer
            url = answer
        raise EndpointError(f"{one.url} redirects more than {_REDIRECTS} times")

    @contextlib.asynccontextmanager
    async def _session(self, url: str, endpoint_id: SpiffeId | None) -> AsyncIterator[aiohttp.ClientSession]:
        if endpoint_id is None:
            context = ssl.create_default_context()
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
                yield session
            return
        tunnel = self._connector(url, endpoint_id)
        try:
            async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(tunnel.path)) as session:
                try:
                    yield session
                except aiohttp.ClientError as error:
                    raise EndpointError(f"{url}: {tunnel.last_error() or error}") from None
        finally:
            tunnel.stop()

    def _connector(self, url: str, endpoint_id: SpiffeId) -> mtls.Connector:
        """Open a private socket behind which the endpoint has proved its ID."""
        if self._core is None:
            self._core = mtls.Core(data_threads=1)
        bundle = self._state.bundles.get(endpoint_id.trust_domain)
        if bundle is None or not bundle.x509_roots:
            raise EndpointError(
                f"there is no bundle of {endpoint_id.trust_domain} to verify {endpoint_id} with: set it first"
            )
        # All bundles, for other fetches run at the same time; the verifier takes the one of the ID's trust domain.
        roots = {td.name: [r.der for r in each.x509_roots] for td, each in self._state.bundles.items()}
        self._number += 1
        try:
            self._core.publish(mtls.Material(trust_domain=self._state.trust_domain.name, bundles=roots, svids=[]))
            return self._core.connector(
                path=str(Path(self._folder.name) / f"{self._number}.sock"),
                addresses=[address(check_url(url))],
                expect=str(endpoint_id),
                alpn="http/1.1",
            )
        except mtls.MtlsError as error:
            raise EndpointError(f"{url} cannot be asked: {error}") from None


async def _answer(session: aiohttp.ClientSession, url: str) -> bytes | str:
    """Return the bundle's text, or the URL that it is at for now. Raise EndpointError."""
    # Behind a connector TLS is done already.
    plain = isinstance(session.connector, aiohttp.UnixConnector)
    asked = url.replace("https://", "http://", 1) if plain else url
    try:
        async with session.get(asked, allow_redirects=False) as response:
            if response.status in _TEMPORARY and "Location" in response.headers:
                return urljoin(url, response.headers["Location"])
            if response.status != 200:
                raise EndpointError(f"{url} answers {response.status} {response.reason or ''}".rstrip())
            return await _bounded(response.content, url)
    except aiohttp.ClientError as error:
        if plain:
            raise
        raise EndpointError(f"{url}: {error}") from None
    except OSError as error:
        raise EndpointError(f"{url}: {error}") from None


async def _bounded(content: aiohttp.StreamReader, url: str) -> bytes:
    data = bytearray()
    async for chunk in content.iter_chunked(65536):
        data += chunk
        if len(data) > MAX_BUNDLE_BYTES:
            raise EndpointError(f"{url} serves more than {MAX_BUNDLE_BYTES} bytes")
    return bytes(data)
