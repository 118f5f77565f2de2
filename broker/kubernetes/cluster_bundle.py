# SPDX-License-Identifier: Apache-2.0
"""Keeps the X.509 roots of our trust bundle in a ClusterTrustBundle, which any pod can project by our signer's name.

It is one object: it is looked at when the bundle changes, and now and then whoever changed it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, final

from firedoor.broker.kubernetes.certificates_api import BUNDLES, GROUP, SIGNER, served
from firedoor.broker.kubernetes.ownership import is_ours, mark
from firedoor.cluster.errors import ClusterUnavailable, WrittenMeanwhile
from firedoor.cluster.objects import mapping

if TYPE_CHECKING:
    from firedoor.broker.kubernetes.lease import Lease
    from firedoor.certs import TrustBundle, TrustDomain
    from firedoor.cluster.api import ClusterApi

_log = logging.getLogger("firedoor.broker.trust_bundle")
# The API wants the signer's name before it, with a colon for the slash.
NAME: Final = f"{SIGNER.replace('/', ':')}:roots"
# Seconds between two looks at our bundle, at the object, and whether the cluster has such objects by then.
_EVERY: Final = 1.0
_LOOK: Final = 30.0
_AGAIN: Final = 5.0
_ABSENT: Final = 300.0


@final
class ClusterBundle:
    """The ClusterTrustBundle of one cluster. `run` until cancelled."""

    def __init__(
        self, api: ClusterApi, lease: Lease, trust_domain: TrustDomain, bundle: Callable[[], TrustBundle]
    ) -> None:
        self._api, self._lease, self._trust_domain, self._bundle = api, lease, trust_domain, bundle
        self._written, self._due = "", 0.0
        self._said = ""

    async def run(self) -> None:
        """Keep it as it should be."""
        while True:
            await asyncio.sleep(_EVERY)
            try:
                await self.look()
            except WrittenMeanwhile:
                self._due = 0.0
            except ClusterUnavailable as error:
                self._say(f"ClusterTrustBundle {NAME} cannot be written: {error}")
                self._due = time.monotonic() + _AGAIN

    async def look(self) -> None:
        """See to it when it is time. Raise ClusterUnavailable."""
        wanted = self._bundle().to_pem()
        if not self._lease.held:
            self._written = ""
            return
        if not wanted or (wanted == self._written and time.monotonic() < self._due):
            return
        version = await served(self._api, BUNDLES)
        if not version:
            self._say("the cluster has no ClusterTrustBundles (Kubernetes 1.33 and later): none is written")
            self._written, self._due = wanted, time.monotonic() + _ABSENT
            return
        if await self._write(f"{GROUP}/{version}/{BUNDLES}", version, wanted):
            self._said = ""
        self._written, self._due = wanted, time.monotonic() + _LOOK

    async def _write(self, path: str, version: str, wanted: str) -> bool:
        found = await self._api.get(f"{path}/{NAME}")
        if found is None:
            spec = {"signerName": SIGNER, "trustBundle": wanted}
            whole = {
                "apiVersion": f"certificates.k8s.io/{version}",
                "kind": "ClusterTrustBundle",
                "metadata": {"name": NAME, **mark(self._trust_domain)},
                "spec": spec,
            }
            await self._api.create(path, whole)
            _log.info("ClusterTrustBundle %s has the roots of %s", NAME, self._trust_domain)
            return True
        metadata = mapping(found.get("metadata"))
        if not is_ours(metadata, self._trust_domain):
            self._say(f"ClusterTrustBundle {NAME} is not this broker's: it stays as it is")
            return False
        if mapping(found.get("spec")).get("trustBundle") != wanted:
            body = {"metadata": {"resourceVersion": metadata.get("resourceVersion")}, "spec": {"trustBundle": wanted}}
            await self._api.merge(f"{path}/{NAME}", body)
            _log.info("ClusterTrustBundle %s has the roots of the trust bundle as it is", NAME)
        return True

    def _say(self, what: str) -> None:
        if what != self._said:
            _log.warning("%s", what)
        self._said = what
