# SPDX-License-Identifier: Apache-2.0
"""Adding authorities to the trust domain's own bundle (SPIRE's AppendBundle).

Whoever holds the key of an authority that is added here speaks for every ID of the trust domain, so only administrators
may do it, and nothing that is in the bundle can be replaced this way.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from firedoor.broker.authority import change_bundle
from firedoor.broker.errors import AlreadyExists, InvalidRequest
from firedoor.broker.fetched import check_readable
from firedoor.certs import BundleError, JwtKey, TrustBundle
from firedoor.mtls import MtlsError
from firedoor.wire import bundle_pb2, types

if TYPE_CHECKING:
    from firedoor.broker.state import State


async def append(state: State, request: bundle_pb2.AppendBundleRequest) -> list[str]:
    """Add what is not there yet, and return the IDs of what was given. Raise InvalidRequest or AlreadyExists."""
    if not (request.x509_authorities or request.jwt_authorities or request.wit_authorities):
        raise InvalidRequest("no authorities to append")
    given: list[str] = []

    def change(bundle: TrustBundle) -> TrustBundle:
        given.clear()
        after = _with_roots(bundle, request.x509_authorities)
        for key in _read(request.jwt_authorities, "JWT"):
            after = after.with_jwt_key(_new(bundle, key))
        for key in _read(request.wit_authorities, "WIT"):
            after = after.with_wit_key(_new(bundle, key))
        added = {root.authority_id for root in after.x509_roots} - {root.authority_id for root in bundle.x509_roots}
        given.extend(sorted(added))
        given.extend(key.key_id for key in request.jwt_authorities)
        given.extend(key.key_id for key in request.wit_authorities)
        _check(after)
        return after

    await change_bundle(state, change)
    return given


def _check(bundle: TrustBundle) -> None:
    try:
        check_readable(bundle)
    except MtlsError as error:
        raise InvalidRequest(f"failed to convert an X.509 authority: {error}") from None


def _with_roots(bundle: TrustBundle, given: Iterable[types.X509Certificate]) -> TrustBundle:
    try:
        for authority in given:
            bundle = bundle.with_root(authority.asn1)
    except BundleError as error:
        raise InvalidRequest(f"failed to convert X.509 authority: {error}") from None
    return bundle


def _read(given: Iterable[types.JWTKey | types.WITKey], what: str) -> list[JwtKey]:
    keys = []
    for key in given:
        if not key.key_id:
            raise InvalidRequest(f"failed to convert {what} authority: missing key ID")
        if key.expires_at < 0:
            raise InvalidRequest(f"failed to convert {what} authority: its end is no Unix time")
        keys.append(JwtKey(key.key_id, key.public_key, key.expires_at))
    return keys


def _new(bundle: TrustBundle, key: JwtKey) -> JwtKey:
    """Return the key, or the one that is there when it is the same. Raise AlreadyExists for another one of its ID."""
    for present in (*bundle.jwt_keys, *bundle.wit_keys):
        if present.key_id == key.key_id:
            if present.public_key != key.public_key:
                raise AlreadyExists("the bundle has another key of that ID")
            return present
    return key
