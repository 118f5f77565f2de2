# SPDX-License-Identifier: Apache-2.0
"""A certificate, read once into the facts that the SVID rules ask for.

`cryptography` parses lazily and each field may fail in a way of its own; here a certificate is either read whole or
refused, and nothing but `ValueError` of this module's one function has to be caught by the callers in this package.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import SignatureAlgorithmOID as Sig

_T = TypeVar("_T", bound=x509.ExtensionType)

# A P-256 SVID takes 600 bytes, an RSA-4096 CA 1.5 KiB; the rest is room for upstream CAs.
MAX_CERTIFICATE_BYTES: Final = 16 * 1024
# Certificates in one concatenation (a Workload API message, a bundle file).
MAX_CERTIFICATES: Final = 1024

# No SHA-1, no MD5, no DSA: what webpki and aws-lc take too.
SIGNATURES: Final = frozenset(
    {
        Sig.ECDSA_WITH_SHA256,
        Sig.ECDSA_WITH_SHA384,
        Sig.RSA_WITH_SHA256,
        Sig.RSA_WITH_SHA384,
        Sig.RSA_WITH_SHA512,
        Sig.RSASSA_PSS,
        Sig.ED25519,
    }
)
# RFC 5280 section 4.2: a critical extension that is not processed means refusal.
_PROCESSED: Final = frozenset(
    extension.oid
    for extension in (x509.SubjectAlternativeName, x509.BasicConstraints, x509.KeyUsage, x509.ExtendedKeyUsage)
) | {x509.NameConstraints.oid}

PARSE_ERRORS: Final = (
    ValueError,
    TypeError,
    OverflowError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


@dataclass(frozen=True, slots=True)
class Certificate:
    """The facts of one certificate. `key` is None when `cryptography` does not know its kind."""

    der: bytes
    raw: x509.Certificate
    # Lower-case hex without leading zeros.
    serial: str
    # DER of the names. `cryptography` would read them attribute by attribute and warn of what a peer wrote there.
    subject: bytes
    issuer: bytes
    # Whether it is signed with an algorithm that counts.
    signature_allowed: bool
    not_before: int
    not_after: int
    key: object | None
    uris: tuple[str, ...]
    dns_names: tuple[str, ...]
    names: tuple[x509.GeneralName, ...]
    san_critical: bool
    is_ca: bool
    path_length: int | None
    key_usage: x509.KeyUsage | None
    key_usage_critical: bool
    extended_key_usage: frozenset[x509.ObjectIdentifier] | None
    name_constraints: x509.NameConstraints | None
    unknown_critical: bool
    authority_key_id: str

    @property
    def subject_empty(self) -> bool:
        """Whether the subject has no attribute at all."""
        return self.subject == b"\x30\x00"

    @property
    def authority_id(self) -> str:
        """The ID of the authority whose certificate this is: its subject key identifier in lower-case hex."""
        return subject_key_id(self.raw)


def read_certificate(der: bytes) -> Certificate:
    """Read a DER certificate whole. Raise ValueError, and nothing else, when any part cannot be read."""
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise ValueError("too long")
    try:
        return _read(der)
    except PARSE_ERRORS as error:
        raise ValueError("malformed certificate") from error


def _read(der: bytes) -> Certificate:
    serial, issuer, subject = _fields(der)
    if not _is_positive(serial):
        raise ValueError("serial number")
    certificate = x509.load_der_x509_certificate(der)
    extensions = certificate.extensions
    san = _find(extensions, x509.SubjectAlternativeName)
    basic = _find(extensions, x509.BasicConstraints)
    usage = _find(extensions, x509.KeyUsage)
    extended = _find(extensions, x509.ExtendedKeyUsage)
    constraints = _find(extensions, x509.NameConstraints)
    authority = _find(extensions, x509.AuthorityKeyIdentifier)
    return Certificate(
        der=der,
        raw=certificate,
        serial=format(certificate.serial_number, "x"),
        subject=subject,
        issuer=issuer,
        signature_allowed=certificate.signature_algorithm_oid in SIGNATURES,
        not_before=int(certificate.not_valid_before_utc.timestamp()),
        not_after=int(certificate.not_valid_after_utc.timestamp()),
        key=_key(certificate),
        uris=tuple(san.value.get_values_for_type(x509.UniformResourceIdentifier)) if san else (),
        dns_names=tuple(san.value.get_values_for_type(x509.DNSName)) if san else (),
        names=tuple(san.value) if san else (),
        san_critical=bool(san and san.critical),
        is_ca=bool(basic and basic.value.ca),
        path_length=basic.value.path_length if basic else None,
        key_usage=usage.value if usage else None,
        key_usage_critical=bool(usage and usage.critical),
        extended_key_usage=frozenset(extended.value) if extended else None,
        name_constraints=constraints.value if constraints else None,
        unknown_critical=any(each.critical and each.oid not in _PROCESSED for each in extensions),
        authority_key_id=(authority.value.key_identifier or b"").hex() if authority else "",
    )


def _fields(der: bytes) -> tuple[bytes, bytes, bytes]:
    """Return serial, issuer and subject, each as DER (RFC 5280 section 4.1), or raise ValueError."""
    certificate = memoryview(der)
    tbs = certificate[_header(certificate) :]
    rest = tbs[_header(tbs) : _element_length(tbs)]
    # Version (the only one with a context tag), serial, signature, issuer, validity, subject.
    fields: list[bytes] = []
    while len(fields) < 6:
        length = _element_length(rest)
        if not fields and rest[0] != 0xA0:
            raise ValueError("not version 3")
        fields.append(bytes(rest[:length]))
        rest = rest[length:]
    return fields[1], fields[3], fields[5]


def _is_positive(serial: bytes) -> bool:
    """RFC 5280 section 4.1.2.2. Revocations name serial numbers, so each has one spelling."""
    content = serial[_header(memoryview(serial)) :]
    return bool(content) and content[0] < 0x80 and any(content)


def _find(extensions: x509.Extensions, kind: type[_T]) -> x509.Extension[_T] | None:
    try:
        return extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None


def _key(certificate: x509.Certificate) -> CertificatePublicKeyTypes | None:
    try:
        return certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return None


def subject_key_id(certificate: x509.Certificate) -> str:
    """Return the subject key identifier in lower-case hex, or the SHA-1 that it would be (RFC 5280 section 4.2.1.2).

    Empty for a certificate that has none and whose key is of an unknown kind.
    """
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()
    except x509.ExtensionNotFound:
        key = _key(certificate)
        return x509.SubjectKeyIdentifier.from_public_key(key).digest.hex() if key else ""


def split_der(blob: bytes) -> list[bytes]:
    """Split concatenated DER values (Workload API chains and bundles). Raise ValueError, and nothing else."""
    parts: list[bytes] = []
    view = memoryview(blob)
    while view:
        length = _element_length(view)
        if view[0] != 0x30 or length > len(view) or len(parts) == MAX_CERTIFICATES:
            raise ValueError("no SEQUENCE, truncated, or too many")
        parts.append(bytes(view[:length]))
        view = view[length:]
    return parts


def elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of each DER element, one after the other. Raise ValueError, and nothing else."""
    view = memoryview(der)
    while view:
        header, length = _header(view), _element_length(view)
        if length > len(view):
            raise ValueError("truncated")
        yield view[0], bytes(view[header:length])
        view = view[length:]


def _element_length(view: memoryview) -> int:
    """Return the length of the DER element at the start, its header included (X.690 section 8.1.3)."""
    header = _header(view)
    content = view[1] if header == 2 else int.from_bytes(view[2:header])
    return header + content


def _header(view: memoryview) -> int:
    """Return how many bytes tag and length take; no tag and no length here needs more than one and four."""
    if len(view) < 2:
        raise ValueError("truncated")
    if view[1] < 0x80:
        return 2
    octets = view[1] & 0x7F
    if not 1 <= octets <= 3 or len(view) < 2 + octets:
        raise ValueError("bad length")
    return 2 + octets


def pem_encode(ders: Iterable[bytes]) -> str:
    """Return the certificates as PEM blocks, one after the other."""
    pems = (x509.load_der_x509_certificate(der).public_bytes(serialization.Encoding.PEM) for der in ders)
    return b"".join(pems).decode("ascii")
