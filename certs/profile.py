# SPDX-License-Identifier: Apache-2.0
"""The X.509-SVID profile: one table for workloads' certificates and one for CAs', a row a field.

A row says which extension we write, whether it is critical, what a certificate that we accept must not break, in the
order in which that is checked, and where the rule comes from. `firedoor.certs.svid` writes by the rows and
`firedoor.certs.verify` reads by them, so that we cannot issue what we would refuse.

Specs: SVID is X509-SVID.md, RFC is RFC 5280, SPIRE is what its server writes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from firedoor.certs import der
from firedoor.certs.certificate import Certificate
from firedoor.certs.errors import SpiffeIdError
from firedoor.certs.ids import SpiffeId
from firedoor.certs.keys import is_supported
from firedoor.certs.subject_key import SubjectKey

# What one certificate may make a verifier look at. No spec has a number; go-spiffe's users have a handful.
MAX_SANS: Final = 32
# The tags of a GeneralName, RFC 4.2.1.6.
_URI: Final = 0x86
_DNS_NAME: Final = 0x82
# RFC has no limit; webpki builds paths over at most 6 intermediates.
MAX_CHAIN: Final = 7


@dataclass(frozen=True, slots=True)
class Subject:
    """What a certificate that is about to be written says of its holder."""

    spiffe_id: SpiffeId
    dns_names: tuple[str, ...]
    public_key: SubjectKey
    # Of the signer's certificate; a self-signed CA carries its own.
    issuer_key_id: x509.SubjectKeyIdentifier
    path_length: int | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """One way to be refused. `broken` answers whether the certificate breaks it."""

    code: str
    spec: str
    broken: Callable[[Certificate], bool]


@dataclass(frozen=True, slots=True)
class Row:
    """A field of the profile."""

    field: str
    spec: str
    critical: bool
    write: Callable[[Subject], x509.ExtensionType | None]
    rules: tuple[Rule, ...] = ()
    # The value that `write` stands for, in DER, of what tells the holders of one issuer's certificates apart; the other
    # rows are the same in all, see stamp.py.
    of_holder: Callable[[Subject], bytes] | None = None


def first_broken(rows: tuple[Row, ...], certificate: Certificate) -> str | None:
    """Return the code of the first rule that the certificate breaks, None when it breaks none."""
    return next((rule.code for row in rows for rule in row.rules if rule.broken(certificate)), None)


def _usage(**bits: bool) -> x509.KeyUsage:
    names = (
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
    return x509.KeyUsage(**{name: bits.get(name, False) for name in names})


def _has(bit: str) -> Callable[[Certificate], bool]:
    return lambda certificate: bool(certificate.key_usage and getattr(certificate.key_usage, bit))


def _lacks(bit: str) -> Callable[[Certificate], bool]:
    return lambda certificate: not (certificate.key_usage and getattr(certificate.key_usage, bit))


def _may_not_sign(certificate: Certificate) -> bool:
    return certificate.key_usage is not None and not certificate.key_usage.key_cert_sign


def _names(subject: Subject) -> x509.SubjectAlternativeName:
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(subject.spiffe_id))]
    return x509.SubjectAlternativeName([*names, *map(x509.DNSName, subject.dns_names)])


def _names_der(subject: Subject) -> bytes:
    names = [der.element(_URI, str(subject.spiffe_id).encode()), *(_dns_name(name) for name in subject.dns_names)]
    return der.element(der.SEQUENCE, *names)


def _dns_name(name: str) -> bytes:
    return der.element(_DNS_NAME, name.encode())


def _not_an_id(certificate: Certificate) -> bool:
    try:
        SpiffeId.parse(certificate.uris[0])
    except SpiffeIdError:
        return True
    return False


_TLS_BOTH: Final = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def _eku_incomplete(certificate: Certificate) -> bool:
    usages = certificate.extended_key_usage
    return usages is not None and not usages.issuperset(_TLS_BOTH)


_SUBJECT_KEY: Final = Row(
    field="subjectKeyIdentifier",
    spec="RFC 4.2.1.2; authority IDs are this in hex",
    critical=False,
    write=lambda subject: x509.SubjectKeyIdentifier(subject.public_key.identifier),
    of_holder=lambda subject: der.element(der.OCTET_STRING, subject.public_key.identifier),
)
_AUTHORITY_KEY: Final = Row(
    field="authorityKeyIdentifier",
    spec="RFC 4.2.1.1",
    critical=False,
    write=lambda subject: x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(subject.issuer_key_id),
)

# A workload's certificate.
LEAF: Final[tuple[Row, ...]] = (
    Row(
        field="subjectAltName",
        spec="SVID 2: exactly one URI, the SPIFFE ID; other kinds of names may stand beside it",
        # Our subject is never empty, so RFC 4.2.1.6 asks for nothing more.
        critical=False,
        write=_names,
        of_holder=_names_der,
        rules=(
            Rule("uri_san_missing", "SVID 2", lambda certificate: not certificate.uris),
            Rule("uri_san_multiple", "SVID 2 and 5.2", lambda certificate: len(certificate.uris) > 1),
            Rule("too_many_sans", "ours", lambda certificate: len(certificate.names) > MAX_SANS),
            Rule("spiffe_id_invalid", "SVID 5.2, SPIFFE-ID 2", _not_an_id),
            Rule("spiffe_id_root_path", "SVID 3.1", lambda certificate: not SpiffeId.parse(certificate.uris[0]).path),
            Rule(
                "san_not_critical",
                "SVID 3.1, RFC 4.1.2.6",
                lambda certificate: certificate.subject_empty and not certificate.san_critical,
            ),
        ),
    ),
    Row(
        field="basicConstraints",
        spec="SVID 4.1: cA is false. Written although absent means the same: py-spiffe asks for it",
        critical=True,
        write=lambda _: x509.BasicConstraints(ca=False, path_length=None),
        rules=(Rule("leaf_is_ca", "SVID 5.2", lambda certificate: certificate.is_ca),),
    ),
    Row(
        field="keyUsage",
        spec="SVID 4.3: present, critical, digitalSignature, nothing that a CA does; the other two as SPIRE",
        critical=True,
        write=lambda _: _usage(digital_signature=True, key_encipherment=True, key_agreement=True),
        rules=(
            Rule("key_usage_missing", "SVID 4.3", lambda certificate: certificate.key_usage is None),
            Rule("key_usage_not_critical", "SVID 4.3", lambda certificate: not certificate.key_usage_critical),
            Rule("digital_signature_missing", "SVID 4.3", _lacks("digital_signature")),
            Rule("key_cert_sign_set", "SVID 5.2", _has("key_cert_sign")),
            Rule("crl_sign_set", "SVID 5.2", _has("crl_sign")),
        ),
    ),
    Row(
        field="extendedKeyUsage",
        spec="SVID 4.4: when present, both serverAuth and clientAuth",
        critical=False,
        write=lambda _: x509.ExtendedKeyUsage(_TLS_BOTH),
        rules=(Rule("eku_incomplete", "SVID 4.4", _eku_incomplete),),
    ),
    Row(
        field="subjectPublicKeyInfo",
        spec="ours: what every TLS library takes and nobody can make slow",
        critical=False,
        write=lambda _: None,
        rules=(Rule("unsupported_key", "ours", lambda certificate: not is_supported(certificate.key)),),
    ),
    _SUBJECT_KEY,
    _AUTHORITY_KEY,
)

# A CA's certificate, whether root or intermediate. What breaks a rule here is no issuer: the path does not go over it.
CA: Final[tuple[Row, ...]] = (
    Row(
        field="subjectAltName",
        spec="SVID 3.2: should be an SVID, without a path. Verified with the trust domain of the leaf, see verify.py",
        critical=False,
        write=_names,
    ),
    Row(
        field="basicConstraints",
        spec="SVID 4.1: cA is true",
        critical=True,
        write=lambda subject: x509.BasicConstraints(ca=True, path_length=subject.path_length),
        rules=(Rule("chain_untrusted", "SVID 4.1, RFC 6.1.4 (k)", lambda certificate: not certificate.is_ca),),
    ),
    Row(
        field="keyUsage",
        spec="SVID 4.3: keyCertSign; cRLSign as SPIRE. Roots as OpenSSL makes them have no key usage, which allows all",
        critical=True,
        write=lambda _: _usage(key_cert_sign=True, crl_sign=True),
        rules=(Rule("chain_untrusted", "SVID 4.3, RFC 6.1.4 (n)", _may_not_sign),),
    ),
    Row(
        field="extendedKeyUsage",
        spec="SVID 4.4: may be present. Libraries differ on what it means then: for us a limit, as for webpki and Go",
        critical=False,
        write=lambda _: None,
        rules=(Rule("chain_untrusted", "SVID 4.4", _eku_incomplete),),
    ),
    Row(
        field="nameConstraints",
        spec="SVID 4.2: never written; few evaluate the URI kind, and who does not must refuse. See constraints.py",
        critical=True,
        write=lambda _: None,
    ),
    Row(
        field="subjectPublicKeyInfo",
        spec="ours, as in a leaf",
        critical=False,
        write=lambda _: None,
        rules=(Rule("chain_untrusted", "ours", lambda certificate: not is_supported(certificate.key)),),
    ),
    _SUBJECT_KEY,
    _AUTHORITY_KEY,
)
