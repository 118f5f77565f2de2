# SPDX-License-Identifier: Apache-2.0
import hashlib
import os
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from firedoor.certs import (
    NOT_BEFORE_CUSHION,
    IssueError,
    KeyType,
    SpiffeId,
    SvidError,
    TrustBundle,
    TrustDomain,
    X509Issuer,
    check_dns_name,
    generate_key,
    issue_ca,
    issue_x509,
    parse_x509_svid,
    split_der,
    verify_x509_svid,
)
from firedoor.certs.profile import CA, LEAF

TD = TrustDomain.parse("td")
NOW = 1_800_000_000
ID = SpiffeId.parse("spiffe://td/segment/a/x")
CA_KEY = generate_key(KeyType.EC_P256)
ROOT = issue_ca(TD, CA_KEY, at=NOW, random=os.urandom)
KEY = generate_key(KeyType.EC_P256).public_key()


def issue(**changes: Any) -> x509.Certificate:
    arguments: dict[str, Any] = {"spiffe_id": ID, "public_key": KEY, "issuer": ROOT, "at": NOW, "random": os.urandom}
    return x509.load_der_x509_certificate(issue_x509(**{**arguments, **changes}).chain[0])


def extension(certificate: x509.Certificate, kind: type[Any]) -> tuple[Any, bool]:
    found = certificate.extensions.get_extension_for_class(kind)
    return found.value, found.critical


