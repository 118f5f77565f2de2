# SPDX-License-Identifier: Apache-2.0
"""Trust bundles: what verifies the SVIDs of one trust domain, as SPIFFE_Trust_Domain_and_Bundle.md has it.

A bundle is a value. Each change gives a new one with the next sequence number. An authority that is *tainted* still
verifies, and tells everybody to replace what it signed; the flag stands beside the JSON, which has no field for it.

>>> bundle = TrustBundle.parse(TrustDomain.parse("example.org"), b'{"keys": [], "spiffe_sequence": 7}')
>>> bundle.sequence, bundle.x509_roots
(7, ())
>>> bundle.to_json()
b'{"keys":[],"spiffe_sequence":7}'
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, final

from cryptography import x509

from firedoor.certs import jwks, profile
from firedoor.certs.certificate import (
    MAX_CERTIFICATES,
    Certificate,
    pem_encode,
    read_certificate,
    split_der,
)
from firedoor.certs.errors import BundleError
from firedoor.certs.fingerprints import Fingerprint
from firedoor.certs.ids import TrustDomain

MAX_BUNDLE_BYTES: Final = jwks.MAX_BUNDLE_BYTES


@final
@dataclass(frozen=True, slots=True)
class X509Root:
    """A CA certificate that is trusted."""

    der: bytes
    tainted: bool = False

    @property
    def certificate(self) -> Certificate:
        """The certificate's facts."""
        return read_certificate(self.der)

    @property
    def authority_id(self) -> str:
        """The subject key identifier in lower-case hex."""
        return self.certificate.authority_id

    @property
    def not_after(self) -> int:
        """Unix seconds."""
        return self.certificate.not_after

    @property
    def fingerprint(self) -> Fingerprint:
        """The SHA-256 of the certificate."""
        return Fingerprint.of(self.der)


@final
@dataclass(frozen=True, slots=True)
class JwtKey:
    """A key that verifies JWT-SVIDs, or WIT-SVIDs where it stands among those.

    `public_key` is a SubjectPublicKeyInfo; `expires_at` 0 when nobody said.
    """

    key_id: str
    public_key: bytes
    expires_at: int = 0
    tainted: bool = False


