# SPDX-License-Identifier: Apache-2.0
"""Listeners with TLS for documents that anybody may have.

The front in Rust ends TLS and bounds who comes; behind it one small server answers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from firedoor import mtls
from firedoor.broker.bundle_endpoint import PATH, BundlePage
from firedoor.broker.errors import ConfigError, StorageError
from firedoor.broker.http import Answer, HttpServer, Request
from firedoor.broker.oidc import Discovery
from firedoor.broker.web_certificate import CertificateFiles
from firedoor.certs import SpiffeId

if TYPE_CHECKING:
    from firedoor.broker.config import Config
    from firedoor.broker.state import State

_log = logging.getLogger("firedoor.broker.web")

Page = Callable[[Request], Answer]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a listener is, and by what it is known: files of the web's PKI, or our own SVID without any."""

    listen: str
    files: CertificateFiles | None = None

    @property
    def profile(self) -> str:
        """As SPIFFE_Federation.md 5.2 names it."""
        return "https_web" if self.files else "https_spiffe"


def planned(config: Config, state: State) -> dict[Endpoint, dict[str, Page]]:
    """Return which documents are at which listener."""
    found: dict[Endpoint, dict[str, Page]] = {}
    if (bundle := config.bundle_endpoint) is not None:
        found.setdefault(bundle.endpoint, {})[PATH] = BundlePage(state, bundle.refresh_hint)
    if (oidc := config.oidc) is not None:
        found.setdefault(oidc.endpoint, {}).update(Discovery(state, oidc.issuer, oidc.domains).pages())
    return found


class Site:
    """One listener. `open`, then `stop` once; `poll` now and then."""

    def __init__(self, endpoint: Endpoint, pages: Mapping[str, Page], core: mtls.Core, as_id: SpiffeId) -> None:
        self._endpoint, self._pages, self._core, self._as_id = endpoint, pages, core, as_id
        self._server = HttpServer(self._answer)
        self._front: mtls.WebFront | None = None
        self._stamp: object = None
        self.address = ""

    async def open(self) -> None:
        """Listen. Raise ConfigError, StorageError or MtlsError."""
        backend, files = mtls.private_address(), self._endpoint.files
        shown: dict[str, object] = {"as_id": str(self._as_id)}
        if files is not None:
            self._stamp = files.stamp()
            found = await asyncio.to_thread(files.read)
            shown = {"certificate": (found.chain, found.key)}
        try:
            await self._server.listen_privately(backend)
        except OSError as error:
            raise StorageError("a private address cannot be opened") from error
        self._front = self._core.web_front(listen=self._endpoint.listen, backend=backend, **shown)  # type: ignore[arg-type]
        self.address = self._front.address

    async def poll(self) -> None:
        """Serve with the files as they are now, if they have changed."""
        files = self._endpoint.files
        if files is None or self._front is None or (stamp := await asyncio.to_thread(files.stamp)) == self._stamp:
            return
        self._stamp = stamp
        try:
            found = await asyncio.to_thread(files.read)
            self._front.set_certificate(found.chain, found.key)
        except (ConfigError, mtls.ListenError) as error:
            _log.error("the certificate of %s stays as it was: %s", self.address, error)
        else:
            _log.info("%s serves with the certificate that is in %s now", self.address, files.certificate)

    async def stop(self) -> None:
        """Close the listener."""
        if self._front is not None:
            self._front.stop()
        await self._server.stop()

    def _answer(self, request: Request) -> Answer:
        page = self._pages.get(request.path)
        return page(request) if page else Answer(404, b"there is nothing here\n")
