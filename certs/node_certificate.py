# SPDX-License-Identifier: Apache-2.0
"""A node's certificate, from whatever PKI made it: what it must not break, which CAs vouch for it, what it says.

The order is: read everything under its caps, hold every key against its caps, hold the leaf against its table, and only
then check signatures, a bounded number of them (SPIRE 1.14.2 took keys and chains of any size). Who holds the key is
another question; see x509pop.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, final
from urllib.parse import unquote, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.oid import SignatureAlgorithmOID as Sig

from firedoor.certs.bundle import MAX_BUNDLE_BYTES
from firedoor.certs.certificate import MAX_CERTIFICATES, Certificate, read_certificate
from firedoor.certs.errors import BundleError, EvidenceError, NodeCertificateError, SelectorError
from firedoor.certs.ids import TrustDomain
from firedoor.certs.keys import MAX_RSA_BITS, MIN_RSA_BITS
from firedoor.certs.names import common_name
from firedoor.certs.paths import Path, Paths, Rules, TooManySignatures, valid_at
from firedoor.certs.profile import Row, Rule, first_broken
from firedoor.certs.selectors import Selector

X509POP: Final = "x509pop"
# SPIRE's.
MAX_INTERMEDIATES: Final = 4
# A server's certificate may name a hundred hosts; SVIDs have few names.
MAX_NAMES: Final = 256
# What everybody uses. With one of 33 bits, a check of an RSA-8192 signature takes 5 ms instead of 0.3.
MAX_NODE_EXPONENT: Final = 65537
# Signatures checked for one node: 5 levels, and some roots of the same name. 25 ms at the very most.
_SIGNATURE_BUDGET: Final = 32

NodeKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


def _is_node_key(key: object) -> bool:
    """Say whether a challenge can be put to this key. Cheap: nothing is computed with it."""
    match key:
        case ec.EllipticCurvePublicKey():
            return isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1 | ec.SECP521R1)
        case rsa.RSAPublicKey():
            return MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS and key.public_numbers().e <= MAX_NODE_EXPONENT
        case _:
            return False


def is_known_key(key: object) -> bool:
    """Say whether a key of this kind and size may stand in a certificate of others'. Cheap, as above."""
    return isinstance(key, ed25519.Ed25519PublicKey) or _is_node_key(key)


_FOR_TLS: Final = frozenset(
    {
        ExtendedKeyUsageOID.CLIENT_AUTH,
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,
    }
)


def _not_for_tls(certificate: Certificate) -> bool:
    usages = certificate.extended_key_usage
    return usages is not None and not usages & _FOR_TLS


def _lacks(bit: str) -> Callable[[Certificate], bool]:
    return lambda certificate: not (certificate.key_usage and getattr(certificate.key_usage, bit))


def _row(field: str, spec: str, *rules: Rule) -> Row:
    """Return a row that is only read by: we make no node's certificate."""
    return Row(field, spec, critical=False, write=lambda _: None, rules=rules)


# A node's own certificate. SPIRE asks for digitalSignature alone.
NODE: Final[tuple[Row, ...]] = (
    _row(
        "subjectAltName",
        "ours: what one certificate may make us look at",
        Rule("too_many_names", "ours", lambda certificate: len(certificate.names) > MAX_NAMES),
    ),
    _row(
        "basicConstraints",
        "RFC 5280 4.2.1.9: a CA's key signs certificates, whoever holds it could make itself any node",
        Rule("leaf_is_ca", "ours", lambda certificate: certificate.is_ca),
    ),
    _row(
        "keyUsage",
        "RFC 5280 4.2.1.3: the challenge is signed",
        Rule("digital_signature_missing", "SPIRE", _lacks("digital_signature")),
        Rule(
            "key_cert_sign_set",
            "ours",
            lambda certificate: bool(certificate.key_usage and certificate.key_usage.key_cert_sign),
        ),
    ),
    _row(
        "extendedKeyUsage",
        "ours: a certificate for mail or for code was not made for a node",
        Rule("wrong_purpose", "RFC 5280 4.2.1.12", _not_for_tls),
    ),
    _row(
        "critical extensions",
        "RFC 5280 4.2: what is critical and not known means refusal",
        Rule("critical_extension", "RFC 5280 4.2", lambda certificate: certificate.unknown_critical),
    ),
)

