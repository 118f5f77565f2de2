# SPDX-License-Identifier: Apache-2.0
"""A trust domain in memory, at a time that you set, for tests of everything that meets certificates.

td = SimulatedTrustDomain("td")                      # one root, at NOW
web = td.svid("/segment/inference/web")              # chain, key, PEM; signed by the present authority
td.svid("/segment/a/x", expires=td.at - 1)           # any field wrong on purpose: see `Fields`
td.rotate()                                          # a new authority signs, the old one stays in the bundle
td.forget(td.roots[0])                               # its root leaves the bundle
td.rotate_jwt(); td.token("/segment/a/x", "models")  # a key for JWT-SVIDs, and one that it signs
td.at += 3600                                        # an hour later
verify_x509_svid(web.chain, td.bundles(other_td), td.at)
mtls.verify_svid(web.chain, td.roots_by_name(other_td), at=td.at)
below = td.intermediate(); td.svid("/segment/a/x", issuer=below)
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from firedoor import mtls
from firedoor.certs import (
    BundleError,
    JwtIssuer,
    SpiffeId,
    TrustBundle,
    TrustDomain,
    key_hash,
    mint_jwt,
    mint_wit,
    public_key_der,
)

# 2027-01-15 08:00:00 UTC. Nothing reads the clock of the machine.
NOW = 1_800_000_000
CUSHION = 10

SERVER_AND_CLIENT = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def name(text: str) -> x509.Name:
    """Return a name with this organisation; without any attribute for ""."""
    return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, text)] if text else [])


@dataclass(frozen=True)
class Fields:
    """Every field of a certificate. The defaults make a good leaf; None leaves an extension out."""

    uris: Sequence[str] = ()
    dns_names: Sequence[str] = ()
    subject: x509.Name = field(default_factory=lambda: name("workload"))
    starts: int = NOW - CUSHION
    expires: int = NOW + 3600
    san_critical: bool = False
    ca: bool | None = False
    path_length: int | None = None
    key_usage: frozenset[str] | None = frozenset({"digital_signature", "key_encipherment", "key_agreement"})
    key_usage_critical: bool = True
    extended_key_usage: Sequence[x509.ObjectIdentifier] | None = SERVER_AND_CLIENT
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = ()
    serial: int | None = None
    # The holder's public key; by default that of a fresh P-256 key.
    public_key: Any = None

    def with_ca_defaults(self) -> Fields:
        """Return the same with what makes a good CA."""
        usage = frozenset({"key_cert_sign", "crl_sign"})
        return replace(self, ca=True, key_usage=usage, extended_key_usage=None, expires=NOW + 24 * 3600)


@dataclass(frozen=True)
class Identity:
    """A certificate chain, leaf first, with the leaf's key."""

    chain: list[bytes]
    key: Any

    @property
    def leaf(self) -> x509.Certificate:
        return x509.load_der_x509_certificate(self.chain[0])

    @property
    def id(self) -> SpiffeId:
        san = self.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return SpiffeId.parse(san.get_values_for_type(x509.UniformResourceIdentifier)[0])

    @property
    def key_der(self) -> bytes:
        """PKCS#8, as `firedoor.mtls` and the Workload API want it."""
        return self._key(serialization.Encoding.DER)

    @property
    def key_pem(self) -> bytes:
        return self._key(serialization.Encoding.PEM)

    @property
    def chain_pem(self) -> bytes:
        certificates = map(x509.load_der_x509_certificate, self.chain)
        return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)

    def _key(self, encoding: serialization.Encoding) -> bytes:
        pkcs8 = serialization.PrivateFormat.PKCS8
        return bytes(self.key.private_bytes(encoding, pkcs8, serialization.NoEncryption()))


