# SPDX-License-Identifier: Apache-2.0
"""Revocation lists: what is signed, what is refused, and what OpenSSL makes of them."""

import datetime as dt
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from firedoor.certs import (
    MAX_CRL_ENTRIES,
    Crl,
    CrlError,
    IssueError,
    KeyType,
    TrustBundle,
    TrustDomain,
    X509Issuer,
    X509Svid,
    generate_key,
    issue_ca,
    issue_crl,
    issue_x509,
    read_crl,
    verify_crl,
)
from firedoor.certs.crl import MAX_CRL_BYTES
from tests.openssl import verify

TD = TrustDomain.parse("td")
NOW = 1_800_000_000
ROOT = issue_ca(TD, generate_key(KeyType.EC_P256), at=NOW, random=os.urandom)
OTHER = issue_ca(TD, generate_key(KeyType.EC_P384), at=NOW, random=os.urandom)
BELOW = issue_ca(TD, generate_key(KeyType.RSA_2048), at=NOW, random=os.urandom, issuer=ROOT)
BUNDLE = TrustBundle.of(TD, [ROOT.der, OTHER.der])
CRL = issue_crl(ROOT, {"3f9c": NOW, "1": NOW - 5}, number=2**70 + 1, at=NOW)


def svid(issuer: X509Issuer, path: str = "/segment/a/x") -> X509Svid:
    key = generate_key(KeyType.EC_P256).public_key()
    return issue_x509(TD.with_path(path), key, issuer, at=NOW, random=os.urandom)


@pytest.mark.parametrize("issuer", [ROOT, OTHER, BELOW], ids=["p256", "p384", "rsa-below"])
def test_what_is_signed_verifies(issuer: X509Issuer) -> None:
    made = issue_crl(issuer, {"3f9c": NOW, "1": NOW - 5}, number=2**70 + 1, at=NOW)
    found = verify_crl(made.der, issuer.above or [issuer.der], BUNDLE, NOW)
    assert found == made
    assert found.authority_id == issuer.authority_id
    assert (found.number, found.this_update, found.next_update) == (2**70 + 1, NOW - 10, NOW + 24 * 3600)
    assert found.revoked() == {"3f9c": NOW, "1": NOW - 5}


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(st.integers(1, 2**127).map(lambda n: f"{n:x}"), st.integers(1, 2**32), max_size=20),
    st.integers(0, 2**150),
)
def test_whatever_is_listed_is_read_back(revoked: dict[str, int], number: int) -> None:
    made = issue_crl(ROOT, revoked, number=number, at=NOW)
    found = verify_crl(made.der, [ROOT.der], BUNDLE, NOW)
    assert (found.revoked(), found.number) == (revoked, number)
    # The same list in another order is the same bytes, but for the signature.
    assert read_crl(issue_crl(ROOT, dict(reversed(revoked.items())), number=number, at=NOW).der).revoked() == revoked


def test_a_full_list_is_within_the_caps() -> None:
    many = {f"{1 << 127 | n:x}": NOW for n in range(MAX_CRL_ENTRIES)}
    made = issue_crl(ROOT, many, number=2**150, at=NOW)
    assert len(made.der) < MAX_CRL_BYTES * 3 // 4
    assert verify_crl(made.der, [ROOT.der], BUNDLE, NOW).revoked() == many
    with pytest.raises(IssueError) as caught:
        issue_crl(ROOT, {**many, "1": NOW}, number=1, at=NOW)
    assert caught.value.code == "crl_too_long"


