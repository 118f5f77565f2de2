# SPDX-License-Identifier: Apache-2.0
"""Verify an X.509-SVID: the leaf against the profile, the chain against the roots of the leaf's own trust domain.

The order is: read everything under its caps, hold the leaf against `profile.LEAF`, choose the roots by the leaf's trust
domain alone, refuse CA certificates that name somebody else, build a path, check the times along it, check revocations,
and hold the CAs between leaf and root against the list of those that may sign, where there is one.
Choosing roots by a name that is not verified yet is safe, because only those roots can then vouch for it; one pool of
all roots would let any federated CA make any name.

`cryptography.x509.verification` is not used: it tells every failure by one exception with free text, takes no Ed25519,
and a caller could not learn which authorities the path went over. The Rust core (`firedoor.mtls.verify_svid`) answers
the same on every vector in tests/vectors/svid.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

from firedoor.certs.bundle import TrustBundle
from firedoor.certs.certificate import Certificate, read_certificate
from firedoor.certs.errors import SvidError
from firedoor.certs.ids import SpiffeId, TrustDomain
from firedoor.certs.intermediates import Intermediates
from firedoor.certs.paths import Path, Paths, TooManySignatures, valid_at
from firedoor.certs.patterns import IdPattern
from firedoor.certs.svid import NOT_BEFORE_CUSHION, X509Svid, read_chain

# How long before its notBefore a certificate counts, in seconds: whoever issued it has a clock that is so much ahead of
# ours. As much as a clock may be set back without a word. Nothing counts after its notAfter.
EARLY: Final = 300


@final
@dataclass(frozen=True, slots=True)
class Revocation:
    """What is no longer valid: exactly one of a serial, an authority ID (both lower-case hex), or a pattern.

    A pattern takes the certificates of matching IDs that were issued before `issued_before`.
    """

    serial: str = ""
    authority_id: str = ""
    pattern: IdPattern | None = None
    issued_before: int = 0
    reason: str = ""


@final
@dataclass(frozen=True, slots=True, init=False)
class VerifiedSvid:
    """Proof that an SVID was verified, made by `verify_x509_svid` alone."""

    svid: X509Svid
    # Unix seconds: the least of the path, root included.
    not_after: int
    # The authorities that vouch for it, the leaf's signer first, the root last.
    authority_ids: tuple[str, ...]

    def __init__(self) -> None:
        raise TypeError("VerifiedSvid is made by verify_x509_svid()")

    @property
    def id(self) -> SpiffeId:
        """Who it is."""
        return self.svid.id


def verify_x509_svid(
    chain: Sequence[bytes],
    bundles: Mapping[TrustDomain, TrustBundle],
    at: int,
    *,
    revocations: Iterable[Revocation] = (),
    intermediates: Intermediates | None = None,
) -> VerifiedSvid:
    """Verify a chain of DER certificates, leaf first, at a time in Unix seconds. Raise SvidError.

    What begins within `EARLY` seconds counts already.
    `intermediates`: the CAs below roots that may sign; None: nobody keeps a list, and any may.
    """
    svid, certificates = read_chain(chain)
    bundle = bundles.get(svid.id.trust_domain)
    if bundle is None or not bundle.x509_roots:
        raise SvidError("unknown_trust_domain")
    for certificate in certificates[1:]:
        _check_authority_id(certificate, svid.id.trust_domain)
    roots = [read_certificate(root.der) for root in bundle.x509_roots]
    begun = _begun(certificates, at)
    path = _path(certificates, roots, begun)
    _check_times(path, at, begun)
    authority_ids = tuple(authority.authority_id for authority in path[1:])
    _check_revocations(svid, authority_ids, revocations)
    if intermediates is not None:
        intermediates.check(svid.id, path[1:-1])
    verified = object.__new__(VerifiedSvid)
    object.__setattr__(verified, "svid", svid)
    object.__setattr__(verified, "not_after", min(certificate.not_after for certificate in path))
    object.__setattr__(verified, "authority_ids", authority_ids)
    return verified


def _check_authority_id(certificate: Certificate, trust_domain: TrustDomain) -> None:
    """X509-SVID.md 3.2: a signing certificate's ID has no path and lies in the trust domain of what it signs."""
    if any(uri != str(trust_domain.id) for uri in certificate.uris):
        raise SvidError("authority_id_mismatch")


def _path(certificates: Sequence[Certificate], roots: Sequence[Certificate], at: int) -> Path:
    """Return a path to a root; where there are several, one that is valid then is preferred. Raise SvidError."""
    paths, outdated = Paths(certificates, roots), None
    try:
        for path in paths:
            if valid_at(path, at, EARLY):
                return path
            outdated = outdated or path
    except TooManySignatures:
        raise SvidError("chain_untrusted", "too many candidates") from None
    if outdated is None:
        raise paths.constrained or SvidError("chain_untrusted")
    return outdated


def _begun(certificates: Iterable[Certificate], at: int) -> int:
    """Return when all has begun that begins soon: now, for most. Nothing may have ended then."""
    return max([at, *(one.not_before for one in certificates if one.not_before <= at + EARLY)])


def _check_times(path: Iterable[Certificate], at: int, begun: int) -> None:
    """RFC 5280 section 4.1.2.5: both ends belong to the validity. Our roots too must be valid, as Go has it."""
    for certificate in path:
        if at + EARLY < certificate.not_before:
            raise SvidError("not_yet_valid")
        if begun > certificate.not_after:
            raise SvidError("expired")


def _check_revocations(svid: X509Svid, authority_ids: Sequence[str], revocations: Iterable[Revocation]) -> None:
    for revocation in revocations:
        if revocation.serial and revocation.serial.lstrip("0") == svid.serial:
            raise SvidError("revoked_serial")
        if revocation.authority_id and revocation.authority_id in authority_ids:
            raise SvidError("revoked_authority")
        issued = svid.not_before + NOT_BEFORE_CUSHION
        if revocation.pattern and revocation.pattern.matches(svid.id) and issued < revocation.issued_before:
            raise SvidError("revoked_id")