@final
@dataclass(frozen=True, slots=True)
class TrustBundle:
    """All that verifies the SVIDs of a trust domain. No roots and keys at all: everything is revoked."""

    trust_domain: TrustDomain
    x509_roots: tuple[X509Root, ...] = ()
    jwt_keys: tuple[JwtKey, ...] = ()
    # Grows at each change; 0 when nobody said.
    sequence: int = 0
    # Seconds until a copy should be fetched again; 0 when nobody said.
    refresh_hint: int = 0
    wit_keys: tuple[JwtKey, ...] = ()

    @classmethod
    def parse(cls, td: TrustDomain, text: bytes) -> TrustBundle:
        """Read a SPIFFE bundle (JWKS). Elements of unknown use or type are ignored. Raise BundleError."""
        document = jwks.parse(text)
        roots = tuple(X509Root(der) for der in _unique(map(_checked, document.x509)))
        jwt_keys, wit_keys = (tuple(JwtKey(*key) for key in keys) for keys in (document.jwt, document.wit))
        return cls(td, roots, jwt_keys, document.sequence, document.refresh_hint, wit_keys)

    @classmethod
    def from_pem(cls, td: TrustDomain, text: bytes) -> TrustBundle:
        """Read CA certificates in PEM. Raise BundleError."""
        if len(text) > MAX_BUNDLE_BYTES:
            raise BundleError("bundle_too_large")
        try:
            certificates = x509.load_pem_x509_certificates(text)
        except (ValueError, x509.InvalidVersion):
            raise BundleError("malformed_certificate") from None
        return cls.of(td, [certificate.public_bytes(jwks.DER) for certificate in certificates])

    @classmethod
    def from_der(cls, td: TrustDomain, blob: bytes) -> TrustBundle:
        """Read concatenated DER certificates, as in the Workload API. Raise BundleError."""
        if len(blob) > MAX_BUNDLE_BYTES:
            raise BundleError("bundle_too_large")
        try:
            return cls.of(td, split_der(blob))
        except ValueError:
            raise BundleError("malformed_certificate") from None

    @classmethod
    def of(cls, td: TrustDomain, ders: Sequence[bytes], *, sequence: int = 0) -> TrustBundle:
        """Make a bundle of CA certificates. Raise BundleError."""
        if len(ders) > MAX_CERTIFICATES:
            raise BundleError("bundle_too_large")
        return cls(td, tuple(X509Root(der) for der in _unique(map(_checked, ders))), sequence=sequence)

    def to_json(self) -> bytes:
        """Write the SPIFFE bundle document. Tainted authorities are in it like the others."""
        return jwks.write(
            x509=[root.der for root in self.x509_roots],
            jwt=_triples(self.jwt_keys),
            wit=_triples(self.wit_keys),
            sequence=self.sequence,
            refresh_hint=self.refresh_hint,
        )

    def to_jwt_json(self) -> bytes:
        """Write the JWKS with the jwt-svid keys alone, as the Workload API wants it."""
        return jwks.write(jwt=_triples(self.jwt_keys), sequence=self.sequence, refresh_hint=self.refresh_hint)

    def to_wit_json(self) -> bytes:
        """Write the JWKS with the wit-svid keys alone, as the Workload API wants it."""
        return jwks.write(wit=_triples(self.wit_keys), sequence=self.sequence, refresh_hint=self.refresh_hint)

    def to_oidc_json(self) -> bytes:
        """Write the keys for JWT-SVIDs as an OIDC provider's JWK set (RFC 7517 section 5)."""
        return jwks.write_oidc([(key.key_id, key.public_key) for key in self.jwt_keys])

    def to_pem(self) -> str:
        """Write the CA certificates in PEM."""
        return pem_encode([root.der for root in self.x509_roots])

    def to_der(self) -> bytes:
        """Write the CA certificates as concatenated DER, as the Workload API wants them."""
        return b"".join(root.der for root in self.x509_roots)

    def with_root(self, der: bytes) -> TrustBundle:
        """Add a CA certificate; nothing changes when it is there. Raise BundleError."""
        if any(root.der == der for root in self.x509_roots):
            return self
        return self._next(x509_roots=(*self.x509_roots, X509Root(_checked(der))))

    def with_jwt_key(self, key: JwtKey) -> TrustBundle:
        """Add a key for JWT-SVIDs in place of one of its ID; nothing changes when it is there. Raise BundleError."""
        if key in self.jwt_keys:
            return self
        return self._next(jwt_keys=_joined(self.jwt_keys, key, self.wit_keys))

    def with_wit_key(self, key: JwtKey) -> TrustBundle:
        """Add a key for WIT-SVIDs in place of one of its ID; nothing changes when it is there. Raise BundleError."""
        if key in self.wit_keys:
            return self
        return self._next(wit_keys=_joined(self.wit_keys, key, self.jwt_keys))

    def token_key(self, key_id: str) -> JwtKey:
        """Return the key for JWT- or WIT-SVIDs of that ID. Raise BundleError when it is not there."""
        for key in (*self.jwt_keys, *self.wit_keys):
            if key.key_id == key_id:
                return key
        raise BundleError("unknown_authority")

    def with_tainted_key(self, key_id: str) -> TrustBundle:
        """Taint a key for JWT- or WIT-SVIDs; nothing changes when it is tainted. Raise BundleError."""
        found = self.token_key(key_id)
        if found.tainted:
            return self
        tainted = dataclasses.replace(found, tainted=True)
        return self._next(
            jwt_keys=tuple(tainted if key is found else key for key in self.jwt_keys),
            wit_keys=tuple(tainted if key is found else key for key in self.wit_keys),
        )

    def without_key(self, key_id: str) -> TrustBundle:
        """Remove a key for JWT- or WIT-SVIDs that was tainted before. Raise BundleError."""
        found = self.token_key(key_id)
        if not found.tainted:
            raise BundleError("not_tainted")
        return self._next(
            jwt_keys=tuple(key for key in self.jwt_keys if key is not found),
            wit_keys=tuple(key for key in self.wit_keys if key is not found),
        )

    def without_keys(self, key_ids: Collection[str]) -> TrustBundle:
        """Remove keys for tokens, tainted or not; nothing changes when none is there."""
        jwt_keys, wit_keys = (
            tuple(key for key in keys if key.key_id not in key_ids) for keys in (self.jwt_keys, self.wit_keys)
        )
        if (jwt_keys, wit_keys) == (self.jwt_keys, self.wit_keys):
            return self
        return self._next(jwt_keys=jwt_keys, wit_keys=wit_keys)

    def with_tainted(self, authority_id: str) -> TrustBundle:
        """Taint the authority; nothing changes when it is tainted. Raise BundleError when it is not there."""
        found = self._roots_of(authority_id)
        if all(root.tainted for root in found):
            return self
        return self._next(
            x509_roots=tuple(X509Root(root.der, root.tainted or root in found) for root in self.x509_roots)
        )

    def without(self, authority_id: str) -> TrustBundle:
        """Remove an authority that was tainted before. Raise BundleError."""
        found = self._roots_of(authority_id)
        if not all(root.tainted for root in found):
            raise BundleError("not_tainted")
        return self._next(x509_roots=tuple(root for root in self.x509_roots if root not in found))

    def pruned(self, expired_before: int) -> TrustBundle:
        """Drop roots and keys that expired before that time; the last root stays, to say that there was one."""
        roots = tuple(root for root in self.x509_roots if root.not_after >= expired_before)
        jwt_keys, wit_keys = (
            tuple(key for key in keys if not key.expires_at or key.expires_at >= expired_before)
            for keys in (self.jwt_keys, self.wit_keys)
        )
        if not roots or (roots, jwt_keys, wit_keys) == (self.x509_roots, self.jwt_keys, self.wit_keys):
            return self
        return self._next(x509_roots=roots, jwt_keys=jwt_keys, wit_keys=wit_keys)

    def _roots_of(self, authority_id: str) -> tuple[X509Root, ...]:
        found = tuple(root for root in self.x509_roots if root.authority_id == authority_id)
        if not found:
            raise BundleError("unknown_authority")
        return found

    def _next(self, **changes: object) -> TrustBundle:
        return dataclasses.replace(self, sequence=self.sequence + 1, **changes)  # type: ignore[arg-type]


def _triples(keys: Iterable[JwtKey]) -> list[tuple[str, bytes, int]]:
    return [(key.key_id, key.public_key, key.expires_at) for key in keys]


def _joined(keys: tuple[JwtKey, ...], key: JwtKey, other_kind: tuple[JwtKey, ...]) -> tuple[JwtKey, ...]:
    if not key.key_id:
        raise BundleError("malformed_jwt_key", "it has no ID")
    if any(other.key_id == key.key_id for other in other_kind):
        raise BundleError("malformed_jwt_key", "a key for another kind of SVID has its ID")
    jwks.check_jwt_key(key.public_key)
    return (*(other for other in keys if other.key_id != key.key_id), key)


def _checked(der: bytes) -> bytes:
    try:
        certificate = read_certificate(der)
    except ValueError:
        raise BundleError("malformed_certificate") from None
    # A workload's certificate in a bundle would let that workload name others.
    if profile.first_broken(profile.CA, certificate) is not None:
        raise BundleError("not_a_ca")
    return der


def _unique(ders: Iterable[bytes]) -> Iterable[bytes]:
    return dict.fromkeys(ders)
