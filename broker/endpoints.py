# SPDX-License-Identifier: Apache-2.0
"""Fetches bundles from other trust domains' bundle endpoints (SPIFFE_Federation.md 5.2).

https_web goes by the WebPKI, or by CAs that the operator gave, and the host's name. https_spiffe goes by the SPIFFE ID
of the endpoint and the bundle of *its* trust domain that we hold now: the core's one verifier checks it, so that no
other root can vouch for it. Both speak TLS 1.3 alone, and nobody is told who we are.

Redirects are not followed, though 5.2.1.4 says that a client should: a page of that host which sends visitors elsewhere
would hand the naming of a whole trust domain to whoever it sends them to.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import aiohttp

from firedoor import mtls
from firedoor.broker.errors import EndpointError
from firedoor.broker.relationship import Relationship, address, check_url
from firedoor.certs import BundleError, SpiffeId, TrustBundle, TrustDomain
from firedoor.certs.bundle import MAX_BUNDLE_BYTES
from firedoor.cluster.sockets import Sockets

if TYPE_CHECKING:
    from firedoor.broker.state import State

# For all of it, so that an endpoint that sends a byte now and then is given up like one that says nothing.
_SECONDS: Final = 30
_OK: Final = 200
# What is compressed would have to be bounded twice.
_HEADERS: Final = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "firedoor"}


class Fetcher:
    """Fetches one bundle a call. `close` when done."""

    def __init__(self, state: State) -> None:
        self._state = state
        # Of its own: what is trusted here for an endpoint must not open the broker's front to anybody.
        self._core: mtls.Core | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="firedoor-federation-")
        self._number = 0
        # Trust domains whose endpoints are being asked: their bundles are in the core.
        self._asked: Counter[TrustDomain] = Counter()

    def close(self) -> None:
        """Close what is open."""
        if self._core is not None:
            self._core.stop()
        self._folder.cleanup()

    async def fetch(self, one: Relationship) -> TrustBundle:
        """Return the bundle that the endpoint serves now. Raise EndpointError."""
        try:
            async with asyncio.timeout(_SECONDS), self._session(one) as session:
                text = await _get(session, one)
            return TrustBundle.parse(one.trust_domain, text)
        except TimeoutError:
            raise EndpointError(f"{one.url} does not answer within {_SECONDS} s") from None
        except BundleError as error:
            raise EndpointError(f"what {one.url} serves cannot be used: {error}") from None

    @contextlib.asynccontextmanager
    async def _session(self, one: Relationship) -> AsyncIterator[aiohttp.ClientSession]:
        if one.endpoint_id is None:
            context, sockets = await asyncio.to_thread(_web_context, one), Sockets()
            try:
                async with _client(aiohttp.TCPConnector(ssl=context, socket_factory=sockets)) as session:
                    yield session
            finally:
                await sockets.end()
            return
        with self._connector(one, one.endpoint_id) as tunnel:
            async with _client(aiohttp.UnixConnector(tunnel.path)) as session:
                try:
                    yield session
                except aiohttp.ClientError as error:
                    raise EndpointError(f"{one.url}: {tunnel.last_error() or error}") from None

    @contextlib.contextmanager
    def _connector(self, one: Relationship, endpoint_id: SpiffeId) -> Iterator[mtls.Connector]:
        """Open a private socket behind which the endpoint has proved its ID."""
        trust_domain = endpoint_id.trust_domain
        bundle = self._state.bundles.get(trust_domain)
        if bundle is None or not bundle.x509_roots:
            raise EndpointError(f"there is no bundle of {trust_domain} to verify {endpoint_id} with: set it first")
        self._asked[trust_domain] += 1
        try:
            made = self._open(one, endpoint_id)
            try:
                yield made
            finally:
                made.stop()
        except mtls.MtlsError as error:
            raise EndpointError(f"{one.url} cannot be asked: {error}") from None
        finally:
            self._asked[trust_domain] -= 1

    def _open(self, one: Relationship, endpoint_id: SpiffeId) -> mtls.Connector:
        if self._core is None:
            self._core = mtls.Core(data_threads=1)
        own, bundles = self._state.trust_domain, self._state.bundles
        # Those of fetches that run at the same time; the verifier takes the one of the expected ID's trust domain.
        wanted = {own, *(trust_domain for trust_domain, count in self._asked.items() if count)}
        roots = {td.name: [root.der for root in bundles[td].x509_roots] for td in wanted if td in bundles}
        self._core.publish(mtls.Material(trust_domain=own.name, bundles=roots))
        self._number += 1
        return self._core.connector(
            path=str(Path(self._folder.name) / f"{self._number}.sock"),
            addresses=[address(check_url(one.url))],
            expect=str(endpoint_id),
            alpn="http/1.1",
        )


def _web_context(one: Relationship) -> ssl.SSLContext:
    """Return what verifies a server of the web. Raise EndpointError."""
    try:
        context = ssl.create_default_context(cafile=str(one.ca_file) if one.ca_file else None)
    except (OSError, ssl.SSLError) as error:
        raise EndpointError(f"the CAs in {one.ca_file} cannot be read: {error}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _client(connector: aiohttp.BaseConnector) -> aiohttp.ClientSession:
    jar = aiohttp.DummyCookieJar()
    return aiohttp.ClientSession(connector=connector, headers=_HEADERS, cookie_jar=jar, auto_decompress=False)


async def _get(session: aiohttp.ClientSession, one: Relationship) -> bytes:
    """Return the bundle's text. Raise EndpointError."""
    # Behind a connector TLS is done already.
    behind = isinstance(session.connector, aiohttp.UnixConnector)
    asked = one.url.replace("https://", "http://", 1) if behind else one.url
    try:
        async with session.get(asked, allow_redirects=False) as response:
            if response.status != _OK:
                raise EndpointError(f"{one.url} answers {response.status} {response.reason or ''}".rstrip())
            return await _bounded(response.content, one.url)
    except aiohttp.ClientError as error:
        if behind:
            raise
        raise EndpointError(f"{one.url}: {error}") from None
    except OSError as error:
        raise EndpointError(f"{one.url}: {error}") from None


async def _bounded(content: aiohttp.StreamReader, url: str) -> bytes:
    data = bytearray()
    async for chunk in content.iter_chunked(65536):
        data += chunk
        if len(data) > MAX_BUNDLE_BYTES:
            raise EndpointError(f"{url} serves more than {MAX_BUNDLE_BYTES} bytes")
    return bytes(data)
