# SPDX-License-Identifier: Apache-2.0
"""Whether a bundle of another trust domain may take the place of the one that we hold.

What is refused changes nothing: the last good bundle stays. Pure, but for the core's own reading of certificates.
"""

from __future__ import annotations

from firedoor import mtls
from firedoor.broker.errors import EndpointError
from firedoor.certs import TrustBundle


def check_readable(bundle: TrustBundle) -> None:
    """Check that the core reads every root as we do. Raise MtlsError.

    Sidecars publish their bundles together: one root that the core refuses would keep all else from them, revocations
    and policy too, and a federated trust domain could have it so.
    """
    mtls.check_roots(bundle.trust_domain.name, [root.der for root in bundle.x509_roots])


def check_successor(held: TrustBundle | None, fetched: TrustBundle, *, proves_itself: bool) -> None:
    """Check that a fetched bundle may take the place of what is held. Raise EndpointError.

    `proves_itself`: the next fetch is verified by this very bundle. An empty bundle may be said to revoke everything
    (SPIFFE_Trust_Domain_and_Bundle.md 4.1.3); it is also what a server says that lost its database, so that a person
    has to say it: `firedoor bundle delete`.
    """
    if not (fetched.x509_roots or fetched.jwt_keys or fetched.wit_keys):
        raise EndpointError("the bundle is empty; the one before stays. If everything is revoked, delete the bundle")
    if proves_itself and not fetched.x509_roots:
        raise EndpointError("the bundle has no X.509 authority, and the endpoint could never be verified again")
    # 4.1.1: the number grows with each change. Who does not count says nothing about order.
    if held is not None and fetched.sequence < held.sequence:
        raise EndpointError(
            f"the bundle's sequence number went back from {held.sequence} to {fetched.sequence}; the one before stays. "
            "If the publisher has begun anew, set its bundle by hand"
        )
    try:
        check_readable(fetched)
    except mtls.MtlsError as error:
        raise EndpointError(f"the bundle cannot be used: {error}") from None