# A CA above it, root or intermediate.
NODE_CA: Final[tuple[Row, ...]] = (
    _row(
        "subjectPublicKeyInfo",
        "ours: what nobody can make slow",
        Rule("unsupported_key", "ours", lambda certificate: not is_known_key(certificate.key)),
    ),
    _row(
        "basicConstraints",
        "RFC 5280 6.1.4 (k)",
        Rule("chain_untrusted", "RFC 5280 6.1.4 (k)", lambda certificate: not certificate.is_ca),
    ),
    _row(
        "keyUsage",
        "RFC 5280 6.1.4 (n); a root without key usage may do all",
        Rule(
            "chain_untrusted",
            "RFC 5280 6.1.4 (n)",
            lambda certificate: certificate.key_usage is not None and not certificate.key_usage.key_cert_sign,
        ),
    ),
    _row(
        "extendedKeyUsage",
        "a limit on what lies below, as for Go",
        Rule("chain_untrusted", "RFC 5280 4.2.1.12", _not_for_tls),
    ),
)

_RULES: Final = Rules(
    ca=NODE_CA,
    # What SVIDs are signed with, and what goes with P-521.
    signature_allowed=lambda certificate: (
        certificate.signature_allowed or certificate.raw.signature_algorithm_oid == Sig.ECDSA_WITH_SHA512
    ),
    max_chain=1 + MAX_INTERMEDIATES,
    budget=_SIGNATURE_BUDGET,
)


@final
@dataclass(frozen=True, slots=True, init=False)
class NodeCertificate:
    """A node's certificate that chains to a root, made by `verify_node_certificate` alone. Anybody may show it."""

    leaf: Certificate
    key: NodeKey
    # Every path that is valid now, leaf first, root last.
    paths: tuple[Path, ...]

    def __init__(self) -> None:
        raise TypeError("NodeCertificate is made by verify_node_certificate()")

    @property
    def fingerprint(self) -> str:
        """SHA-1 of the certificate in lower-case hex: how SPIRE names it."""
        return fingerprint(self.leaf)

    @property
    def serial_number(self) -> str:
        """The serial number in lower-case hex, two digits a byte."""
        return bytes.fromhex(self.leaf.serial.zfill(len(self.leaf.serial) + len(self.leaf.serial) % 2)).hex()

    @property
    def common_name(self) -> str:
        """The last common name of the subject; empty when it has none that can be read."""
        try:
            return common_name(self.leaf.subject)
        except ValueError:
            return ""

    @property
    def not_after(self) -> int:
        """When the last of the paths ends, in Unix seconds."""
        return max(min(certificate.not_after for certificate in path) for path in self.paths)

    def selectors(self, trust_domain: TrustDomain) -> frozenset[Selector]:
        """Return what SPIRE's x509pop says of a node. What a selector cannot hold is left out."""
        values = [f"subject:cn:{self.common_name}"] if self.common_name else []
        values += (f"ca:fingerprint:{fingerprint(ca)}" for path in self.paths for ca in path[1:])
        values.append(f"serialnumber:{self.serial_number}")
        values += (f"san:{key}:{value}" for key, value in _named(self.leaf.uris, trust_domain).items())
        return frozenset(_selectors(values))


def fingerprint(certificate: Certificate) -> str:
    """Return the SHA-1 of a certificate in lower-case hex. A name that SPIRE gave; nothing rests on it being unique."""
    return hashlib.sha1(certificate.der, usedforsecurity=False).hexdigest()


