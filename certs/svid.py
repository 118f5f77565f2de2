# SPDX-License-Identifier: Apache-2.0
"""X.509-SVIDs: issue them, make the CAs that do, read what others issued. Verifying is `firedoor.certs.verify`.

>>> import os
>>> from firedoor.certs.ids import TrustDomain
>>> from firedoor.certs.keys import KeyType, generate_key
>>> td = TrustDomain.parse("example.org")
>>> ca = issue_ca(td, generate_key(KeyType.EC_P256), at=1_800_000_000, random=os.urandom)
>>> key = generate_key(KeyType.EC_P256).public_key()
>>> svid = issue_x509(td.with_path("/segment/a/x"), key, ca, at=1_800_000_000, random=os.urandom)
>>> str(svid.id), svid.not_after - svid.not_before, svid.authority_id == ca.authority_id
('spiffe://example.org/segment/a/x', 3610, True)
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Final, final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from firedoor.certs import profile
from firedoor.certs.certificate import Certificate, read_certificate, subject_key_id
from firedoor.certs.dns import check_dns_name
from firedoor.certs.errors import IssueError, SvidError
from firedoor.certs.ids import SpiffeId, TrustDomain
from firedoor.certs.keys import PrivateKey, PublicKey, Sign, public_key_der, signature_hash, signing
from firedoor.certs.stamp import Holder, Stamp
from firedoor.certs.subject_key import SubjectKey

# Seconds by which certificates are dated back, for verifiers whose clocks are late; SPIRE has the same.
NOT_BEFORE_CUSHION: Final = 10
DEFAULT_CA_TTL: Final = 24 * 3600
DEFAULT_X509_SVID_TTL: Final = 3600

# A serial number of 128 random bits cannot be guessed or met twice; RFC 5280 section 4.1.2.2 allows up to 20 octets.
_SERIAL_BYTES: Final = 16
# X.520 upper bound of a common name; a longer DNS name stands in the SAN alone.
_MAX_COMMON_NAME: Final = 64

Random = Callable[[int], bytes]


@final
@dataclass(frozen=True, slots=True)
class X509Svid:
    """An X.509-SVID whose leaf keeps to the profile; nothing says yet that anybody trusts it. Leaf first in `chain`."""

    id: SpiffeId
    chain: tuple[bytes, ...]
    not_before: int
    not_after: int
    # Lower-case hex without leading zeros.
    serial: str
    # The subject key identifier of the authority that signed the leaf, lower-case hex; empty when the leaf is silent.
    authority_id: str
    dns_names: tuple[str, ...]

    @property
    def half_life(self) -> int:
        """When to renew."""
        return self.not_before + (self.not_after - self.not_before) // 2


@final
@dataclass(frozen=True)
class X509Issuer:
    """A CA certificate with its key, ready to sign. `upstream`: what stands between it and the root."""

    trust_domain: TrustDomain
    certificate: x509.Certificate
    key: PrivateKey
    upstream: tuple[bytes, ...] = ()
    # What signs leaves with a copy of `key`, where there is something faster than the key itself.
    sign: Sign | None = field(default=None, repr=False, compare=False)
    # Cut from the first leaf that is issued.
    stamps: list[Stamp] = field(default_factory=list, init=False, repr=False, compare=False)

    @classmethod
    def load(
        cls,
        td: TrustDomain,
        certificate: bytes,
        key: PrivateKey,
        upstream: Sequence[bytes] = (),
        *,
        sign: Sign | None = None,
    ) -> X509Issuer:
        """Put a stored authority together again. Raise IssueError when the key is another one's."""
        loaded = _read(certificate).raw
        if public_key_der(key.public_key()) != loaded.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        ):
            raise IssueError("key_mismatch")
        return cls(td, loaded, key, tuple(upstream), sign)

    @cached_property
    def authority_id(self) -> str:
        """The subject key identifier in lower-case hex."""
        return subject_key_id(self.certificate)

    @cached_property
    def key_id(self) -> x509.SubjectKeyIdentifier:
        """The same, as what it signs names it."""
        return x509.SubjectKeyIdentifier(bytes.fromhex(self.authority_id))

    @property
    def not_before(self) -> int:
        """Unix seconds."""
        return int(self.certificate.not_valid_before_utc.timestamp())

    @cached_property
    def not_after(self) -> int:
        """Unix seconds. Nothing that it signs lives longer."""
        return int(self.certificate.not_valid_after_utc.timestamp())

    @cached_property
    def der(self) -> bytes:
        """The CA certificate."""
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @cached_property
    def may_sign_crls(self) -> bool:
        """Whether its certificate says so (RFC 5280 section 4.2.1.3); one that somebody upstream made may not."""
        usage = read_certificate(self.der).key_usage
        return usage is not None and usage.crl_sign

    @cached_property
    def above(self) -> tuple[bytes, ...]:
        """What a chain has above the leaf: this certificate and those between it and the root, that one excluded."""
        is_root = self.certificate.subject == self.certificate.issuer
        return () if is_root else (self.der, *self.upstream)


