# SPDX-License-Identifier: Apache-2.0
"""What a stamp writes is what the builder writes, byte for byte, and chains verify."""

import os

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from firedoor.certs import (
    KeyType,
    PublicKey,
    SpiffeId,
    SubjectKey,
    TrustBundle,
    TrustDomain,
    X509Issuer,
    der,
    generate_key,
    issue_ca,
    issue_x509,
    profile,
    svid,
    verify_x509_svid,
)
from firedoor.certs.keys import signing
from firedoor.certs.stamp import Holder, Stamp

TD = TrustDomain.parse("td")
NOW = 1_800_000_000
SIGNERS = {kind.value: generate_key(kind) for kind in (KeyType.EC_P256, KeyType.EC_P384, KeyType.RSA_2048)}
ISSUERS = {name: issue_ca(TD, key, at=NOW, random=os.urandom, ttl=10**9) for name, key in SIGNERS.items()}
KEYS: list[PublicKey] = [
    *(key.public_key() for key in SIGNERS.values()),
    ed25519.Ed25519PrivateKey.generate().public_key(),
]
SEGMENT = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789-_.", min_size=1, max_size=60).filter(
    lambda text: text not in (".", "..")
)
LABEL = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=50)


def subject(issuer: X509Issuer, path: str, names: tuple[str, ...], key: PublicKey) -> profile.Subject:
    key_id = x509.SubjectKeyIdentifier(bytes.fromhex(issuer.authority_id))
    return profile.Subject(SpiffeId.parse(f"spiffe://td{path}"), names, SubjectKey.of(key), key_id)


@pytest.mark.parametrize("kind", ISSUERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_same_bytes_as_the_builder(kind: str, data: st.DataObject) -> None:
    issuer = ISSUERS[kind]
    stamp = Stamp(first_leaf(issuer), subject(issuer, "/first", (), KEYS[0]), signing(issuer.key))
    names = tuple(data.draw(st.lists(LABEL, max_size=4, unique=True)))
    path = "".join(f"/{one}" for one in data.draw(st.lists(SEGMENT, min_size=1, max_size=5)))
    begins = data.draw(st.integers(0, 4_000_000_000))
    holder = Holder(
        subject(issuer, path, names, data.draw(st.sampled_from(KEYS))),
        svid._leaf_name(names),
        data.draw(st.integers(1, 2**128 - 1)),
        begins,
        begins + data.draw(st.integers(1, 10**9)),
    )
    built = svid._build(profile.LEAF, holder, issuer.certificate.subject, issuer.key)
    assert stamp.to_be_signed(holder) == built.tbs_certificate_bytes
    made = x509.load_der_x509_certificate(stamp.sign(holder))
    assert made.signature_algorithm_oid == built.signature_algorithm_oid
    check_signature(made, issuer)


def first_leaf(issuer: X509Issuer) -> x509.Certificate:
    holder = Holder(subject(issuer, "/first", (), KEYS[0]), svid._leaf_name(()), 1, NOW, NOW + 1)
    return svid._build(profile.LEAF, holder, issuer.certificate.subject, issuer.key)


def check_signature(made: x509.Certificate, issuer: X509Issuer) -> None:
    key, digest = issuer.certificate.public_key(), made.signature_hash_algorithm
    assert digest is not None
    if isinstance(key, rsa.RSAPublicKey):
        key.verify(made.signature, made.tbs_certificate_bytes, padding.PKCS1v15(), digest)
    else:
        assert isinstance(key, ec.EllipticCurvePublicKey)
        key.verify(made.signature, made.tbs_certificate_bytes, ec.ECDSA(digest))


@pytest.mark.parametrize("kind", ISSUERS)
def test_the_first_and_the_stamped_verify(kind: str) -> None:
    issuer = issue_ca(TD, SIGNERS[kind], at=NOW, random=os.urandom)
    bundles = {TD: TrustBundle.of(TD, [issuer.der])}
    for number in range(3):
        made = issue_x509(TD.with_path(f"/w{number}"), KEYS[number], issuer, at=NOW, random=os.urandom, ttl=60 + number)
        found = verify_x509_svid(made.chain, bundles, NOW)
        assert (found.svid.id, found.svid.serial, found.svid.not_after) == (made.id, made.serial, NOW + 60 + number)
    assert len(issuer.stamps) == 1


def test_a_row_of_the_holder_is_marked() -> None:
    """Two holders differ in the rows that have a value of the holder, and in no other."""
    issuer = ISSUERS["ec-p256"]
    one, other = subject(issuer, "/a", (), KEYS[0]), subject(issuer, "/b", ("n",), KEYS[1])
    for row in profile.LEAF:
        same = row.write(one) == row.write(other)
        assert same is (row.of_holder is None), row.field


@pytest.mark.parametrize("size", [0, 1, 127, 128, 255, 256, 65535, 65536])
def test_lengths_of_every_form(size: int) -> None:
    made = der.element(der.SEQUENCE, der.element(der.OCTET_STRING, b"x" * size), der.integer(size))
    assert der.elements(made) == [der.element(der.OCTET_STRING, b"x" * size), der.integer(size)]
    assert int.from_bytes(der.elements(made)[1][2:]) == size