def test_leaf_is_what_spire_writes() -> None:
    leaf = issue(dns_names=["models.internal", "models"])
    assert leaf.version is x509.Version.v3
    assert [attribute.value for attribute in leaf.subject] == ["firedoor", "models.internal"]
    assert leaf.issuer == ROOT.certificate.subject != leaf.subject
    names, critical = extension(leaf, x509.SubjectAlternativeName)
    assert [name.value for name in names] == [str(ID), "models.internal", "models"]
    assert not critical
    assert extension(leaf, x509.BasicConstraints) == (x509.BasicConstraints(ca=False, path_length=None), True)
    usage, critical = extension(leaf, x509.KeyUsage)
    assert critical
    assert (usage.digital_signature, usage.key_encipherment, usage.key_agreement) == (True, True, True)
    assert (usage.key_cert_sign, usage.crl_sign, usage.content_commitment) == (False, False, False)
    extended, _ = extension(leaf, x509.ExtendedKeyUsage)
    assert [*extended] == [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    point = KEY.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    assert extension(leaf, x509.SubjectKeyIdentifier)[0].digest == hashlib.sha1(point).digest()
    assert extension(leaf, x509.AuthorityKeyIdentifier)[0].key_identifier.hex() == ROOT.authority_id
    assert len([*leaf.extensions]) == 6


def test_ca_is_what_spire_writes() -> None:
    ca = ROOT.certificate
    assert [attribute.oid for attribute in ca.subject] == [NameOID.ORGANIZATION_NAME, NameOID.SERIAL_NUMBER]
    names, _ = extension(ca, x509.SubjectAlternativeName)
    assert [name.value for name in names] == ["spiffe://td"]
    assert extension(ca, x509.BasicConstraints) == (x509.BasicConstraints(ca=True, path_length=None), True)
    usage, critical = extension(ca, x509.KeyUsage)
    assert (usage.key_cert_sign, usage.crl_sign, usage.digital_signature, critical) == (True, True, False, True)
    with pytest.raises(x509.ExtensionNotFound):
        extension(ca, x509.NameConstraints)
    assert (ROOT.not_before, ROOT.not_after) == (NOW - 10, NOW + 24 * 3600)


def test_two_cas_have_different_names() -> None:
    assert issue_ca(TD, CA_KEY, at=NOW, random=os.urandom).certificate.subject != ROOT.certificate.subject


def test_without_dns_names_there_is_no_common_name() -> None:
    assert [attribute.oid for attribute in issue().subject] == [NameOID.ORGANIZATION_NAME]


def test_a_long_dns_name_stands_in_the_san_alone() -> None:
    name = ".".join(["a" * 30] * 3)
    leaf = issue(dns_names=[name])
    assert [attribute.oid for attribute in leaf.subject] == [NameOID.ORGANIZATION_NAME]
    assert extension(leaf, x509.SubjectAlternativeName)[0].get_values_for_type(x509.DNSName) == [name]


def test_serial_is_128_random_bits() -> None:
    def random(count: int) -> bytes:
        return bytes(range(0xF0, 0xF0 + count))

    assert issue(random=random).serial_number == int.from_bytes(bytes(range(0xF0, 0x100)))
    assert issue(random=bytes).serial_number == 1


def test_times() -> None:
    svid = issue_x509(ID, KEY, ROOT, at=NOW, random=os.urandom, ttl=600)
    assert (svid.not_before, svid.not_after) == (NOW - NOT_BEFORE_CUSHION, NOW + 600)
    assert svid.half_life == NOW - 10 + 305


def test_the_leaf_ends_with_its_issuer() -> None:
    late = issue_x509(ID, KEY, ROOT, at=ROOT.not_after - 60, random=os.urandom, ttl=3600)
    assert late.not_after == ROOT.not_after


def test_under_an_intermediate() -> None:
    middle = issue_ca(TD, generate_key(KeyType.EC_P384), at=NOW, random=os.urandom, issuer=ROOT)
    lower = issue_ca(TD, generate_key(KeyType.EC_P256), at=NOW, random=os.urandom, issuer=middle, path_length=0)
    svid = issue_x509(ID, KEY, lower, at=NOW, random=os.urandom)
    assert svid.chain[1:] == (lower.der, middle.der)
    verified = verify_x509_svid(svid.chain, {TD: TrustBundle.of(TD, [ROOT.der])}, NOW)
    assert verified.authority_ids == (lower.authority_id, middle.authority_id, ROOT.authority_id)
    assert verified.svid == svid


@pytest.mark.parametrize("key_type", KeyType)
def test_every_kind_of_authority(key_type: KeyType) -> None:
    ca = issue_ca(TD, generate_key(key_type), at=NOW, random=os.urandom)
    svid = issue_x509(ID, KEY, ca, at=NOW, random=os.urandom)
    assert verify_x509_svid(svid.chain, {TD: TrustBundle.of(TD, [ca.der])}, NOW).id == ID


@pytest.mark.parametrize(
    ("name", "changes", "code"),
    [
        ("another trust domain", {"spiffe_id": SpiffeId.parse("spiffe://other/x")}, "foreign_trust_domain"),
        ("no path", {"spiffe_id": TD.id}, "spiffe_id_root_path"),
        ("expired authority", {"at": ROOT.not_after}, "authority_expired"),
        ("no time", {"ttl": 0}, "bad_ttl"),
        ("negative time", {"ttl": -1}, "bad_ttl"),
        ("weak key", {"public_key": ec.generate_private_key(ec.SECP521R1()).public_key()}, "unsupported_key"),
        ("32 DNS names", {"dns_names": [f"n{i}" for i in range(32)]}, "too_many_sans"),
        ("bad DNS name", {"dns_names": ["good", "bad name"]}, "bad_dns_name"),
    ],
)
def test_refused(name: str, changes: dict[str, Any], code: str) -> None:
    with pytest.raises(IssueError) as caught:
        issue(**changes)
    assert caught.value.code == code


def test_31_dns_names() -> None:
    issue(dns_names=[f"n{i}" for i in range(31)])


def test_subject_never_equals_the_issuer() -> None:
    """OpenSSL takes a certificate whose two names are equal for self-signed and looks no further."""
    name = issue().subject
    upstream = (
        x509.CertificateBuilder(
            subject_name=name,
            issuer_name=ROOT.certificate.subject,
            public_key=CA_KEY.public_key(),
            serial_number=1,
            not_valid_before=ROOT.certificate.not_valid_before_utc,
            not_valid_after=ROOT.certificate.not_valid_after_utc,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(CA_KEY.public_key()), critical=False)
        .sign(CA_KEY, ROOT.certificate.signature_hash_algorithm)  # type: ignore[arg-type]
    )
    issuer = X509Issuer.load(TD, upstream.public_bytes(serialization.Encoding.DER), CA_KEY)
    with pytest.raises(IssueError) as caught:
        issue(issuer=issuer)
    assert caught.value.code == "subject_equals_issuer"
    issue(issuer=issuer, dns_names=["models"])


def test_load_an_issuer() -> None:
    assert X509Issuer.load(TD, ROOT.der, CA_KEY).authority_id == ROOT.authority_id
    with pytest.raises(IssueError) as caught:
        X509Issuer.load(TD, ROOT.der, generate_key(KeyType.EC_P256))
    assert caught.value.code == "key_mismatch"
    with pytest.raises(SvidError):
        X509Issuer.load(TD, b"junk", CA_KEY)


@pytest.mark.parametrize("name", ["a", "a.b", "*.a.b", "xn--bcher-kva.example", "_grpc.a", "a" * 63, "1.a"])
def test_dns_name(name: str) -> None:
    check_dns_name(name)


BAD_CHARACTERS = ["A", "a b", "é", "a\n", "a/b", "a:1", "a*"]
BAD_LABELS = ["", ".", "a.", ".a", "a..b", "-a", "a-", "a" * 64, ".".join(["a" * 50] * 5)]


@pytest.mark.parametrize("name", [*BAD_CHARACTERS, *BAD_LABELS, "*", "a.*", "*.*.a", "10.0.0.1", "a.1"])
def test_bad_dns_name(name: str) -> None:
    with pytest.raises(IssueError):
        check_dns_name(name)


paths = st.lists(st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True), min_size=1, max_size=4).map("/".join)
dns_names = st.lists(st.from_regex(r"[a-z]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True), max_size=4, unique=True)


@settings(max_examples=50)
@given(paths, dns_names, st.integers(1, 100_000), st.integers(0, 80_000))
def test_what_we_issue_we_read_and_verify(path: str, names: list[str], ttl: int, later: int) -> None:
    spiffe_id, at = TD.with_path(f"/{path}"), NOW + later
    issued = issue_x509(spiffe_id, KEY, ROOT, at=at, random=os.urandom, ttl=ttl, dns_names=names)
    assert parse_x509_svid(issued.chain) == issued
    assert (issued.id, issued.dns_names) == (spiffe_id, tuple(names))
    assert issued.not_after == min(at + ttl, ROOT.not_after)
    verified = verify_x509_svid(issued.chain, {TD: TrustBundle.of(TD, [ROOT.der])}, at)
    assert (verified.id, verified.not_after) == (spiffe_id, issued.not_after)


LEAF_DER = issue_x509(ID, KEY, ROOT, at=NOW, random=os.urandom, dns_names=["models"]).chain[0]

UNUSED_BITS = len(LEAF_DER) - len(x509.load_der_x509_certificate(LEAF_DER).signature) - 1


@given(st.binary(max_size=300))
def test_any_bytes(der: bytes) -> None:
    with pytest.raises(SvidError) as caught:
        parse_x509_svid([der])
    assert caught.value.code in SvidError.sentences


# `cryptography` warns of a serial number in the authority key identifier that is not positive.
@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@given(st.lists(st.tuples(st.integers(0, len(LEAF_DER) - 1), st.integers(1, 255)), min_size=1, max_size=3))
def test_no_change_of_a_leaf_verifies(changes: list[tuple[int, int]]) -> None:
    der = bytearray(LEAF_DER)
    for position, value in changes:
        der[position] = (der[position] + value) % 256
    # A BIT STRING may call a last zero bit unused, which is all that this byte before the signature says.
    der[UNUSED_BITS] = LEAF_DER[UNUSED_BITS]
    if bytes(der) == LEAF_DER:
        return
    with pytest.raises(SvidError) as caught:
        verify_x509_svid([bytes(der)], {TD: TrustBundle.of(TD, [ROOT.der])}, NOW)
    assert caught.value.code in SvidError.sentences


def test_split_der() -> None:
    assert split_der(LEAF_DER + ROOT.der) == [LEAF_DER, ROOT.der]
    assert split_der(b"") == []


@given(st.binary(max_size=64))
def test_split_any_bytes(blob: bytes) -> None:
    try:
        parts = split_der(blob)
    except ValueError:
        return
    assert b"".join(parts) == blob


@pytest.mark.parametrize(
    "blob", [b"\x30", b"\x31\x00", b"\x30\x80\x00\x00", b"\x30\x84\x00\x00\x00\x00", LEAF_DER[:-1]]
)
def test_split_malformed(blob: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        split_der(blob)


@pytest.mark.parametrize("row", [*LEAF, *CA], ids=lambda row: row.field)
def test_every_row_names_its_source(row: Any) -> None:
    assert row.spec
    assert all(rule.spec and rule.code in SvidError.sentences for rule in row.rules)