def test_who_may_not_sign() -> None:
    key = generate_key(KeyType.EC_P256)
    usage = {name: name == "key_cert_sign" for name in _USAGE}
    name = x509.Name([])
    built = (
        x509.CertificateBuilder(name, name, key.public_key(), 5, _time(NOW), _time(NOW + 60))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    der = built.public_bytes(serialization.Encoding.DER)
    with pytest.raises(IssueError) as issuing:
        issue_crl(X509Issuer.load(TD, der, key), {}, number=1, at=NOW)
    assert issuing.value.code == "crl_sign_missing"
    assert refused(CRL.der, [der]) == "crl_sign_missing"


_USAGE = (
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


def _time(seconds: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)


def refused(der: bytes, signers: list[bytes] | None = None, bundle: TrustBundle = BUNDLE, at: int = NOW) -> str:
    with pytest.raises(CrlError) as caught:
        verify_crl(der, [ROOT.der] if signers is None else signers, bundle, at)
    return caught.value.code


def made_with(*extensions: tuple[x509.ExtensionType, bool], issuer: X509Issuer = ROOT, key: Any = None) -> bytes:
    """Return a list with just these extensions."""
    builder = x509.CertificateRevocationListBuilder(issuer.certificate.subject, _time(NOW), _time(NOW + 60))
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(key or issuer.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


NUMBER, ABOVE = x509.CRLNumber(1), x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ROOT.key_id)
POINT = x509.IssuingDistributionPoint(
    full_name=None,
    relative_name=None,
    only_contains_user_certs=True,
    only_contains_ca_certs=False,
    only_some_reasons=None,
    indirect_crl=False,
    only_contains_attribute_certs=False,
)

REFUSED: dict[str, Callable[[], str]] = {
    "malformed_crl": lambda: refused(b"\x30\x03\x02\x01\x01"),
    "malformed_crl when empty": lambda: refused(b""),
    "malformed_crl when cut": lambda: refused(CRL.der[:-1]),
    "malformed_crl with more after it": lambda: refused(CRL.der + b"\0"),
    "crl_too_long": lambda: refused(CRL.der + bytes(MAX_CRL_BYTES)),
    "crl_expired": lambda: refused(CRL.der, at=CRL.next_update + 1),
    "crl_untrusted by its authority": lambda: refused(CRL.der, bundle=TrustBundle.of(TD, [OTHER.der])),
    "crl_untrusted without one": lambda: refused(CRL.der, []),
    "crl_untrusted with garbage": lambda: refused(CRL.der, [b"garbage"]),
    "crl_untrusted with too many": lambda: refused(CRL.der, [ROOT.der] * 8),
    "crl_sign_missing of a leaf": lambda: refused(CRL.der, list(svid(ROOT).chain)),
    "crl_of_another": lambda: refused(CRL.der, [OTHER.der]),
    "bad_crl_signature": lambda: refused(made_with((NUMBER, False), (ABOVE, False), key=OTHER.key)),
    "bad_crl_signature of other bytes": lambda: refused(CRL.der[:-1] + bytes([CRL.der[-1] ^ 1])),
    "crl_incomplete without number": lambda: refused(made_with((ABOVE, False))),
    "crl_incomplete without authority": lambda: refused(made_with((NUMBER, False))),
    "partial_crl of users": lambda: refused(made_with((NUMBER, False), (ABOVE, False), (POINT, True))),
    "partial_crl as a delta": lambda: refused(
        made_with((NUMBER, False), (ABOVE, False), (x509.DeltaCRLIndicator(1), True))
    ),
    "partial_crl by what is unknown": lambda: refused(
        made_with(
            (NUMBER, False),
            (ABOVE, False),
            (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00"), True),
        )
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    assert REFUSED[name]() == name.split()[0]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(CRL.der) - 1), st.integers(1, 255))
def test_no_changed_byte_goes_through(place: int, change: int) -> None:
    changed = bytearray(CRL.der)
    changed[place] ^= change
    with pytest.raises(CrlError):
        verify_crl(bytes(changed), [ROOT.der], BUNDLE, NOW)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_garbage_raises_nothing_else(data: bytes) -> None:
    with pytest.raises(CrlError):
        read_crl(data)


# --- OpenSSL ----------------------------------------------------------------------------------------------------------


def openssl(folder: Path, chain: tuple[bytes, ...], *crls: Crl, at: int = NOW) -> str:
    roots = [root.der for root in BUNDLE.x509_roots]
    return verify(folder, chain, roots, [one.der for one in crls], at)


def test_openssl_accepts_who_is_not_listed_and_refuses_who_is(tmp_path: Path) -> None:
    good, bad = svid(ROOT), svid(ROOT)
    mine = issue_crl(ROOT, {bad.serial: NOW}, number=1, at=NOW)
    # Those of other authorities lie beside it, as workloads get them.
    for crls in ([mine], [issue_crl(OTHER, {good.serial: NOW}, number=9, at=NOW), mine]):
        assert openssl(tmp_path, good.chain, *crls) == "OK"
        assert "certificate revoked" in openssl(tmp_path, bad.chain, *crls)
    assert "CRL has expired" in openssl(tmp_path, good.chain, issue_crl(ROOT, {}, number=1, at=NOW, ttl=5), at=NOW + 6)


def test_openssl_below_an_authority_upstream(tmp_path: Path) -> None:
    good, bad = svid(BELOW), svid(BELOW)
    mine = issue_crl(BELOW, {bad.serial: NOW}, number=1, at=NOW)
    assert openssl(tmp_path, good.chain, mine) == "OK"
    assert "certificate revoked" in openssl(tmp_path, bad.chain, mine)
    # The root's own list says nothing about what is below another authority.
    assert "unable to get certificate CRL" in openssl(tmp_path, good.chain, CRL)