@dataclass(frozen=True)
class Authority:
    """A signing key with its certificate and what stands between it and the root."""

    certificate: x509.Certificate
    key: Any
    above: tuple[bytes, ...] = ()

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def authority_id(self) -> str:
        return self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()

    @property
    def chain(self) -> tuple[bytes, ...]:
        """What goes below a leaf that it signs: nothing for a root."""
        return () if self.certificate.subject == self.certificate.issuer else (self.der, *self.above)


class SimulatedTrustDomain:
    """See the module."""

    def __init__(self, name: str = "td", *, at: int = NOW) -> None:
        self.td = TrustDomain.parse(name)
        self.at = at
        self.roots: list[Authority] = []
        self.jwt_issuers: list[JwtIssuer] = []
        self.wit_issuers: list[JwtIssuer] = []
        self.sequence = 0
        self.rotate()

    @property
    def authority(self) -> Authority:
        """The one that signs: the newest root."""
        return self.roots[-1]

    @property
    def bundle(self) -> TrustBundle:
        roots = TrustBundle.of(self.td, [root.der for root in self.roots], sequence=self.sequence)
        jwt_keys, wit_keys = (tuple(one.public for one in each) for each in (self.jwt_issuers, self.wit_issuers))
        return replace(roots, jwt_keys=jwt_keys, wit_keys=wit_keys)

    def bundles(self, *others: SimulatedTrustDomain) -> dict[TrustDomain, TrustBundle]:
        """Return this bundle and those of others, as `verify_x509_svid` takes them."""
        return {each.td: each.bundle for each in (self, *others)}

    def roots_by_name(self, *others: SimulatedTrustDomain) -> Mapping[str, list[bytes]]:
        """Return the same as `firedoor.mtls` takes them."""
        return {each.td.name: [root.der for root in each.roots] for each in (self, *others)}

    def rotate(self, *, key: Any = None, **fields: Any) -> Authority:
        """Make a new root that signs from now on and add it to the bundle."""
        made = self._authority(None, key, fields)
        self.roots.append(made)
        self.sequence += 1
        return made

    def rotate_jwt(self) -> JwtIssuer:
        """Make a new key for JWT-SVIDs that signs from now on and add it to the bundle."""
        self.jwt_issuers.append(self._issuer())
        return self.jwt_issuers[-1]

    def rotate_wit(self) -> JwtIssuer:
        """Make a new key for WIT-SVIDs that signs from now on and add it to the bundle."""
        self.wit_issuers.append(self._issuer())
        return self.wit_issuers[-1]

    def _issuer(self) -> JwtIssuer:
        key = ec.generate_private_key(ec.SECP256R1())
        key_id, public = os.urandom(8).hex(), public_key_der(key.public_key())
        self.sequence += 1
        return JwtIssuer.load(self.td, key_id, public, key, not_after=self.at + 24 * 3600)

    def token(self, path: str, *audience: str, ttl: int = 300) -> str:
        """Mint a JWT-SVID with the newest key."""
        spiffe_id = self.td.with_path(path)
        issuer = self.jwt_issuers[-1]
        return mint_jwt(spiffe_id, audience, issuer, at=self.at, token_id=os.urandom(8).hex(), ttl=ttl).token

    def wit(self, path: str, public_key: bytes, algorithm: str = "ES256", *, ttl: int = 3600) -> str:
        """Mint a WIT-SVID for a key with the newest key of ours."""
        spiffe_id, token_id = self.td.with_path(path), os.urandom(8).hex()
        issuer = self.wit_issuers[-1]
        return mint_wit(spiffe_id, public_key, algorithm, issuer, at=self.at, token_id=token_id, ttl=ttl).token

    def forget(self, root: Authority) -> None:
        """Remove a root from the bundle."""
        self.roots.remove(root)
        self.sequence += 1

    def intermediate(self, issuer: Authority | None = None, *, key: Any = None, **fields: Any) -> Authority:
        """Make a CA below another one, by default the present authority."""
        return self._authority(issuer or self.authority, key, fields)

    def svid(self, path: str, *, issuer: Authority | None = None, key: Any = None, **fields: Any) -> Identity:
        """Issue an SVID for a path; `fields` replaces what is in `Fields`."""
        signer = issuer or self.authority
        key = key or ec.generate_private_key(ec.SECP256R1())
        basis = Fields(uris=[f"{self.td.id}{path}"], starts=self.at - CUSHION, expires=self.at + 3600)
        der = sign(replace(basis, **{"public_key": key.public_key(), **fields}), signer.certificate, signer.key)
        return Identity([der, *signer.chain], key)

    def _authority(self, issuer: Authority | None, key: Any, fields: dict[str, Any]) -> Authority:
        key = key or ec.generate_private_key(ec.SECP256R1())
        basis = Fields(uris=[str(self.td.id)], subject=name(f"ca {os.urandom(8).hex()}")).with_ca_defaults()
        basis = replace(basis, starts=self.at - CUSHION, expires=self.at + 24 * 3600, public_key=key.public_key())
        der = sign(replace(basis, **fields), issuer.certificate if issuer else None, issuer.key if issuer else key)
        return Authority(x509.load_der_x509_certificate(der), key, issuer.chain if issuer else ())


