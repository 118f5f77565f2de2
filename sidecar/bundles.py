# SPDX-License-Identifier: Apache-2.0
"""Trust bundles in and out: from the wire, from the bootstrap file, to and from `bundle.json`. Pure."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace

from firedoor.certs import BundleError, CertsError, JwtKey, TrustBundle, TrustDomain, X509Root
from firedoor.certs.jwks import check_jwt_key
from firedoor.sidecar.errors import ConfigError, StateError, UpdateRefused
from firedoor.wire import types

SCHEME = "spiffe://"


def read_trust_domain(name: str) -> TrustDomain:
    """Read a trust domain, as a name or an ID. Raise SpiffeIdError."""
    return TrustDomain.parse(name.removeprefix(SCHEME))


def from_wire(bundle: types.Bundle) -> TrustBundle:
    """Read a server's bundle. Raise UpdateRefused."""
    try:
        trust_domain = read_trust_domain(bundle.trust_domain)
        TrustBundle.of(trust_domain, [one.asn1 for one in bundle.x509_authorities])
    except CertsError as error:
        raise UpdateRefused(
            "malformed_bundle", f"the bundle of {bundle.trust_domain!r} cannot be used: {error}"
        ) from error
    tainted = {one.asn1 for one in bundle.x509_authorities if one.tainted}
    roots = dict.fromkeys(one.asn1 for one in bundle.x509_authorities)
    jwt_keys, wit_keys = _keys(bundle, bundle.jwt_authorities), _keys(bundle, bundle.wit_authorities)
    return TrustBundle(
        trust_domain,
        tuple(X509Root(der, der in tainted) for der in roots),
        jwt_keys,
        bundle.sequence_number,
        bundle.refresh_hint,
        wit_keys,
    )


def _keys(bundle: types.Bundle, keys: Iterable[types.JWTKey] | Iterable[types.WITKey]) -> tuple[JwtKey, ...]:
    """Return the keys that can verify a token; as in a bundle's JSON, others are ignored. Raise UpdateRefused."""
    seen: set[str] = set()
    found = []
    for one in keys:
        if one.key_id in seen:
            raise UpdateRefused("malformed_bundle", f"the bundle of {bundle.trust_domain!r} has two keys of one ID")
        seen.add(one.key_id)
        try:
            check_jwt_key(one.public_key)
        except BundleError:
            continue
        if one.key_id:
            found.append(JwtKey(one.key_id, one.public_key, max(0, one.expires_at), one.tainted))
    return tuple(found)


def to_wire(bundle: TrustBundle) -> types.Bundle:
    """Write a bundle as servers send it."""

    def jwt(key: JwtKey) -> types.JWTKey:
        return types.JWTKey(
            public_key=key.public_key, key_id=key.key_id, expires_at=key.expires_at, tainted=key.tainted
        )

    def wit(key: JwtKey) -> types.WITKey:
        return types.WITKey(
            public_key=key.public_key, key_id=key.key_id, expires_at=key.expires_at, tainted=key.tainted
        )

    return types.Bundle(
        trust_domain=bundle.trust_domain.name,
        x509_authorities=[types.X509Certificate(asn1=root.der, tainted=root.tainted) for root in bundle.x509_roots],
        jwt_authorities=[jwt(key) for key in bundle.jwt_keys],
        wit_authorities=[wit(key) for key in bundle.wit_keys],
        sequence_number=bundle.sequence,
        refresh_hint=bundle.refresh_hint,
    )


def read_bootstrap(text: bytes, trust_domain: TrustDomain, place: str) -> TrustBundle:
    """Read a bootstrap bundle, SPIFFE JSON or PEM. Raise ConfigError when it cannot vouch for any server."""
    if not text.strip():
        raise ConfigError(
            [f"{place}: bootstrap_bundle: the file is empty; `firedoor bundle show` at the broker fills it"]
        )
    try:
        is_json = text.lstrip().startswith(b"{")
        bundle = TrustBundle.parse(trust_domain, text) if is_json else TrustBundle.from_pem(trust_domain, text)
    except BundleError as error:
        raise ConfigError([f"{place}: bootstrap_bundle: {error}"]) from error
    if not bundle.x509_roots:
        raise ConfigError([f"{place}: bootstrap_bundle: it holds no X.509 authority"])
    return bundle


def dump(bundles: Iterable[TrustBundle]) -> bytes:
    """Write `bundle.json`: a SPIFFE bundle map, and which authorities are tainted beside it."""
    each = sorted(bundles, key=lambda one: one.trust_domain)
    document = {
        "trust_domains": {one.trust_domain.name: json.loads(one.to_json()) for one in each},
        "tainted": {
            one.trust_domain.name: [root.authority_id for root in one.x509_roots if root.tainted] for one in each
        },
    }
    return json.dumps(document, indent=1).encode()


def load(text: bytes) -> Mapping[TrustDomain, TrustBundle]:
    """Read `bundle.json`. Raise StateError."""
    try:
        document = json.loads(text)
        found = {}
        for name, each in document["trust_domains"].items():
            bundle = TrustBundle.parse(TrustDomain.parse(name), json.dumps(each).encode())
            tainted = set(document["tainted"].get(name, ()))
            roots = tuple(X509Root(one.der, one.authority_id in tainted) for one in bundle.x509_roots)
            found[bundle.trust_domain] = replace(bundle, x509_roots=roots)
    except (CertsError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StateError("bundle.json is damaged; delete it, and the bootstrap bundle is used again") from error
    return found
