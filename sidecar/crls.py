# SPDX-License-Identifier: Apache-2.0
"""The revocation lists that local programs get: those of our own trust domain's authorities, once they verify. Pure.

The sidecar itself goes by the revocations of the generation, so that a list that does not verify is left out and keeps
nothing else of an update from counting. A server without our control stream has none, and so has a federated domain.
"""

import logging

from firedoor.certs import CrlError, verify_crl
from firedoor.sidecar.view import View

log = logging.getLogger(__name__)

# What one answer of the Workload API may hold of them: gRPC's clients take 4 MiB in all unless told otherwise.
MAX_BYTES = 1024 * 1024


def vouched(view: View, now: float) -> tuple[bytes, ...]:
    """Return the lists that an authority in our own bundle vouches for, DER."""
    bundle, found, size = view.bundles.get(view.trust_domain), [], 0
    for one in view.crls if bundle is not None else ():
        try:
            crl = verify_crl(one.der, one.signers, bundle, int(now))  # type: ignore[arg-type]
        except CrlError as error:
            log.error("a revocation list cannot be used", extra={"code": error.code, "reason": str(error)})
            continue
        size += len(crl.der)
        if size > MAX_BYTES:
            log.error("there are more revocation lists than local programs can be given", extra={"most": MAX_BYTES})
            break
        found.append(crl.der)
    return tuple(found)