def key_hash_of(authority: Authority) -> bytes:
    """Return what a list of CAs knows this one by."""
    return bytes.fromhex(key_hash(authority.key.public_key()))


def sign(fields: Fields, issuer: x509.Certificate | None, key: Any) -> bytes:
    """Write a certificate with just these fields and return its DER; `issuer` None is the subject itself."""
    public_key = fields.public_key or ec.generate_private_key(ec.SECP256R1()).public_key()
    authority_key = issuer.public_key() if issuer else public_key
    builder = (
        x509.CertificateBuilder()
        .subject_name(fields.subject)
        .issuer_name(issuer.subject if issuer else fields.subject)
        .public_key(public_key)
        .serial_number(fields.serial or x509.random_serial_number())
        .not_valid_before(dt.datetime.fromtimestamp(fields.starts, dt.UTC))
        .not_valid_after(dt.datetime.fromtimestamp(fields.expires, dt.UTC))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key), critical=False)
    )
    for extension, critical in (*_extensions(fields), *fields.extensions):
        builder = builder.add_extension(extension, critical)
    return builder.sign(key, _hash(key)).public_bytes(serialization.Encoding.DER)


def _extensions(fields: Fields) -> list[tuple[x509.ExtensionType, bool]]:
    written: list[tuple[x509.ExtensionType, bool]] = []
    names = [*map(x509.UniformResourceIdentifier, fields.uris), *map(x509.DNSName, fields.dns_names)]
    if names:
        written.append((x509.SubjectAlternativeName(names), fields.san_critical))
    if fields.ca is not None:
        written.append((x509.BasicConstraints(fields.ca, fields.path_length), True))
    if fields.key_usage is not None:
        bits = {bit: bit in fields.key_usage for bit in _KEY_USAGE_BITS}
        written.append((x509.KeyUsage(**bits), fields.key_usage_critical))
    if fields.extended_key_usage is not None:
        written.append((x509.ExtendedKeyUsage(fields.extended_key_usage), False))
    return written


_KEY_USAGE_BITS = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def _hash(key: Any) -> hashes.SHA256 | hashes.SHA384 | None:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return None
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.key_size > 256:
        return hashes.SHA384()
    return hashes.SHA256()


def odd_root(trust: SimulatedTrustDomain) -> bytes:
    """Return a certificate that Python takes for an authority and the core does not: one byte of it is wrong."""
    good = trust.roots[0].der
    for place in range(len(good) - 1, 0, -1):
        der = good[:place] + bytes([good[place] ^ 0x80]) + good[place + 1 :]
        with contextlib.suppress(BundleError):
            TrustBundle.of(trust.td, [der])
            try:
                mtls.check_roots(trust.td.name, [der])
            except mtls.MtlsError:
                return der
    raise AssertionError("both read the same")