def _named(uris: Sequence[str], trust_domain: TrustDomain) -> dict[str, str]:
    """Read `x509pop://<trust domain>/<key>/<value>`; of two with one key the last counts, as in SPIRE."""
    found = {}
    for uri in uris:
        # urlsplit() would leave line breaks out.
        if not uri.isascii() or not uri.isprintable():
            continue
        try:
            parts = urlsplit(uri)
            path = unquote(parts.path, errors="strict").strip("/")
        except ValueError:
            continue
        key, _, value = path.partition("/")
        if (parts.scheme, parts.netloc) == (X509POP, trust_domain.name) and key and value:
            found[key] = value
    return found


def _selectors(values: Sequence[str]) -> Iterator[Selector]:
    for value in values:
        try:
            yield Selector.of(X509POP, value)
        except SelectorError:
            continue


def read_roots(pem: bytes) -> tuple[Certificate, ...]:
    """Read the CAs, in PEM, that may vouch for nodes. Raise BundleError."""
    if len(pem) > MAX_BUNDLE_BYTES:
        raise BundleError("bundle_too_large")
    try:
        loaded = x509.load_pem_x509_certificates(pem)
        ders = dict.fromkeys(certificate.public_bytes(serialization.Encoding.DER) for certificate in loaded)
        return node_roots(ders)
    except (ValueError, x509.InvalidVersion):
        raise BundleError("malformed_certificate") from None


def node_roots(ders: Iterable[bytes]) -> tuple[Certificate, ...]:
    """Return CAs that may vouch for nodes. Raise BundleError."""
    try:
        roots = tuple(read_certificate(der) for der in ders)
    except ValueError:
        raise BundleError("malformed_certificate") from None
    if len(roots) > MAX_CERTIFICATES:
        raise BundleError("bundle_too_large")
    if any(first_broken(NODE_CA, root) for root in roots):
        raise BundleError("not_a_node_ca")
    return roots


def verify_node_certificate(chain: Sequence[bytes], roots: Sequence[Certificate], at: int) -> NodeCertificate:
    """Verify a chain of DER certificates, leaf first. It may take 25 ms.

    Raise EvidenceError when it cannot be read, or NodeCertificateError.
    """
    certificates = check_node_chain(chain)
    leaf = certificates[0]
    made = object.__new__(NodeCertificate)
    for name, value in {"leaf": leaf, "key": leaf.key, "paths": _paths(certificates, roots, at)}.items():
        object.__setattr__(made, name, value)
    return made


def check_node_chain(chain: Sequence[bytes]) -> list[Certificate]:
    """Check what needs neither time nor CAs, and return the certificates. Raise as `verify_node_certificate` does."""
    leaf, *others = certificates = _read(chain)
    if not _is_node_key(leaf.key):
        raise NodeCertificateError("unsupported_key", "that of the node's certificate")
    for number, certificate in enumerate(others, 1):
        if not is_known_key(certificate.key):
            raise NodeCertificateError("unsupported_key", f"that of intermediate certificate {number}")
    broken = first_broken(NODE, leaf)
    if broken is not None:
        raise NodeCertificateError(broken)
    return certificates


def _read(chain: Sequence[bytes]) -> list[Certificate]:
    if not chain:
        raise EvidenceError("no_certificate")
    if len(chain) > 1 + MAX_INTERMEDIATES:
        raise EvidenceError("too_many_certificates")
    try:
        return [read_certificate(der) for der in chain]
    except ValueError:
        raise EvidenceError("malformed_certificate") from None


def _paths(certificates: Sequence[Certificate], roots: Sequence[Certificate], at: int) -> tuple[Path, ...]:
    """Return every path that is valid now. Raise NodeCertificateError when there is none."""
    search = Paths(certificates, roots, _RULES)
    try:
        found = list(search)
    except TooManySignatures:
        raise NodeCertificateError("chain_untrusted", "too many candidates") from None
    valid = tuple(path for path in found if valid_at(path, at))
    if valid:
        return valid
    if found:
        early = any(certificate.not_before > at for certificate in found[0])
        raise NodeCertificateError("not_yet_valid" if early else "expired")
    if search.constrained and search.constrained.code == "name_constraints_unsupported":
        raise NodeCertificateError("name_constraints_unsupported")
    raise NodeCertificateError("chain_untrusted")
