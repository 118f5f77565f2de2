# SPDX-License-Identifier: Apache-2.0
"""A federation relationship: another trust domain, where its bundle is, and what the endpoint must prove. Pure.

The trust domain is named, never taken from the URL (SPIFFE_Federation.md 5.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

from firedoor.broker.errors import InvalidRequest
from firedoor.certs import SpiffeId, SpiffeIdError, TrustDomain
from firedoor.wire import types

MAX_URL: Final = 2048
_HTTPS: Final = 443


@dataclass(frozen=True, slots=True)
class Relationship:
    """One relationship. `endpoint_id` is whom the endpoint must prove to be (https_spiffe); None is https_web."""

    trust_domain: TrustDomain
    url: str
    endpoint_id: SpiffeId | None
    # https_web: CAs instead of the system's. SPIRE's API has no field for it; it comes from a file of ours.
    ca_file: Path | None = None
    # What made it, when nobody did by hand: kubernetes:<cluster>/<kind>/<name>.
    origin: str = ""

    def message(self) -> types.FederationRelationship:
        """Return it as SPIRE's message, without the bundle."""
        made = types.FederationRelationship(trust_domain=self.trust_domain.name, bundle_endpoint_url=self.url)
        if self.endpoint_id is None:
            made.https_web.SetInParent()
        else:
            made.https_spiffe.endpoint_spiffe_id = str(self.endpoint_id)
        return made


def parse_relationship(message: types.FederationRelationship) -> Relationship:
    """Check a relationship from the wire. Raise InvalidRequest with SPIRE's sentences."""
    try:
        trust_domain = TrustDomain.parse(message.trust_domain.removeprefix("spiffe://"))
    except SpiffeIdError as error:
        raise InvalidRequest(f"failed to parse trust domain: {error}") from None
    check_url(message.bundle_endpoint_url)
    match message.WhichOneof("bundle_endpoint_profile"):
        case "https_web":
            return Relationship(trust_domain, message.bundle_endpoint_url, None)
        case "https_spiffe":
            return Relationship(trust_domain, message.bundle_endpoint_url, _endpoint_id(message.https_spiffe))
        case _:
            raise InvalidRequest("unsupported bundle endpoint profile type: https_web or https_spiffe is needed")


def check_url(text: str) -> SplitResult:
    """Return a bundle endpoint's URL in its parts. Raise InvalidRequest."""
    if len(text) > MAX_URL or not text.isascii() or any(char <= " " for char in text):
        raise InvalidRequest("failed to parse bundle endpoint URL: it is too long, or holds what no URL may")
    try:
        url = urlsplit(text)
        _ = url.port
    except ValueError:
        raise InvalidRequest("failed to parse bundle endpoint URL") from None
    if url.scheme != "https":
        raise InvalidRequest("bundle endpoint URL must use the https scheme")
    if not url.hostname:
        raise InvalidRequest("bundle endpoint URL must specify the host")
    if url.username is not None or url.password is not None:
        raise InvalidRequest("bundle endpoint URL must not contain user info")
    return url


def address(url: SplitResult) -> str:
    """Return host and port to connect to."""
    host = url.hostname or ""
    return f"{f'[{host}]' if ':' in host else host}:{url.port or _HTTPS}"


def _endpoint_id(profile: types.HTTPSSPIFFEProfile) -> SpiffeId:
    try:
        return SpiffeId.parse(profile.endpoint_spiffe_id)
    except SpiffeIdError as error:
        raise InvalidRequest(f"failed to parse endpoint SPIFFE ID: {error}") from None