def issue_x509(
    spiffe_id: SpiffeId,
    public_key: PublicKey | SubjectKey,
    issuer: X509Issuer,
    *,
    at: int,
    random: Random,
    ttl: int = DEFAULT_X509_SVID_TTL,
    dns_names: Sequence[str] = (),
) -> X509Svid:
    """Sign an X.509-SVID that begins 10 s before `at` and ends `ttl` seconds after it, or with its issuer.

    Raise IssueError. The chain goes up to the root, that one excluded. Whether the ID may be issued the caller knows.
    """
    if spiffe_id.trust_domain != issuer.trust_domain:
        raise IssueError("foreign_trust_domain")
    if not spiffe_id.path:
        raise IssueError("spiffe_id_root_path")
    if len(dns_names) + 1 > profile.MAX_SANS:
        raise IssueError("too_many_sans")
    for dns_name in dns_names:
        check_dns_name(dns_name)
    subject = profile.Subject(spiffe_id, tuple(dns_names), SubjectKey.of(public_key), issuer.key_id)
    name = _leaf_name(subject.dns_names)
    if name == issuer.certificate.subject:
        raise IssueError("subject_equals_issuer")
    holder = _holder(subject, name, at=at, ttl=ttl, random=random, issuer=issuer)
    return X509Svid(
        id=spiffe_id,
        chain=(_leaf(holder, issuer), *issuer.above),
        not_before=holder.not_before,
        not_after=holder.not_after,
        serial=format(holder.serial, "x"),
        authority_id=issuer.authority_id,
        dns_names=subject.dns_names,
    )


def _leaf(holder: Holder, issuer: X509Issuer) -> bytes:
    """Write and sign a leaf: the first of an issuer with the builder, the others with the stamp that it leaves."""
    if issuer.stamps:
        return issuer.stamps[0].sign(holder)
    leaf = _build(profile.LEAF, holder, issuer.certificate.subject, issuer.key)
    issuer.stamps.append(Stamp(leaf, holder.subject, issuer.sign or signing(issuer.key)))
    return leaf.public_bytes(serialization.Encoding.DER)


def issue_ca(
    td: TrustDomain,
    key: PrivateKey,
    *,
    at: int,
    random: Random,
    ttl: int = DEFAULT_CA_TTL,
    issuer: X509Issuer | None = None,
    path_length: int | None = None,
) -> X509Issuer:
    """Make a CA for a trust domain: self-signed, or an intermediate below `issuer`. Raise IssueError."""
    public = SubjectKey.of(key.public_key())
    key_id = issuer.key_id if issuer else x509.SubjectKeyIdentifier(public.identifier)
    subject = profile.Subject(td.id, (), public, key_id, path_length)
    holder = _holder(subject, _ca_name(random), at=at, ttl=ttl, random=random, issuer=issuer)
    above = issuer.certificate.subject if issuer else holder.name
    signed = _build(profile.CA, holder, above, issuer.key if issuer else key)
    return X509Issuer(td, signed, key, issuer.above if issuer else ())


@final
@dataclass(frozen=True, slots=True)
class DownstreamCa:
    """A CA whose key somebody else holds. In `chain` its own certificate is first, and the root is not."""

    chain: tuple[bytes, ...]
    not_before: int
    not_after: int
    # Lower-case hex without leading zeros.
    serial: str
    # The subject key identifier of the authority that signed it, lower-case hex.
    authority_id: str


