# SPDX-License-Identifier: Apache-2.0
"""Keeps `caBundle` of the cluster's webhook configuration at what our trust bundle is.

A new authority is in the bundle before anything is signed by it, so that API servers know it in time.
"""

from __future__ import annotations

import base64
import logging
import ssl
from collections.abc import Mapping, Sequence
from typing import Any, Final

from firedoor.cluster.api import ClusterApi
from firedoor.cluster.errors import ClusterUnavailable

_log = logging.getLogger("firedoor.broker.injector")
_PATH: Final = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/"
# Seconds after which it is looked at again, whoever changed it; and when it could not be written.
_EVERY: Final = 30
_AGAIN: Final = 5


class CaBundle:
    """Writes it when the roots have changed, and looks after it now and then."""

    def __init__(self, api: ClusterApi, name: str) -> None:
        self._api, self._name = api, name
        self._written: tuple[bytes, ...] = ()
        self._tried: tuple[bytes, ...] = ()
        self._due = 0

    async def poll(self, roots: Sequence[bytes], now: int) -> None:
        """See to it, when it is time. Raise ClusterUnavailable."""
        if now < self._due and tuple(roots) in (self._written, self._tried):
            return
        self._due, self._tried = now + _AGAIN, tuple(roots)
        found = await self._api.get(_PATH + self._name)
        if found is None:
            raise ClusterUnavailable(
                f"there is no MutatingWebhookConfiguration {self._name}: apply the manifests first"
            )
        patch = changes(found, roots)
        if patch:
            await self._api.patch(_PATH + self._name, patch)
            _log.info("the CAs of MutatingWebhookConfiguration %s are those of the trust bundle now", self._name)
        self._due, self._written = now + _EVERY, tuple(roots)


def changes(found: Mapping[str, Any], roots: Sequence[bytes]) -> list[dict[str, Any]]:
    """Return the JSON patch that gives each webhook these roots, DER; nothing when all have them."""
    pem = "".join(ssl.DER_cert_to_PEM_cert(root) for root in roots)
    wanted = base64.b64encode(pem.encode()).decode()
    hooks = found.get("webhooks") or []
    ops: list[dict[str, Any]] = [
        {"op": "add", "path": f"/webhooks/{number}/clientConfig/caBundle", "value": wanted}
        for number, hook in enumerate(hooks)
        if hook.get("clientConfig", {}).get("caBundle") != wanted
    ]
    # Indexes count only in what was read.
    version = found.get("metadata", {}).get("resourceVersion")
    return [{"op": "test", "path": "/metadata/resourceVersion", "value": version}, *ops] if ops else []
