# SPDX-License-Identifier: Apache-2.0
"""OpenID Connect discovery for JWT-SVIDs: where relying parties without SPIFFE find our keys.

    https://ISSUER/.well-known/openid-configuration
    https://ISSUER/keys

The documents are those of SPIRE's provider. The issuer comes from the configuration, never from the request: whoever
could choose it would have their own keys taken for ours. A request that names another host is refused, so that nobody's
page of that name can be ours by accident.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from firedoor.broker.bundle_endpoint import document, unless_known
from firedoor.broker.http import Answer, Request
from firedoor.certs import TrustBundle

if TYPE_CHECKING:
    from firedoor.broker.sites import Page
    from firedoor.broker.state import State

WELL_KNOWN: Final = "/.well-known/openid-configuration"
KEYS: Final = "/keys"
_MAX_ISSUER: Final = 2000
_PATH: Final = re.compile(r"(/[A-Za-z0-9._~-]+)*")
# SPIRE's: keys are looked at again each time, or a revoked one would live on in caches.
_CACHING: Final = "no-cache"
_ALGORITHMS: Final = ("RS256", "ES256", "ES384")


def read_issuer(text: str) -> str:
    """Take the URL of an issuer: https, no query, no fragment, no slash at its end. Raise ValueError.

    OpenID Connect Discovery 1.0 section 3 and 4.1; tokens and documents must agree on every character.
    """
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise ValueError("is no URL") from None
    # Written again from its parts, it is the same: nothing is in it that was not looked at.
    host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
    plain = f"https://{host}{f':{port}' if port is not None else ''}{url.path}"
    if not url.hostname or plain != text or not _PATH.fullmatch(url.path) or len(text) > _MAX_ISSUER:
        raise ValueError("must be https://HOST[:PORT][/PATH], in lower case, without a slash at its end")
    return text


class Discovery:
    """The two documents of one issuer. `domains` are the hosts that requests may name."""

    def __init__(self, state: State, issuer: str, domains: Collection[str]) -> None:
        self._state, self._domains = state, frozenset(domains)
        self._document = document(_discovery(issuer), _CACHING)
        self._prefix = urlsplit(issuer).path
        self._written: tuple[TrustBundle, Answer] | None = None

    def pages(self) -> Mapping[str, Page]:
        """Return what is at which path."""
        return {
            self._prefix + WELL_KNOWN: lambda request: self._answer(request, self._document),
            self._prefix + KEYS: lambda request: self._answer(request, self._keys()),
        }

    def _answer(self, request: Request, answer: Answer) -> Answer:
        if host_of(request) not in self._domains:
            return Answer(400, b"this host is not served\n")
        return unless_known(request, answer)

    def _keys(self) -> Answer:
        bundle = self._state.bundles.get(self._state.trust_domain)
        if bundle is None or not bundle.jwt_keys:
            return Answer(503, b"there is no key yet\n")
        if self._written is None or self._written[0] is not bundle:
            self._written = bundle, document(bundle.to_oidc_json(), _CACHING)
        return self._written[1]


def host_of(request: Request) -> str:
    """Return the host that a request names, without the port."""
    host = request.headers.get("host", "")
    name = host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0]
    return name.lower().strip("[]").removesuffix(".")


def _discovery(issuer: str) -> bytes:
    found = {
        "issuer": issuer,
        "jwks_uri": issuer + KEYS,
        # Required by OpenID Connect Discovery 1.0 section 3; nobody signs in here.
        "authorization_endpoint": "",
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": list(_ALGORITHMS),
    }
    return json.dumps(found, indent=2).encode()
