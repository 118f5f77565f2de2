# SPDX-License-Identifier: Apache-2.0
"""Revocation lists (RFC 5280 section 5): one for an authority, of all that it signed and that is revoked.

Sidecars do not need them: they get revocations as they were made. The lists are for programs that read the CRLs of the
Workload API, such as whatever sits on OpenSSL.

>>> import os
>>> from firedoor.certs.ids import TrustDomain
>>> from firedoor.certs.keys import KeyType, generate_key
>>> from firedoor.certs.svid import issue_ca
>>> ca = issue_ca(TrustDomain.parse("example.org"), generate_key(KeyType.EC_P256), at=1_800_000_000, random=os.urandom)
>>> crl = issue_crl(ca, {"3f9c": 1_800_000_000}, number=7, at=1_800_000_060)
>>> crl.number, crl.revoked(), crl.authority_id == ca.authority_id
(7, {'3f9c': 1800000000}, True)
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar, final

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from firedoor.certs.bundle import TrustBundle
from firedoor.certs.certificate import PARSE_ERRORS, SIGNATURES, Certificate, read_certificate
from firedoor.certs.errors import CrlError, IssueError
from firedoor.certs.keys import is_supported, signature_hash
from firedoor.certs.paths import Paths, TooManySignatures, valid_at
from firedoor.certs.svid import NOT_BEFORE_CUSHION, X509Issuer
from firedoor.certs.verify import EARLY

# How long a list is good, in seconds. A broker signs another when half of it is over, so that what a broker signed that
# is gone can be checked for 12 hours.
DEFAULT_CRL_TTL: Final = 24 * 3600
# An entry takes 36 bytes, and every sidecar and workload gets every list.
MAX_CRL_ENTRIES: Final = 2000
MAX_CRL_BYTES: Final = 128 * 1024
# As an SVID's chain: what signs, and what is between it and the root.
_MAX_CHAIN: Final = 7
# RFC 5280 section 5.2.3.
_MAX_NUMBER: Final = 2**159 - 1
_T = TypeVar("_T", bound=x509.ExtensionType)


@final
@dataclass(frozen=True, slots=True)
class Crl:
    """A revocation list that was read whole; nothing says yet that anybody trusts it."""

    der: bytes
    # The subject key identifier of the authority that it is of, lower-case hex.
    authority_id: str
    number: int
    # Unix seconds.
    this_update: int
    next_update: int

    def revoked(self) -> dict[str, int]:
        """Return the serial numbers, lower-case hex without leading zeros, with the time of each. Raise CrlError."""
        try:
            entries = x509.load_der_x509_crl(self.der)
            return {f"{one.serial_number:x}": int(one.revocation_date_utc.timestamp()) for one in entries}
        except PARSE_ERRORS:
            raise CrlError("malformed_crl") from None


def issue_crl(
    issuer: X509Issuer, revoked: Mapping[str, int], *, number: int, at: int, ttl: int = DEFAULT_CRL_TTL
) -> Crl:
    """Sign the list of what an authority issued and that is revoked, by serial number in hex, with the time of each.

    It begins 10 s before `at`, for readers whose clocks are late. Raise IssueError.
    """
    if not issuer.may_sign_crls:
        raise IssueError("crl_sign_missing")
    if len(revoked) > MAX_CRL_ENTRIES:
        raise IssueError("crl_too_long")
    if ttl <= 0:
        raise IssueError("bad_ttl")
    builder = x509.CertificateRevocationListBuilder(
        issuer_name=issuer.certificate.subject,
        last_update=_moment(at - NOT_BEFORE_CUSHION),
        next_update=_moment(at + ttl),
        revoked_certificates=[_entry(serial, revoked[serial]) for serial in sorted(revoked)],
    )
    # RFC 5280 section 5.2: conforming issuers put these two into every list, neither critical.
    above = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer.key_id)
    signed = (
        builder.add_extension(above, critical=False)
        .add_extension(x509.CRLNumber(number), critical=False)
        .sign(issuer.key, signature_hash(issuer.key))
    )
    return Crl(
        signed.public_bytes(serialization.Encoding.DER),
        issuer.authority_id,
        number,
        at - NOT_BEFORE_CUSHION,
        at + ttl,
    )


def _entry(serial: str, revoked_at: int) -> x509.RevokedCertificate:
    return x509.RevokedCertificateBuilder(int(serial, 16), _moment(revoked_at)).build()


def read_crl(der: bytes) -> Crl:
    """Read a list, and refuse one that says less than all of its authority. Raise CrlError."""
    return _read(der)[0]


def _read(der: bytes) -> tuple[Crl, x509.CertificateRevocationList, x509.Name]:
    """Read all of it but the entries; `cryptography` parses each field when it is asked for."""
    if len(der) > MAX_CRL_BYTES:
        raise CrlError("crl_too_long")
    try:
        loaded = x509.load_der_x509_crl(der)
        extensions, issuer = loaded.extensions, loaded.issuer
        number = _find(extensions, x509.CRLNumber)
        above = _find(extensions, x509.AuthorityKeyIdentifier)
        next_update = loaded.next_update_utc
        this_update = int(loaded.last_update_utc.timestamp())
        until = int(next_update.timestamp()) if next_update else 0
    except PARSE_ERRORS:
        raise CrlError("malformed_crl") from None
    # RFC 5280 section 5.2: a list with a critical extension that is not known counts for nothing. The known ones say
    # that it is a part of another (deltaCRLIndicator), or of some certificates only (issuingDistributionPoint).
    if any(one.critical for one in extensions):
        raise CrlError("partial_crl")
    if number is None or above is None or not above.key_identifier or not until:
        raise CrlError("crl_incomplete")
    if number.crl_number > _MAX_NUMBER:
        raise CrlError("malformed_crl")
    return Crl(der, above.key_identifier.hex(), number.crl_number, this_update, until), loaded, issuer


def verify_crl(der: bytes, signers: Sequence[bytes], bundle: TrustBundle, at: int) -> Crl:
    """Read a list and hold it against the authority that signed it, and that one against a bundle. Raise CrlError.

    `signers`: the authority's certificate, and those between it and a root; a root that is in the bundle alone.
    """
    crl, loaded, issuer = _read(der)
    authority = _authority(signers, bundle, at)
    if crl.authority_id != authority.authority_id or issuer != authority.raw.subject:
        raise CrlError("crl_of_another")
    if loaded.signature_algorithm_oid not in SIGNATURES or not is_supported(authority.key):
        raise CrlError("bad_crl_signature")
    try:
        signed = loaded.is_signature_valid(authority.key)  # type: ignore[arg-type]
    except PARSE_ERRORS:
        raise CrlError("bad_crl_signature") from None
    if not signed:
        raise CrlError("bad_crl_signature")
    if crl.next_update < at:
        raise CrlError("crl_expired")
    return crl


def _authority(signers: Sequence[bytes], bundle: TrustBundle, at: int) -> Certificate:
    """Return the certificate of the authority that signed, once the bundle vouches for it. Raise CrlError."""
    if not 1 <= len(signers) <= _MAX_CHAIN:
        raise CrlError("crl_untrusted")
    try:
        chain = [read_certificate(one) for one in signers]
        roots = [read_certificate(one.der) for one in bundle.x509_roots]
    except ValueError:
        raise CrlError("crl_untrusted") from None
    authority = chain[0]
    usage = authority.key_usage
    if not authority.is_ca or usage is None or not usage.crl_sign:
        raise CrlError("crl_sign_missing")
    if not any(authority.der == root.der for root in roots):
        try:
            found = any(valid_at(path, at, EARLY) for path in Paths(chain, roots))
        except TooManySignatures:
            found = False
        if not found:
            raise CrlError("crl_untrusted")
    return authority


def _find(extensions: x509.Extensions, kind: type[_T]) -> _T | None:
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _moment(seconds: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)