def issue_downstream_ca(
    td: TrustDomain,
    public_key: PublicKey | SubjectKey,
    issuer: X509Issuer,
    *,
    at: int,
    random: Random,
    ttl: int,
    path_length: int | None = 0,
) -> DownstreamCa:
    """Sign a CA for who stands below: it signs leaves, and CAs if the path length lets it. Raise IssueError."""
    subject = profile.Subject(td.id, (), SubjectKey.of(public_key), issuer.key_id, path_length)
    holder = _holder(subject, _ca_name(random), at=at, ttl=ttl, random=random, issuer=issuer)
    signed = _build(profile.CA, holder, issuer.certificate.subject, issuer.key)
    return DownstreamCa(
        chain=(signed.public_bytes(serialization.Encoding.DER), *issuer.above),
        not_before=holder.not_before,
        not_after=holder.not_after,
        serial=format(holder.serial, "x"),
        authority_id=issuer.authority_id,
    )


def _ca_name(random: Random) -> x509.Name:
    """Name a CA as SPIRE does: the serial number keeps two apart, so that a path has one candidate at each step."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "firedoor"),
            x509.NameAttribute(NameOID.SERIAL_NUMBER, random(_SERIAL_BYTES).hex()),
        ]
    )


def parse_x509_svid(chain: Sequence[bytes]) -> X509Svid:
    """Read a chain, leaf first, and hold the leaf against the profile. Raise SvidError. Says nothing about trust."""
    return read_chain(chain)[0]


def read_chain(chain: Sequence[bytes]) -> tuple[X509Svid, tuple[Certificate, ...]]:
    """Do what `parse_x509_svid` does and return the facts of every certificate too."""
    if not chain:
        raise SvidError("chain_empty")
    if len(chain) > profile.MAX_CHAIN:
        raise SvidError("chain_too_long")
    certificates = tuple(map(_read, chain))
    leaf = certificates[0]
    code = profile.first_broken(profile.LEAF, leaf)
    if code is not None:
        raise SvidError(code)
    svid = X509Svid(
        id=SpiffeId.parse(leaf.uris[0]),
        chain=tuple(chain),
        not_before=leaf.not_before,
        not_after=leaf.not_after,
        serial=leaf.serial,
        authority_id=leaf.authority_key_id,
        dns_names=leaf.dns_names,
    )
    return svid, certificates


def _read(der: bytes) -> Certificate:
    try:
        return read_certificate(der)
    except ValueError:
        raise SvidError("malformed_certificate") from None


def _holder(
    subject: profile.Subject, name: x509.Name, *, at: int, ttl: int, random: Random, issuer: X509Issuer | None
) -> Holder:
    """Choose serial number and times; nothing outlives its issuer. Raise IssueError."""
    if ttl <= 0:
        raise IssueError("bad_ttl")
    not_after = at + ttl
    if issuer is not None:
        if issuer.not_after <= at:
            raise IssueError("authority_expired")
        not_after = min(not_after, issuer.not_after)
    serial = int.from_bytes(random(_SERIAL_BYTES)) or 1
    return Holder(subject, name, serial, at - NOT_BEFORE_CUSHION, not_after)


def _build(rows: tuple[profile.Row, ...], holder: Holder, issuer: x509.Name, key: PrivateKey) -> x509.Certificate:
    """Write a certificate row by row and sign it."""
    builder = x509.CertificateBuilder(
        subject_name=holder.name,
        issuer_name=issuer,
        public_key=holder.subject.public_key.public(),
        serial_number=holder.serial,
        not_valid_before=_moment(holder.not_before),
        not_valid_after=_moment(holder.not_after),
    )
    for row in rows:
        extension = row.write(holder.subject)
        if extension is not None:
            builder = builder.add_extension(extension, row.critical)
    return builder.sign(key, signature_hash(key))


@lru_cache(maxsize=256)
def _leaf_name(dns_names: tuple[str, ...]) -> x509.Name:
    """Name a workload as SPIRE does: organisation, and the first DNS name for clients that read no SAN."""
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "firedoor")]
    if dns_names and len(dns_names[0]) <= _MAX_COMMON_NAME:
        attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, dns_names[0]))
    return x509.Name(attributes)


def _moment(seconds: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)
