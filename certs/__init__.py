# SPDX-License-Identifier: Apache-2.0
"""SPIFFE IDs, SVIDs, trust bundles, authorities and keys. Pure: no socket, clock, file or environment."""

from firedoor.certs.authority import Authority, AuthoritySlots, Due, Event, Status
from firedoor.certs.bundle import JwtKey, TrustBundle, X509Root
from firedoor.certs.certificate import split_der
from firedoor.certs.csr import Csr, make_csr, parse_csr
from firedoor.certs.dns import check_dns_name
from firedoor.certs.errors import (
    AuthorityError,
    BundleError,
    CallerError,
    CertsError,
    CsrError,
    FingerprintError,
    IssueError,
    JournalError,
    JwtSvidError,
    KeyManagerError,
    OurError,
    PatternError,
    PeerError,
    SelectorError,
    SpiffeIdError,
    SvidError,
)
from firedoor.certs.fingerprints import Fingerprint
from firedoor.certs.ids import SpiffeId, TrustDomain
from firedoor.certs.jwt import (
    DEFAULT_JWT_SVID_TTL,
    JwtIssuer,
    JwtSvid,
    ValidatedJwt,
    check_audience,
    mint_jwt,
    validate_jwt_svid,
)
from firedoor.certs.keys import (
    DiskKeyManager,
    KeyManager,
    KeyStore,
    KeyType,
    MemoryKeyManager,
    PrivateKey,
    PublicKey,
    generate_key,
    private_key_der,
    public_key_der,
)
from firedoor.certs.patterns import IdPattern
from firedoor.certs.selectors import Selector
from firedoor.certs.svid import (
    NOT_BEFORE_CUSHION,
    X509Issuer,
    X509Svid,
    issue_ca,
    issue_x509,
    parse_x509_svid,
)
from firedoor.certs.verify import Revocation, VerifiedSvid, verify_x509_svid

__all__ = [
    "DEFAULT_JWT_SVID_TTL",
    "NOT_BEFORE_CUSHION",
    "Authority",
    "AuthorityError",
    "AuthoritySlots",
    "BundleError",
    "CallerError",
    "CertsError",
    "Csr",
    "CsrError",
    "DiskKeyManager",
    "Due",
    "Event",
    "Fingerprint",
    "FingerprintError",
    "IdPattern",
    "IssueError",
    "JournalError",
    "JwtIssuer",
    "JwtKey",
    "JwtSvid",
    "JwtSvidError",
    "KeyManager",
    "KeyManagerError",
    "KeyStore",
    "KeyType",
    "MemoryKeyManager",
    "OurError",
    "PatternError",
    "PeerError",
    "PrivateKey",
    "PublicKey",
    "Revocation",
    "Selector",
    "SelectorError",
    "SpiffeId",
    "SpiffeIdError",
    "Status",
    "SvidError",
    "TrustBundle",
    "TrustDomain",
    "ValidatedJwt",
    "VerifiedSvid",
    "X509Issuer",
    "X509Root",
    "X509Svid",
    "check_audience",
    "check_dns_name",
    "generate_key",
    "issue_ca",
    "issue_x509",
    "make_csr",
    "mint_jwt",
    "parse_csr",
    "parse_x509_svid",
    "private_key_der",
    "public_key_der",
    "split_der",
    "validate_jwt_svid",
    "verify_x509_svid",
]
